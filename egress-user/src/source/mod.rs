//! Where objects come from.
pub mod files;
pub mod watch;
