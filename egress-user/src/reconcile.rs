//! The hands: each module observes, compares with what is desired, and applies the difference.
pub mod flows;
