//! The maps that say who gets what: settings, nodes, policies, egress IPs.
//!
//! Reads what the kernel holds, compares, and writes only the difference. A slot is emptied before
//! it is used for another tenant, and not in the same round: a packet under way must not find a
//! stranger's address in it.
//!
//! What was read or written is remembered ([`Held`]): reading ten thousand policies takes 20 ms, and
//! nobody else writes them. Who wants to see what the kernel holds *now* forgets it first.
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
    abi::{
        Arrival, Config, NO_SLOT, NO_VNID, NodeHop, Slot, SlotCounters, UsageRecord, Wire, action,
        mapping,
    },
    state,
};

use crate::{
    bpf::{Maps, Plain},
    model::Mapping,
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
    Snat { egress_ip: Ipv4Addr, uplink: Uplink, limits: Limits, mapping: Mapping },
    Drop,
}

/// The interface towards the outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    /// Bytes, from the IPv4 header on.
    pub mtu: u32,
    pub wire: Wire,
}

/// How pods without a policy leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// The node's.
    pub address: Ipv4Addr,
    pub uplink: Uplink,
    /// Of all such pods together.
    pub limits: Limits,
}

/// What one tenant may take; 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    pub flows: u32,
    /// That begin in a second.
    pub new_flows: u32,
    /// Held for every remote.
    pub ports: u32,
}

/// Writes the slot for pods without a policy; the settings say whether it is in force. Before them,
/// so that nothing is dropped for want of it.
pub fn masquerade(
    maps: &mut Maps,
    Masquerade { address, uplink, limits }: Masquerade,
) -> Result<()> {
    let wanted = Tenant::Snat { egress_ip: address, uplink, limits, mapping: Mapping::default() }
        .slot(NO_VNID);
    let (index, what) = (maps.masquerade_slot(), "write the slot to masquerade by");
    if maps.slots.get(&index, 0).context(what)?.0 != wanted {
        maps.slots.set(index, Plain(wanted), 0).context(what)?;
    }
    Ok(())
}

impl Tenant {
    fn slot(self, vnid: u32) -> Slot {
        match self {
            Self::Snat { egress_ip, uplink, limits, mapping } => Slot {
                vnid,
                egress_ip: egress_ip.octets(),
                uplink: uplink.index,
                mtu: uplink.mtu,
                wire: uplink.wire,
                max_flows: limits.flows,
                max_new_flows: limits.new_flows,
                max_ports: limits.ports,
                mapping: match mapping {
                    Mapping::EndpointDependent => mapping::ENDPOINT_DEPENDENT,
                    Mapping::EndpointIndependent => mapping::ENDPOINT_INDEPENDENT,
                },
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

/// What the maps held when they were last read or written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// VNID to the index of its slot.
    policy: BTreeMap<u32, u32>,
    /// By index: those of the policies.
    slots: BTreeMap<u32, Slot>,
    egress_ips: BTreeMap<[u8; 4], u32>,
}

impl Held {
    /// Reads the maps.
    pub fn read(maps: &Maps) -> Result<Self> {
        let policy: BTreeMap<u32, u32> =
            maps.policy.iter().collect::<Result<_, _>>().context("read the map policy")?;
        let read = |index: &u32| -> Result<(u32, Slot)> {
            Ok((*index, maps.slots.get(index, 0).context("read the map slots")?.0))
        };
        let slots = policy.values().filter(|index| **index != NO_SLOT).map(read);
        Ok(Self {
            slots: slots.collect::<Result<_>>()?,
            egress_ips: maps
                .egress_ips
                .iter()
                .collect::<Result<_, _>>()
                .context("read the map egress_ips")?,
            policy,
        })
    }

    fn set_slot(&mut self, maps: &mut Maps, index: u32, slot: Slot) -> Result<()> {
        maps.slots.set(index, Plain(slot), 0)?;
        self.slots.insert(index, slot);
        Ok(())
    }
}

/// Makes policies, egress IPs and nodes what they shall be. Nodes first: a policy is of no use
/// while its packets are refused at the door.
///
/// # Errors
/// A map cannot be read or written; what is remembered is then worth nothing.
pub fn reconcile(maps: &mut Maps, held: &mut Held, desired: &Desired) -> Result<Dropped> {
    reconcile_nodes(maps, &desired.nodes)?;
    let mut policies = desired.policies.clone();
    let mut unread = BTreeSet::new();
    if let Some(readable) = &desired.readable {
        let is_known = |vnid: &u32| policies.contains_key(vnid) || readable.contains(vnid);
        unread = held.policy.keys().copied().filter(|vnid| !is_known(vnid)).collect();
        policies.extend(unread.iter().map(|vnid| (*vnid, Tenant::Drop)));
    }
    let no_room = reconcile_policies(maps, held, &policies)?;
    reconcile_egress_ips(maps, held)?;
    Ok(Dropped { no_room, unread })
}

/// Where frames of further uplinks come from on XDP, and whose they are.
pub fn reconcile_arrivals(maps: &mut Maps, desired: &BTreeMap<Arrival, u32>) -> Result<()> {
    let observed: BTreeMap<Arrival, u32> = maps
        .arrivals
        .iter()
        .map(|entry| entry.map(|(arrival, link)| (arrival.0, link)))
        .collect::<Result<_, _>>()
        .context("read the map arrivals")?;
    for arrival in observed.keys().filter(|arrival| !desired.contains_key(arrival)) {
        maps.arrivals.remove(&Plain(*arrival)).context("remove from the map arrivals")?;
    }
    for (arrival, link) in desired {
        if observed.get(arrival) != Some(link) {
            maps.arrivals.insert(Plain(*arrival), link, 0).context("fill the map arrivals")?;
        }
    }
    Ok(())
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

/// Returns who shall be translated and found no slot. Those that are translated come first.
fn reconcile_policies(
    maps: &mut Maps,
    held: &mut Held,
    desired: &BTreeMap<u32, Tenant>,
) -> Result<BTreeSet<u32>> {
    let used: BTreeSet<u32> = held.policy.values().copied().collect();
    let mut free = (0..maps.masquerade_slot()).filter(|index| !used.contains(index));
    let stale: Vec<(u32, u32)> = held
        .policy
        .iter()
        .filter(|(vnid, _)| !desired.contains_key(vnid))
        .map(|(vnid, index)| (*vnid, *index))
        .collect();
    for (vnid, index) in stale {
        let what = || format!("remove the policy of VNID {vnid}");
        maps.policy.remove(&vnid).with_context(what)?;
        held.policy.remove(&vnid);
        if index != NO_SLOT {
            held.set_slot(maps, index, Slot::zeroed()).with_context(what)?;
            held.slots.remove(&index);
        }
    }
    let mut no_room = BTreeSet::new();
    let (translated, dropped): (Vec<_>, Vec<_>) =
        desired.iter().partition(|(_, tenant)| matches!(tenant, Tenant::Snat { .. }));
    for (vnid, tenant) in translated.into_iter().chain(dropped) {
        let what = || format!("write the policy of VNID {vnid}");
        let wanted = tenant.slot(*vnid);
        let there = held.policy.get(vnid).copied();
        if let Some(index) = there.filter(|index| *index != NO_SLOT) {
            if held.slots.get(&index) != Some(&wanted) {
                held.set_slot(maps, index, wanted).with_context(what)?;
            }
            continue;
        }
        let slot = free.next();
        if let Some(index) = slot {
            held.set_slot(maps, index, wanted).with_context(what)?;
            clear_counters(maps, index).with_context(what)?;
        } else if matches!(tenant, Tenant::Snat { .. }) {
            no_room.insert(*vnid);
        }
        let index = slot.unwrap_or(NO_SLOT);
        if there != Some(index) {
            maps.policy.insert(vnid, index, 0).with_context(what)?;
            held.policy.insert(*vnid, index);
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
fn reconcile_egress_ips(maps: &mut Maps, held: &mut Held) -> Result<()> {
    let translated = held.slots.iter().filter(|(_, slot)| slot.action == action::SNAT);
    let desired: BTreeMap<[u8; 4], u32> =
        translated.map(|(index, slot)| (slot.egress_ip, *index)).collect();
    for (ip, index) in &desired {
        if held.egress_ips.get(ip) != Some(index) {
            maps.egress_ips
                .insert(ip, index, 0)
                .with_context(|| format!("enter the egress IP {}", Ipv4Addr::from(*ip)))?;
        }
    }
    for ip in held.egress_ips.keys().filter(|ip| !desired.contains_key(*ip)) {
        maps.egress_ips
            .remove(ip)
            .with_context(|| format!("remove the egress IP {}", Ipv4Addr::from(*ip)))?;
    }
    held.egress_ips = desired;
    Ok(())
}

/// Turns every policy into a drop: what a stopping agent leaves behind lets nothing out.
pub fn close(maps: &mut Maps) -> Result<()> {
    // Before them: who asks meanwhile sends elsewhere what would be dropped here.
    let config = Config { carries: 0, ..settings(maps)? };
    configure(maps, &config)?;
    let mut held = Held::read(maps)?;
    let drops = held.policy.keys().map(|vnid| (*vnid, Tenant::Drop)).collect();
    reconcile_policies(maps, &mut held, &drops)?;
    reconcile_egress_ips(maps, &mut held)
}
