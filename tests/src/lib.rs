//! The network-namespace topologies, traffic and faults that the tests, the demo and the rig share.
pub mod bench;
