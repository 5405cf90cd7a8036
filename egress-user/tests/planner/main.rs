//! The planner through its public face: the stories of OpenShift's egress IPs, its defects that we
//! do not share, the texts for OVS, the allocation, and properties of all plans.
mod allocation;
mod cluster;
mod defects;
mod flows;
mod properties;
mod stories;
