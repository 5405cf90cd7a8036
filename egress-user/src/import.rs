//! From what a live node holds to the objects and settings that would have made it so.
//!
//! Pure: the node's own words (`iptables-save`, `ovs-ofctl`, `ip addr`) in, values out. Nothing is
//! guessed in silence: what is not understood, what contradicts itself and what cannot be known from
//! one node is a line in [`Imported::told`].
//!
//! Surprising: a mark names its VNID only together with the masquerade bit. The bit is taken from
//! kube-proxy's chain, else from flows that show both VNID and mark, else it is 0; a mark that would
//! be another VNID's with another bit is told.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::mark::{Layout, mark, vnid_of_mark};

use crate::{
    cidr::Cidr,
    config::Mac,
    iptables::rules::{self, Meaning},
};

pub mod addresses;
pub mod flows;
mod names;
pub mod write;

use flows::Way;
pub use names::Named;

/// The node's words. What is empty was not there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// The name of its HostSubnet.
    pub node: String,
    pub iptables: String,
    pub flows: String,
    pub groups: String,
    pub addresses: String,
    /// What `oc get netnamespace` prints.
    pub namespaces: String,
}

/// What was made of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub node: Node,
    /// By VNID.
    pub tenants: BTreeMap<u32, Tenant>,
    /// The other nodes that are known with their pods' subnets.
    pub others: BTreeMap<Ipv4Addr, Other>,
    pub cluster_networks: BTreeSet<Cidr>,
    pub service_networks: BTreeSet<Cidr>,
    pub layout: Option<Layout>,
    pub masquerade_bit: u8,
    pub vxlan_port: Option<u16>,
    /// A sentence each, for standard error.
    pub told: Vec<String>,
}

/// The node that the words are from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub ip: Option<(Ipv4Addr, Option<u8>)>,
    pub uplink: Option<String>,
    pub gateway: Option<String>,
    pub gateway_mac: Option<Mac>,
    pub subnet: Option<Cidr>,
    pub egress_ips: BTreeSet<Ipv4Addr>,
}

/// A VNID with egress IPs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tenant {
    /// That of its NetNamespace; `None`: not known here.
    pub name: Option<String>,
    pub egress_ips: Vec<Ipv4Addr>,
}

/// Another node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Other {
    pub subnet: Option<Cidr>,
    pub egress_ips: BTreeSet<Ipv4Addr>,
}

/// Infers.
pub fn import(words: &Words) -> Imported {
    let rules = rules::parse(&words.iptables);
    let found = flows::find(&words.flows, &words.groups);
    let (addresses, strange) = addresses::parse(&words.addresses);
    let (named, unnamed) = names::parse(&words.namespaces);
    let mut told = Told::default();
    for line in strange {
        told.say(format!("not understood: the address `{line}`"));
    }
    for line in unnamed {
        told.say(format!("not understood: the NetNamespace `{line}`"));
    }
    let chain = Chain::read(&rules, &mut told);
    let marks = Marks::infer(&found, &chain, &mut told);
    let mut imported = Imported {
        node: Node { name: words.node.clone(), ..Node::default() },
        tenants: BTreeMap::new(),
        others: found
            .nodes
            .iter()
            .map(|(ip, subnet)| (*ip, Other { subnet: *subnet, ..Other::default() }))
            .collect(),
        cluster_networks: chain.networks.union(&found.pod_networks).copied().collect(),
        service_networks: found.service_networks.clone(),
        layout: marks.layout,
        masquerade_bit: marks.bit,
        vxlan_port: found.vxlan_port,
        told: Vec::new(),
    };
    imported.take_rules(&chain, &marks, &mut told);
    imported.take_flows(&found, &marks, &mut told);
    imported.take_names(&named, &found, &mut told);
    imported.take_addresses(&addresses, found.node_ip, &mut told);
    imported.judge(&found, &mut told);
    told.0.extend(found.strange);
    imported.told = told.0;
    imported
}

/// Sentences, each once.
#[derive(Debug, Default)]
struct Told(Vec<String>);

impl Told {
    fn say(&mut self, sentence: String) {
        if !self.0.contains(&sentence) {
            self.0.push(sentence);
        }
    }
}

/// What the rules tell.
#[derive(Debug, Default)]
struct Chain {
    /// By mark, in the order of the rules; the first of a mark is the one that counts.
    snat: Vec<(u32, Ipv4Addr)>,
    bit: Option<u8>,
    networks: BTreeSet<Cidr>,
}

impl Chain {
    fn read(rules: &[rules::Rule], told: &mut Told) -> Self {
        let mut chain = Self::default();
        let mut seen: BTreeMap<(u32, Cidr), (Ipv4Addr, u32)> = BTreeMap::new();
        for rule in rules {
            match rule.meaning() {
                Meaning::Snat { mark, source, to } => {
                    chain.networks.insert(source);
                    if let Some((first, place)) = seen.get(&(mark, source)) {
                        told.say(format!(
                            "never reached: rule {} of {} gives mark {mark:#x} {to}, rule {place} \
                             before it {first}: `{}`",
                            rule.place, rule.chain, rule.line
                        ));
                        continue;
                    }
                    seen.insert((mark, source), (to, rule.place));
                    if !chain.snat.contains(&(mark, to)) {
                        chain.snat.push((mark, to));
                    }
                }
                Meaning::PodNetwork(network) => {
                    chain.networks.insert(network);
                }
                Meaning::MasqueradeBit(bit) => chain.bit = Some(bit),
                Meaning::ClusterMasquerade { .. } | Meaning::Refuse { .. } | Meaning::Other => {}
                Meaning::Unknown => told.say(format!(
                    "not understood: rule {} of {} in {}: `{}`",
                    rule.place, rule.chain, rule.table, rule.line
                )),
            }
        }
        chain
    }
}

/// How this node's marks are made.
struct Marks {
    bit: u8,
    layout: Option<Layout>,
    /// All that what was seen allows.
    possible: Vec<(u8, Layout)>,
}

impl Marks {
    fn infer(found: &flows::Found, chain: &Chain, told: &mut Told) -> Self {
        let shown: Vec<(u32, u32)> = found
            .tenants
            .iter()
            .filter_map(|(vnid, way)| match way {
                Way::Here { mark, .. } => Some((*vnid, *mark)),
                _ => None,
            })
            .collect();
        let layouts = found.layout.map_or(vec![Layout::New, Layout::Old], |layout| vec![layout]);
        let bits: Vec<u8> = chain.bit.map_or((0..32).collect(), |bit| vec![bit]);
        let all = layouts.iter().flat_map(|layout| bits.iter().map(|bit| (*bit, *layout)));
        let fits = |&(bit, layout): &(u8, Layout)| {
            shown.iter().all(|&(vnid, seen)| mark(vnid, bit, layout) == seen)
                && chain.snat.iter().all(|&(seen, _)| vnid_of_mark(seen, bit, layout).is_some())
        };
        let possible: Vec<(u8, Layout)> = all.filter(fits).collect();
        let (bit, layout) = match possible.first() {
            Some((bit, layout)) => (*bit, found.layout.unwrap_or(*layout)),
            None => {
                told.say(
                    "the marks of flows and rules do not follow from their VNIDs by any masquerade \
                     bit: the plan's are others"
                        .to_owned(),
                );
                (chain.bit.unwrap_or(0), found.layout.unwrap_or(Layout::New))
            }
        };
        let known = found.layout.is_some() || possible.iter().all(|(_, other)| *other == layout);
        Self { bit, layout: known.then_some(layout), possible }
    }

    fn vnid(&self, seen: u32, told: &mut Told) -> Option<u32> {
        let layout = self.layout.unwrap_or(Layout::New);
        let vnid = vnid_of_mark(seen, self.bit, layout);
        let Some(vnid) = vnid else {
            told.say(format!("mark {seen:#x} belongs to no VNID (masquerade bit {})", self.bit));
            return None;
        };
        let others: BTreeSet<u32> = self
            .possible
            .iter()
            .filter_map(|(bit, layout)| vnid_of_mark(seen, *bit, *layout))
            .filter(|other| *other != vnid)
            .collect();
        if let Some(other) = others.first() {
            told.say(format!(
                "mark {seen:#x} is taken for VNID {vnid}; with another masquerade bit or layout it \
                 is {other}'s or {} more: give the rules of KUBE-MARK-MASQ or the flows too",
                others.len() - 1
            ));
        }
        Some(vnid)
    }
}

impl Imported {
    fn take_rules(&mut self, chain: &Chain, marks: &Marks, told: &mut Told) {
        for (seen, to) in &chain.snat {
            let Some(vnid) = marks.vnid(*seen, told) else { continue };
            self.tenants.entry(vnid).or_default().egress_ips.push(*to);
            self.node.egress_ips.insert(*to);
        }
    }

    fn take_flows(&mut self, found: &flows::Found, marks: &Marks, told: &mut Told) {
        for (vnid, way) in &found.tenants {
            match way {
                Way::Here { mark: seen, gateway_mac } => {
                    self.node.gateway_mac = Some(*gateway_mac);
                    let layout = marks.layout.unwrap_or(Layout::New);
                    let made = mark(*vnid, marks.bit, layout);
                    if made != *seen {
                        told.say(format!(
                            "the flow of VNID {vnid} sets mark {seen:#x}, the plan's sets {made:#x}"
                        ));
                    }
                }
                Way::To(nodes) => nodes.iter().for_each(|node| {
                    self.others.entry(*node).or_default();
                }),
                Way::Dropped => {}
            }
        }
    }

    /// NetNamespaces say what is wanted; where they say otherwise than the rules, they count.
    fn take_names(&mut self, named: &[Named], found: &flows::Found, told: &mut Told) {
        for Named { name, vnid, egress_ips } in named {
            if egress_ips.is_empty() && !self.tenants.contains_key(vnid) {
                continue;
            }
            let tenant = self.tenants.entry(*vnid).or_default();
            tenant.name = Some(name.clone());
            if !egress_ips.is_empty() && tenant.egress_ips != *egress_ips {
                if let [was] = tenant.egress_ips[..] {
                    told.say(format!(
                        "VNID {vnid} leaves with {was}, but NetNamespace {name} asks for {}: taken \
                         as the NetNamespace says",
                        listed(egress_ips)
                    ));
                }
                tenant.egress_ips.clone_from(egress_ips);
            }
            match found.tenants.get(vnid) {
                Some(Way::Here { .. }) => self.node.egress_ips.extend(egress_ips),
                // One IP, one node; of several it cannot be told which lives where.
                Some(Way::To(nodes)) if nodes.len() == 1 && egress_ips.len() == 1 => {
                    for node in nodes {
                        let other = self.others.entry(*node).or_default();
                        other.egress_ips.extend(egress_ips);
                    }
                }
                _ => {}
            }
        }
        // What no tenant has any more by its NetNamespace is nobody's here.
        let wanted: BTreeSet<Ipv4Addr> =
            self.tenants.values().flat_map(|tenant| tenant.egress_ips.iter().copied()).collect();
        self.node.egress_ips.retain(|ip| wanted.contains(ip));
    }

    fn take_addresses(
        &mut self,
        all: &[addresses::Found],
        node_ip: Option<Ipv4Addr>,
        told: &mut Told,
    ) {
        let is_eip = |address: &&addresses::Found| {
            self.node.egress_ips.contains(&address.ip) || address.label.ends_with(":eip")
        };
        let is_pods = |address: &&addresses::Found| {
            self.cluster_networks.iter().any(|network| network.contains(address.ip))
        };
        let uplink = all.iter().find(|address| match node_ip {
            Some(ip) => address.ip == ip,
            None => is_eip(address),
        });
        let link = uplink.map(|address| address.link.clone());
        let own = all.iter().find(|address| {
            Some(&address.link) == link.as_ref()
                && !is_eip(address)
                && node_ip.is_none_or(|ip| ip == address.ip)
        });
        self.node.ip =
            own.map(|own| (own.ip, Some(own.prefix_len))).or(node_ip.map(|ip| (ip, None)));
        for address in all.iter().filter(|address| address.label.ends_with(":eip")) {
            if !self.node.egress_ips.contains(&address.ip) {
                told.say(format!(
                    "{} is on {} as an egress IP, and no rule gives it to a VNID",
                    address.ip, address.link
                ));
            }
        }
        for ip in self.node.egress_ips.iter().filter(|_| !all.is_empty()) {
            if !all.iter().any(|address| address.ip == *ip) {
                told.say(format!("the egress IP {ip} is on no interface"));
            }
        }
        let gateway = all.iter().find(is_pods);
        self.node.gateway = gateway.map(|address| address.link.clone());
        self.node.subnet = gateway.and_then(addresses::Found::subnet);
        self.node.uplink = link;
    }

    /// What is missing or contradicts itself.
    fn judge(&mut self, found: &flows::Found, told: &mut Told) {
        let mut owners: BTreeMap<Ipv4Addr, Vec<u32>> = BTreeMap::new();
        for (vnid, tenant) in &self.tenants {
            for ip in &tenant.egress_ips {
                owners.entry(*ip).or_default().push(*vnid);
            }
        }
        for (ip, vnids) in owners.iter().filter(|(_, vnids)| vnids.len() > 1) {
            told.say(format!(
                "{ip} is the egress IP of VNIDs {}: a plan drops them all; leave it to one",
                listed(vnids)
            ));
        }
        for (vnid, way) in found.tenants.iter().filter(|(vnid, _)| !self.tenants.contains_key(vnid))
        {
            told.say(match way {
                Way::To(nodes) => format!(
                    "VNID {vnid} leaves by {}: its egress IP is known there; import there too, or give \
                     what `oc get netnamespace` prints",
                    listed(nodes)
                ),
                Way::Here { mark, .. } => format!(
                    "VNID {vnid} is marked {mark:#x} to leave here, and no rule gives it an egress IP"
                ),
                Way::Dropped => format!(
                    "VNID {vnid} is dropped: it asks for an egress IP that is not known here"
                ),
            });
        }
        if self.node.ip.is_none() {
            told.say("this node's address is not known: give what `ip addr` prints".to_owned());
        }
        if self.node.subnet.is_none() {
            told.say(
                "the subnet of this node's pods is not known: give what `ip addr` prints, with tun0"
                    .to_owned(),
            );
        }
        for (ip, other) in &self.others {
            if other.subnet.is_none() {
                told.say(format!(
                    "node {ip} has pods in a subnet that is not known: give the flows of all tables, or \
                     add its HostSubnet"
                ));
            }
        }
        if self.others.is_empty() {
            told.say(
                "no other node is known: give the flows of all tables, or add their HostSubnets; tunnels \
                 of others are refused"
                    .to_owned(),
            );
        }
        for (networks, what) in
            [(&self.cluster_networks, "cluster"), (&self.service_networks, "service")]
        {
            if networks.is_empty() {
                told.say(format!(
                    "no {what} network is known: add {what}Networks to the AgentConfig"
                ));
            }
        }
        if self.layout.is_none() {
            told.say(
                "the layout is not known: add compat to the AgentConfig, old before 4.8".to_owned(),
            );
        }
    }
}

fn listed<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
