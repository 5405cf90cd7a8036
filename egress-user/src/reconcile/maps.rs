//! The maps that say who gets what: settings, nodes, policies, egress IPs.
//!
//! Reads what the kernel holds, compares, and writes only the difference. A slot is emptied before
//! it is used for another tenant, and not in the same round: a packet under way must not find a
//! stranger's address in it.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result, ensure};
use bytemuck::Zeroable;
use egress_common::abi::{Config, NodeHop, Slot, SlotCounters, action};

use crate::bpf::{Maps, Plain};

/// What the maps shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// By VNID.
    pub policies: BTreeMap<u32, Tenant>,
    pub nodes: BTreeSet<Ipv4Addr>,
}

/// What a VNID gets on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenant {
    Snat { egress_ip: Ipv4Addr, uplink: u32 },
    Drop,
}

impl Tenant {
    fn slot(self, vnid: u32) -> Slot {
        match self {
            Self::Snat { egress_ip, uplink } => Slot {
                vnid,
                egress_ip: egress_ip.octets(),
                uplink,
                action: action::SNAT,
                ..Slot::zeroed()
            },
            Self::Drop => Slot { vnid, action: action::DROP, ..Slot::zeroed() },
        }
    }
}

/// How much a round changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changed {
    pub policies: usize,
    pub egress_ips: usize,
    pub nodes: usize,
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

/// Makes policies, egress IPs and nodes what they shall be. Nodes first: a policy is of no use
/// while its packets are refused at the door.
pub fn reconcile(maps: &mut Maps, desired: &Desired) -> Result<Changed> {
    Ok(Changed {
        nodes: reconcile_nodes(maps, &desired.nodes)?,
        policies: reconcile_policies(maps, &desired.policies)?,
        egress_ips: reconcile_egress_ips(maps)?,
    })
}

fn reconcile_nodes(maps: &mut Maps, desired: &BTreeSet<Ipv4Addr>) -> Result<usize> {
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
    Ok(change.add.len() + change.remove.len())
}

fn reconcile_policies(maps: &mut Maps, desired: &BTreeMap<u32, Tenant>) -> Result<usize> {
    let mut observed = BTreeMap::new();
    for entry in maps.policy.iter() {
        let (vnid, index) = entry.context("read the map policy")?;
        observed.insert(vnid, index);
    }
    let mut changed = 0;
    let mut used: BTreeSet<u32> = observed.values().copied().collect();
    for (vnid, tenant) in desired {
        let what = || format!("write the policy of VNID {vnid}");
        let wanted = tenant.slot(*vnid);
        if let Some(index) = observed.get(vnid) {
            if maps.slots.get(index, 0).with_context(what)?.0 != wanted {
                maps.slots.set(*index, Plain(wanted), 0).with_context(what)?;
                changed += 1;
            }
            continue;
        }
        let index = (0..).find(|index| !used.contains(index)).unwrap_or_default();
        ensure!(
            index < maps.slots.len(),
            "VNID {vnid} finds no room among {} policies: raise policies.max and let `egress \
             cleanup` make the maps anew",
            maps.slots.len()
        );
        maps.slots.set(index, Plain(wanted), 0).with_context(what)?;
        clear_counters(maps, index).with_context(what)?;
        maps.policy.insert(vnid, index, 0).with_context(what)?;
        used.insert(index);
        changed += 1;
    }
    for (vnid, index) in observed.iter().filter(|(vnid, _)| !desired.contains_key(vnid)) {
        let what = || format!("remove the policy of VNID {vnid}");
        maps.policy.remove(vnid).with_context(what)?;
        maps.slots.set(*index, Plain(Slot::zeroed()), 0).with_context(what)?;
        changed += 1;
    }
    Ok(changed)
}

fn clear_counters(maps: &mut Maps, index: u32) -> Result<()> {
    let cpus = aya::util::nr_cpus()
        .map_err(|(what, error)| anyhow::anyhow!("count the CPUs: read {what}: {error}"))?;
    let zero = vec![Plain(SlotCounters::default()); cpus];
    maps.slot_counters
        .set(index, aya::maps::PerCpuValues::try_from(zero)?, 0)
        .context("clear the policy's counters")
}

/// The egress IPs follow from the slots: which address belongs to which slot.
fn reconcile_egress_ips(maps: &mut Maps) -> Result<usize> {
    let mut desired = BTreeMap::new();
    for entry in maps.policy.iter() {
        let (_, index) = entry.context("read the map policy")?;
        let slot = maps.slots.get(&index, 0).context("read the map slots")?.0;
        if slot.action == action::SNAT {
            desired.insert(slot.egress_ip, index);
        }
    }
    let observed: BTreeMap<[u8; 4], u32> =
        maps.egress_ips.iter().collect::<Result<_, _>>().context("read the map egress_ips")?;
    let mut changed = 0;
    for (ip, index) in &desired {
        if observed.get(ip) != Some(index) {
            maps.egress_ips
                .insert(ip, index, 0)
                .with_context(|| format!("enter the egress IP {}", Ipv4Addr::from(*ip)))?;
            changed += 1;
        }
    }
    for ip in observed.keys().filter(|ip| !desired.contains_key(*ip)) {
        maps.egress_ips
            .remove(ip)
            .with_context(|| format!("remove the egress IP {}", Ipv4Addr::from(*ip)))?;
        changed += 1;
    }
    Ok(changed)
}

/// Turns every policy into a drop: what a stopping agent leaves behind lets nothing out.
pub fn close(maps: &mut Maps) -> Result<()> {
    let mut held = BTreeMap::new();
    for entry in maps.policy.iter() {
        let (vnid, _) = entry.context("read the map policy")?;
        held.insert(vnid, Tenant::Drop);
    }
    reconcile_policies(maps, &held)?;
    reconcile_egress_ips(maps)?;
    Ok(())
}
