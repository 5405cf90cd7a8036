//! The agent of the egress gateway: decisions in `plan`, hands in `reconcile`.
pub mod agent;
pub mod arp;
pub mod bpf;
pub mod cidr;
pub mod cli;
pub mod condition;
pub mod config;
pub mod diff;
pub mod health;
pub mod identity;
pub mod model;
pub mod netlink;
pub mod ovs;
pub mod plan;
pub mod reconcile;
pub mod source;
pub mod sweep;
