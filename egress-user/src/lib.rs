//! The agent of the egress gateway: decisions in `plan`, hands in `reconcile`.
pub mod arp;
pub mod bpf;
pub mod diff;
pub mod identity;
pub mod netlink;
pub mod reconcile;
