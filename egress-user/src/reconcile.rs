//! The hands: each reconciler observes the kernel (or Open vSwitch), takes the difference from what
//! is desired, and applies it. None of them decides. Run twice, the second run changes nothing.
pub mod addresses;
pub mod announce;
pub mod attachments;
pub mod flows;
pub mod maps;
pub mod masquerade;
pub mod sources;
pub mod strays;
pub mod wiring;
pub mod xdp;
