//! What stands in the rig: the nodes, pods and outside hosts of the origin notes, as data.
//!
//! Two nodes: `ocpmaster01` runs most of the pods, `ocprouter01` hosts the egress IPs. Pods have the
//! address and MAC OpenShift would give them.

use std::net::Ipv4Addr;

use anyhow::Result;
use egress_common::mark::{Layout, mark};
use serde::{Deserialize, Serialize};

/// All pods of the cluster live in here.
pub const CLUSTER_NETWORK: &str = "10.128.0.0/14";
/// The services, which this rig does not have.
pub const SERVICE_NETWORK: &str = "172.30.0.0/16";
/// VXLAN's UDP port.
pub const VXLAN_PORT: u16 = 4789;
/// What fits into the tunnel: the uplink's 1500 less 50 bytes of outer headers.
pub const POD_MTU: u16 = 1450;
/// The interface towards the outside, on both nodes.
pub const UPLINK: &str = "ens18";
/// The tunnel device of the egress node.
pub const TUNNEL: &str = "vxlan_sys_4789";
/// The device between pods and the node's own stack, on both nodes.
pub const GATEWAY: &str = "tun0";

/// A node of the cluster.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Node {
    /// Its name, and the name of its switch port.
    pub name: String,
    /// Its address on the uplink, in a /24.
    pub ip: Ipv4Addr,
    /// The network of its pods.
    pub subnet: String,
    /// The address of [`GATEWAY`], the default gateway of its pods.
    pub gateway: Ipv4Addr,
    /// The MAC of [`GATEWAY`].
    pub gateway_mac: String,
    /// The MAC of [`UPLINK`].
    pub mac: String,
}

/// A pod: a network namespace of its own with one interface `eth0`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pod {
    /// Its name, and the name of the host end of its veth pair: at most 15 bytes.
    pub name: String,
    /// The OpenShift namespace, which is the tenant.
    pub namespace: String,
    /// The tenant's VNID.
    pub vnid: u32,
    /// The address, in a /23.
    pub ip: Ipv4Addr,
    /// The node that runs it.
    pub node: String,
    /// The egress IP of its namespace; `None`: a namespace without policy.
    pub egress_ip: Option<Ipv4Addr>,
}

impl Pod {
    /// `0a:58` and the four bytes of the address, as OpenShift makes them.
    #[must_use]
    pub fn mac(&self) -> String {
        let [a, b, c, d] = self.ip.octets();
        format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }

    /// The packet mark of the tenant, in the old layout of the origin notes.
    #[must_use]
    pub fn mark(&self) -> u32 {
        mark(self.vnid, 0, Layout::Old)
    }
}

/// A host beyond the uplink.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outside {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// The bytes of a MAC as it is written.
pub fn mac_bytes(text: &str) -> Result<Vec<u8>> {
    text.split(':').map(|byte| Ok(u8::from_str_radix(byte, 16)?)).collect()
}

/// The node that runs the pods.
#[must_use]
pub fn source_node() -> Node {
    Node {
        name: "ocpmaster01".into(),
        ip: Ipv4Addr::new(10, 0, 0, 3),
        subnet: "10.128.0.0/23".into(),
        gateway: Ipv4Addr::new(10, 128, 0, 1),
        gateway_mac: "22:e9:5c:34:a4:83".into(),
        mac: "9a:2f:89:5a:ba:e0".into(),
    }
}

/// The node that hosts the egress IPs.
#[must_use]
pub fn egress_node() -> Node {
    Node {
        name: "ocprouter01".into(),
        ip: Ipv4Addr::new(10, 0, 0, 2),
        subnet: "10.130.0.0/23".into(),
        gateway: Ipv4Addr::new(10, 130, 0, 1),
        gateway_mac: "22:3b:a9:a4:8e:0c".into(),
        mac: "9a:2f:89:5a:ba:e2".into(),
    }
}

/// The host on the uplink's network, which is also the nodes' default gateway.
#[must_use]
pub fn on_link_host() -> Outside {
    Outside { name: "outside".into(), ip: Ipv4Addr::new(10, 0, 0, 1) }
}

/// The host behind that gateway.
#[must_use]
pub fn routed_host() -> Outside {
    Outside { name: "far".into(), ip: Ipv4Addr::new(198, 51, 100, 10) }
}

/// The pods of both nodes.
#[must_use]
pub fn pods() -> Vec<Pod> {
    let (source, egress) = (source_node().name, egress_node().name);
    let tenants = [
        ("egress-test", 7_305_526, Some(Ipv4Addr::new(10, 0, 0, 11))),
        ("egress-test2", 14_640_467, Some(Ipv4Addr::new(10, 0, 0, 13))),
        ("egress-test3", 3_064_846, Some(Ipv4Addr::new(10, 0, 0, 12))),
        ("gitea", 12_235_633, None),
    ];
    // Tenant, number of the pod, node, address.
    let places = [
        (0, 1, &source, Ipv4Addr::new(10, 128, 0, 11)),
        (0, 2, &source, Ipv4Addr::new(10, 128, 0, 12)),
        (1, 1, &source, Ipv4Addr::new(10, 128, 0, 21)),
        (2, 1, &source, Ipv4Addr::new(10, 128, 0, 31)),
        (3, 1, &source, Ipv4Addr::new(10, 128, 1, 206)),
        (0, 3, &egress, Ipv4Addr::new(10, 130, 0, 13)),
        (3, 2, &egress, Ipv4Addr::new(10, 130, 0, 123)),
    ];
    places
        .into_iter()
        .map(|(tenant, number, node, ip)| {
            let (namespace, vnid, egress_ip) = tenants[tenant];
            Pod {
                name: format!("{namespace}-{number}"),
                namespace: namespace.into(),
                vnid,
                ip,
                node: node.clone(),
                egress_ip,
            }
        })
        .collect()
}
