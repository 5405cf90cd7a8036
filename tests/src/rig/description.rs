//! The rig as data, for whoever runs traffic of their own in it: what `rig up --json` prints.

use std::net::Ipv4Addr;

use serde::Serialize;

use super::{
    Rig,
    topology::{CLUSTER_NETWORK, GATEWAY, Node, SERVICE_NETWORK, TUNNEL, UPLINK, VXLAN_PORT},
};

/// A standing rig. `netns` is always a name for `ip netns exec`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Description {
    prefix: String,
    cluster_networks: Vec<&'static str>,
    service_networks: Vec<&'static str>,
    vxlan_port: u16,
    switch: String,
    source_node: NodeDescription,
    egress_node: NodeDescription,
    pods: Vec<PodDescription>,
    outside: Vec<OutsideDescription>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeDescription {
    name: String,
    netns: String,
    ip: Ipv4Addr,
    subnet: String,
    uplink: &'static str,
    uplink_mac: String,
    /// One for each VNID on the source node, one for all on the egress node.
    tunnels: Vec<String>,
    gateway: &'static str,
    gateway_ip: Ipv4Addr,
    gateway_mac: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodDescription {
    name: String,
    namespace: String,
    netns: String,
    vnid: u32,
    mark: String,
    ip: Ipv4Addr,
    mac: String,
    device: &'static str,
    node: String,
    egress_ip: Option<Ipv4Addr>,
}

#[derive(Debug, Serialize)]
struct OutsideDescription {
    name: String,
    netns: String,
    ip: Ipv4Addr,
}

impl Description {
    /// Describes a rig.
    #[must_use]
    pub fn of(rig: &Rig) -> Self {
        let name = |member: &str| rig.netns(member).name().to_owned();
        let mut vnids: Vec<u32> =
            rig.pods.iter().filter(|pod| pod.node == rig.source.name).map(|pod| pod.vnid).collect();
        vnids.sort_unstable();
        vnids.dedup();
        let source_tunnels = vnids.iter().map(|vnid| format!("vx{vnid}")).collect();
        let node = |node: &Node, tunnels| NodeDescription {
            name: node.name.clone(),
            netns: name(&node.name),
            ip: node.ip,
            subnet: node.subnet.clone(),
            uplink: UPLINK,
            uplink_mac: node.mac.clone(),
            tunnels,
            gateway: GATEWAY,
            gateway_ip: node.gateway,
            gateway_mac: node.gateway_mac.clone(),
        };
        Self {
            prefix: rig.prefix().to_owned(),
            cluster_networks: vec![CLUSTER_NETWORK],
            service_networks: vec![SERVICE_NETWORK],
            vxlan_port: VXLAN_PORT,
            switch: name("switch"),
            source_node: node(&rig.source, source_tunnels),
            egress_node: node(&rig.egress, vec![TUNNEL.into()]),
            pods: rig
                .pods
                .iter()
                .map(|pod| PodDescription {
                    name: pod.name.clone(),
                    namespace: pod.namespace.clone(),
                    netns: name(&pod.name),
                    vnid: pod.vnid,
                    mark: format!("{:#010x}", pod.mark()),
                    ip: pod.ip,
                    mac: pod.mac(),
                    device: "eth0",
                    node: pod.node.clone(),
                    egress_ip: pod.egress_ip,
                })
                .collect(),
            outside: rig
                .outside
                .iter()
                .map(|host| OutsideDescription {
                    name: host.name.clone(),
                    netns: name(&host.name),
                    ip: host.ip,
                })
                .collect(),
        }
    }
}
