//! Builds the eBPF programs and leaves the object where `bpf.rs` includes it.
fn main() -> anyhow::Result<()> {
    xtask::ebpf::build_from_build_script()
}
