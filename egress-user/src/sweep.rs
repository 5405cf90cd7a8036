//! Removes flows that have rested too long. The programs take over the ports of expired flows
//! themselves; the sweep gives back the room that nobody asks for.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use egress_common::{
    abi::{BEAT, Config, OriginalKey, OriginalRecord, ReplyKey, TICK_SHIFT, UsageRecord},
    state::{self, Moment},
};
use nix::time::{ClockId, clock_gettime};

use crate::bpf::{Maps, Plain};

/// What a sweep saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub live: usize,
    pub removed: usize,
}

/// The programs' clock, in ticks.
pub fn now() -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("read the clock")?;
    let nanoseconds = time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64;
    Ok((nanoseconds >> TICK_SHIFT) as u32)
}

/// Walks over the flows from their original's half, and over replies that have lost theirs. A flow
/// whose tunnel source is no node any more ends too: the programs ask only when a flow begins.
pub fn sweep(maps: &mut Maps) -> Result<Swept> {
    let config = maps.config.get(&0, 0).context("read the map config")?.0;
    let now = now()?;
    let mut swept = Swept::default();
    let mut gone = Vec::new();
    let mut by_slot = BTreeMap::new();
    let nodes: BTreeSet<[u8; 4]> = maps.nodes.keys().flatten().chain([[0; 4]]).collect();
    for entry in maps.flows_original.iter() {
        // An entry that vanishes under the walk is no error: the programs are at work meanwhile.
        let Ok((key, flow)) = entry else { continue };
        let homeless = !nodes.contains(&flow.0.node);
        match homeless || is_over(maps, &config, &key.0, &flow.0, now) {
            true => gone.push((key, reply_key(&key.0, &flow.0))),
            false => {
                swept.live += 1;
                *by_slot.entry(flow.0.slot).or_default() += 1;
            }
        }
    }
    let mut orphans = Vec::new();
    for entry in maps.flows_reply.iter() {
        let Ok((key, reply)) = entry else { continue };
        let reply = reply.0;
        let original = OriginalKey {
            pod: reply.pod,
            remote: key.0.remote,
            pod_port: reply.pod_port,
            remote_port: key.0.remote_port,
            vnid_protocol: reply.vnid << 8 | key.0.protocol,
        };
        let young = state::age(now, Moment::of(reply.life).last_seen) <= BEAT;
        let paired = maps
            .flows_original
            .get(&Plain(original), 0)
            .is_ok_and(|original| original.0.tag == reply.tag);
        if !young && !paired {
            orphans.push(key);
        }
    }
    swept.removed = gone.len();
    for (original, reply) in gone {
        // Whoever was quicker did the same.
        let _ = maps.flows_reply.remove(&Plain(reply));
        let _ = maps.flows_original.remove(&original);
        // The bitmap of a crowded destination would keep the port taken: it is learnt anew.
        let _ = maps.crowds.remove(&Plain(ReplyKey { egress_port: [0, 0], ..reply }));
    }
    correct_usage(maps, &by_slot)?;
    for key in orphans {
        let _ = maps.flows_reply.remove(&key);
    }
    Ok(swept)
}

/// The programs' own count of a tenant's flows may drift: several CPUs add to it plainly.
fn correct_usage(maps: &mut Maps, by_slot: &BTreeMap<u32, u32>) -> Result<()> {
    let masquerade = maps.masquerade_slot();
    let slots: Vec<u32> =
        maps.policy.iter().flatten().map(|(_, slot)| slot).chain([masquerade]).collect();
    let room = maps.usage.len();
    for slot in slots.into_iter().filter(|slot| *slot < room) {
        let held = maps.usage.get(&slot, 0).context("read the map usage")?.0;
        let flows = by_slot.get(&slot).copied().unwrap_or(0);
        if held.flows != flows {
            let corrected = UsageRecord { flows, ..held };
            maps.usage.set(slot, Plain(corrected), 0).context("write the map usage")?;
        }
    }
    Ok(())
}

fn reply_key(key: &OriginalKey, flow: &OriginalRecord) -> ReplyKey {
    ReplyKey {
        remote: key.remote,
        egress_ip: flow.egress_ip,
        remote_port: key.remote_port,
        egress_port: flow.egress_port,
        protocol: u32::from(key.protocol()),
    }
}

fn is_over(
    maps: &Maps,
    config: &Config,
    key: &OriginalKey,
    flow: &OriginalRecord,
    now: u32,
) -> bool {
    let original = Moment::of(flow.life);
    let age = state::age(now, original.last_seen);
    if age < state::shortest(config, key.protocol()) {
        return false;
    }
    let reply = maps.flows_reply.get(&Plain(reply_key(key, flow)), 0);
    match reply {
        Ok(reply) if reply.0.tag == flow.tag => {
            let reply = Moment::of(reply.0.life);
            let age = age.min(state::age(now, reply.last_seen));
            age >= state::timeout(config, key.protocol(), original.flags, reply.flags)
        }
        _ => true,
    }
}
