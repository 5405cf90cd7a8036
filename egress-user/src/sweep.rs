//! Removes flows that have rested too long. The programs take over the ports of expired flows
//! themselves; the sweep gives back the room that nobody asks for.
use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::{Context, Result};
use egress_common::{
    abi::{
        BEAT, Config, OriginalKey, OriginalRecord, PortRange, ReplyKey, TICK_SHIFT, UsageRecord,
    },
    state::{self, Moment},
    wire::protocol,
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    bpf::{Maps, Plain},
    reconcile::maps,
};

/// What a sweep saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    pub live: usize,
    pub removed: usize,
    /// Flows of masqueraded pods live that have other ports than the range's: adopted ones.
    pub beyond_range: bool,
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
    let before = usage(maps)?;
    let mut swept = Swept::default();
    let mut gone = Vec::new();
    let mut by_slot = BTreeMap::new();
    let (masquerade, mut masqueraded) = (maps.masquerade_slot(), config.masquerade_ports);
    // Ports held for every remote, and those that live flows share.
    let (mut held, mut shared) = (Vec::new(), HashSet::new());
    let nodes: BTreeSet<[u8; 4]> = maps.nodes.keys().flatten().chain([[0; 4]]).collect();
    for entry in maps.flows_original.iter() {
        // An entry that vanishes under the walk is no error: the programs are at work meanwhile.
        let Ok((key, flow)) = entry else { continue };
        if key.0.is_for_any_remote() {
            held.push((key.0, flow.0));
            continue;
        }
        let homeless = !nodes.contains(&flow.0.node);
        match homeless || is_over(maps, &config, &key.0, &flow.0, now) {
            true => gone.push((key.0, flow.0)),
            false => {
                swept.live += 1;
                if flow.0.slot == masquerade && protocol::has_ports(key.0.protocol()) {
                    masqueraded = masqueraded.joined(port_alone(flow.0.egress_port));
                }
                by_slot.entry(flow.0.slot).or_insert([0; 2])[0] += 1;
                if flow.0.shares == 1 {
                    shared.insert(key.0.for_any_remote());
                }
            }
        }
    }
    for (key, flow) in held {
        let age = state::age(now, Moment::of(flow.life).last_seen);
        if !shared.contains(&key) && age >= state::shortest(&config, key.protocol()) {
            gone.push((key, flow));
        } else {
            let counted = by_slot.entry(flow.slot).or_insert([0; 2]);
            *counted = counted.map(|count| count + 1);
        }
    }
    let mut orphans = Vec::new();
    for entry in maps.flows_reply.iter() {
        let Ok((key, reply)) = entry else { continue };
        let reply = reply.0;
        let original = key.0.original(reply.pod, reply.pod_port, reply.vnid);
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
    for (original, flow) in gone {
        let reply = original.reply(flow.egress_ip, flow.egress_port);
        // Whoever was quicker did the same.
        let _ = maps.flows_reply.remove(&Plain(reply));
        let _ = maps.flows_original.remove(&Plain(original));
        // The bitmap of a crowded destination would keep the port taken: it is learnt anew.
        let _ = maps.crowds.remove(&Plain(ReplyKey { egress_port: [0, 0], ..reply }));
    }
    correct_usage(maps, &before, &by_slot)?;
    swept.beyond_range = masqueraded != config.masquerade_ports;
    // Only what is adopted has other ports than the range: nothing new can be left out.
    maps::configure(maps, &Config { masqueraded_ports: masqueraded, ..config })?;
    for key in orphans {
        let _ = maps.flows_reply.remove(&key);
    }
    Ok(swept)
}

/// The range of one port on the wire.
pub fn port_alone(port: [u8; 2]) -> PortRange {
    PortRange { from: u16::from_be_bytes(port).into(), count: 1 }
}

/// What the tenants hold as the programs count it, by slot.
fn usage(maps: &Maps) -> Result<BTreeMap<u32, UsageRecord>> {
    let masquerade = maps.masquerade_slot();
    let slots: Vec<u32> =
        maps.policy.iter().flatten().map(|(_, slot)| slot).chain([masquerade]).collect();
    let room = maps.usage.len();
    let held = slots.into_iter().filter(|slot| *slot < room).map(|slot| {
        let held = maps.usage.get(&slot, 0).context("read the map usage")?.0;
        Ok((slot, held))
    });
    held.collect()
}

/// The programs' own count of what a tenant holds may drift: several CPUs add to it plainly.
fn correct_usage(
    maps: &mut Maps,
    before: &BTreeMap<u32, UsageRecord>,
    by_slot: &BTreeMap<u32, [u32; 2]>,
) -> Result<()> {
    for (slot, now) in usage(maps)? {
        let Some(before) = before.get(&slot) else { continue };
        let [flows, ports] = by_slot.get(&slot).copied().unwrap_or_default();
        let corrected = UsageRecord {
            flows: correct(before.flows, now.flows, flows),
            ports: correct(before.ports, now.ports, ports),
            ..now
        };
        if corrected != now {
            maps.usage.set(slot, Plain(corrected), 0).context("write the map usage")?;
        }
    }
    Ok(())
}

/// A count that was `before` and is `now`, of which `seen` were met in between: what began and ended
/// meanwhile explains a difference no bigger than the count has moved.
fn correct(before: u32, now: u32, seen: u32) -> u32 {
    if seen.abs_diff(before) <= now.abs_diff(before) {
        return now;
    }
    now.saturating_add(seen).saturating_sub(before)
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
    let reply = maps.flows_reply.get(&Plain(key.reply(flow.egress_ip, flow.egress_port)), 0);
    match reply {
        Ok(reply) if reply.0.tag == flow.tag => {
            let reply = Moment::of(reply.0.life);
            let age = age.min(state::age(now, reply.last_seen));
            age >= state::timeout(config, key.protocol(), original.flags, reply.flags)
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::correct;

    #[test]
    fn a_count_is_corrected_by_what_its_movement_does_not_explain() {
        assert_eq!(correct(7, 7, 7), 7);
        assert_eq!(correct(9, 9, 7), 7, "some ends were lost");
        assert_eq!(correct(0, 6, 3), 6, "begun while the tables were walked");
        assert_eq!(correct(50, 52, 40), 42, "both");
        assert_eq!(correct(3, 0, 9), 6);
        assert_eq!(correct(9, 0, 3), 0);
    }
}
