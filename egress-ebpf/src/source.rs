//! The source side, for a node without Open vSwitch: a tenant's packet goes from its pod's device
//! through the tunnel to the node that hosts its egress IP; what comes back is let through to the
//! pod.
//!
//! What is not sent on from here goes the way of the gateway device: translated where the egress IP
//! lives on this node, dropped where the tenant has none. So a tenant with a policy never takes the
//! node's normal way out.
use aya_ebpf::{macros::map, maps::HashMap, programs::TcContext};
use egress_common::{abi::Path, mark::mark, reason::Reason, tables::Tables};

use crate::{
    hooks,
    maps::{Maps, count_path, count_reason, is_shadow, vnid_of_pod},
    tc::{Skb, act, layout},
};

/// Device that one tenant's pods are behind, to the tenant's VNID.
#[map(name = "pod_devices")]
static POD_DEVICES: HashMap<u32, u32> = HashMap::pinned(16384, 0);
/// VNID to the node that hosts its egress IP, where that is another one.
#[map(name = "egress_nodes")]
static EGRESS_NODES: HashMap<u32, [u8; 4]> = HashMap::pinned(65536, 0);

/// Where the source address stands in a frame, and the destination address.
const SOURCE: usize = 14 + 12;
const DESTINATION: usize = 14 + 16;

/// A pod's packet, on the device that the pod is behind.
#[inline(always)]
pub fn pod_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    match send_on(context, &skb) {
        Ok(Some(action)) => action,
        Ok(None) => hooks::gateway_ingress(context),
        Err(reason) => {
            count_reason(reason);
            act::DROP
        }
    }
}

/// `None`: not to another node.
#[inline(always)]
fn send_on(context: &TcContext, skb: &Skb) -> Result<Option<i32>, Reason> {
    if !skb.is_ipv4() {
        return Ok(None);
    }
    let source: [u8; 4] = context.load(SOURCE).map_err(|_| Reason::Malformed)?;
    let destination: [u8; 4] = context.load(DESTINATION).map_err(|_| Reason::Malformed)?;
    let Some(vnid) = vnid_of_device(skb.ifindex()).or_else(|| vnid_of_pod(source)) else {
        return Ok(None);
    };
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    if config.is_shadow() {
        return Ok(None);
    }
    // The tenant is known by its device, so a stranger's address would leave as the tenant's.
    if config.is_untouched(destination) || maps.policy(vnid).is_none() {
        return Ok(None);
    }
    let Some(node) = egress_node(vnid) else {
        // The gateway's program knows tenants by their mark.
        skb.set_mark(mark(vnid, config.masquerade_bit, layout(config)));
        return Ok(None);
    };
    if !config.is_pod(source) {
        return Err(Reason::ForeignSource);
    }
    if config.tunnel == 0 {
        return Err(Reason::NoRoute);
    }
    skb.set_tunnel(vnid, node)?;
    skb.set_mark(0);
    count_path(Path::Source);
    Ok(Some(skb.redirect(config.tunnel)))
}

/// A packet out of the tunnel device: if it comes back for a pod of this node, the stack takes it,
/// although its MAC is the pod's and not this node's. The route to the pod is the node's affair.
#[inline(always)]
pub fn tunnel_ingress(context: &TcContext) {
    let skb = Skb::new(context);
    if let Some((vnid, node)) = skb.tunnel_source()
        && !is_shadow()
        && egress_node(vnid) == Some(node)
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
fn egress_node(vnid: u32) -> Option<[u8; 4]> {
    // SAFETY: the value is one word, read at once.
    unsafe { EGRESS_NODES.get(vnid) }.copied()
}
