//! The translation engine: from a packet and the tables to a verdict. It decides and never writes.
//!
//! `Pass` is what is none of ours; what is ours and cannot be treated is an `Err(Reason)`: it is
//! dropped and counted. The order of the questions is the contract's (docs/architecture.md).
//! Mapping is endpoint-dependent (RFC 4787 calls it address and port-dependent), as nf_nat's, unless
//! the policy says otherwise ([`crate::mapping`]).
use crate::{
    abi::{Config, MacWords, NO_SLOT, NO_VNID, ReplyKey, action, xdp_send},
    expiry::remaining,
    fence::is_fenced,
    flow::{
        Context, Scratch, count, find_or_create, name, original_key, remove_reply_pair,
        still_allowed, way_back,
    },
    fragment::{is_noted, is_too_big, later_original, later_reply, remember_owner},
    icmp::{original_error, reply_error},
    mapping, masquerade,
    reason::Reason,
    rewrite::{Hop, Rewrite, Side, rewrite},
    state,
    tables::Tables,
    wire::{Ipv4, Kind, Packet, Transport, icmp, tcp},
};

/// What is to be done with a packet that is not dropped. What belongs to a verdict is in the
/// caller's [`Scratch`]: the programs' stack is too small to hand it back by value.
///
/// As wide as a reason: so a result of both is two registers, which the compiler does not pack into
/// one by way of what it has not written.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Not our traffic: the node treats it as it always did.
    Pass,
    /// As `scratch.translation` says.
    Translate,
    /// The packet is dropped for a reason, and its sender is told: `scratch.answer`.
    Answer,
    /// A fragment whose packet's first has not come: to be kept, and to arrive anew behind that one.
    /// `scratch.fragment` is its packet.
    Keep,
}

/// A rewrite and where the packet goes with it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Translation {
    pub rewrite: Rewrite,
    pub way: Way,
    /// The tenant's, of what is dropped too; [`NO_SLOT`]: nobody's.
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
    /// The next hop's MTU for ICMP 3/4; else 0.
    pub mtu: u16,
}

impl Answer {
    #[inline(always)]
    fn time_exceeded(from: [u8; 4]) -> Self {
        let kind = AnswerKind { kind: icmp::TIME_EXCEEDED, code: 0 };
        Self { reason: Reason::TtlExceeded, kind, from, mtu: 0 }
    }

    /// RFC 1191: the MTU is told to who asked for it by DF.
    #[inline(always)]
    fn too_big(from: [u8; 4], mtu: u32) -> Self {
        let kind = AnswerKind { kind: icmp::UNREACHABLE, code: 4 };
        Self { reason: Reason::TooBig, kind, from, mtu: mtu as u16 }
    }

    /// Communication administratively prohibited (RFC 1812, section 5.2.7.1).
    #[inline(always)]
    fn prohibited(reason: Reason, from: [u8; 4]) -> Self {
        let kind = AnswerKind { kind: icmp::UNREACHABLE, code: 13 };
        Self { reason, kind, from, mtu: 0 }
    }
}

impl Default for Answer {
    fn default() -> Self {
        Self::time_exceeded([0; 4])
    }
}

/// An ICMP error of this type and code (RFC 792), or a reset. Flat, since the verifier does not
/// follow the compiler through half-filled variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerKind {
    pub kind: u8,
    pub code: u8,
}

impl AnswerKind {
    /// A TCP reset (RFC 9293, section 3.5.2): no ICMP type is this one.
    pub const RESET: Self = Self { kind: 0xff, code: 0 };
}

/// Where a pod's packet came from: what a reply needs to find its way back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    pub vnid: u32,
    /// The tunnel source; all zero for a pod of this node.
    pub node: [u8; 4],
    /// The interface the packet arrived on.
    pub ifindex: u32,
    /// The link-layer addresses that it came with: [`turned`](crate::abi::turned), the way back.
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
    scratch.translation.slot = NO_SLOT;
    let config = tables.config().ok_or(Reason::NotReady)?;
    let vnid = scratch.origin.vnid;
    let own = if vnid == NO_VNID { None } else { tables.policy(vnid) };
    let (index, owner) = match own {
        Some(&index) => (index, vnid),
        None if config.masquerade_slot == 0 => return Ok(Verdict::Pass),
        None => (config.masquerade_slot, NO_VNID),
    };
    scratch.translation.slot = index;
    match leave(packet, tables, config, owner, scratch) {
        // What is not plainly a pod's own connection goes up the stack: it may be the answer to one
        // that the node's NAT let in, or be routed elsewhere. What then comes to the uplink with a
        // pod's address is translated there, or dropped.
        Err(reason)
            if owner == NO_VNID && reason.is_no_flow() && scratch.origin.hop != Hop::Stack =>
        {
            Ok(Verdict::Pass)
        }
        verdict => verdict,
    }
}

/// By the slot that `scratch.translation` names and that must be `owner`'s.
#[inline(always)]
fn leave<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    config: &Config,
    owner: u32,
    scratch: &mut Scratch,
) -> Result<Verdict, Reason> {
    look_at(packet, scratch)?;
    if config.is_untouched(scratch.ip.destination) {
        return Ok(Verdict::Pass);
    }
    let slot = tables.slot(scratch.translation.slot).ok_or(Reason::PolicyDrop)?;
    if slot.vnid != owner || slot.action != action::SNAT {
        return Err(Reason::PolicyDrop);
    }
    // The node's own address is nobody's to take over.
    if owner != NO_VNID && is_fenced(tables, config) {
        return Err(Reason::Fenced);
    }
    if scratch.origin.hop == Hop::Early && slot.wire.send == xdp_send::NONE {
        return Ok(Verdict::Pass);
    }
    if !config.is_pod(scratch.ip.source) {
        // The device is the node's too.
        return if owner == NO_VNID { Ok(Verdict::Pass) } else { Err(Reason::ForeignSource) };
    }
    if owner == NO_VNID && masquerade::needs_the_stack(tables, slot, scratch) {
        return Ok(Verdict::Pass);
    }
    if scratch.ip.is_fragment() && !scratch.ip.is_sane_fragment() {
        return Err(Reason::Fragment);
    }
    name(scratch);
    match share(tables, config, scratch) {
        Share::Ours => {}
        Share::Nodes => return Ok(Verdict::Pass),
        Share::Held => return Err(Reason::Held),
    }
    let forwards = scratch.origin.hop != Hop::Stack;
    match scratch.transport.kind {
        Kind::Malformed => return Err(Reason::Malformed),
        Kind::OtherIcmp => return Err(Reason::Protocol),
        // A pod answers an echo only if somebody reached it: its flow is a reply's.
        Kind::EchoReply => return Err(Reason::NoFlow),
        // Neither an error nor a later fragment is answered (RFC 1122, section 3.2.2).
        Kind::Error | Kind::Later if forwards && scratch.ip.ttl <= 1 => {
            return Err(Reason::TtlExceeded);
        }
        Kind::Later => {
            later_original(slot, scratch);
            return Ok(Verdict::Translate);
        }
        Kind::Error => {
            return or_left(config, original_error(packet, tables, scratch));
        }
        _ => {}
    }
    if forwards && scratch.ip.ttl <= 1 {
        scratch.answer = Answer::time_exceeded(config.node);
        return Ok(Verdict::Answer);
    }
    // What has come through the stack has an MTU that the stack has looked at.
    if forwards && is_too_big(packet, scratch, slot.mtu) {
        if !scratch.ip.dont_fragment {
            return Err(Reason::TooBig);
        }
        scratch.answer = Answer::too_big(config.node, slot.mtu);
        return Ok(Verdict::Answer);
    }
    let flags = scratch.transport.flags;
    let context = Context { config, slot, now: tables.now(), flags, length: packet.length() };
    if let Err(reason) = find_or_create(tables, &context, scratch) {
        // RFC 5508, REQ-8: who cannot be given a session is told so.
        if reason.is_refusal() && forwards {
            scratch.answer = Answer::prohibited(reason, config.node);
            return Ok(Verdict::Answer);
        }
        return Err(reason);
    }
    scratch.translation.way = Way {
        by: if scratch.macs_known == 1 { By::Link } else { By::Neighbour },
        ifindex: slot.uplink,
        macs: scratch.macs,
        ..Way::default()
    };
    let source = (slot.egress_ip, scratch.lease.egress_port);
    let Scratch { ip, transport, origin, .. } = scratch;
    scratch.translation.rewrite = rewrite(ip, transport, Side::Source, source, origin.hop);
    Ok(Verdict::Translate)
}

/// Whose a packet is while the node's own source NAT has flows beside the programs'.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    Ours = 0,
    Nodes = 1,
    Held = 2,
}

/// The share that a pod's packet is in, by the flow of `scratch.key`. A function of its own: in
/// everyday life nobody asks.
#[inline(always)]
fn share<T: Tables>(tables: &T, config: &Config, scratch: &Scratch) -> Share {
    if config.is_beside() { share_beside(tables, config, scratch) } else { Share::Ours }
}

#[inline(never)]
fn share_beside<T: Tables>(tables: &T, config: &Config, scratch: &Scratch) -> Share {
    let holds = config.is_holding(tables.now());
    // The node reassembles: it gets all fragments or none. Beside, it has every flow that we have.
    if scratch.ip.is_fragment() && !holds {
        return Share::Nodes;
    }
    match scratch.transport.kind {
        Kind::Malformed | Kind::Error | Kind::Later => Share::Ours,
        // What belongs to no flow is the node's to judge.
        Kind::EchoReply | Kind::OtherIcmp => Share::Nodes,
        _ if tables.original(&scratch.key).is_some() => Share::Ours,
        kind if holds && (kind != Kind::Tcp || scratch.transport.flags & tcp::SYN != 0) => {
            Share::Held
        }
        _ => Share::Nodes,
    }
}

/// An error that belongs to no flow of ours may belong to one of the node's.
#[inline(always)]
fn or_left(config: &Config, translated: Result<(), Reason>) -> Result<Verdict, Reason> {
    match translated {
        Ok(()) => Ok(Verdict::Translate),
        Err(Reason::NoFlow) if config.is_beside() => Ok(Verdict::Pass),
        Err(reason) => Err(reason),
    }
}

/// Reads the headers into `scratch`: what is decided there is decided on plain numbers, so that
/// the verifier need not follow each protocol through all that comes after.
#[inline(never)]
pub fn look_at<P: Packet>(packet: &P, scratch: &mut Scratch) -> Result<(), Reason> {
    scratch.ip = Ipv4::read(packet, 0).ok_or(Reason::Malformed)?;
    if !scratch.ip.is_intact(packet) {
        return Err(Reason::Malformed);
    }
    scratch.transport = Transport::read(packet, &scratch.ip);
    Ok(())
}

/// A packet from outside that may belong to an egress IP, or to a masqueraded flow.
#[inline(always)]
pub fn translate_reply<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Result<Verdict, Reason> {
    scratch.translation.slot = NO_SLOT;
    let config = tables.config().ok_or(Reason::NotReady)?;
    // Too short for IPv4, no IPv4, or spoilt: the node's own affair.
    if look_at(packet, scratch).is_err() {
        return Ok(Verdict::Pass);
    }
    let to_node = scratch.ip.destination == config.node;
    if !to_node && is_fenced(tables, config) && tables.egress_ip(scratch.ip.destination).is_some() {
        return Err(Reason::Fenced);
    }
    if to_node && !masquerade::may_be_reply(config, scratch) {
        return Ok(Verdict::Pass);
    }
    match come_back(packet, tables, config, scratch) {
        // The node's own, and never refused.
        Err(reason) if reason.is_no_flow() && to_node => Ok(Verdict::Pass),
        // Behind no first fragment: nobody can say that it is not the node's.
        Ok(Verdict::Keep) if to_node => Ok(Verdict::Pass),
        verdict => verdict,
    }
}

#[inline(always)]
fn come_back<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    config: &Config,
    scratch: &mut Scratch,
) -> Result<Verdict, Reason> {
    scratch.lease = ReplyKey {
        remote: scratch.ip.source,
        egress_ip: scratch.ip.destination,
        remote_port: scratch.transport.ports.source,
        egress_port: scratch.transport.ports.destination,
        protocol: u32::from(scratch.ip.protocol),
    };
    let kind = scratch.transport.kind;
    let names_no_flow = matches!(
        kind,
        Kind::Malformed | Kind::Later | Kind::EchoRequest | Kind::OtherIcmp | Kind::Error
    );
    if names_no_flow || scratch.ip.is_fragment() {
        let slot = if scratch.ip.destination == config.node {
            Some(&config.masquerade_slot)
        } else {
            tables.egress_ip(scratch.ip.destination)
        };
        let Some(&index) = slot else {
            return Ok(Verdict::Pass);
        };
        scratch.translation.slot = index;
        if scratch.ip.is_fragment() && !scratch.ip.is_sane_fragment() {
            return Err(Reason::Fragment);
        }
        if config.is_beside() && scratch.ip.is_fragment() && !config.is_holding(tables.now()) {
            return Ok(Verdict::Pass);
        }
        if kind == Kind::Later {
            if !is_noted(tables, scratch) {
                return Ok(Verdict::Keep);
            }
            later_reply(tables, scratch)?;
            return Ok(Verdict::Translate);
        }
        if kind == Kind::Error {
            let verdict = or_left(config, reply_error(packet, tables, scratch))?;
            if verdict == Verdict::Translate {
                remember_owner(tables, scratch)?;
            }
            return Ok(verdict);
        }
    }
    let found = if names_no_flow { None } else { tables.reply(&scratch.lease) };
    let Some(flow) = found else { return refuse(tables, scratch) };
    let now = tables.now();
    let rested = state::age(now, flow.life.now().last_seen);
    if rested >= state::shortest(config, scratch.ip.protocol)
        && remaining(tables, config, &scratch.lease, flow, now, &mut scratch.other) == 0
    {
        remove_reply_pair(tables, &scratch.lease, flow, &mut scratch.other);
        return refuse(tables, scratch);
    }
    still_allowed(tables, flow, scratch.ip.destination)?;
    scratch.translation.slot = flow.slot.get();
    let way = way_back(flow);
    // What the stack carries on is the stack's to count down.
    let hop = if way.by == By::Stack { Hop::Stack } else { Hop::Program };
    if hop == Hop::Program && scratch.ip.ttl <= 1 {
        scratch.answer = Answer::time_exceeded(scratch.ip.destination);
        return Ok(Verdict::Answer);
    }
    // Pods of this node have the tunnel's MTU too, and what the stack would say of a packet translated
    // already names an address that its sender has never heard of.
    if scratch.ip.dont_fragment && is_too_big(packet, scratch, config.tunnel_mtu) {
        scratch.answer = Answer::too_big(scratch.ip.destination, config.tunnel_mtu);
        return Ok(Verdict::Answer);
    }
    if flow.life.see(now, scratch.transport.flags) && flow.shares == 1 {
        let (key, port) = (original_key(&scratch.lease, flow), scratch.lease.egress_port);
        // If it is held for another pod by now, the flow's next packet from its pod sees that.
        mapping::keep(tables, now, &key, port, &mut scratch.other);
    }
    count(&flow.packets, &flow.bytes, packet.length());
    remember_owner(tables, scratch)?;
    let pod = (flow.pod, flow.pod_port);
    scratch.translation = Translation {
        rewrite: rewrite(&scratch.ip, &scratch.transport, Side::Destination, pod, hop),
        way,
        slot: flow.slot.get(),
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
    let Some(&index) = tables.policy(vnid) else {
        return Ok(config.masquerade_slot == 0 || !config.is_pod(source));
    };
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
fn refuse<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<Verdict, Reason> {
    if tables.config().is_some_and(Config::is_beside) {
        return Ok(Verdict::Pass);
    }
    let Some(&index) = tables.egress_ip(scratch.ip.destination) else {
        return Ok(Verdict::Pass);
    };
    scratch.translation.slot = index;
    let Scratch { ip, transport, .. } = scratch;
    let kind = match transport.kind {
        Kind::Malformed => return Err(Reason::Malformed),
        Kind::Tcp if transport.flags & tcp::RST != 0 => return Err(Reason::NoFlow),
        Kind::Tcp => AnswerKind::RESET,
        Kind::EchoRequest | Kind::Udp => AnswerKind { kind: icmp::UNREACHABLE, code: 3 },
        Kind::Summed | Kind::Other => AnswerKind { kind: icmp::UNREACHABLE, code: 2 },
        Kind::Later | Kind::Error | Kind::EchoReply | Kind::OtherIcmp => {
            return Err(Reason::NoFlow);
        }
    };
    scratch.answer = Answer { reason: Reason::Refused, kind, from: ip.destination, mtu: 0 };
    Ok(Verdict::Answer)
}
