//! What the eBPF programs and the agent share: the map types (`abi`) and the translation engine
//! (`nat`), which decides and never writes.
//!
//! Everything here is plain safe Rust without allocation; the engine sees packets and tables
//! through two traits, so that tc, XDP and a host test run the very same code.
#![cfg_attr(not(any(test, feature = "testing")), no_std)]
#![forbid(unsafe_code)]

pub mod abi;
pub mod answer;
pub mod bench;
pub mod checksum;
pub mod crowd;
pub mod expiry;
pub mod fence;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod lease;
pub mod limit;
pub mod mapping;
pub mod mark;
pub mod masquerade;
pub mod nat;
pub mod port;
pub mod probe;
pub mod reason;
pub mod rewrite;
pub mod spread;
pub mod state;
pub mod tables;
#[cfg(feature = "testing")]
pub mod testing;
pub mod wire;
