//! The planner through its public face: the stories of OpenShift's egress IPs, its defects that we
//! do not share, the texts for OVS, the allocation, and properties of all plans.
#[cfg(test)]
mod allocation;
#[cfg(test)]
mod cluster;
#[cfg(test)]
mod defects;
mod drain;
#[cfg(test)]
mod flows;
#[cfg(test)]
mod mapping;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod size;
#[cfg(test)]
mod sticky;
#[cfg(test)]
mod stories;
