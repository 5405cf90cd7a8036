//! Two nodes with real Open vSwitch, as in the notes' cluster, in network namespaces.
//!
//! Owns the topology: pods - br0 - VXLAN - br0 - tun0 - uplink - a switch - an outside host. The
//! flows of OpenShift SDN are loaded as a foreign owner's; none of ours are. Needs root and the
//! package openvswitch-switch, but no kernel module: the datapath is the one in user space.
//!
//! Surprising: the uplink is Open vSwitch's own tap `brp`, and there is no vxlan_sys_4789; see
//! [`node`] for both, and for how the mark reaches `tun0`.
pub mod agent;
pub mod flowset;
pub mod instance;
pub mod node;
pub mod plan;

use std::env;
use std::net::Ipv4Addr;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use egress_common::mark::{self, mark};
use egress_user::ovs::Layout;

pub use self::node::Node;
use crate::netns::Netns;
use crate::report::Talker;

/// The pods' addresses of all nodes.
pub const CLUSTER: &str = "10.128.0.0/14";
/// The services' addresses.
pub const SERVICES: &str = "172.30.0.0/16";
/// The host outside of the cluster, in the nodes' subnet.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

/// The node whose pods want egress IPs.
pub const SOURCE_NODE: Site = Site {
    name: "ocpmaster01",
    address: Ipv4Addr::new(10, 0, 0, 3),
    gateway: Ipv4Addr::new(10, 128, 0, 1),
};
/// The node that hosts the egress IPs.
pub const EGRESS_NODE: Site = Site {
    name: "ocprouter01",
    address: Ipv4Addr::new(10, 0, 0, 2),
    gateway: Ipv4Addr::new(10, 129, 0, 1),
};

/// The namespaces of the notes; `dbtest` never has an egress IP.
#[rustfmt::skip]
const PODS: [PodSite; 5] = [
    PodSite { node: "ocpmaster01", name: "pod1", namespace: "egress-test", vnid: 7_305_526, address: Ipv4Addr::new(10, 128, 0, 11) },
    PodSite { node: "ocpmaster01", name: "pod2", namespace: "egress-test2", vnid: 14_640_467, address: Ipv4Addr::new(10, 128, 0, 12) },
    PodSite { node: "ocpmaster01", name: "pod3", namespace: "egress-test3", vnid: 3_064_846, address: Ipv4Addr::new(10, 128, 0, 13) },
    PodSite { node: "ocpmaster01", name: "pod4", namespace: "dbtest", vnid: 8_935_821, address: Ipv4Addr::new(10, 128, 0, 14) },
    PodSite { node: "ocprouter01", name: "pod5", namespace: "egress-test", vnid: 7_305_526, address: Ipv4Addr::new(10, 129, 0, 11) },
];

/// A node on paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    pub name: &'static str,
    /// On the uplink, /24.
    pub address: Ipv4Addr,
    /// On `tun0`, the first of the node's /23 of pods.
    pub gateway: Ipv4Addr,
}

/// A pod on paper.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodSite {
    pub node: &'static str,
    pub name: &'static str,
    pub namespace: &'static str,
    pub vnid: u32,
    pub address: Ipv4Addr,
}

/// A running pod.
#[derive(Debug)]
pub struct Pod {
    pub name: &'static str,
    pub namespace: &'static str,
    pub vnid: u32,
    pub address: Ipv4Addr,
    pub mac: String,
    /// Its OpenFlow port on br0.
    pub port: u32,
    /// Its device's far end, in the node.
    pub device: String,
    pub netns: Netns,
}

/// The whole cluster; all of it is removed on drop.
#[derive(Debug)]
pub struct OvsRig {
    layout: Layout,
    pub source: Node,
    pub egress: Node,
    /// At [`OUTSIDE`], device `eth0`.
    pub outside: Netns,
    /// The bridge `switch` between nodes and outside; its ports have the nodes' names.
    pub switch: Netns,
}

impl Site {
    /// The addresses of the node's pods.
    pub fn subnet(&self) -> String {
        let [a, b, c, _] = self.gateway.octets();
        format!("{a}.{b}.{c}.0/23")
    }

    /// The MAC of the node's uplink.
    pub fn uplink_mac(&self) -> String {
        format!("02:00:0a:00:00:{:02x}", self.address.octets()[3])
    }
}

impl OvsRig {
    /// Builds the cluster with OpenShift's flows in the given layout. Takes about two seconds.
    ///
    /// # Errors
    /// Not root, a tool is missing, or Open vSwitch does not come up; what was made is removed.
    pub fn start(layout: Layout) -> Result<Self> {
        static RIGS: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("eo{}x{}", process::id(), RIGS.fetch_add(1, Ordering::Relaxed));
        let switch = Netns::create(&format!("{prefix}-switch"))?;
        switch.ip("link add switch type bridge\nlink set switch up\n")?;
        let outside = Netns::create(&format!("{prefix}-outside"))?;
        outside.ip(&format!(
            "link add eth0 type veth peer name outside netns {}\n\
             address add {OUTSIDE}/24 dev eth0\n\
             link set eth0 up\n",
            switch.name()
        ))?;
        switch.ip("link set outside master switch\nlink set outside up\n")?;
        node::no_offload(&outside, "eth0")?;
        let start = |site: &Site| {
            let rundir = env::temp_dir().join(format!("{prefix}-{}", site.name));
            Node::start(site, &PODS, &prefix, rundir, &switch)
        };
        let (source, egress) = (start(&SOURCE_NODE)?, start(&EGRESS_NODE)?);
        let rig = Self { layout, source, egress, outside, switch };
        rig.settle()?;
        Ok(rig)
    }

    /// Brings both nodes into the state in which OpenShift leaves them, after a start or restart.
    ///
    /// # Errors
    /// As [`Node::settle`].
    pub fn settle(&self) -> Result<()> {
        self.source.settle(self.layout, &[&self.egress.site])?;
        self.egress.settle(self.layout, &[&self.source.site])
    }

    /// All pods, as ones that talk.
    #[must_use]
    pub fn talkers(&self) -> Vec<Talker<'_>> {
        let layout = match self.layout {
            Layout::Old => mark::Layout::Old,
            Layout::New => mark::Layout::New,
        };
        let pods = [&self.source, &self.egress]
            .into_iter()
            .flat_map(|node| node.pods.iter().map(move |pod| (node, pod)));
        pods.map(|(node, pod)| Talker {
            pod: pod.name,
            namespace: pod.namespace,
            vnid: pod.vnid,
            mark: mark(pod.vnid, 0, layout),
            expected: agent::egress_ip(pod.namespace).unwrap_or(node.site.address),
            netns: pod.netns.name(),
        })
        .collect()
    }
}
