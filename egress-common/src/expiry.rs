//! When flows end by rest, and how they go without anybody sweeping.
//!
//! Every flow has a place in an array, which says when to look at it. Each new flow moves a clock
//! hand over some places and ends what has expired there, so that expired flows go as fast as new
//! ones come, agent or no agent. With twice as many places as flows a hand that moves by
//! [`STRIDE`] finds a free one, and is round once in a quarter as many new flows as there may be.
//! A flow that found no place, or lost it to another CPU, ends when its port is wanted or the agent
//! sweeps it.
use crate::{
    abi::{BEAT, Claim, Config, OriginalKey, ReplyFlow, ReplyKey},
    flow::{Context, Scratch, original_key, remove_reply_pair},
    state,
    tables::{Step, Tables},
};

/// Places that each new flow moves the hand by.
pub const STRIDE: u32 = 8;

/// The ticks that a flow, seen from its reply entry, may still rest; 0: it has expired. A half
/// whose other half is missing is being made or being removed: old enough, it is nobody's.
#[inline(always)]
pub fn remaining<T: Tables>(
    tables: &T,
    config: &Config,
    key: &ReplyKey,
    flow: &ReplyFlow,
    now: u32,
    other: &mut OriginalKey,
) -> u32 {
    let reply = flow.life.now();
    let reply_age = state::age(now, reply.last_seen);
    let of_protocol = key.protocol as u8;
    *other = original_key(key, flow);
    match tables.original(other) {
        Some(original) if original.tag == flow.tag => {
            let moment = original.life.now();
            let age = reply_age.min(state::age(now, moment.last_seen));
            let rest = if key.is_for_any_remote() {
                state::shared_timeout(config, of_protocol, original.packets.get())
            } else {
                state::timeout(config, of_protocol, moment.flags, reply.flags)
            };
            rest.saturating_sub(age)
        }
        _ => state::shortest(config, of_protocol).min(BEAT).saturating_sub(reply_age),
    }
}

/// Moves the hand on, and ends what it finds expired.
#[inline(always)]
pub fn sweep<T: Tables>(tables: &T, config: &Config, scratch: &mut Scratch) {
    scratch.free_place = 0;
    if config.places == 0 {
        return;
    }
    if scratch.hand == 0 {
        // CPUs begin at different places, lest they follow each other.
        scratch.hand = ((u64::from(tables.random()) * u64::from(config.places)) >> 32) as u32;
    }
    tables.repeat::<Sweep>(STRIDE, scratch);
}

struct Sweep;

impl<T: Tables> Step<T> for Sweep {
    #[inline(always)]
    fn step(tables: &T, scratch: &mut Scratch) -> bool {
        let Some(config) = tables.config() else { return false };
        scratch.hand = if scratch.hand >= config.places { 1 } else { scratch.hand + 1 };
        let Some(place) = tables.place(scratch.hand - 1) else { return false };
        let tag = place.tag.get();
        if tag == 0 {
            scratch.free_place = scratch.hand;
            return true;
        }
        let now = tables.now();
        if place.deadline.get().wrapping_sub(now).wrapping_sub(1) < u32::MAX / 2 {
            return true;
        }
        scratch.claim = Claim { key: place.key.get(), tag };
        let Scratch { claim, other, .. } = scratch;
        match tables.reply(&claim.key) {
            Some(flow) if flow.tag == tag => {
                let rest = remaining(tables, config, &claim.key, flow, now, other);
                if rest != 0 {
                    place.deadline.set(now.wrapping_add(rest));
                    return true;
                }
                if tables.claim(claim) {
                    remove_reply_pair(tables, &claim.key, flow, other);
                }
            }
            // It has ended otherwise.
            _ => {}
        }
        place.tag.set(0);
        scratch.free_place = scratch.hand;
        true
    }
}

/// Gives the new flow of `scratch.lease` a place, if the hand has passed a free one.
#[inline(always)]
pub fn record<T: Tables>(tables: &T, context: &Context, scratch: &Scratch) {
    if scratch.free_place == 0 {
        return;
    }
    let Some(place) = tables.place(scratch.free_place - 1) else { return };
    if place.tag.get() != 0 {
        return;
    }
    let shortest = state::shortest(context.config, scratch.lease.protocol as u8);
    place.key.set(scratch.lease);
    place.deadline.set(context.now.wrapping_add(shortest));
    place.tag.set(scratch.tag);
}
