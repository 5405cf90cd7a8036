//! The network-namespace topologies, traffic and faults that the tests, the demo and the rig share.
pub mod bench;
pub mod chaos;
pub mod gateway;
pub mod kernel_log;
pub mod lone;
pub mod mutation;
pub mod netns;
pub mod oracle;
pub mod ovs;
pub mod report;
pub mod rig;
pub mod storm;
pub mod test_run;
pub mod traffic;
