//! The build of the eBPF object, shared by the `xtask` command and `egress-user/build.rs`.
pub mod ebpf;
