//! The egress node of one variant, and the namespace around it that sends and receives.
//!
//! ```text
//!     namespace net                         namespace node
//!     generator -> net-up  <== veth ==>  uplink  100.64.0.2/10: VXLAN in, translated out
//!          sink <- net-up
//!     generator -> net-gw  <== veth ==>  tun0    10.128.0.1/23: where local pods' packets arrive
//!          sink <- net-gw
//! ```
//!
//! One-armed: a gateway node has one uplink, VXLAN comes in and translated packets go out by it,
//! so they do here too. The sink tells them apart by source address. Everything is made before
//! the first round and stays, so that rounds of all variants interleave.
//! Surprising: GRO on at the node's ends is what makes the kernel accept redirected frames there
//! when no XDP program is attached.
use std::process;

use anyhow::{Context as _, Result};
use egress_common::bench::{EGRESS_BASE, POD_BASE, REMOTE_BASE, Redirect, SinkRule, vnid};

use super::{
    ends::Ends,
    frame,
    measure::measuring_core,
    net::Netns,
    object::Object,
    pace::{self, Kthread},
    workload::{Entry, Workload},
};

/// The egress node's own address and that of its uplink's subnet.
pub const NODE: [u8; 4] = [100, 64, 0, 2];
pub const NODE_PREFIX: u8 = 10;
/// The next hop towards the outside.
pub const ROUTER: [u8; 4] = [100, 64, 0, 1];
/// The node whose pods send through the tunnel.
pub const SOURCE_NODE: [u8; 4] = [100, 64, 0, 3];
/// The gateway device's address, and a neighbour that stands for all pods behind a device.
const GATEWAY_ADDRESS: &str = "10.128.0.1/23";
const PODS_NEXT_HOP: &str = "10.128.0.9";
/// The uplink of the node.
pub const UPLINK: &str = "uplink";
/// The gateway device of the node.
pub const GATEWAY: &str = "tun0";
/// The tunnel device, under the name that OVS gives it.
pub const TUNNEL: &str = "vxlan_sys_4789";

pub const MAC_NET_UP: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const MAC_UP: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const MAC_NET_GW: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub const MAC_GW: [u8; 6] = [2, 0, 0, 0, 0, 0x12];
pub const MAC_TUNNEL: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

/// What a rig is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Setting {
    pub entry: Entry,
    /// How many VNIDs have an egress IP of their own.
    pub policies: u32,
    /// Or none, and leave with the node's address.
    pub masquerade: bool,
    /// Whether sockets talk; else the generator sends and the sink receives.
    pub sockets: bool,
    /// Whether the node works apart from the sender, in threads of its own: see `pace`.
    pub paced: bool,
}

/// One egress node with its surroundings.
pub struct Rig {
    pub setting: Setting,
    pub object: Object,
    pub node: Netns,
    pub net: Netns,
    /// The namespaces of the sockets, if they talk.
    pub ends: Option<Ends>,
    /// What works for the node, if that is apart from the sender.
    pub workers: Vec<Kthread>,
    net_up: u32,
    net_gw: u32,
    up: u32,
}

impl Rig {
    /// `name` must be unique among the rigs alive.
    pub fn new(name: &str, setting: Setting) -> Result<Self> {
        let prefix = format!("eb{}-{name}", process::id());
        let node = Netns::new(format!("{prefix}-node"))?;
        let net = Netns::new(format!("{prefix}-net"))?;
        links(&node, &net)?;
        addresses(&node, setting).with_context(|| format!("addresses of rig {name}"))?;
        let mut workers = Vec::new();
        if setting.paced {
            for device in [UPLINK, GATEWAY] {
                workers.extend(pace::apart(&node, device, measuring_core()?)?);
            }
        }
        let mut object = Object::load()?;
        let ends = match setting.sockets {
            true => Some(Ends::new(&prefix, &net)?),
            false => None,
        };
        if ends.is_none() {
            net.enter(|| {
                object.attach_xdp("sink", "net-up")?;
                object.attach_xdp("sink", "net-gw")
            })?;
        }
        let (net_up, net_gw) = (net.ifindex("net-up")?, net.ifindex("net-gw")?);
        let up = node.ifindex(UPLINK)?;
        Ok(Self { setting, object, node, net, ends, workers, net_up, net_gw, up })
    }

    /// The interface of `net` that this workload's packets are sent into.
    pub fn sending_interface(&self, workload: &Workload) -> u32 {
        if workload.enters_by_gateway() { self.net_gw } else { self.net_up }
    }

    /// Attaches one of the benchmark's tc programs on ingress of a device of the node.
    pub fn attach_tc(&mut self, program: &str, device: &str) -> Result<()> {
        let Self { object, node, .. } = self;
        node.enter(|| object.attach_tc(program, device))
    }

    /// Attaches one of the benchmark's XDP programs to a device of the node.
    pub fn attach_xdp(&mut self, program: &str, device: &str) -> Result<()> {
        let Self { object, node, .. } = self;
        node.enter(|| object.attach_xdp(program, device))
    }

    /// Where the reference programs send: out of the uplink, to the router.
    pub fn redirect_to_uplink(&mut self) -> Result<()> {
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&MAC_NET_UP);
        macs[6..].copy_from_slice(&MAC_UP);
        self.object.set_redirect(Redirect { ifindex: self.up, macs })
    }

    /// Prepares generator and sink for this workload.
    pub fn arm(&mut self, workload: &Workload, rule: SinkRule) -> Result<()> {
        let shape = frame::shape(workload, self.sending_interface(workload));
        self.object.set_shape(shape)?;
        self.object.set_rule(rule)?;
        self.object.reset()
    }
}

/// Hexadecimal notation of a MAC.
pub fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Dotted notation of an address.
pub fn dotted(address: [u8; 4]) -> String {
    address.map(|byte| byte.to_string()).join(".")
}

fn links(node: &Netns, net: &Netns) -> Result<()> {
    let pair = |inner: &str, inner_mac, outer: &str, outer_mac| {
        format!(
            "link add {outer} address {} numtxqueues 1 numrxqueues 1 type veth peer name {inner} \
             address {} netns {} numtxqueues 1 numrxqueues 1",
            mac(outer_mac),
            mac(inner_mac),
            node.name()
        )
    };
    net.ip(&[
        pair(UPLINK, MAC_UP, "net-up", MAC_NET_UP),
        pair(GATEWAY, MAC_GW, "net-gw", MAC_NET_GW),
        "link set net-up up".to_owned(),
        "link set net-gw up".to_owned(),
    ])?;
    node.ip(&[
        format!("link set {UPLINK} up"),
        format!("link set {GATEWAY} up"),
        format!(
            "link add {TUNNEL} address {} type vxlan external dstport 4789 nolearning \
             udp6zerocsumrx",
            mac(MAC_TUNNEL)
        ),
        format!("link set {TUNNEL} up mtu 1450"),
    ])?;
    for device in [UPLINK, GATEWAY] {
        node.run(&["ethtool", "-K", device, "gro", "on"])?;
    }
    for key in ["all", "default", UPLINK, GATEWAY, TUNNEL] {
        node.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
        node.sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
    }
    node.sysctl("net/ipv4/ip_forward", "1")
}

fn addresses(node: &Netns, setting: Setting) -> Result<()> {
    let (router, source_node) = (dotted(ROUTER), dotted(SOURCE_NODE));
    let peer = mac(MAC_NET_UP);
    let mut lines = vec![
        format!("addr add {}/{NODE_PREFIX} dev {UPLINK}", dotted(NODE)),
        format!("addr add {GATEWAY_ADDRESS} dev {GATEWAY}"),
        format!("neigh add {router} lladdr {peer} nud permanent dev {UPLINK}"),
        format!("neigh add {source_node} lladdr {peer} nud permanent dev {UPLINK}"),
        format!("route add default via {router} dev {UPLINK}"),
        format!("neigh add {PODS_NEXT_HOP} lladdr {} nud permanent dev {GATEWAY}", mac(MAC_NET_GW)),
        format!("neigh add {PODS_NEXT_HOP} lladdr {} nud permanent dev {TUNNEL}", mac(MAC_NET_GW)),
    ];
    let pods = dotted(POD_BASE.to_be_bytes());
    match setting.entry {
        Entry::Gateway => {
            lines.push(format!("route add {pods}/15 via {PODS_NEXT_HOP} dev {GATEWAY} onlink"));
        }
        Entry::Tunnel => {
            // Answers: the VNI goes with the pod's route, as OVS knows it from the pod's flow.
            let encapsulated = |destination: String, number: u32| {
                format!(
                    "route add {destination} encap ip id {} dst {source_node} \
                     via {PODS_NEXT_HOP} dev {TUNNEL} onlink",
                    vnid(number)
                )
            };
            lines.push(encapsulated(format!("{pods}/15"), 0));
            lines.extend(
                (1..setting.policies.min(MOST_POD_ROUTES))
                    .map(|number| encapsulated(dotted((POD_BASE + number).to_be_bytes()), number)),
            );
        }
    }
    node.ip(&lines)
}

/// So many VNIDs' egress IPs are this node's at most; those of further ones, another node's. The
/// kernel goes through all addresses of a link, several times, for each one more: 100,000 take it
/// five minutes.
pub const HOSTED: u32 = 16_384;
/// Beyond that many VNIDs no workload needs the kernel to route replies, and routes take time too.
const MOST_POD_ROUTES: u32 = 5_000;

/// The sink's rule for "from an egress IP"; the node's own address is none.
pub fn from_egress_ip() -> SinkRule {
    rule(EGRESS_BASE.to_be_bytes(), [255, 224, 0, 0])
}

/// The sink's rule for "from a pod".
pub fn from_pod() -> SinkRule {
    rule(POD_BASE.to_be_bytes(), [255, 254, 0, 0])
}

/// The sink's rule for "from an external host".
pub fn from_remote() -> SinkRule {
    rule(REMOTE_BASE.to_be_bytes(), [255, 254, 0, 0])
}

/// The sink's rule for "from this node".
pub fn from_address(address: [u8; 4]) -> SinkRule {
    rule(address, [255; 4])
}

fn rule(network: [u8; 4], mask: [u8; 4]) -> SinkRule {
    SinkRule {
        network: u32::from_be_bytes(network),
        mask: u32::from_be_bytes(mask),
        ..SinkRule::default()
    }
}
