//! The plain VXLAN rig: two nodes, their pods, a switch and the outside, each a network namespace.
//!
//! ```text
//!   pods -- ocpmaster01 ==VXLAN== switch ==VXLAN== ocprouter01 -- pods
//!                                   |
//!                            outside (10.0.0.1) -- far (198.51.100.10)
//! ```
//!
//! No agent runs in it: what the rig does alone is what the kernel does, and that is no translation
//! to an egress IP. Everything is in namespaces whose names start with the rig's prefix; nothing
//! outside them is touched, and removing them removes all of it.

mod data_path;
mod description;
mod nodes;
pub mod objects;
pub mod second;
pub mod topology;
pub mod trio;
mod watch;

use std::{
    collections::BTreeMap,
    process::id,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, Result, bail};
pub use data_path::DataPath;
pub use description::Description;
use topology::{Node, Outside, Pod};

use crate::{
    kernel_log::KernelLog,
    netns::{self, Netns},
    report::Talker,
};

/// The prefix of `rig up`, of which there is one on a machine.
pub const FIXED_PREFIX: &str = "egress-";

/// What translates on the egress node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Snat {
    /// Nothing: pods of all namespaces leave with the node's address. The agent is to change that.
    Node,
    /// nftables, by mark, as OpenShift's iptables rules do.
    Kernel,
    /// OpenShift's own chain, in iptables.
    Iptables,
}

/// A standing rig. Dropping it removes it, unless it is kept; a checksum that the kernel has found
/// wrong meanwhile makes that a panic.
#[derive(Debug)]
pub struct Rig {
    prefix: String,
    kernel_log: KernelLog,
    /// By the name of the node, pod or host, without prefix. `switch` is the switch.
    members: BTreeMap<String, Netns>,
    /// The node that runs most pods.
    pub source: Node,
    /// The node that hosts the egress IPs.
    pub egress: Node,
    /// All pods.
    pub pods: Vec<Pod>,
    /// The host on the uplink's network and the one behind it.
    pub outside: [Outside; 2],
}

impl Rig {
    /// Builds a rig under a prefix of its own, for a test or the demo.
    pub fn up() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::up_as(&format!("eg{}-{count}-", id()), Snat::Node)
    }

    /// Builds a rig under the prefix given; what is built when a step fails is removed again.
    pub fn up_as(prefix: &str, snat: Snat) -> Result<Self> {
        if let Some(name) = standing(prefix).first() {
            bail!("network namespace {name} exists: remove its rig with `cargo xtask rig down`");
        }
        let mut rig = Self {
            prefix: prefix.to_owned(),
            kernel_log: KernelLog::follow()?,
            members: BTreeMap::new(),
            source: topology::source_node(),
            egress: topology::egress_node(),
            pods: topology::pods(),
            outside: [topology::on_link_host(), topology::routed_host()],
        };
        rig.build(snat).context("build the rig")?;
        Ok(rig)
    }

    fn build(&mut self, snat: Snat) -> Result<()> {
        for name in names() {
            let netns = Netns::create(&format!("{}{name}", self.prefix))?;
            self.members.insert(name, netns);
        }
        let switch = self.switch();
        let [near, far] = &self.outside;
        nodes::outside(switch, [near, far], [near, far].map(|host| self.netns(&host.name)))?;
        let router = self.outside[0].ip.to_string();
        let [source, egress] = [&self.source, &self.egress].map(|node| self.netns(&node.name));
        nodes::connect(&self.source, source, switch, &router)?;
        nodes::connect(&self.egress, egress, switch, &router)?;
        nodes::source(&self.source, source, &self.egress, &self.pods)?;
        nodes::egress(&self.egress, egress, &self.source, &self.pods)?;
        for pod in &self.pods {
            let netns = self.netns(&pod.name);
            if pod.node == self.source.name {
                let pair = [&self.source, &self.egress];
                nodes::source_pod(pod, netns, &pair, source, &self.pods)?;
            } else {
                nodes::egress_pod(pod, netns, &self.egress, egress)?;
            }
        }
        match snat {
            Snat::Node => {}
            Snat::Kernel => nodes::kernel_snat(egress, &self.pods)?,
            Snat::Iptables => nodes::openshift_snat(egress, &self.pods)?,
        }
        self.watch_uplink()
    }

    /// Takes the source node's tunnel of each tenant away, and gives it one for all, with routes to
    /// the pods: an agent there is to find the way.
    pub fn make_source_plain(&self) -> Result<()> {
        let netns = self.netns(&self.source.name);
        nodes::without_tunnels(&self.source, netns, &self.pods)?;
        nodes::one_tunnel(&self.source, netns, &self.pods)
    }

    /// Lets the egress node send from XDP: a veth takes such frames only with GRO at its far end.
    pub fn take_xdp_frames(&self) -> Result<()> {
        self.switch().exec(&format!("ethtool -K {} gro on", self.egress.name)).map(drop)
    }

    /// Makes all pods and hosts send whole frames, as a wire carries them: checksums in place, no
    /// segmentation left for later.
    pub fn send_whole_frames(&self) -> Result<()> {
        let pods = self.pods.iter().map(|pod| &pod.name);
        for name in pods.chain(self.outside.iter().map(|host| &host.name)) {
            whole_frames(self.netns(name))?;
        }
        Ok(())
    }

    /// Ends a pod as a node does: its device is gone, and nobody is told of its flows.
    pub fn end_pod(&self, pod: &Pod) -> Result<()> {
        self.netns(&pod.node).ip(&format!("link del {}\n", pod.name))
    }

    /// Starts one more pod on the source node, of a VNID that has a pod there: at an address of its
    /// own, or of a pod that has ended. It lives as long as the namespace returned.
    pub fn start_pod(&self, pod: &Pod) -> Result<Netns> {
        let netns = Netns::create(&format!("{}{}", self.prefix, pod.name))?;
        let [source, egress] = [&self.source, &self.egress];
        nodes::source_pod(pod, &netns, &[source, egress], self.netns(&source.name), &self.pods)?;
        self.netns(&egress.name).ip(&nodes::way_to_pod(egress, source, pod))?;
        Ok(netns)
    }

    /// Counts what leaves the egress node's uplink untranslated, without losing a packet.
    fn watch_uplink(&self) -> Result<()> {
        let Node { name, ip, .. } = &self.egress;
        self.switch().nft(&format!(
            "table netdev watch {{\n\
               counter pod_address {{}}\n\
               counter node_address {{}}\n\
               chain uplink {{\n\
                 type filter hook ingress device {name} priority 0\n\
                 ip saddr {} counter name pod_address\n\
                 ip saddr {ip} udp dport {} accept\n\
                 ip saddr {ip} counter name node_address\n\
               }}\n\
             }}\n",
            topology::CLUSTER_NETWORK,
            topology::VXLAN_PORT
        ))
    }

    /// Packets that left the egress node's uplink with a pod's address, and with the node's own,
    /// VXLAN aside, since the rig was built.
    pub fn untranslated(&self) -> Result<(u64, u64)> {
        let counted = watch::counted(self.switch())?;
        let packets = |name: &str| {
            counted.get(name).copied().with_context(|| format!("nft shows no counter {name}"))
        };
        Ok((packets("pod_address")?, packets("node_address")?))
    }

    /// The namespace of a node, pod or outside host, by its name in the topology.
    ///
    /// # Panics
    /// If the rig has no member of that name.
    #[must_use]
    pub fn netns(&self, name: &str) -> &Netns {
        let Some(netns) = self.members.get(name) else { panic!("the rig has no {name}") };
        netns
    }

    /// The namespace of the switch, with a port for each node and host, named after it.
    #[must_use]
    pub fn switch(&self) -> &Netns {
        self.netns("switch")
    }

    /// The pod of that name.
    ///
    /// # Panics
    /// If the rig has no pod of that name.
    #[must_use]
    pub fn pod(&self, name: &str) -> &Pod {
        let Some(pod) = self.pods.iter().find(|pod| pod.name == name) else {
            panic!("the rig has no pod {name}")
        };
        pod
    }

    /// The pod as one that talks.
    #[must_use]
    pub fn talker<'a>(&'a self, pod: &'a Pod) -> Talker<'a> {
        let node = if pod.node == self.source.name { &self.source } else { &self.egress };
        Talker {
            pod: &pod.name,
            namespace: &pod.namespace,
            vnid: pod.vnid,
            mark: pod.mark(),
            expected: pod.egress_ip.unwrap_or(node.ip),
            netns: self.netns(&pod.name).name(),
        }
    }

    /// All pods, as ones that talk.
    #[must_use]
    pub fn talkers(&self) -> Vec<Talker<'_>> {
        self.pods.iter().map(|pod| self.talker(pod)).collect()
    }

    /// Leaves the rig standing after this value is dropped; [`down`] removes it.
    pub fn keep(&mut self) {
        for netns in self.members.values_mut() {
            netns.keep();
        }
    }

    /// The prefix of its namespaces.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let complaints = self.kernel_log.complaints();
        if !thread::panicking() {
            assert!(complaints.is_empty(), "the kernel says: {complaints:?}");
        }
    }
}

fn whole_frames(netns: &Netns) -> Result<()> {
    netns.exec("ethtool -K eth0 tx off tso off gso off").map(drop)
}

/// Removes the rig of a prefix with all processes in it. Returns what was removed; none is no error.
pub fn down(prefix: &str) -> Result<Vec<String>> {
    let names = standing(prefix);
    for name in &names {
        netns::remove(name)?;
    }
    Ok(names)
}

/// Those of a rig's namespaces that exist. Others may share its prefix and are not its own.
#[must_use]
pub fn standing(prefix: &str) -> Vec<String> {
    names().map(|name| format!("{prefix}{name}")).filter(|name| netns::exists(name)).collect()
}

/// Names of all members, without prefix.
fn names() -> impl Iterator<Item = String> {
    let nodes = [topology::source_node(), topology::egress_node()].map(|node| node.name);
    let hosts = [topology::on_link_host(), topology::routed_host()].map(|host| host.name);
    let pods = topology::pods().into_iter().map(|pod| pod.name);
    ["switch".to_owned()].into_iter().chain(nodes).chain(hosts).chain(pods)
}
