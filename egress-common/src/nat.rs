//! The translation engine: from a packet and the tables to a verdict. It decides and never writes.
//!
//! `Pass` is what is none of ours; what is ours and cannot be treated is an `Err(Reason)`: it is
//! dropped and counted. The order of the questions is the contract's (docs/architecture.md).
//! Mapping is endpoint-dependent (RFC 4787 calls it address and port-dependent), as nf_nat's.
use crate::{
    abi::{MacWords, OriginalKey, ReplyKey, action},
    flow::{Context, Scratch, count, expired, find_or_create, remove_reply_pair, way_back},
    icmp::{original_error, reply_error},
    reason::Reason,
    rewrite::{Hop, Rewrite, Side, rewrite},
    state,
    tables::Tables,
    wire::{Ipv4, Packet, Ports, Transport, icmp, tcp},
};

/// What is to be done with a packet that is not dropped. What belongs to a verdict is in the
/// caller's [`Scratch`]: the programs' stack is too small to hand it back by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not our traffic: the node treats it as it always did.
    Pass,
    /// As `scratch.translation` says.
    Translate,
    /// The packet is dropped for a reason, and its sender is told: `scratch.answer`.
    Answer,
}

/// A rewrite and where the packet goes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Translation {
    pub rewrite: Rewrite,
    pub way: Way,
    pub slot: u32,
}

/// Where a translated packet goes. One flat struct: the verifier does not follow the compiler
/// through the half-filled variants of an enum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    pub by: By,
    /// The interface, except through the tunnel.
    pub ifindex: u32,
    /// The link-layer addresses; through the tunnel the inner ones.
    pub macs: MacWords,
    /// Through the tunnel only.
    pub vnid: u32,
    /// The tunnel's far end.
    pub node: [u8; 4],
    /// Through the tunnel: a number of the flow's own, for the outer source port (RFC 7348, 5).
    pub entropy: u32,
}

/// How a packet goes its [`Way`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum By {
    /// Up the stack, which knows the route to the pod.
    #[default]
    Stack = 0,
    /// Out of the interface with these addresses.
    Link = 1,
    /// Out of the interface, to the neighbour that the stack finds.
    Neighbour = 2,
    /// Through the tunnel.
    Tunnel = 3,
}

/// What is told to the sender of a packet that is dropped for `reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub reason: Reason,
    pub kind: AnswerKind,
    /// The address that the answer comes from.
    pub from: [u8; 4],
}

impl Answer {
    #[inline(always)]
    fn time_exceeded(from: [u8; 4]) -> Self {
        let kind = AnswerKind::Icmp { kind: icmp::TIME_EXCEEDED, code: 0 };
        Self { reason: Reason::TtlExceeded, kind, from }
    }
}

impl Default for Answer {
    fn default() -> Self {
        Self::time_exceeded([0; 4])
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// A TCP reset (RFC 9293, section 3.5.2).
    Reset,
    /// An ICMP error of this type and code (RFC 792).
    Icmp { kind: u8, code: u8 },
}

/// Where a pod's packet came from: what a reply needs to find its way back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    pub vnid: u32,
    /// The tunnel source; all zero for a pod of this node.
    pub node: [u8; 4],
    /// The interface the packet arrived on.
    pub ifindex: u32,
    /// The link-layer addresses of the way back: the pod's, then the gateway's.
    pub macs: MacWords,
    /// Who forwards the packet.
    pub hop: Hop,
}

/// A pod's packet, from `scratch.origin`, on its way to the outside.
#[inline(always)]
pub fn translate_original<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Result<Verdict, Reason> {
    let origin = scratch.origin;
    let config = tables.config().ok_or(Reason::NotReady)?;
    let Some(&index) = tables.policy(origin.vnid) else { return Ok(Verdict::Pass) };
    let ip = Ipv4::read(packet, 0).ok_or(Reason::Malformed)?;
    if config.is_untouched(ip.destination) {
        return Ok(Verdict::Pass);
    }
    scratch.translation.slot = index;
    let slot = tables.slot(index).ok_or(Reason::PolicyDrop)?;
    if slot.vnid != origin.vnid || slot.action != action::SNAT {
        return Err(Reason::PolicyDrop);
    }
    if !config.is_pod(ip.source) {
        return Err(Reason::ForeignSource);
    }
    if ip.is_fragment() {
        return Err(Reason::Fragment);
    }
    if origin.hop != Hop::Stack && ip.ttl <= 1 {
        scratch.answer = Answer::time_exceeded(config.node);
        return Ok(Verdict::Answer);
    }
    let transport = Transport::read(packet, &ip).ok_or(Reason::Malformed)?;
    let (ports, flags) = match transport {
        Transport::Tcp { ports, flags } => (ports, flags),
        Transport::Udp { ports } => (ports, 0),
        Transport::Echo { id, request: true } => (Ports { source: id, destination: [0, 0] }, 0),
        // A pod answers an echo only if somebody reached it: its flow is a reply's.
        Transport::Echo { .. } => return Err(Reason::NoFlow),
        Transport::Error { .. } => {
            original_error(packet, tables, scratch)?;
            return Ok(Verdict::Translate);
        }
        Transport::OtherIcmp | Transport::Other => return Err(Reason::Protocol),
    };
    scratch.key = OriginalKey {
        pod: ip.source,
        remote: ip.destination,
        pod_port: ports.source,
        remote_port: ports.destination,
        vnid_protocol: origin.vnid << 8 | u32::from(ip.protocol),
    };
    let context = Context { config, slot, now: tables.now(), flags, length: packet.length() };
    find_or_create(tables, &context, scratch)?;
    let source = (slot.egress_ip, scratch.lease.egress_port);
    scratch.translation.way = Way {
        by: if scratch.macs_known == 1 { By::Link } else { By::Neighbour },
        ifindex: slot.uplink,
        macs: scratch.macs,
        ..Way::default()
    };
    scratch.translation.rewrite = rewrite(&ip, transport, Side::Source, source, origin.hop)?;
    Ok(Verdict::Translate)
}

/// A packet from outside that may belong to an egress IP.
#[inline(always)]
pub fn translate_reply<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
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
    let transport = Transport::read(packet, &ip);
    let (ports, flags) = match transport {
        Some(Transport::Tcp { ports, flags }) => (ports, flags),
        Some(Transport::Udp { ports }) => (ports, 0),
        Some(Transport::Echo { id, request: false }) => {
            (Ports { source: [0, 0], destination: id }, 0)
        }
        Some(Transport::Error { .. }) => {
            if tables.egress_ip(ip.destination).is_none() {
                return Ok(Verdict::Pass);
            }
            reply_error(packet, tables, scratch)?;
            return Ok(Verdict::Translate);
        }
        _ => return refuse(tables, &ip, transport, &mut scratch.answer),
    };
    scratch.lease = ReplyKey {
        remote: ip.source,
        egress_ip: ip.destination,
        remote_port: ports.source,
        egress_port: ports.destination,
        protocol: u32::from(ip.protocol),
    };
    let Some(flow) = tables.reply(&scratch.lease) else {
        return refuse(tables, &ip, transport, &mut scratch.answer);
    };
    let now = tables.now();
    let rested = state::age(now, flow.life.now().last_seen);
    if rested >= state::shortest(config, ip.protocol)
        && expired(tables, config, &scratch.lease, flow, now, &mut scratch.other)
    {
        remove_reply_pair(tables, &scratch.lease, flow, &mut scratch.other);
        return refuse(tables, &ip, transport, &mut scratch.answer);
    }
    let slot = tables.slot(flow.slot).ok_or(Reason::PolicyGone)?;
    if slot.vnid != flow.vnid || slot.action != action::SNAT || slot.egress_ip != ip.destination {
        return Err(Reason::PolicyGone);
    }
    if ip.ttl <= 1 {
        scratch.answer = Answer::time_exceeded(ip.destination);
        return Ok(Verdict::Answer);
    }
    flow.life.see(now, flags);
    count(&flow.packets, &flow.bytes, packet.length());
    let transport = transport.ok_or(Reason::Malformed)?;
    let pod = (flow.pod, flow.pod_port);
    scratch.translation = Translation {
        rewrite: rewrite(&ip, transport, Side::Destination, pod, Hop::Program)?,
        way: way_back(flow),
        slot: flow.slot,
    };
    Ok(Verdict::Translate)
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
    let Some(&index) = tables.policy(vnid) else { return Ok(true) };
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
    answer: &mut Answer,
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
    *answer = Answer { reason: Reason::Refused, kind, from: ip.destination };
    Ok(Verdict::Answer)
}
