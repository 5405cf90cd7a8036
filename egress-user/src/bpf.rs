//! The eBPF object.

/// The object that the build script made; empty when it found no BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.o"));

/// The eBPF object's bytes; empty in a build without a BPF toolchain.
pub fn object() -> &'static [u8] {
    OBJECT
}
