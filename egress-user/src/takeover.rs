//! The way over from the original to us on a live node, and the way back: what is pure of it. The
//! steps themselves are the agent's (`agent::takeover`), since they need all that it has.
pub mod adopt;
pub mod chain;
pub mod journal;
