//! Where objects come from.
pub mod edit;
pub mod files;
pub mod watch;
