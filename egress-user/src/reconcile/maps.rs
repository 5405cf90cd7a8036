//! The maps that say who gets what: settings, nodes, policies, egress IPs.
//!
//! Reads what the kernel holds, compares, and writes only the difference. A slot is emptied before
//! it is used for another tenant, and not in the same round: a packet under way must not find a
//! stranger's address in it.
//!
//! Surprising: a VNID for which there is no slot is known all the same, with a slot that does not
//! exist. The programs drop what has no slot of its own, but let pass a VNID they do not know.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result};
use bytemuck::Zeroable;
use egress_common::{
    abi::{Config, NO_SLOT, NodeHop, Slot, SlotCounters, UsageRecord, action},
    state,
};

use crate::{
    bpf::{Maps, Plain},
    sweep::{now, sweep},
};

/// What the maps shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// By VNID.
    pub policies: BTreeMap<u32, Tenant>,
    /// Not `None`: some objects could not be read, and these VNIDs' could. Any other one that has a
    /// policy and is not among `policies` is dropped, not let out.
    pub readable: Option<BTreeSet<u32>>,
    pub nodes: BTreeSet<Ipv4Addr>,
}

/// What a VNID gets on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    Snat { egress_ip: Ipv4Addr, uplink: Uplink, limits: Limits },
    Drop,
}

/// The interface towards the outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    /// Bytes, from the IPv4 header on.
    pub mtu: u32,
}

/// What one tenant may take; 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub flows: u32,
    /// That begin in a second.
    pub new_flows: u32,
}

impl Tenant {
    fn slot(self, vnid: u32) -> Slot {
        match self {
            Self::Snat { egress_ip, uplink, limits } => Slot {
                vnid,
                egress_ip: egress_ip.octets(),
                uplink: uplink.index,
                mtu: uplink.mtu,
                max_flows: limits.flows,
                max_new_flows: limits.new_flows,
                action: action::SNAT,
                ..Slot::zeroed()
            },
            Self::Drop => Slot { vnid, action: action::DROP, ..Slot::zeroed() },
        }
    }
}

/// The VNIDs that are dropped although nobody asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dropped {
    /// They shall be translated, and found no slot.
    pub no_room: BTreeSet<u32>,
    /// Their object may be among those that could not be read.
    pub unread: BTreeSet<u32>,
}

/// Writes the settings if they differ, keeping the next hops' generation unless it is raised.
pub fn configure(maps: &mut Maps, config: &Config) -> Result<bool> {
    if settings(maps)? == *config {
        return Ok(false);
    }
    maps.config.set(0, Plain(*config), 0).context("write the map config")?;
    Ok(true)
}

/// The settings that the maps hold; all zero in maps just made.
pub fn settings(maps: &Maps) -> Result<Config> {
    Ok(maps.config.get(&0, 0).context("read the map config")?.0)
}

/// Whether the programs are silent about the egress IPs, as `egress_common::fence` has it.
pub fn is_fenced(maps: &Maps) -> Result<bool> {
    let (lease, heard) =
        (settings(maps)?.lease, maps.heard.get(&0, 0).context("read the map heard")?);
    Ok(lease != 0 && heard != 0 && state::age(now()?, heard) > lease)
}

/// Makes policies, egress IPs and nodes what they shall be. Nodes first: a policy is of no use
/// while its packets are refused at the door.
pub fn reconcile(maps: &mut Maps, desired: &Desired) -> Result<Dropped> {
    reconcile_nodes(maps, &desired.nodes)?;
    let mut policies = desired.policies.clone();
    let mut unread = BTreeSet::new();
    if let Some(readable) = &desired.readable {
        let is_known = |vnid: &u32| policies.contains_key(vnid) || readable.contains(vnid);
        unread = held(maps)?.into_keys().filter(|vnid| !is_known(vnid)).collect();
        policies.extend(unread.iter().map(|vnid| (*vnid, Tenant::Drop)));
    }
    let no_room = reconcile_policies(maps, &policies)?;
    reconcile_egress_ips(maps)?;
    Ok(Dropped { no_room, unread })
}

fn reconcile_nodes(maps: &mut Maps, desired: &BTreeSet<Ipv4Addr>) -> Result<()> {
    let observed: BTreeSet<Ipv4Addr> = maps
        .nodes
        .keys()
        .map(|key| key.map(Ipv4Addr::from))
        .collect::<Result<_, _>>()
        .context("read the map nodes")?;
    let change = crate::diff::diff(desired, &observed);
    for node in &change.add {
        maps.nodes
            .insert(node.octets(), Plain(NodeHop::default()), 0)
            .with_context(|| format!("enter node {node} into the map nodes"))?;
    }
    for node in &change.remove {
        maps.nodes
            .remove(&node.octets())
            .with_context(|| format!("remove node {node} from the map nodes"))?;
    }
    if !change.remove.is_empty() {
        // Its flows go with it.
        sweep(maps)?;
    }
    Ok(())
}

/// The slots of the VNIDs that the maps know.
fn held(maps: &Maps) -> Result<BTreeMap<u32, u32>> {
    maps.policy.iter().collect::<Result<_, _>>().context("read the map policy")
}

/// Returns who shall be translated and found no slot. Those that are translated come first.
fn reconcile_policies(maps: &mut Maps, desired: &BTreeMap<u32, Tenant>) -> Result<BTreeSet<u32>> {
    let observed = held(maps)?;
    let used: BTreeSet<u32> = observed.values().copied().collect();
    let mut free = (0..maps.slots.len()).filter(|index| !used.contains(index));
    for (vnid, index) in observed.iter().filter(|(vnid, _)| !desired.contains_key(vnid)) {
        let what = || format!("remove the policy of VNID {vnid}");
        maps.policy.remove(vnid).with_context(what)?;
        if *index != NO_SLOT {
            maps.slots.set(*index, Plain(Slot::zeroed()), 0).with_context(what)?;
        }
    }
    let mut no_room = BTreeSet::new();
    let (translated, dropped): (Vec<_>, Vec<_>) =
        desired.iter().partition(|(_, tenant)| matches!(tenant, Tenant::Snat { .. }));
    for (vnid, tenant) in translated.into_iter().chain(dropped) {
        let what = || format!("write the policy of VNID {vnid}");
        let wanted = tenant.slot(*vnid);
        let there = observed.get(vnid).copied();
        if let Some(index) = there.filter(|index| *index != NO_SLOT) {
            if maps.slots.get(&index, 0).with_context(what)?.0 != wanted {
                maps.slots.set(index, Plain(wanted), 0).with_context(what)?;
            }
            continue;
        }
        let slot = free.next();
        if let Some(index) = slot {
            maps.slots.set(index, Plain(wanted), 0).with_context(what)?;
            clear_counters(maps, index).with_context(what)?;
        } else if matches!(tenant, Tenant::Snat { .. }) {
            no_room.insert(*vnid);
        }
        let index = slot.unwrap_or(NO_SLOT);
        if there != Some(index) {
            maps.policy.insert(vnid, index, 0).with_context(what)?;
        }
    }
    Ok(no_room)
}

fn clear_counters(maps: &mut Maps, index: u32) -> Result<()> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(what, error)| anyhow::anyhow!("count the CPUs: read {what}: {error}"))?;
    let zero = vec![Plain(SlotCounters::default()); cpus];
    maps.usage.set(index, Plain(UsageRecord::default()), 0).context("clear the policy's usage")?;
    maps.slot_counters
        .set(index, aya::maps::PerCpuValues::try_from(zero)?, 0)
        .context("clear the policy's counters")
}

/// The egress IPs follow from the slots: which address belongs to which slot.
fn reconcile_egress_ips(maps: &mut Maps) -> Result<()> {
    let mut desired = BTreeMap::new();
    for index in held(maps)?.into_values().filter(|index| *index != NO_SLOT) {
        let slot = maps.slots.get(&index, 0).context("read the map slots")?.0;
        if slot.action == action::SNAT {
            desired.insert(slot.egress_ip, index);
        }
    }
    let observed: BTreeMap<[u8; 4], u32> =
        maps.egress_ips.iter().collect::<Result<_, _>>().context("read the map egress_ips")?;
    for (ip, index) in &desired {
        if observed.get(ip) != Some(index) {
            maps.egress_ips
                .insert(ip, index, 0)
                .with_context(|| format!("enter the egress IP {}", Ipv4Addr::from(*ip)))?;
        }
    }
    for ip in observed.keys().filter(|ip| !desired.contains_key(*ip)) {
        maps.egress_ips
            .remove(ip)
            .with_context(|| format!("remove the egress IP {}", Ipv4Addr::from(*ip)))?;
    }
    Ok(())
}

/// Turns every policy into a drop: what a stopping agent leaves behind lets nothing out.
pub fn close(maps: &mut Maps) -> Result<()> {
    let drops = held(maps)?.into_keys().map(|vnid| (vnid, Tenant::Drop)).collect();
    // Before them: who asks meanwhile sends elsewhere what would be dropped here.
    let config = Config { carries: 0, ..settings(maps)? };
    configure(maps, &config)?;
    reconcile_policies(maps, &drops)?;
    reconcile_egress_ips(maps)
}
