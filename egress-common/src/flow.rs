//! A flow's life: making, finding, ageing and removing its two entries.
//!
//! The reply's entry is inserted first: winning that insert is leasing the egress port. Nothing
//! here locks; who loses a race sees it in the answer of an insert.
use core::cell::Cell;

use crate::{
    abi::{
        Claim, Config, FragmentKey, FragmentOwner, MacWords, NextHop, OriginalFlow, OriginalKey,
        ReplyFlow, ReplyKey, Slot, action, mapping::ENDPOINT_INDEPENDENT, turned,
    },
    expiry,
    fragment::Piece,
    lease::{Search, lease},
    limit, mapping, masquerade,
    nat::{Answer, By, Origin, Translation, Way},
    reason::Reason,
    rewrite::Hop,
    state::Life,
    tables::{InsertError, Tables},
    wire::{Ipv4, Transport, protocol, tcp},
};

/// Room to make a flow in: the programs' stack is too small for it. What it held before is of no
/// meaning; after a translation `key` and `lease` name the flow, and `macs` its next hop.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Scratch {
    /// Where the packet comes from: the hook's to fill in.
    pub origin: Origin,
    /// The packet's headers.
    pub ip: Ipv4,
    pub transport: Transport,
    pub key: OriginalKey,
    pub lease: ReplyKey,
    /// The other half's key, of a flow that is looked at from its reply.
    pub other: OriginalKey,
    pub claim: Claim,
    /// Which fragment, and whose it is.
    pub fragment: FragmentKey,
    pub fragment_owner: FragmentOwner,
    pub piece: Piece,
    pub original: OriginalFlow,
    pub reply: ReplyFlow,
    /// The verdict's particulars.
    pub translation: Translation,
    pub answer: Answer,
    /// The new flow's.
    pub tag: u32,
    /// 1: the new flow's port is the one in `lease`, which its pod's port holds for every remote.
    pub shares: u16,
    pub macs: MacWords,
    /// Whether `macs` are known: 1 or 0.
    pub macs_known: u32,
    /// The search for a port.
    pub search: Search,
    /// Where this CPU's clock hand is, which lasts: 1 is the first place, 0 nowhere yet.
    pub hand: u32,
    /// A free place that the hand has passed, counted as `hand` is; 0: none.
    pub free_place: u32,
}

/// What the making and finding of a flow look at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub config: &'a Config,
    pub slot: &'a Slot,
    pub now: u32,
    /// The segment's flags; 0 unless TCP.
    pub flags: u8,
    /// Bytes of the packet.
    pub length: u64,
}

/// Finds the flow of `scratch.key`, or makes it; its mapping is then in `scratch.lease`.
#[inline(always)]
pub fn find_or_create<T: Tables>(
    tables: &T,
    context: &Context,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let found = tables.original(&scratch.key);
    // A flow outlives a change of its policy that leaves it its address. Comparing with the slot's
    // also means that an element reused under our eyes cannot lend us another tenant's address.
    let flow = match found {
        Some(flow)
            if flow.egress_ip == context.slot.egress_ip
                && !is_cut_off(tables, context, flow, scratch) =>
        {
            flow
        }
        _ => {
            // The tenant's address changed, or the port is another pod's by now: this flow ends,
            // and the packet begins one.
            if let Some(flow) = found {
                remove_pair(tables, flow, scratch);
            }
            return create(tables, context, scratch);
        }
    };
    scratch.lease.egress_ip = context.slot.egress_ip;
    scratch.lease.egress_port = flow.egress_port;
    let Origin { node, ifindex, .. } = scratch.origin;
    if flow.node.get() != node
        || flow.ifindex.get() != ifindex
        || flow.slot.get() != scratch.translation.slot
    {
        // Who only looks on meets a packet once more, on its way through the node.
        if context.config.is_shadow() {
            return Ok(());
        }
        move_home(tables, flow, scratch)?;
    }
    if scratch.origin.hop == Hop::Early && flow.life.now().is_due(context.now) {
        scratch.macs_known = 0;
        return Ok(());
    }
    if context.flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        reopen(tables, context.now, flow, scratch);
    }
    count(&flow.packets, &flow.bytes, context.length);
    let beat = flow.life.see(context.now, context.flags);
    next_hop(tables, context, flow, beat, scratch);
    Ok(())
}

/// Whether a flow that shares a port has rested until the port was gone. Asked once a beat, which
/// also keeps the port from resting.
#[inline(always)]
fn is_cut_off<T: Tables>(
    tables: &T,
    context: &Context,
    flow: &OriginalFlow,
    scratch: &mut Scratch,
) -> bool {
    let Scratch { key, other, .. } = scratch;
    flow.shares == 1
        && flow.life.now().is_due(context.now)
        && !mapping::keep(tables, context.now, key, flow.egress_port, other)
}

#[inline(always)]
pub fn count(packets: &Cell<u64>, bytes: &Cell<u64>, by: u64) {
    // Not an atomic addition: one flow's packets come on one CPU, and exactness is in the
    // per-CPU counters.
    packets.set(packets.get() + 1);
    bytes.set(bytes.get() + by);
}

/// The pod's packets come another way than before: it moved, the data path was switched, or its
/// tenant's policy was away and is back in another slot. Its replies follow.
#[inline(never)]
fn move_home<T: Tables>(
    tables: &T,
    flow: &OriginalFlow,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    known_node(tables, scratch.origin.node)?;
    scratch.lease = scratch.key.reply(flow.egress_ip, flow.egress_port);
    if let Some(reply) = tables.reply(&scratch.lease)
        && reply.tag == flow.tag
    {
        reply.slot.set(scratch.translation.slot);
        reply.node.set(scratch.origin.node);
        reply.ifindex.set(scratch.origin.ifindex);
        reply.macs.set(turned(scratch.origin.macs));
    }
    if flow.slot.get() != scratch.translation.slot {
        limit::began(tables, scratch.translation.slot, &scratch.key);
        flow.slot.set(scratch.translation.slot);
    }
    flow.node.set(scratch.origin.node);
    flow.ifindex.set(scratch.origin.ifindex);
    Ok(())
}

/// Tunnel sources are nodes of the cluster. Asked when a flow begins or moves.
#[inline(always)]
fn known_node<T: Tables>(tables: &T, node: [u8; 4]) -> Result<(), Reason> {
    if node == [0; 4] || tables.is_node(node) { Ok(()) } else { Err(Reason::UnknownNode) }
}

/// A new SYN on a closed flow reopens it (RFC 9293, section 3.6.1): both halves start afresh.
#[inline(always)]
fn reopen<T: Tables>(tables: &T, now: u32, flow: &OriginalFlow, scratch: &mut Scratch) {
    scratch.lease = scratch.key.reply(flow.egress_ip, flow.egress_port);
    let Some(reply) = tables.reply(&scratch.lease) else { return };
    let closing = u32::from(tcp::FIN | tcp::RST);
    let carried = flow.life.now().flags | reply.life.now().flags;
    if reply.tag == flow.tag && carried & closing != 0 {
        flow.life.restart(now);
        reply.life.restart(now);
    }
}

/// The cached next hop while it is fresh. Once a second, and after a change of routes, the stack is
/// asked instead: that also keeps the kernel's neighbour entry confirmed, agent or no agent.
#[inline(always)]
fn next_hop<T: Tables>(
    tables: &T,
    context: &Context,
    flow: &OriginalFlow,
    beat: bool,
    scratch: &mut Scratch,
) {
    let generation = context.config.next_hop_generation;
    if !beat && let Some(macs) = flow.hop.fresh(generation) {
        scratch.macs = macs;
        scratch.macs_known = 1;
        return;
    }
    look_up_next_hop(tables, context, scratch);
    flow.hop.set(scratch.macs, if scratch.macs_known == 1 { generation } else { 0 });
    if beat {
        scratch.macs_known = 0;
    }
}

#[inline(always)]
fn look_up_next_hop<T: Tables>(tables: &T, context: &Context, scratch: &mut Scratch) {
    let Context { slot, .. } = context;
    let known = tables.next_hop(slot.uplink, slot.egress_ip, scratch.key.remote, &mut scratch.macs);
    scratch.macs_known = u32::from(known);
}

#[inline(always)]
pub fn original_key(key: &ReplyKey, flow: &ReplyFlow) -> OriginalKey {
    key.original(flow.pod, flow.pod_port, flow.vnid)
}

/// Ends the flow of `scratch.key`.
#[inline(always)]
pub fn remove_pair<T: Tables>(tables: &T, flow: &OriginalFlow, scratch: &mut Scratch) {
    scratch.lease = scratch.key.reply(flow.egress_ip, flow.egress_port);
    if tables.reply(&scratch.lease).is_some_and(|reply| reply.tag == flow.tag) {
        give_back(tables, &scratch.lease);
    }
    limit::ended(tables, flow.slot.get(), &scratch.key);
    if flow.shares == 1 {
        mapping::leave(tables, &scratch.key, flow.egress_port, &mut scratch.other);
    }
    tables.remove_original(&scratch.key);
}

#[inline(always)]
pub fn remove_reply_pair<T: Tables>(
    tables: &T,
    key: &ReplyKey,
    flow: &ReplyFlow,
    other: &mut OriginalKey,
) {
    *other = original_key(key, flow);
    if let Some(original) = tables.original(other)
        && original.tag == flow.tag
    {
        limit::ended(tables, original.slot.get(), other);
        tables.remove_original(other);
        if flow.shares == 1 {
            mapping::leave(tables, &{ *other }, key.egress_port, other);
        }
    }
    give_back(tables, key);
}

/// Gives an egress port back: removes the reply's half.
#[inline(always)]
fn give_back<T: Tables>(tables: &T, key: &ReplyKey) {
    tables.remove_reply(key);
    if let Some(crowd) = tables.crowd(&ReplyKey { egress_port: [0, 0], ..*key }) {
        crowd.release(key.egress_port);
    }
}

/// Makes the flow: leases a port, then enters the original's half. Two functions of their own in
/// the programs too, for the sake of their stack.
#[inline(always)]
fn create<T: Tables>(tables: &T, context: &Context, scratch: &mut Scratch) -> Result<(), Reason> {
    known_node(tables, scratch.origin.node)?;
    if !begins(scratch.key.protocol(), context.flags) {
        return Err(Reason::NoFlow);
    }
    masquerade::admit(tables, context, scratch)?;
    limit::admit(tables, scratch.translation.slot, context.slot, context.now)?;
    expiry::sweep(tables, context.config, scratch);
    scratch.shares = 0;
    if context.slot.mapping == ENDPOINT_INDEPENDENT && protocol::has_ports(scratch.key.protocol()) {
        scratch.key = scratch.key.for_any_remote();
        if !mapping::find(tables, context, scratch) {
            limit::admit_port(tables, scratch.translation.slot, context.slot)?;
            make(tables, context, scratch)?;
            // It has got the place that the hand had found: one more for the flow.
            expiry::sweep(tables, context.config, scratch);
        }
        name(scratch);
        scratch.shares = 1;
    }
    make(tables, context, scratch)
}

/// Names in `scratch.key` the flow of the pod's packet at hand.
#[inline(always)]
pub fn name(scratch: &mut Scratch) {
    let Scratch { ip, transport, origin, .. } = scratch;
    scratch.key = OriginalKey {
        pod: ip.source,
        remote: ip.destination,
        pod_port: transport.ports.source,
        remote_port: transport.ports.destination,
        vnid_protocol: origin.vnid << 8 | u32::from(ip.protocol),
    };
}

/// Makes the flow, or the port for every remote, that `scratch.key` names.
#[inline(always)]
fn make<T: Tables>(tables: &T, context: &Context, scratch: &mut Scratch) -> Result<(), Reason> {
    // 0 is no flow's.
    scratch.tag = tables.random() | 1;
    lease(tables, context, scratch)?;
    enter(tables, context, scratch)
}

/// Whether a packet may begin a flow: a TCP segment only by SYN, or by an ACK of a stream that was
/// there before us.
#[inline(always)]
fn begins(of_protocol: u8, flags: u8) -> bool {
    let kind = flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN);
    of_protocol != protocol::TCP || kind == tcp::SYN || kind == tcp::ACK
}

/// Enters the original's half, the reply's being in place.
#[inline(never)]
fn enter<T: Tables>(tables: &T, context: &Context, scratch: &mut Scratch) -> Result<(), Reason> {
    let is_flow = !scratch.key.is_for_any_remote();
    if is_flow {
        look_up_next_hop(tables, context, scratch);
    }
    let generation = if scratch.macs_known == 1 { context.config.next_hop_generation } else { 0 };
    scratch.original = OriginalFlow {
        egress_ip: scratch.lease.egress_ip,
        egress_port: scratch.lease.egress_port,
        hop: NextHop::new(scratch.macs, generation),
        slot: scratch.translation.slot.into(),
        node: scratch.origin.node.into(),
        ifindex: scratch.origin.ifindex.into(),
        tag: scratch.tag,
        life: Life::new(context.now, context.flags),
        packets: u64::from(is_flow).into(),
        bytes: context.length.into(),
        shares: scratch.shares,
    };
    match tables.insert_original(&scratch.key, &scratch.original) {
        Ok(()) => {
            limit::began(tables, scratch.translation.slot, &scratch.key);
            if scratch.shares == 1 {
                mapping::join(tables, context.now, scratch);
            }
            expiry::record(tables, context, scratch);
            Ok(())
        }
        Err(InsertError::Full) => {
            give_back(tables, &scratch.lease);
            Err(Reason::FlowTableFull)
        }
        // Another CPU made this flow meanwhile: its mapping counts, our lease goes back.
        Err(InsertError::Taken) => {
            give_back(tables, &scratch.lease);
            let winner = tables.original(&scratch.key).ok_or(Reason::NoFlow)?;
            scratch.lease.egress_port = winner.egress_port;
            Ok(())
        }
    }
}

/// Whether a flow's tenant still has the address that a packet from outside came to.
#[inline(always)]
pub fn still_allowed<T: Tables>(
    tables: &T,
    flow: &ReplyFlow,
    egress_ip: [u8; 4],
) -> Result<(), Reason> {
    let slot = tables.slot(flow.slot.get()).ok_or(Reason::PolicyGone)?;
    if !slot.serves(flow.vnid) || slot.action != action::SNAT || slot.egress_ip != egress_ip {
        return Err(Reason::PolicyGone);
    }
    Ok(())
}

/// The way of a reply to its pod.
#[inline(always)]
pub fn way_back(flow: &ReplyFlow) -> Way {
    let (node, ifindex) = (flow.node.get(), flow.ifindex.get());
    let by = if node != [0; 4] {
        By::Tunnel
    } else if ifindex != 0 {
        By::Link
    } else {
        By::Stack
    };
    Way { by, ifindex, macs: flow.macs.get(), vnid: flow.vnid, node, entropy: flow.tag }
}
