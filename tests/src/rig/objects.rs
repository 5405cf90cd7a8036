//! The agent's configuration and the cluster's objects that fit the rig.
