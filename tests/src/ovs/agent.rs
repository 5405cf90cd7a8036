//! The agent on the nodes of this rig: its settings, and the cluster's objects.
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::{CLUSTER, EGRESS_NODE, Node, PODS, SERVICES, SOURCE_NODE, Site};
use crate::gateway::Gateway;
use crate::netns::Netns;

/// The namespaces' egress IPs, all on `ocprouter01`, as in the notes.
const EGRESS_IPS: [(&str, Ipv4Addr); 3] = [
    ("egress-test", Ipv4Addr::new(10, 0, 0, 11)),
    ("egress-test2", Ipv4Addr::new(10, 0, 0, 13)),
    ("egress-test3", Ipv4Addr::new(10, 0, 0, 12)),
];

/// The namespace's egress IP; `dbtest` has none.
#[must_use]
pub fn egress_ip(namespace: &str) -> Option<Ipv4Addr> {
    EGRESS_IPS.iter().find(|(name, _)| *name == namespace).map(|(_, ip)| *ip)
}

/// The AgentConfig of a node. The layout is what the bridge says.
#[must_use]
pub fn config(site: &Site) -> String {
    let Site { name, address, .. } = site;
    format!(
        "apiVersion: egress/v1alpha1\n\
         kind: AgentConfig\n\
         node: {{name: {name}, ip: {address}, uplink: {}}}\n\
         gateway: {}\n\
         clusterNetworks: [{CLUSTER}]\n\
         serviceNetworks: [{SERVICES}]\n\
         ovs: {{enabled: true}}\n",
        Node::UPLINK,
        Node::GATEWAY,
    )
}

/// HostSubnets of both nodes and a NetNamespace for each tenant, as `oc get -o yaml` prints them.
#[must_use]
pub fn objects() -> String {
    let mut text = String::new();
    let hosted: Vec<String> = EGRESS_IPS.iter().map(|(_, ip)| format!("\"{ip}\"")).collect();
    for (site, egress_ips) in [(SOURCE_NODE, String::new()), (EGRESS_NODE, hosted.join(", "))] {
        let (name, address, subnet) = (site.name, site.address, site.subnet());
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\n\
             apiVersion: network.openshift.io/v1\n\
             kind: HostSubnet\n\
             metadata: {{name: {name}}}\n\
             host: {name}\n\
             hostIP: {address}\n\
             subnet: {subnet}\n\
             egressIPs: [{egress_ips}]\n"
        );
    }
    let mut tenants: Vec<(&str, u32)> = PODS.iter().map(|pod| (pod.namespace, pod.vnid)).collect();
    tenants.sort_unstable();
    tenants.dedup();
    for (name, vnid) in tenants {
        let egress_ip = egress_ip(name).map(|ip| format!("\"{ip}\"")).unwrap_or_default();
        let _ = write!(
            text,
            "---\n\
             apiVersion: network.openshift.io/v1\n\
             kind: NetNamespace\n\
             metadata: {{name: {name}}}\n\
             netname: {name}\n\
             netid: {vnid}\n\
             egressIPs: [{egress_ip}]\n"
        );
    }
    text
}

/// The agent on a node, ready.
///
/// # Errors
/// It ends, or is not ready in time; with its log.
pub fn start<'a>(node: &Node, netns: &'a Netns) -> Result<Gateway<'a>> {
    start_with(node, netns, "")
}

/// As [`start`], with more lines of settings.
///
/// # Errors
/// As [`start`].
pub fn start_with<'a>(node: &Node, netns: &'a Netns, settings: &str) -> Result<Gateway<'a>> {
    let config = config(&node.site) + settings;
    let mut gateway =
        Gateway::new(netns, &config, &objects())?.with("OVS_RUNDIR", node.ovs.rundir());
    gateway.run_agent()?;
    Ok(gateway)
}
