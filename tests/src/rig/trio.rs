//! Three nodes: one with pods, two that host egress IPs, each on a cable that can be pulled.
//!
//! ```text
//!   pods -- ocpmaster01 ==VXLAN== switch ==VXLAN== ocprouter01
//!                                   |   \==VXLAN== ocprouter02
//!                            outside (10.0.0.1) -- far (198.51.100.10)
//! ```
//!
//! The tenant `egress-test` has an egress IP on each of the two, the others have one. A tenant talks
//! to a port of its own, so that the switch can tell whose a packet is: it counts every packet with
//! an address that is not its tenant's ([`Trio::leaks`]), and loses none. All pods have a policy.
//!
//! The source node is a plain Linux node, or has Open vSwitch; the gateways of all nodes reach each
//! other through the tunnel as VNID 0, as in OpenShift.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
    process::id,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use egress_user::ovs::Layout;

use super::{
    nodes,
    topology::{
        self, CLUSTER_NETWORK, Node, Outside, Pod, SERVICE_NETWORK, TUNNEL, UPLINK, VXLAN_PORT,
    },
    watch,
};
use crate::{
    gateway::Gateway,
    netns::Netns,
    ovs::{self, PodSite, Site},
};

/// The node with the pods.
pub const SOURCE: &str = "ocpmaster01";
/// The nodes that host egress IPs.
pub const EGRESS: [&str; 2] = ["ocprouter01", "ocprouter02"];
/// The tenant with two egress IPs.
pub const SPREAD: &Tenant = &TENANTS[0];

/// Namespace, VNID, the port it talks to, and its egress IPs with the place of their node in
/// [`EGRESS`].
#[derive(Debug, Clone, Copy)]
pub struct Tenant {
    pub namespace: &'static str,
    pub vnid: u32,
    pub port: u16,
    pub egress_ips: &'static [(Ipv4Addr, usize)],
}

/// All tenants.
pub const TENANTS: [Tenant; 3] = [
    Tenant {
        namespace: "egress-test",
        vnid: 7_305_526,
        port: 7001,
        egress_ips: &[(Ipv4Addr::new(10, 0, 0, 11), 0), (Ipv4Addr::new(10, 0, 0, 14), 1)],
    },
    Tenant {
        namespace: "egress-test2",
        vnid: 14_640_467,
        port: 7002,
        egress_ips: &[(Ipv4Addr::new(10, 0, 0, 13), 0)],
    },
    Tenant {
        namespace: "egress-test3",
        vnid: 3_064_846,
        port: 7003,
        egress_ips: &[(Ipv4Addr::new(10, 0, 0, 15), 1)],
    },
];

/// Name, tenant and address of each pod.
const PODS: [(&str, &Tenant, Ipv4Addr); 4] = [
    ("egress-test-1", &TENANTS[0], Ipv4Addr::new(10, 128, 0, 11)),
    ("egress-test-2", &TENANTS[0], Ipv4Addr::new(10, 128, 0, 12)),
    ("egress-test2-1", &TENANTS[1], Ipv4Addr::new(10, 128, 0, 21)),
    ("egress-test3-1", &TENANTS[2], Ipv4Addr::new(10, 128, 0, 31)),
];

impl Tenant {
    /// Where its servers listen at the far host.
    #[must_use]
    pub fn far(&self) -> SocketAddrV4 {
        SocketAddrV4::new(topology::routed_host().ip, self.port)
    }

    /// Its egress IP on the egress node of that place in [`EGRESS`].
    #[must_use]
    pub fn on(&self, place: usize) -> Option<Ipv4Addr> {
        self.egress_ips.iter().find(|(_, node)| *node == place).map(|(ip, _)| *ip)
    }
}

/// How the source node sends its pods' packets on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceSide {
    /// By the programs on its pods' devices.
    Plain,
    /// By Open vSwitch, with the flows of OpenShift in this layout.
    OpenVSwitch(Layout),
}

/// A standing rig; dropping it removes it.
// The order of the fields is the order of stopping: Open vSwitch before the namespaces.
#[derive(Debug)]
pub struct Trio {
    ovs: Option<ovs::Node>,
    members: BTreeMap<String, Netns>,
    /// The source node, then the egress nodes.
    pub nodes: [Node; 3],
    pub pods: Vec<Pod>,
    /// The host on the uplink's network and the one behind it.
    pub outside: [Outside; 2],
}

impl Trio {
    /// Builds it; no agent runs yet.
    ///
    /// # Errors
    /// Not root, or a tool is missing; what was made is removed.
    pub fn up(side: SourceSide) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("et{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut rig = Self {
            ovs: None,
            members: BTreeMap::new(),
            nodes: nodes(),
            pods: pods(),
            outside: [topology::on_link_host(), topology::routed_host()],
        };
        rig.build(&prefix, side).context("build the rig of three nodes")?;
        Ok(rig)
    }

    fn build(&mut self, prefix: &str, side: SourceSide) -> Result<()> {
        let plain = side == SourceSide::Plain;
        let pods = self.pods.iter().map(|pod| pod.name.as_str());
        let of_source = pods.chain([SOURCE]).filter(|_| plain);
        let hosts = ["switch", "outside", "far"].into_iter().chain(EGRESS);
        for name in of_source.chain(hosts) {
            self.members.insert(name.to_owned(), Netns::create(&format!("{prefix}-{name}"))?);
        }
        let switch = self.netns("switch");
        let [near, far] = &self.outside;
        nodes::outside(switch, [near, far], [near, far].map(|host| self.netns(&host.name)))?;
        for host in &self.outside {
            ovs::node::no_offload(self.netns(&host.name), "eth0")?;
        }
        let [source, egress @ ..] = &self.nodes;
        for node in egress {
            let netns = self.netns(&node.name);
            nodes::connect(node, netns, switch, &near.ip.to_string())?;
            nodes::egress(node, netns, source, &self.pods)?;
        }
        let ovs = match side {
            SourceSide::Plain => None,
            SourceSide::OpenVSwitch(layout) => Some(self.ovs_source(prefix, layout)?),
        };
        let mac = match &ovs {
            Some(node) => node.ovs.vsctl(&["get", "Interface", "tun0", "mac_in_use"])?,
            None => self.build_plain_source()?,
        };
        let mac = mac.trim().trim_matches('"');
        for (node, other) in [(&egress[0], &egress[1]), (&egress[1], &egress[0])] {
            let netns = self.netns(&node.name);
            nodes::reach_gateway(netns, node, source, mac)?;
            nodes::reach_gateway(netns, node, other, &other.gateway_mac)?;
        }
        self.ovs = ovs;
        self.watch()
    }

    /// Returns the MAC of its gateway.
    fn build_plain_source(&self) -> Result<String> {
        let [source, egress @ ..] = &self.nodes;
        let netns = self.netns(SOURCE);
        nodes::connect(source, netns, self.netns("switch"), &self.outside[0].ip.to_string())?;
        nodes::tenants(source, netns, &self.pods)?;
        nodes::one_tunnel(source, netns, &self.pods)?;
        // Not that of the pods' gateway: what comes from its own MAC, a VXLAN device takes for a loop.
        let mac = "02:00:0a:80:00:01";
        netns.ip(&format!(
            "link set {TUNNEL} address {mac}\naddr add {}/32 dev {TUNNEL}\n",
            source.gateway
        ))?;
        for node in egress {
            nodes::reach_gateway(netns, source, node, &node.gateway_mac)?;
        }
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        for pod in &self.pods {
            nodes::source_pod(pod, self.netns(&pod.name), &nodes, netns, &self.pods)?;
        }
        Ok(mac.to_owned())
    }

    fn ovs_source(&self, prefix: &str, layout: Layout) -> Result<ovs::Node> {
        let [source, egress @ ..] = &self.nodes;
        let (switch, rundir) = (self.netns("switch"), env::temp_dir().join(prefix));
        let pods = PODS.map(|(name, tenant, address)| {
            let Tenant { namespace, vnid, .. } = *tenant;
            PodSite { node: SOURCE, name, namespace, vnid, address }
        });
        let node = ovs::Node::start(&site(source, SOURCE), &pods, prefix, rundir, switch)?;
        self.settle(&node, layout)?;
        for Node { gateway, gateway_mac, .. } in egress {
            // Nobody answers ARP for a gateway through this tunnel.
            node.netns.ip(&format!(
                "neigh add {gateway} lladdr {gateway_mac} dev tun0 nud permanent\n"
            ))?;
        }
        Ok(node)
    }

    fn settle(&self, node: &ovs::Node, layout: Layout) -> Result<()> {
        let [first, second] = [0, 1].map(|place| site(self.node(EGRESS[place]), EGRESS[place]));
        node.settle(layout, &[&first, &second])?;
        // The way out that is open to whatever our flows do not take.
        let (out, uplink) = (self.outside[0].ip, ovs::Node::UPLINK);
        node.netns.ip(&format!("route replace default via {out} dev {uplink}\n"))
    }

    /// What the owner of the source node's bridge does when it starts: see [`ovs::Node::settle`].
    ///
    /// # Errors
    /// There is no Open vSwitch, or it complained.
    pub fn settle_ovs(&self, layout: Layout) -> Result<()> {
        self.settle(self.ovs().context("the source node has no Open vSwitch")?, layout)
    }

    /// Counts, on the ports of all nodes, what no tenant's packet may look like.
    fn watch(&self) -> Result<()> {
        let addresses = self.nodes.iter().map(|node| node.ip.to_string()).collect::<Vec<_>>();
        let nodes = addresses.join(", ");
        let mut rules = String::from(
            "table netdev watch {\n\
             counter pod_address {}\n\
             counter node_address {}\n\
             counter other_tenants {}\n",
        );
        for Node { name, .. } in &self.nodes {
            writeln!(
                rules,
                "chain {name} {{\n\
                 type filter hook ingress device {name} priority 0\n\
                 ip daddr {{ {nodes} }} accept\n\
                 ip saddr {CLUSTER_NETWORK} counter name pod_address\n\
                 ip saddr {{ {nodes} }} counter name node_address"
            )?;
            for Tenant { port, egress_ips, .. } in &TENANTS {
                let own: Vec<String> = egress_ips.iter().map(|(ip, _)| ip.to_string()).collect();
                writeln!(
                    rules,
                    "meta l4proto {{ tcp, udp }} th dport {port} ip saddr != {{ {} }} counter name \
                     other_tenants",
                    own.join(", ")
                )?;
            }
            rules.push_str("}\n");
        }
        self.netns("switch").nft(&(rules + "}\n"))
    }

    /// Packets that left a node towards the outside with a pod's address, a node's, or one that is
    /// not the tenant's: all three must be 0.
    ///
    /// # Errors
    /// nft does not show them.
    pub fn leaks(&self) -> Result<BTreeMap<String, u64>> {
        watch::counted(self.netns("switch"))
    }

    /// The namespace of a node, a pod, an outside host or the switch.
    ///
    /// # Panics
    /// The rig has no member of that name.
    #[must_use]
    pub fn netns(&self, name: &str) -> &Netns {
        let of_ovs = self.ovs.iter().flat_map(|node| {
            let pods = node.pods.iter().map(|pod| (pod.name, &pod.netns));
            pods.chain([(SOURCE, &node.netns)])
        });
        let all = self.members.iter().map(|(name, netns)| (name.as_str(), netns)).chain(of_ovs);
        let Some((_, netns)) = all.into_iter().find(|(member, _)| *member == name) else {
            panic!("the rig has no {name}")
        };
        netns
    }

    /// The source node's Open vSwitch.
    #[must_use]
    pub fn ovs(&self) -> Option<&ovs::Node> {
        self.ovs.as_ref()
    }

    /// The node of that name.
    ///
    /// # Panics
    /// The rig has none.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        let Some(node) = self.nodes.iter().find(|node| node.name == name) else {
            panic!("the rig has no node {name}")
        };
        node
    }

    /// So many further addresses of the far host, with the tenant's port: what spreads UDP over egress
    /// nodes looks at addresses alone, in the programs as in Open vSwitch.
    ///
    /// # Errors
    /// `ip` complained.
    pub fn remotes(&self, tenant: &Tenant, count: u8) -> Result<Vec<SocketAddrV4>> {
        let [a, b, c, d] = tenant.far().ip().octets();
        (1..=count)
            .map(|number| {
                let remote = Ipv4Addr::new(a, b, c, d + number);
                self.netns("far").ip(&format!("addr add {remote}/32 dev eth0\n"))?;
                Ok(SocketAddrV4::new(remote, tenant.port))
            })
            .collect()
    }

    /// Pulls a node's cable out of the switch: its link goes down.
    ///
    /// # Errors
    /// `ip` complained.
    pub fn pull(&self, node: &str) -> Result<()> {
        self.netns("switch").ip(&format!("link set {node} down\n"))
    }

    /// Puts it back in.
    ///
    /// # Errors
    /// `ip` complained.
    pub fn plug(&self, node: &str) -> Result<()> {
        self.netns("switch").ip(&format!("link set {node} up\n"))
    }

    /// Lets the switch lose this share, in percent, of what all nodes send; 0: none.
    ///
    /// # Errors
    /// nft complained.
    pub fn lose(&self, percent: u8) -> Result<()> {
        let mut rules = String::from("table netdev loss\ndelete table netdev loss\n");
        if percent > 0 {
            rules.push_str("table netdev loss {\n");
            for Node { name, .. } in &self.nodes {
                writeln!(
                    rules,
                    "chain {name} {{\n\
                     type filter hook ingress device {name} priority 1\n\
                     numgen random mod 100 < {percent} drop\n}}"
                )?;
            }
            rules.push_str("}\n");
        }
        self.netns("switch").nft(&rules)
    }

    /// The agent's place on a node, with the settings of [`Trio::config`] and more, and the
    /// [`objects`]; it is not started.
    ///
    /// # Errors
    /// As [`Gateway::new`].
    pub fn gateway(&self, node: &str, settings: &str) -> Result<Gateway<'_>> {
        let config = self.config(node) + settings;
        let gateway = Gateway::new(self.netns(node), &config, &objects())?;
        Ok(match self.ovs.as_ref().filter(|_| node == SOURCE) {
            Some(ovs) => gateway.with("OVS_RUNDIR", ovs.ovs.rundir()),
            None => gateway,
        })
    }

    /// The agents of the source node and both egress nodes, ready.
    ///
    /// # Errors
    /// One is not; with its log.
    pub fn agents(&self, settings: &str) -> Result<[Gateway<'_>; 3]> {
        let ready = |node: &str| -> Result<Gateway<'_>> {
            let mut gateway = self.gateway(node, settings)?;
            gateway.run_agent()?;
            Ok(gateway)
        };
        // Who hosts comes before who sends.
        let [first, second] = [ready(EGRESS[0])?, ready(EGRESS[1])?];
        Ok([ready(SOURCE)?, first, second])
    }

    /// The AgentConfig of a node.
    #[must_use]
    pub fn config(&self, node: &str) -> String {
        let Node { name, ip, gateway_mac, .. } = self.node(node);
        let ovs = node == SOURCE && self.ovs.is_some();
        let uplink = if ovs { ovs::Node::UPLINK } else { UPLINK };
        let pods: Vec<String> = PODS
            .iter()
            .filter(|_| node == SOURCE && !ovs)
            .map(|(pod, tenant, _)| format!("{{device: {pod}, vnid: {}}}", tenant.vnid))
            .collect();
        let mut config = format!(
            "apiVersion: egress/v1alpha1\n\
             kind: AgentConfig\n\
             node: {{name: {name}, ip: {ip}/24, uplink: {uplink}}}\n\
             clusterNetworks: [{CLUSTER_NETWORK}]\n\
             serviceNetworks: [{SERVICE_NETWORK}]\n\
             pods: [{}]\n\
             ovs: {{enabled: {ovs}}}\n",
            pods.join(", ")
        );
        if node != SOURCE {
            config.push_str(&format!("gatewayMac: \"{gateway_mac}\"\n"));
        }
        if node != SOURCE || ovs {
            config.push_str("gateway: tun0\n");
        }
        if !ovs {
            config.push_str(&format!("tunnel: {{device: {TUNNEL}, port: {VXLAN_PORT}}}\n"));
        }
        config
    }
}

/// HostSubnets and NetNamespaces of the rig, as `oc get -o yaml` prints them.
#[must_use]
pub fn objects() -> String {
    let mut text = String::new();
    for node in nodes() {
        let Node { name, ip, subnet, .. } = &node;
        let place = EGRESS.iter().position(|egress| egress == name);
        let hosted: Vec<String> = TENANTS
            .iter()
            .filter_map(|tenant| tenant.on(place?))
            .map(|ip| format!("\"{ip}\""))
            .collect();
        text.push_str(&format!(
            "---\n\
             apiVersion: network.openshift.io/v1\n\
             kind: HostSubnet\n\
             metadata: {{name: {name}}}\n\
             host: {name}\n\
             hostIP: {ip}\n\
             subnet: {subnet}\n\
             egressIPs: [{}]\n",
            hosted.join(", ")
        ));
    }
    for Tenant { namespace, vnid, egress_ips, .. } in &TENANTS {
        let wanted: Vec<String> = egress_ips.iter().map(|(ip, _)| format!("\"{ip}\"")).collect();
        text.push_str(&format!(
            "---\n\
             apiVersion: network.openshift.io/v1\n\
             kind: NetNamespace\n\
             metadata: {{name: {namespace}}}\n\
             netname: {namespace}\n\
             netid: {vnid}\n\
             egressIPs: [{}]\n",
            wanted.join(", ")
        ));
    }
    text
}

/// The source node, then the egress nodes.
fn nodes() -> [Node; 3] {
    let second = Node {
        name: EGRESS[1].into(),
        ip: Ipv4Addr::new(10, 0, 0, 4),
        subnet: "10.131.0.0/23".into(),
        gateway: Ipv4Addr::new(10, 131, 0, 1),
        gateway_mac: "22:3b:a9:a4:8e:0d".into(),
        mac: String::new(),
    };
    let mac = |node: Node| Node { mac: site(&node, SOURCE).uplink_mac(), ..node };
    [topology::source_node(), topology::egress_node(), second].map(mac)
}

fn pods() -> Vec<Pod> {
    PODS.iter()
        .map(|(name, tenant, ip)| Pod {
            name: (*name).into(),
            namespace: tenant.namespace.into(),
            vnid: tenant.vnid,
            ip: *ip,
            node: SOURCE.into(),
            egress_ip: tenant.egress_ips.first().map(|(ip, _)| *ip),
        })
        .collect()
}

/// A node as the Open vSwitch rig knows it.
fn site(node: &Node, name: &'static str) -> Site {
    Site { name, address: node.ip, gateway: node.gateway }
}
