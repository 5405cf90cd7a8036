//! What tests of the engine are made of, at every level: tables in memory, packets, and the
//! stories told with them. Only with the feature `testing`, and only on a host.
//!
//! A story speaks to a [`Gateway`] and does not know what is behind it: the engine itself
//! ([`Host`]), or the programs in the kernel.
mod apply;
pub mod checks;
pub mod events;
pub mod gateway;
mod host;
pub mod packet;
pub mod stories;
mod tables;

pub use apply::{Bytes, apply};
pub use gateway::{Gateway, Mapping, Outcome};
pub use host::Host;
pub use tables::MemoryTables;
