//! The agent's configuration and the cluster's objects that fit the rig.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use super::{
    Rig,
    topology::{CLUSTER_NETWORK, GATEWAY, Node, SERVICE_NETWORK, TUNNEL, UPLINK, VXLAN_PORT},
};

/// The AgentConfig of the egress node. The layout is that of the origin notes.
#[must_use]
pub fn agent_config(rig: &Rig) -> String {
    let Node { name, ip, .. } = &rig.egress;
    format!(
        "apiVersion: egress/v1alpha1\n\
         kind: AgentConfig\n\
         node: {{name: {name}, ip: {ip}, uplink: {UPLINK}}}\n\
         tunnel: {{device: {TUNNEL}, port: {VXLAN_PORT}}}\n\
         gateway: {GATEWAY}\n\
         clusterNetworks: [{CLUSTER_NETWORK}]\n\
         serviceNetworks: [{SERVICE_NETWORK}]\n\
         compat: old\n\
         ovs: {{enabled: false}}\n"
    )
}

/// HostSubnets of both nodes and a NetNamespace for each tenant, as `oc get -o yaml` prints them.
#[must_use]
pub fn cluster_objects(rig: &Rig) -> String {
    let tenants: BTreeMap<&str, (u32, Option<Ipv4Addr>)> =
        rig.pods.iter().map(|pod| (pod.namespace.as_str(), (pod.vnid, pod.egress_ip))).collect();
    let hosted: Vec<String> =
        tenants.values().filter_map(|(_, ip)| ip.map(|ip| format!("\"{ip}\""))).collect();
    let mut text = String::new();
    for (node, egress_ips) in [(&rig.source, String::new()), (&rig.egress, hosted.join(", "))] {
        let Node { name, ip, subnet, .. } = node;
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\n\
             apiVersion: network.openshift.io/v1\n\
             kind: HostSubnet\n\
             metadata: {{name: {name}}}\n\
             host: {name}\n\
             hostIP: {ip}\n\
             subnet: {subnet}\n\
             egressIPs: [{egress_ips}]\n"
        );
    }
    for (name, (vnid, egress_ip)) in tenants {
        let egress_ip = egress_ip.map(|ip| format!("\"{ip}\"")).unwrap_or_default();
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
