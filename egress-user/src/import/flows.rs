//! What a bridge's flows and groups tell: which VNIDs leave here or by other nodes, and whatever
//! else of the cluster the original writes into its tables.
//!
//! Pure. Of all tables only those of egress IPs must be understood line by line; from the others is
//! taken what is known, and the rest is the original's own affair.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::mark::Layout;

use crate::{
    cidr::Cidr,
    config::Mac,
    ovs::{
        self,
        text::{self, Flow, Group},
    },
};

/// The priority of the original's flows for egress IPs.
const PRIORITY: u16 = 100;

/// All that was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// `None`: neither the note nor a flow of an egress IP tells.
    pub layout: Option<Layout>,
    pub tenants: BTreeMap<u32, Way>,
    /// The other nodes, and where their pods are.
    pub nodes: BTreeMap<Ipv4Addr, Option<Cidr>>,
    /// This node's address: that of its DNS.
    pub node_ip: Option<Ipv4Addr>,
    pub pod_networks: BTreeSet<Cidr>,
    pub service_networks: BTreeSet<Cidr>,
    pub vxlan_port: Option<u16>,
    /// What could not be understood, and what is not as it would be written.
    pub strange: Vec<String>,
}

/// Where a VNID's packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    Here { mark: u32, gateway_mac: Mac },
    To(BTreeSet<Ipv4Addr>),
    Dropped,
}

/// Reads `ovs-ofctl dump-flows` (whole, or of tables 100 and 101) and `dump-groups`.
pub fn find(flows: &str, groups: &str) -> Found {
    let mut found = Found::default();
    let mut read = Vec::new();
    for line in text::lines_of(flows, "OFPST_FLOW") {
        match Flow::parse(line) {
            Ok(flow) => read.push((flow, line)),
            Err(_) => found.strange.push(unknown("flow", line)),
        }
    }
    let groups = found.groups(groups);
    found.layout = layout(flows, &read);
    for (flow, line) in &read {
        if !found.take_egress(flow, &groups, line) {
            found.take_other(flow);
        }
    }
    found
}

fn unknown(what: &str, line: &str) -> String {
    format!("not understood: the {what} `{line}`")
}

/// By the note, else by what only one layout has.
fn layout(flows: &str, read: &[(Flow, &str)]) -> Option<Layout> {
    let noted = text::rule_version(flows).and_then(ovs::layout_of).map(|layout| match layout {
        ovs::Layout::Old => Layout::Old,
        ovs::Layout::New => Layout::New,
    });
    let uses = |table: u8, word: &str| {
        let names = |flow: &Flow| flow.actions.iter().any(|action| action.contains(word));
        read.iter()
            .any(|(flow, _)| flow.on.table == table && flow.on.vnid().is_some() && names(flow))
    };
    let shown = || match () {
        () if uses(101, "group:") => Some(Layout::New),
        () if uses(100, "->pkt_mark") || uses(100, "->tun_dst") => Some(Layout::Old),
        () => None,
    };
    noted.or_else(shown)
}

impl Found {
    fn groups(&mut self, dump: &str) -> BTreeMap<u32, Option<Way>> {
        let mut groups = BTreeMap::new();
        for line in text::lines_of(dump, "OFPST_GROUP_DESC") {
            let Ok(group) = Group::parse(line) else {
                self.strange.push(unknown("group", line));
                continue;
            };
            let way = group_way(&group);
            if way.is_none() {
                self.strange.push(unknown("group", line));
            }
            groups.insert(group.id, way);
        }
        groups
    }

    /// A flow of the table that egress IPs are in. Whether it was one, understood or not.
    fn take_egress(
        &mut self,
        flow: &Flow,
        groups: &BTreeMap<u32, Option<Way>>,
        line: &str,
    ) -> bool {
        let table = match self.layout {
            Some(Layout::Old) => 100,
            Some(Layout::New) => 101,
            None => return false,
        };
        if flow.on.table != table || is_fixed(flow) {
            return false;
        }
        let plain =
            flow.on.fields.len() == 1 && flow.on.protocol.as_deref().is_none_or(|ip| ip == "ip");
        let way = match self.layout {
            Some(Layout::Old) => old_way(&flow.actions),
            _ => new_way(&flow.actions, groups),
        };
        match (flow.on.vnid().filter(|_| plain), way) {
            (Some(vnid), Some(way)) => {
                if flow.on.priority != PRIORITY {
                    let priority = flow.on.priority;
                    self.strange.push(format!(
                        "made by hand: the flow of VNID {vnid} has priority {priority}, the plan's has \
                         {PRIORITY}: `{line}`"
                    ));
                }
                self.tenants.insert(vnid, way);
            }
            _ => self.strange.push(unknown("flow", line)),
        }
        true
    }

    /// What the other tables tell of the cluster.
    fn take_other(&mut self, flow: &Flow) {
        let field = |name: &str| flow.on.fields.get(name).map(String::as_str);
        let network = || field("nw_dst").and_then(|text| text.parse::<Cidr>().ok());
        let action = |word: &str| flow.actions.iter().any(|action| action == word);
        match flow.on.table {
            10 => {
                if let Some(node) = field("tun_src").and_then(|text| text.parse().ok()) {
                    self.nodes.entry(node).or_default();
                }
            }
            50 | 90 => {
                let node = flow.actions.iter().find_map(|action| tunnel_end(action));
                let subnet =
                    field("nw_dst").or(field("arp_tpa")).and_then(|text| text.parse().ok());
                if let (Some(node), Some(subnet)) = (node, subnet) {
                    self.nodes.insert(node, Some(subnet));
                }
            }
            30 if action("goto_table:90") => self.pod_networks.extend(network()),
            30 if action("goto_table:60") => self.service_networks.extend(network()),
            20 | 99 | 100 => {
                if let Some(port) = dropped_port(flow) {
                    self.vxlan_port = Some(port);
                }
                if field("tp_dst") == Some("53") {
                    self.node_ip = field("nw_dst").and_then(|text| text.parse().ok());
                }
            }
            _ => {}
        }
    }
}

/// Those of the table that are there whether or not there are egress IPs.
pub fn is_fixed(flow: &Flow) -> bool {
    let field = |name: &str| flow.on.fields.contains_key(name);
    let dns = flow.on.priority == 200 && field("nw_dst") && field("tp_dst");
    let replies = flow.on.fields.keys().eq(["ct_state"]);
    let last = flow.on.priority == 0 && flow.on.fields.is_empty();
    dns || replies || last || dropped_port(flow).is_some()
}

/// VXLAN from pods.
fn dropped_port(flow: &Flow) -> Option<u16> {
    let is_drop = flow.on.priority == 300 && flow.on.protocol.as_deref() == Some("udp");
    let port = flow.on.fields.get("tp_dst").filter(|_| is_drop && flow.actions.is_empty())?;
    port.parse().ok()
}

fn old_way(actions: &[String]) -> Option<Way> {
    match actions.split_last() {
        None => Some(Way::Dropped),
        Some((last, actions)) if last == "goto_table:101" => here(actions),
        Some((last, actions)) if last.starts_with("output:") => remote(actions).map(Way::To),
        Some(_) => None,
    }
}

fn new_way(actions: &[String], groups: &BTreeMap<u32, Option<Way>>) -> Option<Way> {
    let (last, before) = match actions.split_last() {
        None => return Some(Way::Dropped),
        Some((last, before)) => (last, before),
    };
    let id = last.strip_prefix("group:")?.parse().ok()?;
    before.iter().all(|action| action == "ct(commit)").then_some(())?;
    groups.get(&id)?.clone()
}

fn group_way(group: &Group) -> Option<Way> {
    let mut nodes = BTreeSet::new();
    for bucket in &group.buckets {
        let actions: Vec<String> =
            bucket.strip_prefix("actions=")?.split(',').map(str::to_owned).collect();
        let (last, actions) = actions.split_last()?;
        last.starts_with("output:").then_some(())?;
        match (here(actions), remote(actions)) {
            (Some(way), _) if group.buckets.len() == 1 => return Some(way),
            (None, Some(ends)) => nodes.extend(ends),
            _ => return None,
        }
    }
    (!nodes.is_empty()).then_some(Way::To(nodes))
}

fn here(actions: &[String]) -> Option<Way> {
    let [mac, mark] = actions else { return None };
    let mac = mac.strip_prefix("set_field:")?.strip_suffix("->eth_dst")?;
    let mark = mark.strip_prefix("set_field:0x")?.strip_suffix("->pkt_mark")?;
    let mark = u32::from_str_radix(mark, 16).ok()?;
    Some(Way::Here { mark, gateway_mac: Mac::parse(mac)? })
}

fn remote(actions: &[String]) -> Option<BTreeSet<Ipv4Addr>> {
    let [set, end] = actions else { return None };
    set.starts_with("move:NXM_NX_REG0[]->NXM_NX_TUN_ID[").then_some(())?;
    Some(BTreeSet::from([tunnel_end(end)?]))
}

fn tunnel_end(action: &str) -> Option<Ipv4Addr> {
    action.strip_prefix("set_field:")?.strip_suffix("->tun_dst")?.parse().ok()
}
