//! The translation engine: from a packet and the tables to a verdict. It decides and never writes.
//!
//! `Pass` is what is none of ours; what is ours and cannot be treated is an `Err(Reason)`: it is
//! dropped and counted. The order of the questions is the contract's (docs/architecture.md).
//! Mapping is endpoint-dependent (RFC 4787 calls it address and port-dependent), as nf_nat's.
use crate::{
    abi::{MacWords, OriginalKey, ReplyKey, action},
    flow::{Context, count, expired, find_or_create, remove_reply_pair, way_back},
    icmp::{original_error, reply_error},
    reason::Reason,
    rewrite::{Hop, Rewrite, Side, rewrite},
    state,
    tables::Tables,
    wire::{Ipv4, Packet, Ports, Transport, icmp, tcp},
};

/// What is to be done with a packet that is not dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not our traffic: the node treats it as it always did.
    Pass,
    Translate(Translation),
    /// The packet is dropped for a reason, and its sender is told.
    Answer(Answer),
}

/// A rewrite and where the packet goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    pub rewrite: Rewrite,
    pub way: Way,
    pub slot: u32,
}

/// Where a translated packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Out of interface `ifindex`; without addresses the stack finds the next hop.
    Uplink { ifindex: u32, macs: Option<MacWords> },
    /// Through the tunnel to `node`, as `vnid`, with these inner link-layer addresses.
    Tunnel { vnid: u32, node: [u8; 4], macs: MacWords },
    /// Out of a device on this node.
    Device { ifindex: u32, macs: MacWords },
    /// Up the stack, which knows the route to the pod.
    Stack,
}

/// What is told to the sender of a packet that is dropped for `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub reason: Reason,
    pub kind: AnswerKind,
    /// The address that the answer comes from.
    pub from: [u8; 4],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// A TCP reset (RFC 9293, section 3.5.2).
    Reset,
    /// An ICMP error of this type and code (RFC 792).
    Icmp { kind: u8, code: u8 },
}

/// Where a pod's packet came from: what a reply needs to find its way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    pub vnid: u32,
    /// The tunnel source; all zero for a pod of this node.
    pub node: [u8; 4],
    /// The interface the packet arrived on.
    pub ifindex: u32,
    /// The link-layer addresses of the way back: the pod's, then the gateway's.
    pub macs: MacWords,
}

/// A pod's packet on its way to the outside.
#[inline(always)]
pub fn translate_original<P: Packet, T: Tables>(
    packet: &P,
    length: u64,
    origin: &Origin,
    hop: Hop,
    tables: &T,
) -> Result<Verdict, Reason> {
    let config = tables.config().ok_or(Reason::NotReady)?;
    let ip = Ipv4::read(packet, 0);
    if ip.is_some_and(|ip| config.is_untouched(ip.destination)) {
        return Ok(Verdict::Pass);
    }
    let Some(index) = tables.policy(origin.vnid) else { return Ok(Verdict::Pass) };
    let slot = tables.slot(index).ok_or(Reason::PolicyDrop)?;
    if slot.vnid != origin.vnid || slot.action != action::SNAT {
        return Err(Reason::PolicyDrop);
    }
    let ip = ip.ok_or(Reason::Malformed)?;
    if !config.is_pod(ip.source) {
        return Err(Reason::ForeignSource);
    }
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    if hop == Hop::Program && ip.ttl <= 1 {
        return Ok(Verdict::Answer(Answer {
            reason: Reason::TtlExceeded,
            kind: AnswerKind::Icmp { kind: icmp::TIME_EXCEEDED, code: 0 },
            from: config.node,
        }));
    }
    let transport = Transport::read(packet, ip.protocol, ip.header_len).ok_or(Reason::Malformed)?;
    let (ports, flags) = match transport {
        Transport::Tcp { ports, flags } => (ports, flags),
        Transport::Udp { ports } => (ports, 0),
        Transport::Echo { id, request: true } => (Ports { source: id, destination: [0, 0] }, 0),
        // A pod answers an echo only if somebody reached it: its flow is a reply's.
        Transport::Echo { .. } => return Err(Reason::NoFlow),
        Transport::Error { .. } => {
            return original_error(packet, &ip, origin, slot, index, hop, tables);
        }
        Transport::OtherIcmp | Transport::Other => return Err(Reason::Protocol),
    };
    let key = OriginalKey {
        pod: ip.source,
        remote: ip.destination,
        pod_port: ports.source,
        remote_port: ports.destination,
        vnid_protocol: origin.vnid << 8 | u32::from(ip.protocol),
    };
    let now = tables.now();
    let context = Context { config, slot, slot_index: index, origin, now, flags, length };
    let mapping = find_or_create(tables, &context, &key)?;
    let source = (mapping.egress_ip, mapping.egress_port);
    Ok(Verdict::Translate(Translation {
        rewrite: rewrite(&ip, transport, Side::Source, source, hop)?,
        way: Way::Uplink { ifindex: slot.uplink, macs: mapping.macs },
        slot: index,
    }))
}

/// A packet from outside that may belong to an egress IP.
#[inline(always)]
pub fn translate_reply<P: Packet, T: Tables>(
    packet: &P,
    length: u64,
    tables: &T,
) -> Result<Verdict, Reason> {
    let config = tables.config().ok_or(Reason::NotReady)?;
    // Too short for IPv4, or no IPv4: the node's own affair.
    let Some(ip) = Ipv4::read(packet, 0) else { return Ok(Verdict::Pass) };
    if ip.destination == config.node {
        return Ok(Verdict::Pass);
    }
    if ip.is_fragment() {
        return match tables.egress_ip(ip.destination) {
            Some(_) => Err(Reason::Fragment),
            None => Ok(Verdict::Pass),
        };
    }
    let transport = Transport::read(packet, ip.protocol, ip.header_len);
    let (ports, flags) = match transport {
        Some(Transport::Tcp { ports, flags }) => (ports, flags),
        Some(Transport::Udp { ports }) => (ports, 0),
        Some(Transport::Echo { id, request: false }) => {
            (Ports { source: [0, 0], destination: id }, 0)
        }
        Some(Transport::Error { .. }) => return reply_error(packet, &ip, tables),
        _ => return refuse(tables, &ip, transport),
    };
    let key = ReplyKey {
        remote: ip.source,
        egress_ip: ip.destination,
        remote_port: ports.source,
        egress_port: ports.destination,
        protocol: u32::from(ip.protocol),
    };
    let Some(flow) = tables.reply(&key) else { return refuse(tables, &ip, transport) };
    let now = tables.now();
    let rested = state::age(now, flow.life.now().last_seen);
    if rested >= state::shortest(config, ip.protocol) && expired(tables, config, &key, flow, now) {
        remove_reply_pair(tables, &key, flow);
        return refuse(tables, &ip, transport);
    }
    let slot = tables.slot(flow.slot).ok_or(Reason::PolicyGone)?;
    if slot.vnid != flow.vnid || slot.action != action::SNAT || slot.egress_ip != key.egress_ip {
        return Err(Reason::PolicyGone);
    }
    if ip.ttl <= 1 {
        return Ok(Verdict::Answer(Answer {
            reason: Reason::TtlExceeded,
            kind: AnswerKind::Icmp { kind: icmp::TIME_EXCEEDED, code: 0 },
            from: key.egress_ip,
        }));
    }
    flow.life.see(now, flags);
    count(&flow.packets, &flow.bytes, length);
    let transport = transport.ok_or(Reason::Malformed)?;
    let pod = (flow.pod, flow.pod_port);
    Ok(Verdict::Translate(Translation {
        rewrite: rewrite(&ip, transport, Side::Destination, pod, Hop::Program)?,
        way: way_back(flow),
        slot: flow.slot,
    }))
}

/// Whether a packet that is about to leave the uplink may: the last guard. `Ok(true)`: it already
/// carries its tenant's address.
#[inline(always)]
pub fn leaves_translated<T: Tables>(
    source: [u8; 4],
    vnid: u32,
    tables: &T,
) -> Result<bool, Reason> {
    let config = tables.config().ok_or(Reason::NotReady)?;
    let Some(index) = tables.policy(vnid) else { return Ok(true) };
    let slot = tables.slot(index).ok_or(Reason::PolicyDrop)?;
    if slot.vnid != vnid || slot.action != action::SNAT {
        return Err(Reason::PolicyDrop);
    }
    if source == slot.egress_ip {
        return Ok(true);
    }
    // Still a pod's address: to be translated here. Anything else is somebody else's address.
    if config.is_pod(source) { Ok(false) } else { Err(Reason::Untranslated) }
}

/// New connections from outside end at the egress IP; what is not for one is not ours.
#[inline(always)]
fn refuse<T: Tables>(
    tables: &T,
    ip: &Ipv4,
    transport: Option<Transport>,
) -> Result<Verdict, Reason> {
    if tables.egress_ip(ip.destination).is_none() {
        return Ok(Verdict::Pass);
    }
    let kind = match transport {
        None => return Err(Reason::Malformed),
        Some(Transport::Tcp { flags, .. }) if flags & tcp::RST != 0 => {
            return Err(Reason::NoFlow);
        }
        Some(Transport::Tcp { .. }) => AnswerKind::Reset,
        Some(Transport::Error { .. } | Transport::OtherIcmp) => return Err(Reason::NoFlow),
        Some(Transport::Echo { request: false, .. }) => return Err(Reason::NoFlow),
        Some(Transport::Echo { .. } | Transport::Udp { .. }) => {
            AnswerKind::Icmp { kind: icmp::UNREACHABLE, code: 3 }
        }
        Some(Transport::Other) => AnswerKind::Icmp { kind: icmp::UNREACHABLE, code: 2 },
    };
    Ok(Verdict::Answer(Answer { reason: Reason::Refused, kind, from: ip.destination }))
}
