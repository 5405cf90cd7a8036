//! The hands of the agent: each reconciler observes, diffs and applies, and decides nothing.
//!
//! A reconciler trusts only what the kernel says now; run twice, the second run changes nothing.
pub mod addresses;
pub mod announce;
