//! A flow's life: making, finding, ageing and removing its two entries.
//!
//! The reply's entry is inserted first: winning that insert is leasing the egress port. Nothing
//! here locks; who loses a race sees it in the answer of an insert.
use core::cell::Cell;

use crate::{
    abi::{
        BEAT, Claim, Config, MacWords, NextHop, OriginalFlow, OriginalKey, ReplyFlow, ReplyKey,
        Slot,
    },
    nat::{Origin, Way},
    port::{Candidates, TRIES},
    reason::Reason,
    state::{self, Life},
    tables::{InsertError, Tables},
    wire::{protocol, tcp},
};

/// What a packet of the original direction becomes, and its next hop if that is known.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    pub egress_ip: [u8; 4],
    pub egress_port: [u8; 2],
    pub macs: Option<MacWords>,
}

/// What the making and finding of a flow look at.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub config: &'a Config,
    pub slot: &'a Slot,
    pub slot_index: u32,
    pub origin: &'a Origin,
    pub now: u32,
    /// The segment's flags; 0 unless TCP.
    pub flags: u8,
    /// Bytes of the packet.
    pub length: u64,
}

/// The mapping of a packet of the original direction, its flow made if there is none.
#[inline(always)]
pub fn find_or_create<T: Tables>(
    tables: &T,
    context: &Context,
    key: &OriginalKey,
) -> Result<Mapping, Reason> {
    let Some(flow) = tables.original(key) else { return create(tables, context, key) };
    // A flow outlives a change of its policy that leaves it its address. Comparing with the slot's
    // also means that an element reused under our eyes cannot lend us another tenant's address.
    if flow.egress_ip != context.slot.egress_ip || flow.node != context.origin.node {
        // The tenant's address changed, or the pod did: this flow ends, and the packet begins one.
        remove_pair(tables, key, flow);
        return create(tables, context, key);
    }
    if context.flags & (tcp::SYN | tcp::ACK) == tcp::SYN {
        reopen(tables, context.now, key, flow);
    }
    count(&flow.packets, &flow.bytes, context.length);
    let beat = flow.life.see(context.now, context.flags);
    let macs = next_hop(tables, context, flow, key.remote, beat);
    Ok(Mapping { egress_ip: context.slot.egress_ip, egress_port: flow.egress_port, macs })
}

#[inline(always)]
pub fn count(packets: &Cell<u64>, bytes: &Cell<u64>, by: u64) {
    // Not an atomic addition: one flow's packets come on one CPU, and exactness is in the
    // per-CPU counters.
    packets.set(packets.get() + 1);
    bytes.set(bytes.get() + by);
}

/// A new SYN on a closed flow reopens it (RFC 9293, section 3.6.1): both halves start afresh.
#[inline(always)]
fn reopen<T: Tables>(tables: &T, now: u32, key: &OriginalKey, flow: &OriginalFlow) {
    let Some(reply) = tables.reply(&reply_key(key, flow)) else { return };
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
    remote: [u8; 4],
    beat: bool,
) -> Option<MacWords> {
    let generation = context.config.next_hop_generation;
    if !beat && let Some(macs) = flow.hop.fresh(generation) {
        return Some(macs);
    }
    let found = tables.next_hop(context.slot.uplink, flow.egress_ip, remote);
    match found {
        Some(macs) => flow.hop.set(macs, generation),
        None => flow.hop.set(MacWords::default(), 0),
    }
    if beat { None } else { found }
}

#[inline(always)]
fn reply_key(key: &OriginalKey, flow: &OriginalFlow) -> ReplyKey {
    ReplyKey {
        remote: key.remote,
        egress_ip: flow.egress_ip,
        remote_port: key.remote_port,
        egress_port: flow.egress_port,
        protocol: u32::from(key.protocol()),
    }
}

#[inline(always)]
fn original_key(key: &ReplyKey, flow: &ReplyFlow) -> OriginalKey {
    OriginalKey {
        pod: flow.pod,
        remote: key.remote,
        pod_port: flow.pod_port,
        remote_port: key.remote_port,
        vnid_protocol: flow.vnid << 8 | key.protocol,
    }
}

/// Whether a flow, seen from its reply entry, has rested too long. A half whose other half is
/// missing is being made or being removed: old enough, it is nobody's.
#[inline(always)]
pub fn expired<T: Tables>(
    tables: &T,
    config: &Config,
    key: &ReplyKey,
    flow: &ReplyFlow,
    now: u32,
) -> bool {
    let reply = flow.life.now();
    let reply_age = state::age(now, reply.last_seen);
    let of_protocol = key.protocol as u8;
    match tables.original(&original_key(key, flow)) {
        Some(original) if original.tag == flow.tag => {
            let moment = original.life.now();
            let age = reply_age.min(state::age(now, moment.last_seen));
            let rest = state::timeout(config, of_protocol, moment.flags, reply.flags);
            age >= rest
        }
        _ => reply_age >= state::shortest(config, of_protocol).min(BEAT),
    }
}

#[inline(always)]
fn remove_pair<T: Tables>(tables: &T, key: &OriginalKey, flow: &OriginalFlow) {
    let reply_key = reply_key(key, flow);
    if tables.reply(&reply_key).is_some_and(|reply| reply.tag == flow.tag) {
        tables.remove_reply(&reply_key);
    }
    tables.remove_original(key);
}

#[inline(always)]
pub fn remove_reply_pair<T: Tables>(tables: &T, key: &ReplyKey, flow: &ReplyFlow) {
    let original_key = original_key(key, flow);
    if tables.original(&original_key).is_some_and(|original| original.tag == flow.tag) {
        tables.remove_original(&original_key);
    }
    tables.remove_reply(key);
}

/// Makes the flow: leases a port, then enters the original's half.
#[inline(always)]
fn create<T: Tables>(tables: &T, context: &Context, key: &OriginalKey) -> Result<Mapping, Reason> {
    let Context { slot, origin, now, .. } = *context;
    let tag = tables.random();
    let reply = ReplyFlow {
        pod: key.pod,
        pod_port: key.pod_port,
        vnid: origin.vnid,
        slot: context.slot_index,
        node: origin.node,
        ifindex: origin.ifindex,
        macs: origin.macs,
        tag,
        life: Life::new(now, 0),
        ..ReplyFlow::default()
    };
    let lease = lease(tables, context, key, &reply)?;
    let found = tables.next_hop(slot.uplink, slot.egress_ip, key.remote);
    let original = OriginalFlow {
        egress_ip: slot.egress_ip,
        egress_port: lease.egress_port,
        slot: context.slot_index,
        hop: found.map_or_else(NextHop::default, |macs| {
            NextHop::new(macs, context.config.next_hop_generation)
        }),
        node: origin.node,
        tag,
        life: Life::new(now, context.flags),
        packets: 1.into(),
        bytes: context.length.into(),
        ..OriginalFlow::default()
    };
    let made = Mapping { egress_ip: slot.egress_ip, egress_port: lease.egress_port, macs: found };
    match tables.insert_original(key, &original) {
        Ok(()) => Ok(made),
        Err(InsertError::Full) => {
            tables.remove_reply(&lease);
            Err(Reason::FlowTableFull)
        }
        // Another CPU made this flow meanwhile: its mapping counts, our lease goes back.
        Err(InsertError::Taken) => {
            tables.remove_reply(&lease);
            let winner = tables.original(key).ok_or(Reason::NoFlow)?;
            Ok(Mapping { egress_port: winner.egress_port, ..made })
        }
    }
}

/// Leases an egress port by entering the reply's half: the pod's own port if it is free, else one
/// of a bounded number of others.
///
/// A stream without a flow is picked up by its ACK, so that a moved egress IP keeps it; only with
/// its own port, since any other would be a stranger's to the remote.
#[inline(always)]
fn lease<T: Tables>(
    tables: &T,
    context: &Context,
    key: &OriginalKey,
    reply: &ReplyFlow,
) -> Result<ReplyKey, Reason> {
    let kind = context.flags & (tcp::SYN | tcp::ACK | tcp::RST | tcp::FIN);
    let opens = key.protocol() != protocol::TCP || kind == tcp::SYN;
    if !opens && kind != tcp::ACK {
        return Err(Reason::NoFlow);
    }
    let mut candidates = Candidates::new(context.config, key.protocol(), reply.tag);
    let mut lease = ReplyKey {
        remote: key.remote,
        egress_ip: context.slot.egress_ip,
        remote_port: key.remote_port,
        egress_port: key.pod_port,
        protocol: u32::from(key.protocol()),
    };
    if !candidates.contains(lease.egress_port) {
        if !opens {
            return Err(Reason::NoFlow);
        }
        lease.egress_port = candidates.advance();
    }
    for _ in 0..TRIES {
        match lease_port(tables, context, &lease, reply) {
            Ok(()) => return Ok(lease),
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            Err(InsertError::Taken) if !opens => return Err(Reason::NoFlow),
            Err(InsertError::Taken) => lease.egress_port = candidates.advance(),
        }
    }
    Err(Reason::PortsExhausted)
}

/// One port: free, or its holder's time is over.
#[inline(always)]
fn lease_port<T: Tables>(
    tables: &T,
    context: &Context,
    lease: &ReplyKey,
    reply: &ReplyFlow,
) -> Result<(), InsertError> {
    let (config, now) = (context.config, context.now);
    let taken = match tables.insert_reply(lease, reply) {
        Err(InsertError::Taken) => tables.reply(lease),
        other => return other,
    };
    let Some(holder) = taken else { return Err(InsertError::Taken) };
    let seen = holder.life.now();
    if state::age(now, seen.last_seen) < state::shortest(config, lease.protocol as u8)
        || !expired(tables, config, lease, holder, now)
        // Of several that see the same expired holder one wins.
        || !tables.claim(&Claim { key: *lease, tag: holder.tag })
    {
        return Err(InsertError::Taken);
    }
    remove_reply_pair(tables, lease, holder);
    tables.insert_reply(lease, reply)
}

#[inline(always)]
pub fn way_back(flow: &ReplyFlow) -> Way {
    if flow.node != [0; 4] {
        Way::Tunnel { vnid: flow.vnid, node: flow.node, macs: flow.macs }
    } else if flow.ifindex != 0 {
        Way::Device { ifindex: flow.ifindex, macs: flow.macs }
    } else {
        Way::Stack
    }
}
