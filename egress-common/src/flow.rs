//! A flow's life: making, finding, ageing and removing its two entries.
//!
//! The reply's entry is inserted first: winning that insert is leasing the egress port. Nothing
//! here locks; who loses a race sees it in the answer of an insert.
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::{
    abi::{BEAT, Config, MacWords, OriginalFlow, OriginalKey, ReplyFlow, ReplyKey, Slot},
    nat::{Origin, Way},
    port::{Candidates, TRIES},
    reason::Reason,
    state::{self, KEPT},
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
    if key.protocol() == protocol::TCP {
        reopen(tables, key, flow, context.flags);
        remember(&flow.state, context.flags);
    }
    count(&flow.packets, &flow.bytes, context.length);
    let beat = state::age(context.now, flow.last_seen.load(Relaxed)) >= BEAT;
    if beat {
        flow.last_seen.store(context.now, Relaxed);
    }
    let macs = next_hop(tables, context, flow, key.remote, beat);
    Ok(Mapping { egress_ip: context.slot.egress_ip, egress_port: flow.egress_port, macs })
}

#[inline(always)]
pub fn count(packets: &AtomicU64, bytes: &AtomicU64, by: u64) {
    // Not an atomic addition: one flow's packets come on one CPU, and exactness is in the
    // per-CPU counters.
    packets.store(packets.load(Relaxed) + 1, Relaxed);
    bytes.store(bytes.load(Relaxed) + by, Relaxed);
}

/// Adds a segment's flags to what its direction has carried.
#[inline(always)]
pub fn remember(state: &AtomicU32, flags: u8) {
    let before = state.load(Relaxed);
    let after = before | u32::from(flags & KEPT);
    if after != before {
        state.store(after, Relaxed);
    }
}

/// A new SYN on a closed flow reopens it (RFC 9293, section 3.6.1): both halves start afresh.
#[inline(always)]
fn reopen<T: Tables>(tables: &T, key: &OriginalKey, flow: &OriginalFlow, flags: u8) {
    if flags & (tcp::SYN | tcp::ACK) != tcp::SYN {
        return;
    }
    let Some(reply) = tables.reply(&reply_key(key, flow)) else { return };
    let closing = u32::from(tcp::FIN | tcp::RST);
    let carried = flow.state.load(Relaxed) | reply.state.load(Relaxed);
    if reply.tag == flow.tag && carried & closing != 0 {
        flow.state.store(0, Relaxed);
        reply.state.store(0, Relaxed);
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
    if !beat && flow.next_hop_generation.load(Relaxed) == generation {
        return Some([
            flow.macs[0].load(Relaxed),
            flow.macs[1].load(Relaxed),
            flow.macs[2].load(Relaxed),
        ]);
    }
    let found = tables.next_hop(context.slot.uplink, flow.egress_ip, remote);
    let Some(macs) = found else {
        flow.next_hop_generation.store(0, Relaxed);
        return None;
    };
    flow.macs[0].store(macs[0], Relaxed);
    flow.macs[1].store(macs[1], Relaxed);
    flow.macs[2].store(macs[2], Relaxed);
    flow.next_hop_generation.store(generation, Relaxed);
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
    let reply_age = state::age(now, flow.last_seen.load(Relaxed));
    let of_protocol = key.protocol as u8;
    match tables.original(&original_key(key, flow)) {
        Some(original) if original.tag == flow.tag => {
            let age = reply_age.min(state::age(now, original.last_seen.load(Relaxed)));
            let rest = state::timeout(
                config,
                of_protocol,
                original.state.load(Relaxed),
                flow.state.load(Relaxed),
            );
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
        last_seen: now.into(),
        ..ReplyFlow::default()
    };
    let lease = lease(tables, context, key, &reply)?;
    let found = tables.next_hop(slot.uplink, slot.egress_ip, key.remote);
    let macs = found.unwrap_or_default();
    let original = OriginalFlow {
        egress_ip: slot.egress_ip,
        egress_port: lease.egress_port,
        slot: context.slot_index,
        macs: [macs[0].into(), macs[1].into(), macs[2].into()],
        next_hop_generation: if found.is_some() {
            context.config.next_hop_generation.into()
        } else {
            0.into()
        },
        node: origin.node,
        tag,
        last_seen: now.into(),
        state: u32::from(context.flags & KEPT).into(),
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
    let rested = state::age(now, holder.last_seen.load(Relaxed));
    if rested < state::shortest(config, lease.protocol as u8)
        || !expired(tables, config, lease, holder, now)
    {
        return Err(InsertError::Taken);
    }
    // Of several that see the same expired holder one wins: whoever moves its clock.
    if holder.last_seen.compare_exchange(now.wrapping_sub(rested), now, Relaxed, Relaxed).is_err() {
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
