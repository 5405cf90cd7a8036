//! The agent of the egress gateway: decisions in `plan`, hands in `reconcile`.
pub mod bpf;
pub mod diff;
pub mod ovs;
pub mod reconcile;
