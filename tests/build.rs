//! Builds the benchmark's eBPF programs and leaves the object where `bench/object.rs` includes it.
fn main() -> anyhow::Result<()> {
    xtask::ebpf::build_binary_from_build_script("egress-bench", "egress-bench.o")
}
