//! What each VNID asks for, and what stands in its way.
//!
//! A tenant is a VNID that asks for egress IPs; namespaces that share the VNID are one tenant with
//! the union of their IPs, in the order of the namespaces' names. A wish is one IP that it asks
//! for. A wish is *active* if exactly one node lists its IP and nothing but that node and this
//! tenant is involved: the same on every node. It is *hosted* if its node can put it on its uplink,
//! which only that node can tell, and *usable* if that node is online too.
//!
//! Surprising: mistakes in what a tenant asks for (an IP of another tenant, a node's own address,
//! no address at all) drop it whole, whatever else it asks for. Everything else costs it only the
//! one IP. SameNodeTwice counts every IP of the tenant that exactly one node lists, also those that
//! other tenants ask for or that are a node's address, as the original does.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::mark::Layout;

use super::{Facts, Health};
use crate::{
    condition::Reason,
    model::{HostSubnet, Mapping, NetNamespace, Objects},
};

/// A VNID that asks for egress IPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant<'a> {
    pub vnid: u32,
    /// By name; those that ask for nothing too.
    pub namespaces: Vec<&'a NetNamespace>,
    /// In the order of preference.
    pub wishes: Vec<Wish<'a>>,
    /// The one that any of its namespaces asks for, endpoint-independent first.
    pub mapping: Mapping,
    /// What it asks for and is no address, one finding for each namespace that does.
    malformed: Vec<(&'a NetNamespace, Finding)>,
    /// Mappings that there are not; the default stands in.
    mistaken: Vec<(&'a NetNamespace, Finding)>,
}

/// One egress IP that a tenant asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish<'a> {
    pub ip: Ipv4Addr,
    /// The only node that lists it; `None`: there is none, or there are several.
    pub node: Option<&'a HostSubnet>,
    /// What stands in its way; empty: usable.
    pub findings: Vec<Finding>,
}

/// A reason and its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub reason: Reason,
    pub message: String,
}

impl Wish<'_> {
    /// Lives on its node.
    pub fn is_active(&self) -> bool {
        self.findings.iter().all(|finding| {
            matches!(finding.reason, Reason::NotInSubnet | Reason::Conflict | Reason::Offline)
        })
    }

    /// Lives on its node, which can have it; an offline node keeps it.
    pub fn is_hosted(&self) -> bool {
        self.findings.iter().all(|finding| finding.reason == Reason::Offline)
    }

    /// Packets can leave with it.
    pub fn is_usable(&self) -> bool {
        self.findings.is_empty()
    }
}

impl<'a> Tenant<'a> {
    /// Why nothing of it leaves, whatever is usable.
    pub fn dropped_whole(&self) -> Option<&Finding> {
        let grave = |finding: &&Finding| {
            matches!(finding.reason, Reason::DuplicateNamespace | Reason::IsNodeIP)
        };
        let malformed = self.malformed.iter().map(|(_, finding)| finding).next();
        malformed.or_else(|| self.wishes.iter().flat_map(|wish| &wish.findings).find(grave))
    }

    /// The wishes that it gets, in the order of preference: all usable ones in the new layout, the
    /// first one in the old. Empty: it is dropped.
    pub fn used(&self, layout: Layout) -> Vec<&Wish<'a>> {
        if self.dropped_whole().is_some() {
            return Vec::new();
        }
        let limit = if layout == Layout::Old { 1 } else { usize::MAX };
        self.wishes.iter().filter(|wish| wish.is_usable()).take(limit).collect()
    }

    /// All that stands in its way, with each namespace that it concerns.
    pub fn findings(&self) -> impl Iterator<Item = (&'a NetNamespace, &Finding)> {
        let malformed = self.malformed.iter().chain(&self.mistaken);
        let malformed = malformed.map(|(namespace, finding)| (*namespace, finding));
        let wishes = self.wishes.iter().flat_map(|wish| {
            let asking = self.namespaces.iter().filter(|n| n.egress_ips.contains(&wish.ip));
            asking.flat_map(|namespace| wish.findings.iter().map(|finding| (*namespace, finding)))
        });
        malformed.chain(wishes)
    }
}

/// All tenants, by VNID.
pub fn tenants<'a>(objects: &'a Objects, facts: &Facts, health: &Health) -> Vec<Tenant<'a>> {
    let mut by_vnid: BTreeMap<u32, Vec<&NetNamespace>> = BTreeMap::new();
    for namespace in objects.net_namespaces.values() {
        by_vnid.entry(namespace.vnid).or_default().push(namespace);
    }
    let view = View::new(objects, facts, health);
    by_vnid
        .into_iter()
        .filter(|(_, namespaces)| {
            namespaces.iter().any(|n| !n.egress_ips.is_empty() || !n.unparsable.is_empty())
        })
        .map(|(vnid, namespaces)| view.tenant(vnid, namespaces))
        .collect()
}

/// The indices over all objects.
struct View<'a, 'f> {
    nodes_listing: BTreeMap<Ipv4Addr, Vec<&'a HostSubnet>>,
    namespaces_asking: BTreeMap<Ipv4Addr, Vec<&'a NetNamespace>>,
    node_of_address: BTreeMap<Ipv4Addr, &'a HostSubnet>,
    facts: &'f Facts,
    health: &'f Health,
}

impl<'a, 'f> View<'a, 'f> {
    fn new(objects: &'a Objects, facts: &'f Facts, health: &'f Health) -> Self {
        let mut view = Self {
            nodes_listing: BTreeMap::new(),
            namespaces_asking: BTreeMap::new(),
            node_of_address: BTreeMap::new(),
            facts,
            health,
        };
        for node in objects.host_subnets.values() {
            view.node_of_address.insert(node.host_ip, node);
            for &ip in &node.egress_ips {
                view.nodes_listing.entry(ip).or_default().push(node);
            }
        }
        for namespace in objects.net_namespaces.values() {
            for &ip in &namespace.egress_ips {
                view.namespaces_asking.entry(ip).or_default().push(namespace);
            }
        }
        view
    }

    fn listing(&self, ip: Ipv4Addr) -> &[&'a HostSubnet] {
        self.nodes_listing.get(&ip).map_or(&[], Vec::as_slice)
    }

    /// The only node that lists the IP.
    fn only_node(&self, ip: Ipv4Addr) -> Option<&'a HostSubnet> {
        match self.listing(ip) {
            [node] => Some(node),
            _ => None,
        }
    }

    fn tenant(&self, vnid: u32, namespaces: Vec<&'a NetNamespace>) -> Tenant<'a> {
        let mut seen = BTreeSet::new();
        let ips: Vec<Ipv4Addr> = namespaces
            .iter()
            .flat_map(|namespace| &namespace.egress_ips)
            .copied()
            .filter(|&ip| seen.insert(ip))
            .collect();
        let mut on_node: BTreeMap<&str, Vec<Ipv4Addr>> = BTreeMap::new();
        for &ip in &ips {
            if let Some(node) = self.only_node(ip) {
                on_node.entry(&node.name).or_default().push(ip);
            }
        }
        let wishes = ips
            .iter()
            .map(|&ip| {
                let node = self.only_node(ip);
                let beside = node.and_then(|node| on_node.get(node.name.as_str()));
                let mut findings = self.everywhere(vnid, ip, beside.map_or(&[], Vec::as_slice));
                if findings.is_empty() {
                    findings.extend(node.into_iter().flat_map(|node| self.at_node(ip, node)));
                }
                Wish { ip, node, findings }
            })
            .collect();
        let malformed = namespaces.iter().filter_map(|&n| Some((n, malformed(n)?))).collect();
        let mistaken = namespaces.iter().filter_map(|&n| Some((n, mistaken(n)?))).collect();
        let mapping = namespaces.iter().map(|n| n.mapping).max().unwrap_or_default();
        Tenant { vnid, namespaces, wishes, mapping, malformed, mistaken }
    }

    /// What keeps an IP from being active. `beside`: the tenant's IPs on its node, itself included.
    fn everywhere(&self, vnid: u32, ip: Ipv4Addr, beside: &[Ipv4Addr]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |reason, message| findings.push(Finding { reason, message });
        let owner = self.node_of_address.get(&ip);
        if let Some(owner) = owner {
            find(
                Reason::IsNodeIP,
                format!("{ip} is the address of node {}: ask for another one", owner.name),
            );
        }
        match self.listing(ip) {
            [] if owner.is_none() => find(
                Reason::Unhosted,
                format!("no node hosts {ip}: list it in the egressIPs of one HostSubnet"),
            ),
            [] | [_] => {}
            nodes => find(
                Reason::DuplicateNode,
                format!(
                    "{ip} is listed by nodes {}: leave it to one",
                    names(nodes.iter().map(|node| &node.name))
                ),
            ),
        }
        let asking = self.namespaces_asking.get(&ip).map_or(&[][..], Vec::as_slice);
        if asking.iter().any(|namespace| namespace.vnid != vnid) {
            find(
                Reason::DuplicateNamespace,
                format!(
                    "{ip} is asked for by namespaces {}: leave it to one",
                    names(asking.iter().map(|namespace| &namespace.name))
                ),
            );
        }
        if let [_, _, ..] = beside {
            find(
                Reason::SameNodeTwice,
                format!(
                    "{ip} shares its node with {} of this VNID: spread them over nodes",
                    names(beside.iter().filter(|&&other| other != ip))
                ),
            );
        }
        findings
    }

    /// What keeps an active IP from being used.
    fn at_node(&self, ip: Ipv4Addr, node: &HostSubnet) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |reason, message| findings.push(Finding { reason, message });
        if self.facts.is_here(node) {
            if self.facts.place(ip, node.host_ip).is_none() {
                let subnets: Vec<_> =
                    self.facts.subnets(node.host_ip).map(|(_, subnet)| subnet).collect();
                let word = if subnets.len() == 1 { "subnet" } else { "subnets" };
                find(
                    Reason::NotInSubnet,
                    format!(
                        "{ip} is outside {}, the {word} of its node {}: move it to a node of its \
                         subnet",
                        names(subnets.iter()),
                        node.name
                    ),
                );
            }
            if self.facts.conflicts.contains(&ip) {
                find(
                    Reason::Conflict,
                    format!(
                        "another machine on the network of node {} has {ip}: free the address",
                        node.name
                    ),
                );
            }
        }
        if self.health.offline.contains(&node.host_ip) {
            find(
                Reason::Offline,
                format!("node {} ({}), which hosts {ip}, is offline", node.name, node.host_ip),
            );
        }
        findings
    }
}

fn malformed(namespace: &NetNamespace) -> Option<Finding> {
    if namespace.unparsable.is_empty() {
        return None;
    }
    let quoted = namespace.unparsable.iter().map(|text| format!("\"{text}\""));
    let message = format!("egressIPs: no IPv4 address: {}: correct or remove it", names(quoted));
    Some(Finding { reason: Reason::Invalid, message })
}

fn mistaken(namespace: &NetNamespace) -> Option<Finding> {
    let message = namespace.bad_mapping.as_ref()?;
    let message = format!("{message}; it is endpoint-dependent meanwhile");
    Some(Finding { reason: Reason::Invalid, message })
}

fn names<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}
