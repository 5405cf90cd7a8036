//! What the eBPF programs and the agent share: map types, and the translation engine.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod bench;
pub mod mark;
