//! The decision: who leaves with which address, and what this node has to do for it.
//!
//! `plan` is pure: no clock, no socket, no kernel. It is total, deterministic, and does not depend
//! on the order in which objects came. What is true on every node is decided in `tenants`, the
//! texts for OVS are made in `flows`, egressCIDRs are dealt out in `allocate`.
//!
//! What is left to OpenShift's own flows: the exemption of DNS and the drop of VXLAN from pods,
//! which the origin notes' dumps show above ours (priority 200 and 300). OpenShift installs them in
//! both layouts whether or not there are egress IPs; a flow of ours with the same match would
//! replace its. So ours are those of the VNIDs that ask for egress IPs, and no others: neither the
//! tables' `priority=0` flows nor the `ct_state=+rpl` one of the new layout.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::mark::{Layout, mark};
use serde::{Serialize, Serializer};

use crate::{
    condition::{Condition, Reason},
    config::Mac,
    model::{HostSubnet, Mapping, Objects},
};

mod allocate;
mod flows;
mod place;
mod tenants;

pub use allocate::allocate;
pub use flows::{group_of_new, register};
pub use place::Uplink;
pub use tenants::{Finding, Tenant, tenants};

/// What this node knows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The name of its HostSubnet.
    pub node: String,
    /// Its own address as found here; egress IPs are hosted only if the HostSubnet agrees.
    /// `None`: as the HostSubnet says.
    pub node_ip: Option<Ipv4Addr>,
    /// Of its own address; `None`: not known, and NotInSubnet is not judged.
    pub prefix_len: Option<u8>,
    /// The interface with its own address, which carries the egress IPs of its subnet too.
    pub link: Option<String>,
    /// Further interfaces that carry egress IPs.
    pub uplinks: Vec<Uplink>,
    /// All zero: not known.
    pub gateway_mac: Mac,
    /// `None`: not known; the texts then say what the original's say.
    pub ovs_ports: Option<OvsPorts>,
    /// Egress IPs that another machine answers for.
    pub conflicts: BTreeSet<Ipv4Addr>,
}

impl Facts {
    /// A node of which nothing but its name is known.
    pub fn of(node: impl Into<String>) -> Self {
        Self {
            node: node.into(),
            node_ip: None,
            prefix_len: None,
            link: None,
            uplinks: Vec::new(),
            gateway_mac: Mac::default(),
            ovs_ports: None,
            conflicts: BTreeSet::new(),
        }
    }

    /// Whether this HostSubnet is this node's.
    pub fn is_here(&self, node: &HostSubnet) -> bool {
        node.name == self.node && self.node_ip.is_none_or(|address| address == node.host_ip)
    }
}

/// OpenFlow numbers of the bridge's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OvsPorts {
    pub vxlan: u32,
    pub gateway: u32,
}

/// How the nodes are, by address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Those that are not reachable.
    pub offline: BTreeSet<Ipv4Addr>,
    /// Those that are or were offline or drained since somebody watches them: connections had to leave
    /// them, or will stay away.
    pub left: BTreeSet<Ipv4Addr>,
}

/// Where egress IPs were placed before, in addition to what the HostSubnets list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Previous {
    /// Egress IP to node name.
    pub assignments: BTreeMap<Ipv4Addr, String>,
}

/// By which rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode {
    pub layout: Layout,
    pub masquerade_bit: u8,
    /// Deal out egressCIDRs first.
    pub assign: bool,
    /// Whether flows and groups are wanted.
    pub flows: bool,
}

impl Default for Mode {
    fn default() -> Self {
        Self { layout: Layout::New, masquerade_bit: 0, assign: false, flows: true }
    }
}

/// What should be; as JSON this is what `egress plan -o json` prints, whose form is stable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    pub node: String,
    /// On this node's uplink; as numbers.
    pub addresses: Vec<Address>,
    /// By VNID.
    pub policies: Vec<Policy>,
    pub flows: Vec<String>,
    pub groups: Vec<String>,
    /// By egress IP.
    pub assignments: Vec<Assignment>,
    /// By object, then reason.
    pub conditions: Vec<Condition>,
}

/// An egress IP that lives on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    pub ip: Ipv4Addr,
    /// `None`: this node's subnet is not known here.
    pub prefix_len: Option<u8>,
    /// `None`: the uplink is not known here, or its name leaves no room.
    pub label: Option<String>,
    /// The uplink itself.
    #[serde(skip)]
    pub link: Option<String>,
}

/// What a VNID that asks for egress IPs gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Policy {
    pub vnid: u32,
    pub action: Action,
    /// As numbers; empty for `drop`.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<Ipv4Addr>,
    #[serde(serialize_with = "as_hex")]
    pub mark: u32,
    /// Not among what `egress plan` prints, whose keys are fixed: `egress explain` tells it.
    #[serde(skip)]
    pub mapping: Mapping,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Snat,
    Drop,
}

/// Where a requested egress IP lives.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Assignment {
    #[serde(rename = "egressIP")]
    pub egress_ip: Ipv4Addr,
    pub vnid: u32,
    /// The node's name.
    pub node: String,
}

/// Decides.
pub fn plan(
    objects: &Objects,
    facts: &Facts,
    health: &Health,
    previous: &Previous,
    mode: &Mode,
) -> Plan {
    if mode.assign {
        let assigned = allocate(objects, health, previous);
        return plan(&assigned, facts, health, previous, &Mode { assign: false, ..*mode });
    }
    let tenants = tenants(objects, facts, health);
    let (flows, groups) =
        if mode.flows { flows::texts(&tenants, facts, health, mode) } else { Default::default() };
    Plan {
        node: facts.node.clone(),
        addresses: addresses(&tenants, facts),
        policies: tenants.iter().map(|tenant| policy(tenant, mode)).collect(),
        flows,
        groups,
        assignments: assignments(&tenants),
        conditions: conditions(objects, &tenants),
    }
}

fn addresses(tenants: &[Tenant<'_>], facts: &Facts) -> Vec<Address> {
    let hosted: BTreeMap<Ipv4Addr, Address> = tenants
        .iter()
        .flat_map(|tenant| &tenant.wishes)
        .filter(|wish| wish.is_hosted())
        .filter_map(|wish| {
            let node = wish.node.filter(|node| facts.is_here(node))?;
            let place = facts.place(wish.ip, node.host_ip)?;
            let address = Address {
                ip: wish.ip,
                prefix_len: place.prefix_len,
                label: place.link.and_then(label),
                link: place.link.map(str::to_owned),
            };
            Some((wish.ip, address))
        })
        .collect();
    hosted.into_values().collect()
}

/// `ens18:eip`; the kernel takes 15 bytes.
fn label(link: &str) -> Option<String> {
    let label = format!("{link}:eip");
    (label.len() <= 15).then_some(label)
}

/// The policy of one tenant.
pub fn policy(tenant: &Tenant<'_>, mode: &Mode) -> Policy {
    let mut egress_ips: Vec<Ipv4Addr> =
        tenant.used(mode.layout).iter().map(|wish| wish.ip).collect();
    egress_ips.sort();
    Policy {
        vnid: tenant.vnid,
        action: if egress_ips.is_empty() { Action::Drop } else { Action::Snat },
        egress_ips,
        mark: mark(tenant.vnid, mode.masquerade_bit, mode.layout),
        mapping: tenant.mapping,
    }
}

fn assignments(tenants: &[Tenant<'_>]) -> Vec<Assignment> {
    let mut assignments: Vec<Assignment> = tenants
        .iter()
        .flat_map(|tenant| tenant.wishes.iter().map(|wish| (tenant.vnid, wish)))
        .filter(|(_, wish)| wish.is_active())
        .filter_map(|(vnid, wish)| {
            let node = wish.node?.name.clone();
            Some(Assignment { egress_ip: wish.ip, vnid, node })
        })
        .collect();
    assignments.sort();
    assignments
}

/// One condition for each object and reason; the messages of several egress IPs are joined.
fn conditions(objects: &Objects, tenants: &[Tenant<'_>]) -> Vec<Condition> {
    let mut messages: BTreeMap<(String, Reason), Vec<&str>> = BTreeMap::new();
    for tenant in tenants {
        for (namespace, finding) in tenant.findings() {
            let object = format!("NetNamespace/{}", namespace.name);
            messages.entry((object, finding.reason)).or_default().push(&finding.message);
        }
    }
    let mut conditions: Vec<Condition> = messages
        .into_iter()
        .map(|((object, reason), messages)| Condition::new(object, reason, messages.join("; ")))
        .chain(objects.conditions.iter().cloned())
        .collect();
    conditions.sort();
    conditions
}

fn as_hex<S: Serializer>(mark: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{mark:#010x}"))
}
