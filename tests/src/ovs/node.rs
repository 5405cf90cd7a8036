//! One node of the rig: its namespace, its bridges, its pods, and what the kernel needs around them.
//!
//! Three bridges: `brp` holds the uplink `ens18` and the node's address, because the userspace
//! datapath finds the way to a tunnel's far end only through a port of its own; `br0` is
//! OpenShift's; `brm` carries the mark.
//!
//! How the mark gets through: the userspace datapath loses pkt_mark where a packet leaves it. So
//! `br0`'s port `tun0` is a patch port to `brm`, which writes the mark into the source MAC on the
//! way to the tap `tunh`; there nft reads it back into skb->mark, mends the MAC and forwards the
//! packet to `tun0p`, whose veth peer is the device `tun0`. On `tun0`'s ingress, tc included, all is as with the kernel
//! datapath. OVSDB and the kernel each have a `tun0`, with the same MAC.
//!
//! Surprising: the kernel hears what arrives on Open vSwitch's veths too, and would answer; nft
//! drops it there, behind the packet sockets that Open vSwitch reads from.
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use egress_user::ovs::{Facts, Layout, Ovs, Presence};

use super::instance::Instance;
use super::{CLUSTER, Pod, PodSite, SERVICES, Site, flowset};
use crate::netns::Netns;

/// Bytes that a packet inside the tunnel may have.
const INNER_MTU: u16 = 1450;

/// A running node.
// The order of the fields is the order of stopping: daemons before their namespaces.
#[derive(Debug)]
pub struct Node {
    pub site: Site,
    pub ovs: Instance,
    pub pods: Vec<Pod>,
    pub netns: Netns,
}

impl Node {
    /// The device that holds the node's address, and egress IPs.
    pub const UPLINK: &str = "brp";
    /// The device where pods' traffic arrives, marked.
    pub const GATEWAY: &str = "tun0";

    /// Makes the node with its pods; its uplink's far end is `port` in `switch`.
    pub(crate) fn start(
        site: &Site,
        pods: &[PodSite],
        prefix: &str,
        rundir: PathBuf,
        switch: &Netns,
    ) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}-{}", site.name))?;
        for key in ["ip_forward", "conf/all/forwarding"] {
            netns.sysctl(&format!("ipv4/{key}"), "1")?;
        }
        for key in ["all", "default"] {
            netns.sysctl(&format!("ipv4/conf/{key}/rp_filter"), "0")?;
        }
        netns.ip(&format!(
            "link add ens18 type veth peer name {port} netns {switch}\n\
             link set ens18 up\n\
             link add tun0 mtu {INNER_MTU} type veth peer name tun0p mtu {INNER_MTU}\n\
             link set tun0p up\n",
            port = site.name,
            switch = switch.name()
        ))?;
        switch.ip(&format!("link set {0} master switch\nlink set {0} up\n", site.name))?;
        no_offload(switch, site.name)?;
        no_offload(&netns, "tun0")?;
        let pods = pods
            .iter()
            .filter(|pod| pod.node == site.name)
            .zip(3..)
            .map(|(pod, port)| Pod::start(pod, port, site, prefix, &netns))
            .collect::<Result<Vec<_>>>()?;
        let ovs = Instance::start(&netns, rundir)?;
        let node = Self { site: *site, ovs, pods, netns };
        node.make_bridges().with_context(|| format!("make the bridges of {}", site.name))?;
        Ok(node)
    }

    /// The agent's view of this node's bridge.
    pub fn bridge(&self) -> Ovs {
        Ovs::at(self.ovs.rundir(), "br0", Self::GATEWAY)
    }

    /// What the agent finds out of it.
    ///
    /// # Errors
    /// It is not there, or does not answer.
    pub async fn facts(&self) -> Result<Facts> {
        match self.bridge().presence().await? {
            Presence::Present(facts) => Ok(facts),
            Presence::Absent(why) => bail!("{}: {why}", self.site.name),
        }
    }

    /// The node's first pod of the namespace.
    ///
    /// # Panics
    /// There is none.
    pub fn pod(&self, namespace: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.namespace == namespace)
            .unwrap_or_else(|| panic!("{} has no pod of {namespace}", self.site.name))
    }

    /// What the operating system and the foreign owner do once the switch runs: addresses and
    /// routes on the devices that it made, the way of the mark, and OpenShift's flows.
    ///
    /// # Errors
    /// A device is missing, or a flow refused.
    pub fn settle(&self, layout: Layout, others: &[&Site]) -> Result<()> {
        let Site { address, gateway, .. } = self.site;
        let mac = self.ovs.vsctl(&["get", "Interface", "tun0", "mac_in_use"])?;
        self.netns.ip(&format!(
            "link set brp up\n\
             address replace {address}/24 dev brp\n\
             link set tunh mtu {INNER_MTU} up\n\
             link set tun0 address {mac} up\n\
             address replace {gateway}/23 dev tun0\n\
             route replace {CLUSTER} dev tun0\n\
             route replace {SERVICES} dev tun0\n",
            mac = mac.trim().trim_matches('"'),
        ))?;
        self.netns.nft(&self.rules())?;
        self.ovs.load("brm", &way_of_the_mark())?;
        for other in others {
            let (address, mac) = (other.address.to_string(), other.uplink_mac());
            self.ovs.appctl(&["tnl/neigh/set", "brp", &address, &mac])?;
        }
        let flows = flowset::flows(layout, &self.site, others.iter().copied(), &self.pods);
        self.ovs.load("br0", &flows)
    }

    /// Kills the switch and starts it again, as empty as a new one: [`Node::settle`] comes next.
    ///
    /// # Errors
    /// It does not come up again.
    pub fn restart_switch(&mut self) -> Result<()> {
        self.ovs.kill_switch()?;
        self.ovs.start_switch(&self.netns)?;
        // Any command that waits for the switch returns only when the bridges are made.
        self.ovs.vsctl(&["set", "Bridge", "br0", "external_ids:restarted=yes"]).map(drop)
    }

    fn make_bridges(&self) -> Result<()> {
        let uplink = format!("other_config:hwaddr={}", self.site.uplink_mac());
        #[rustfmt::skip]
        self.ovs.vsctl(&[
            "add-br", "brp", "--", "set", "Bridge", "brp", "datapath_type=netdev", &uplink,
            "--", "add-port", "brp", "ens18",
            "--", "add-br", "brm", "--", "set", "Bridge", "brm", "datapath_type=netdev",
            "fail_mode=secure", "protocols=OpenFlow13",
            "--", "add-port", "brm", "tunh",
            "--", "set", "Interface", "tunh", "type=internal", "ofport_request=1",
            "--", "add-port", "brm", "mark",
            "--", "set", "Interface", "mark", "type=patch", "options:peer=tun0", "ofport_request=2",
            "--", "add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev",
            "fail_mode=secure", "protocols=OpenFlow13",
            "--", "add-port", "br0", "vxlan0",
            "--", "set", "Interface", "vxlan0", "type=vxlan", "options:remote_ip=flow",
            "options:key=flow", "ofport_request=1",
            "--", "add-port", "br0", "tun0",
            "--", "set", "Interface", "tun0", "type=patch", "options:peer=mark", "ofport_request=2",
        ])?;
        for pod in &self.pods {
            #[rustfmt::skip]
            self.ovs.vsctl(&[
                "add-port", "br0", &pod.device, "--", "set", "Interface", &pod.device,
                &format!("ofport_request={}", pod.port),
                &format!("external_ids:sandbox={}", pod.name),
                &format!("external_ids:ip={}", pod.address),
            ])?;
        }
        Ok(())
    }

    fn rules(&self) -> String {
        let mut rules =
            String::from("table netdev rig\ndelete table netdev rig\ntable netdev rig {\n");
        let mut chain = |device: &str, body: &str| {
            writeln!(
                rules,
                "chain {device} {{\ntype filter hook ingress device \"{device}\" priority 0\n\
                 policy drop\n{body}\n}}"
            )
            .expect("a string takes everything");
        };
        chain("ens18", "");
        self.pods.iter().for_each(|pod| chain(&pod.device, ""));
        // The pods' MACs are made of their addresses: what the mark has overwritten comes back.
        chain(
            "tunh",
            "@ll,48,16 0x02ee meta mark set @ll,64,32 @ll,64,32 set @nh,96,32 @ll,48,16 set 0x0a58\n\
             fwd to \"tun0p\"",
        );
        chain("tun0p", "fwd to \"tunh\"");
        // OPENSHIFT-MASQUERADE-2: what a pod sends to the outside leaves with the node's address.
        rules
            + &format!(
                "}}\n\
                 table ip openshift\ndelete table ip openshift\ntable ip openshift {{\n\
                 chain leave {{\ntype nat hook postrouting priority 110\n\
                 ip saddr {CLUSTER} ip daddr != {CLUSTER} oifname \"{}\" masquerade\n}}\n}}\n",
                Self::UPLINK
            )
    }
}

impl Pod {
    fn start(pod: &PodSite, port: u32, node: &Site, prefix: &str, outer: &Netns) -> Result<Self> {
        let netns = Netns::create(&format!("{prefix}-{}", pod.name))?;
        let device = format!("veth{port}");
        let mac = mac_of(pod.address);
        outer.ip(&format!(
            "link add {device} mtu {INNER_MTU} type veth peer name eth0 mtu {INNER_MTU} netns {}\n\
             link set {device} up\n",
            netns.name()
        ))?;
        netns.ip(&format!(
            "link set eth0 address {mac} up\n\
             address add {}/23 dev eth0\n\
             route add {CLUSTER} dev eth0\n\
             route add default via {} dev eth0\n",
            pod.address, node.gateway
        ))?;
        no_offload(&netns, "eth0")?;
        let PodSite { name, namespace, vnid, address, .. } = *pod;
        Ok(Self { name, namespace, vnid, address, mac, port, device, netns })
    }
}

/// Pods' MACs as OpenShift makes them.
fn mac_of(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// The source MAC becomes 02:ee and the mark's bytes, lowest first, as the host keeps a number.
fn way_of_the_mark() -> Vec<String> {
    let bytes: String = [(0, 24), (8, 16), (16, 8), (24, 0)]
        .iter()
        .map(|(from, to)| {
            let (last, end) = (from + 7, to + 7);
            format!(",move:NXM_NX_PKT_MARK[{from}..{last}]->NXM_OF_ETH_SRC[{to}..{end}]")
        })
        .collect();
    vec![
        "priority=2,in_port=2,pkt_mark=0,actions=output:1".to_owned(),
        format!("priority=1,in_port=2,actions=load:0x02ee->NXM_OF_ETH_SRC[32..47]{bytes},output:1"),
        "priority=1,in_port=1,actions=output:2".to_owned(),
    ]
}

/// Checksums are made by the sender: no device between here and Open vSwitch would do it.
pub(crate) fn no_offload(netns: &Netns, device: &str) -> Result<()> {
    netns
        .exec(&format!("ethtool -K {device} tx off gso off tso off"))
        .map(drop)
        .with_context(|| format!("switch the offloads of {device} off"))
}
