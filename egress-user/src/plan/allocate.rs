//! Deals out egress IPs to the nodes that have egressCIDRs.
//!
//! It chooses nodes, never IPs: namespaces name those. The outcome is the objects with the
//! `egressIPs` of every node with egressCIDRs overwritten; nodes without are left as listed.
//! Previous placements are kept while they are allowed; the others are placed by pass: first the
//! IPs that only one node can have, then the rest, namespaces taking turns, those that ask for
//! fewest first. A node is chosen by the fewest IPs, then by its name. A node that is being drained
//! keeps what it has and gets nothing.
//!
//! Surprising: balance is restored by comparison with an allocation from scratch. A node that has
//! less than half of what it would get there takes its share from the others, in the same call (the
//! original needs two rounds, in the first of which those IPs are down). Repeating the call changes
//! nothing.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{Health, Previous};
use crate::model::{HostSubnet, Objects};

/// The objects after the allocation.
pub fn allocate(objects: &Objects, health: &Health, previous: &Previous) -> Objects {
    let allocator = Allocator::new(objects, health);
    let mut allocation = Allocation::default();
    for (&ip, &vnid) in &allocator.candidates {
        if let Some(node) = allocator.placed(ip, previous) {
            allocator.put(&mut allocation, ip, vnid, node);
        }
    }
    allocator.fill(&mut allocation);
    allocator.balance(&mut allocation);
    let mut allocated = objects.clone();
    for node in allocated.host_subnets.values_mut().filter(|node| is_automatic(node)) {
        node.egress_ips = allocation.of(&node.name).values().copied().collect();
        node.egress_ips.sort();
    }
    allocated
}

fn is_automatic(node: &HostSubnet) -> bool {
    !node.egress_cidrs.is_empty()
}

/// Egress IPs by node name.
#[derive(Debug, Clone, Default)]
struct Allocation<'a> {
    /// The VNIDs that have an IP there, and which: never two of one VNID.
    by_node: BTreeMap<&'a str, BTreeMap<u32, Ipv4Addr>>,
    node_of: BTreeMap<Ipv4Addr, &'a str>,
}

impl<'a> Allocation<'a> {
    fn of(&self, node: &str) -> &BTreeMap<u32, Ipv4Addr> {
        static NONE: BTreeMap<u32, Ipv4Addr> = BTreeMap::new();
        self.by_node.get(node).unwrap_or(&NONE)
    }

    /// Puts the IP on the node, whichever had it before.
    fn insert(&mut self, ip: Ipv4Addr, vnid: u32, node: &'a str) {
        if let Some(before) = self.node_of.insert(ip, node) {
            self.by_node.entry(before).or_default().remove(&vnid);
        }
        self.by_node.entry(node).or_default().insert(vnid, ip);
    }
}

struct Allocator<'a> {
    /// With egressCIDRs and online, by name.
    nodes: BTreeMap<&'a str, &'a HostSubnet>,
    /// The IPs that may be dealt out, each with the VNID that asks for it.
    candidates: BTreeMap<Ipv4Addr, u32>,
    /// The candidates as namespaces take turns.
    order: Vec<(Ipv4Addr, u32)>,
    /// The automatic nodes that list an IP now.
    listed: BTreeMap<Ipv4Addr, Vec<&'a str>>,
}

impl<'a> Allocator<'a> {
    fn new(objects: &'a Objects, health: &Health) -> Self {
        let mut listed: BTreeMap<Ipv4Addr, Vec<&HostSubnet>> = BTreeMap::new();
        for node in objects.host_subnets.values() {
            for &ip in &node.egress_ips {
                listed.entry(ip).or_default().push(node);
            }
        }
        let node_addresses: BTreeSet<Ipv4Addr> =
            objects.host_subnets.values().map(|node| node.host_ip).collect();
        let asked = asked(objects);
        let mut asking: BTreeMap<Ipv4Addr, usize> = BTreeMap::new();
        for ip in asked.values().flatten() {
            *asking.entry(*ip).or_default() += 1;
        }
        let may_be_dealt_out = |ip: &Ipv4Addr| {
            let nodes = listed.get(ip).map_or(&[][..], Vec::as_slice);
            asking.get(ip) == Some(&1)
                && nodes.len() <= 1
                && nodes.iter().all(|node| is_automatic(node))
                && !node_addresses.contains(ip)
        };
        let mut candidates = BTreeMap::new();
        for (&vnid, ips) in &asked {
            candidates.extend(ips.iter().filter(|ip| may_be_dealt_out(ip)).map(|&ip| (ip, vnid)));
        }
        Self {
            nodes: objects
                .host_subnets
                .iter()
                .filter(|(_, node)| is_automatic(node) && !health.offline.contains(&node.host_ip))
                .map(|(name, node)| (name.as_str(), node))
                .collect(),
            order: turns(&asked).filter(|(ip, _)| candidates.contains_key(ip)).collect(),
            candidates,
            listed: listed
                .into_iter()
                .map(|(ip, nodes)| (ip, nodes.iter().map(|node| node.name.as_str()).collect()))
                .collect(),
        }
    }

    /// The node that has the IP, as listed or else as placed before.
    fn placed(&self, ip: Ipv4Addr, previous: &Previous) -> Option<&'a str> {
        let listed = self.listed.get(&ip).and_then(|nodes| nodes.first().copied());
        let name = listed.or(previous.assignments.get(&ip).map(String::as_str))?;
        self.nodes.get_key_value(name).map(|(&name, _)| name)
    }

    /// Whether the node may have the IP in addition to what it has.
    fn fits(allocation: &Allocation<'a>, ip: Ipv4Addr, vnid: u32, node: &HostSubnet) -> bool {
        node.egress_cidrs.iter().any(|cidr| cidr.contains(ip))
            && allocation.of(&node.name).get(&vnid).is_none_or(|&other| other == ip)
    }

    /// Puts the IP on the node if it fits.
    fn put(&self, allocation: &mut Allocation<'a>, ip: Ipv4Addr, vnid: u32, name: &'a str) {
        if self.nodes.get(name).is_some_and(|node| Self::fits(allocation, ip, vnid, node)) {
            allocation.insert(ip, vnid, name);
        }
    }

    /// Places what has no place: what has only one option first.
    fn fill(&self, allocation: &mut Allocation<'a>) {
        for only_one_option in [true, false] {
            for &(ip, vnid) in &self.order {
                if allocation.node_of.contains_key(&ip) {
                    continue;
                }
                let options: Vec<&'a str> = self
                    .nodes
                    .iter()
                    .filter(|(_, node)| !node.draining && Self::fits(allocation, ip, vnid, node))
                    .map(|(&name, _)| name)
                    .collect();
                if only_one_option && options.len() != 1 {
                    continue;
                }
                // The first of several equal ones: by name.
                if let Some(&node) = options.iter().min_by_key(|node| allocation.of(node).len()) {
                    allocation.insert(ip, vnid, node);
                }
            }
        }
    }

    /// Gives each node with less than half of its share the share itself.
    fn balance(&self, allocation: &mut Allocation<'a>) {
        let mut share = Allocation::default();
        self.fill(&mut share);
        // Each turn satisfies a node for good or ends: a share taken is never taken back.
        for _ in 0..self.nodes.len() {
            let poor: Vec<&'a str> = self
                .nodes
                .keys()
                .copied()
                .filter(|node| allocation.of(node).len() < share.of(node).len() / 2)
                .collect();
            if poor.is_empty() {
                break;
            }
            for node in &poor {
                for (&vnid, &ip) in share.of(node) {
                    self.put(allocation, ip, vnid, node);
                }
            }
        }
        self.fill(allocation);
    }
}

/// What each VNID asks for: the union of its namespaces' IPs, in the order of their names.
fn asked(objects: &Objects) -> BTreeMap<u32, Vec<Ipv4Addr>> {
    let mut asked: BTreeMap<u32, Vec<Ipv4Addr>> = BTreeMap::new();
    for namespace in objects.net_namespaces.values() {
        let ips = asked.entry(namespace.vnid).or_default();
        for &ip in &namespace.egress_ips {
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    asked
}

/// All IPs, the VNIDs taking turns, those that ask for fewest first.
fn turns(asked: &BTreeMap<u32, Vec<Ipv4Addr>>) -> impl Iterator<Item = (Ipv4Addr, u32)> {
    let mut by_count: Vec<(u32, &[Ipv4Addr])> =
        asked.iter().map(|(&vnid, ips)| (vnid, ips.as_slice())).collect();
    by_count.sort_by_key(|(_, ips)| ips.len());
    let rounds = by_count.last().map_or(0, |(_, ips)| ips.len());
    (0..rounds).flat_map(move |round| {
        let turn = |&(vnid, ips): &(u32, &[Ipv4Addr])| Some((*ips.get(round)?, vnid));
        by_count.iter().filter_map(turn).collect::<Vec<_>>()
    })
}
