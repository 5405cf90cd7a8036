//! Where objects come from.
pub mod edit;
pub mod files;
mod pieces;
pub mod watch;
