//! The source side, for a node without Open vSwitch: a tenant's packet goes from its pod's device
//! through the tunnel to a node that hosts an egress IP of it, each flow to its own; what comes back
//! is let through to the pod.
//!
//! What is not sent on from here goes the way of the gateway device: translated where the egress IP
//! lives on this node, dropped where the tenant has none. So a tenant with a policy never takes the
//! node's normal way out.
use aya_ebpf::{
    macros::map,
    maps::{HashMap, LruHashMap},
    programs::TcContext,
};
use egress_common::{
    abi::Path,
    mark::mark,
    reason::Reason,
    spread::{EgressNodes, FlowKey, Way, Ways},
    tables::Tables,
};

use crate::{
    hooks,
    maps::{Maps, count_path, is_shadow, vnid_of_pod},
    tc::{At, ETH_LEN, Skb, layout},
};

/// Device that one tenant's pods are behind, to the tenant's VNID.
#[map(name = "pod_devices")]
static POD_DEVICES: HashMap<u32, u32> = HashMap::pinned(16384, 0);
/// VNID to the nodes that host its egress IPs, where this one hosts none.
#[map(name = "egress_nodes")]
static EGRESS_NODES: HashMap<u32, EgressNodes> = HashMap::pinned(65536, 0);
/// Which way the flows of tenants with several egress nodes have gone.
#[map(name = "ways")]
static WAYS: LruHashMap<FlowKey, Way> = LruHashMap::pinned(65536, 0);

/// Where the source address stands in a frame, and the destination address.
const SOURCE: usize = ETH_LEN + 12;
const DESTINATION: usize = ETH_LEN + 16;

/// What [`sent_on`] says of a packet that does not go to another node; no action of tc.
const NOT_SENT: i32 = i32::MIN;

/// A pod's packet, on the device that the pod is behind.
#[inline(always)]
pub fn pod_ingress(context: &TcContext) -> i32 {
    match sent_on(&Skb::new(context)) {
        NOT_SENT => hooks::gateway_ingress(context),
        action => action,
    }
}

/// A function of its own for the sake of the stack.
#[inline(never)]
fn sent_on(skb: &Skb) -> i32 {
    hooks::counted(send_on(skb))
}

#[inline(always)]
fn send_on(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(NOT_SENT);
    }
    skb.pull::<{ ETH_LEN + 60 + 20 }>();
    let source: [u8; 4] = skb.bytes(SOURCE).ok_or(Reason::Malformed)?;
    let destination: [u8; 4] = skb.bytes(DESTINATION).ok_or(Reason::Malformed)?;
    let Some(vnid) = vnid_of_device(skb.ifindex()).or_else(|| vnid_of_pod(source)) else {
        return Ok(NOT_SENT);
    };
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    if config.is_shadow() {
        return Ok(NOT_SENT);
    }
    // The tenant is known by its device, so a stranger's address would leave as the tenant's.
    if config.is_untouched(destination) || maps.policy(vnid).is_none() {
        return Ok(NOT_SENT);
    }
    let Some(nodes) = egress_nodes(vnid) else {
        // The gateway's program knows tenants by their mark.
        skb.set_mark(mark(vnid, config.masquerade_bit, layout(config)));
        return Ok(NOT_SENT);
    };
    if !config.is_pod(source) {
        return Err(Reason::ForeignSource);
    }
    if config.tunnel == 0 {
        return Err(Reason::NoRoute);
    }
    let node =
        nodes.node_for(&At::<ETH_LEN>(*skb), &WayMap, maps.now()).ok_or(Reason::Malformed)?;
    skb.set_tunnel(vnid, node)?;
    skb.set_mark(0);
    count_path(Path::Source);
    Ok(skb.redirect(config.tunnel))
}

/// A packet out of the tunnel device: if it comes back for a pod of this node, the stack takes it,
/// although its MAC is the pod's and not this node's. The route to the pod is the node's affair.
#[inline(always)]
pub fn tunnel_ingress(context: &TcContext) {
    let skb = Skb::new(context);
    if let Some((vnid, node)) = skb.tunnel_source()
        && !is_shadow()
        && egress_nodes(vnid).is_some_and(|nodes| nodes.contains(node))
    {
        skb.make_ours();
    }
}

#[inline(always)]
fn vnid_of_device(ifindex: u32) -> Option<u32> {
    // SAFETY: the value is one word, read at once.
    unsafe { POD_DEVICES.get(ifindex) }.copied()
}

#[inline(always)]
fn egress_nodes(vnid: u32) -> Option<&'static EgressNodes> {
    // SAFETY: the element stays readable for the rest of the program, also when it is removed.
    unsafe { EGRESS_NODES.get(vnid) }
}

/// The map of ways.
struct WayMap;

impl Ways for WayMap {
    #[inline(always)]
    fn way(&self, flow: &FlowKey) -> Option<Way> {
        // SAFETY: the value is copied; another CPU's write in between leaves one node or the other.
        unsafe { WAYS.get(flow) }.copied()
    }

    #[inline(always)]
    fn keep(&self, flow: &FlowKey, way: Way) {
        // One that is not kept goes by the hash.
        let _ = WAYS.insert(flow, way, 0);
    }
}
