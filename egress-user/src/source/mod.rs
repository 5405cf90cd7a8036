//! Where objects come from.
pub mod allocation;
pub mod edit;
pub mod files;
mod pieces;
pub mod watch;
