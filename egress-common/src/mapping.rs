//! Endpoint-independent mapping (RFC 4787, REQ-1; RFC 5382, REQ-1): whatever a pod sends from one of
//! its ports, wherever to, leaves from one egress port, which no other pod gets meanwhile.
//!
//! That port is held by a pair of entries like a flow's, with [`ANY_REMOTE`] for the remote: so it
//! is leased, found, taken over and removed as a flow is. The flows that share it are flows like any
//! others, with entries of their own. So a packet costs one lookup as ever, and filtering stays
//! address and port-dependent: a stranger's packet finds no entry.
//!
//! The port lives as long as the last of its flows. It counts them, and each keeps it from resting,
//! at most once a second; the last that did so is noted, so that a port with one flow, as most have,
//! ends with it even before the clock hand has come to either. CPUs count plainly: what is lost on
//! the way delays the end of a port that nobody uses to the longest time that a flow may rest, unless
//! the agent, which looks at all flows, ends it before.
//!
//! [`ANY_REMOTE`]: crate::abi::ANY_REMOTE
use crate::{
    abi::{OriginalFlow, OriginalKey, ReplyKey},
    expiry::remaining,
    flow::{Context, Scratch, original_key, remove_pair, remove_reply_pair},
    limit,
    tables::Tables,
};

/// Whether a port is held already for the pod's port that `scratch.key` names, for any remote; it is
/// then in `scratch.lease`.
#[inline(never)]
pub fn find<T: Tables>(tables: &T, context: &Context, scratch: &mut Scratch) -> bool {
    let Some(held) = tables.original(&scratch.key) else { return false };
    if held.egress_ip != context.slot.egress_ip {
        // The tenant's address changed.
        remove_pair(tables, held, scratch);
        return false;
    }
    if held.slot.get() != scratch.translation.slot {
        limit::began(tables, scratch.translation.slot, &scratch.key);
        held.slot.set(scratch.translation.slot);
    }
    // From here on it does not rest: nobody takes it over before the flow has joined.
    held.life.restart(context.now);
    scratch.lease.egress_port = held.egress_port;
    true
}

/// The entry that holds `port` for the pod's port of `flow`, if it is still there.
#[inline(always)]
fn held<'a, T: Tables>(
    tables: &'a T,
    flow: &OriginalKey,
    port: [u8; 2],
    key: &mut OriginalKey,
) -> Option<&'a OriginalFlow> {
    *key = flow.for_any_remote();
    tables.original(key).filter(|held| held.egress_port == port)
}

/// The flow of `scratch.key` shares the port in `scratch.lease` from now on.
#[inline(always)]
pub fn join<T: Tables>(tables: &T, now: u32, scratch: &mut Scratch) {
    let Scratch { key, lease, other, .. } = scratch;
    if let Some(held) = held(tables, key, lease.egress_port, other) {
        held.packets.set(held.packets.get() + 1);
        use_port(held, now, key);
    }
}

#[inline(always)]
fn use_port(held: &OriginalFlow, now: u32, flow: &OriginalKey) {
    held.life.restart(now);
    let ([a, b, c, d], [e, f]) = (flow.remote, flow.remote_port);
    held.bytes.set(u64::from_be_bytes([0, 0, a, b, c, d, e, f]));
}

/// A flow that shares `port` is in use, and so is the port. `false`: the port is not held for it
/// any more. `key` is room for a key.
#[inline(always)]
pub fn keep<T: Tables>(
    tables: &T,
    now: u32,
    flow: &OriginalKey,
    port: [u8; 2],
    key: &mut OriginalKey,
) -> bool {
    let held = held(tables, flow, port, key);
    if let Some(held) = held {
        use_port(held, now, flow);
    }
    held.is_some()
}

/// A flow that shared `port` has ended.
#[inline(always)]
pub fn leave<T: Tables>(tables: &T, flow: &OriginalKey, port: [u8; 2], key: &mut OriginalKey) {
    if let Some(held) = held(tables, flow, port, key) {
        held.packets.set(held.packets.get().saturating_sub(1));
    }
}

/// Somebody wants the port of `scratch.lease`, which is held for every remote. If one flow shares it,
/// and that one has expired, it ends.
#[inline(never)]
pub fn end_last<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let (Some(config), Some(reply)) = (tables.config(), tables.reply(&scratch.lease)) else {
        return;
    };
    scratch.other = original_key(&scratch.lease, reply);
    let Some(held) = tables.original(&scratch.other) else { return };
    if held.tag != reply.tag || held.packets.get() != 1 {
        return;
    }
    let [_, _, a, b, c, d, e, f] = held.bytes.get().to_be_bytes();
    scratch.claim.key = ReplyKey {
        remote: [a, b, c, d],
        remote_port: [e, f],
        protocol: scratch.lease.protocol & 0xff,
        ..scratch.lease
    };
    let Scratch { claim, other, .. } = scratch;
    let Some(flow) = tables.reply(&claim.key) else { return };
    claim.tag = flow.tag;
    if remaining(tables, config, &claim.key, flow, tables.now(), other) == 0 && tables.claim(claim)
    {
        remove_reply_pair(tables, &claim.key, flow, other);
    }
}
