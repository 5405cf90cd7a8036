//! Masquerading: pods without a policy leave with the node's own address.
//!
//! It is the engine's work like any other, by a slot of all who have none of their own. What is
//! peculiar is that the address is not ours alone. The node's sockets and the kernel's NAT use it
//! too, so the ports are of a range that they do not take from ([`Config::masquerade_ports`]); what
//! comes back to another port is not even looked up, and what finds no flow is the node's. Where
//! both want one port all the same, the node comes first ([`give_way`]).
use crate::{
    abi::{Config, MARKED_ONLY, NO_VNID, ReplyKey, Slot},
    flow::{Context, Scratch, remove_reply_pair},
    nat::look_at,
    reason::Reason,
    rewrite::Hop,
    tables::Tables,
    wire::{Ipv4, Kind, Packet, protocol, tcp},
};

/// Whose a packet is that bears no tenant's mark; `pod` is what the `pods` map holds for its source.
/// `None`: the node's own affair.
///
/// Fails closed: of another node's pod nothing comes here towards the outside but its tenant's
/// egress traffic, and of a tenant's nothing without a mark, unless a flow of the bridge is missing.
#[inline(always)]
pub fn unmarked(config: &Config, ip: &Ipv4, pod: Option<u32>) -> Result<Option<u32>, Reason> {
    if let Some(vnid) = pod
        && vnid & MARKED_ONLY == 0
    {
        return Ok(pod);
    }
    if config.masquerade_slot == 0
        || !config.is_pod(ip.source)
        || config.is_untouched(ip.destination)
    {
        return Ok(None);
    }
    if pod.is_some() || !config.local_pods.contains(u32::from_be_bytes(ip.source)) {
        return Err(Reason::Unmarked);
    }
    Ok(Some(NO_VNID))
}

/// Whether a packet is no matter of a program in front of the stack, whatever flow it belongs to:
/// not routed by the uplink, or a fragment of a pod of this node, all of which have to go one way.
///
/// Not asked for what belongs to a flow most of the time: that asks when it begins ([`admit`]).
#[inline(always)]
pub fn needs_the_stack<T: Tables>(tables: &T, slot: &Slot, scratch: &Scratch) -> bool {
    let Scratch { origin, ip, transport, .. } = scratch;
    if origin.hop == Hop::Stack {
        return false;
    }
    if ip.is_fragment() && origin.node == [0; 4] {
        return true;
    }
    matches!(transport.kind, Kind::Later | Kind::Error)
        && !tables.routes_by(slot.uplink, ip.source, ip.destination)
}

/// Whether a masqueraded flow may begin here; always so for others.
///
/// A pod of this node may answer a connection that the node's NAT let in, whose packets only the
/// stack can tell from those of the pod's own: by a SYN or an echo request alone they differ. All
/// else begins behind the stack, on the uplink; what follows is translated here.
#[inline(always)]
pub fn admit<T: Tables>(tables: &T, context: &Context, scratch: &Scratch) -> Result<(), Reason> {
    let Scratch { origin, key, .. } = scratch;
    if context.slot.vnid != NO_VNID || origin.hop == Hop::Stack {
        return Ok(());
    }
    let is_request = match key.protocol() {
        protocol::TCP => context.flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
        of_protocol => of_protocol == protocol::ICMP,
    };
    if origin.node == [0; 4] && !is_request {
        return Err(Reason::NoFlow);
    }
    if tables.routes_by(context.slot.uplink, key.pod, key.remote) {
        Ok(())
    } else {
        Err(Reason::NoRoute)
    }
}

/// Whether a packet to the node's address may be a masqueraded flow's: worth a lookup.
#[inline(always)]
pub fn may_be_reply(config: &Config, scratch: &Scratch) -> bool {
    let Scratch { transport, .. } = scratch;
    config.masquerade_slot != 0
        && match transport.kind {
            Kind::Tcp | Kind::Udp | Kind::EchoReply => {
                config.masqueraded_ports.contains(transport.ports.destination)
            }
            Kind::Error | Kind::Later | Kind::Summed | Kind::Other => true,
            Kind::Malformed | Kind::EchoRequest | Kind::OtherIcmp => false,
        }
}

/// A packet with the node's address that no program made: the node's own, or of the kernel's NAT.
/// A pod's flow that has its port towards the same remote ends. Whether there was one.
#[inline(never)]
pub fn give_way<P: Packet, T: Tables>(packet: &P, tables: &T, scratch: &mut Scratch) -> bool {
    if look_at(packet, scratch).is_err() {
        return false;
    }
    let Some(config) = tables.config() else { return false };
    let Scratch { ip, transport, .. } = scratch;
    let shares = match transport.kind {
        Kind::Tcp | Kind::Udp | Kind::EchoRequest => {
            config.masqueraded_ports.contains(transport.ports.source)
        }
        Kind::Summed | Kind::Other => true,
        _ => false,
    };
    if !shares {
        return false;
    }
    scratch.lease = ReplyKey {
        remote: ip.destination,
        egress_ip: ip.source,
        remote_port: transport.ports.destination,
        egress_port: transport.ports.source,
        protocol: u32::from(ip.protocol),
    };
    let Some(flow) = tables.reply(&scratch.lease) else { return false };
    remove_reply_pair(tables, &scratch.lease, flow, &mut scratch.other);
    true
}
