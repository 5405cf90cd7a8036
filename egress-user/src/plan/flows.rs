//! The texts for OVS, on source and egress node alike: what OpenShift SDN would have installed.
//!
//! Written as `ovs-ofctl dump-flows` shows them (registers in hex, the mark without leading zeros),
//! apart from the buckets: those are in the original's own words, joined by `bucket=` without a
//! comma, which ovs-ofctl takes, and with ports by name unless the bridge told their numbers.
//!
//! Beyond the original: once some of a VNID's nodes was drained or offline, connections stay where they
//! are. The address of its node is a connection's conntrack mark then, and it goes there as long as that
//! node is online. What has no mark yet goes through one of two groups. New connections go to the nodes
//! that are neither offline nor drained. Those that were established before go through the group that
//! they came from, with a bucket for each of its nodes: so only an offline node's share is dealt out
//! anew, among the others. A flow without a mark that nobody answers counts as new. The old layout tracks
//! no connections and uses one egress IP: there nothing changes.
use std::{collections::BTreeSet, net::Ipv4Addr};

use egress_common::mark::{Layout, mark};

use super::{Facts, Health, Mode, Tenant};

/// Where connections are marked with their node; a table of its own, since of a bucket's actions Open
/// vSwitch executes one of `ct` and `output`. OpenShift has no table of this number, nor of the next.
const MARKING_TABLE: u8 = 102;
/// Where an offline node's bucket leads: a bucket that named a group would make a chain of groups.
const OFFLINE_TABLE: u8 = 103;

/// Flows and groups, each sorted as text.
pub fn texts(
    tenants: &[Tenant<'_>],
    facts: &Facts,
    health: &Health,
    mode: &Mode,
) -> (Vec<String>, Vec<String>) {
    let mut flows = Vec::new();
    let mut groups = Vec::new();
    for tenant in tenants {
        let way = Way::of(tenant, facts, health, mode.layout);
        match mode.layout {
            Layout::Old => flows.push(old_flow(tenant.vnid, &way, facts, mode)),
            Layout::New => {
                flows.extend(new_flows(tenant.vnid, &way, facts));
                groups.extend(self::groups(tenant.vnid, &way, facts, mode));
            }
        }
    }
    flows.sort();
    groups.sort();
    (flows, groups)
}

/// Where a tenant's packets go from this node.
enum Way {
    Nowhere,
    /// Out of this node, even if others could be used as well: a packet that came over the tunnel
    /// must not be sent on over it.
    Here,
    /// Through the tunnel.
    To(Nodes),
}

/// Nodes by address, as numbers.
struct Nodes {
    all: BTreeSet<Ipv4Addr>,
    /// `None`: each takes its share of whatever there is, as the original has it.
    sticky: Option<Sticky>,
}

/// What becomes of the connections that have no mark yet.
struct Sticky {
    /// With those that are offline.
    hosts: BTreeSet<Ipv4Addr>,
    new: BTreeSet<Ipv4Addr>,
}

impl Way {
    fn of(tenant: &Tenant<'_>, facts: &Facts, health: &Health, layout: Layout) -> Self {
        let used = tenant.used(layout);
        let nodes = || used.iter().filter_map(|wish| wish.node);
        if nodes().any(|node| facts.is_here(node)) {
            return Self::Here;
        }
        let all: BTreeSet<Ipv4Addr> = nodes().map(|node| node.host_ip).collect();
        if all.is_empty() {
            return Self::Nowhere;
        }
        let mut new: BTreeSet<Ipv4Addr> =
            nodes().filter(|node| !node.draining).map(|node| node.host_ip).collect();
        if new.is_empty() {
            new.clone_from(&all);
        }
        let hosted = tenant.wishes.iter().filter(|wish| wish.is_hosted());
        let hosts: BTreeSet<Ipv4Addr> =
            hosted.filter_map(|wish| Some(wish.node?.host_ip)).collect();
        let left = hosts.len() > 1 && hosts.iter().any(|node| health.left.contains(node));
        let sticky = (new != all || left).then_some(Sticky { hosts, new });
        Self::To(Nodes { all, sticky })
    }
}

fn old_flow(vnid: u32, way: &Way, facts: &Facts, mode: &Mode) -> String {
    let matching = format!("table=100,priority=100,ip,reg0={}", register(vnid));
    match way {
        Way::Nowhere => drop_flow(100, vnid),
        Way::Here => format!("{matching} actions={},goto_table:101", to_gateway(vnid, facts, mode)),
        // One IP, so one node.
        Way::To(nodes) => {
            let sends: Vec<String> = nodes.all.iter().map(|node| to_node(*node)).collect();
            let port = facts.ovs_ports.map_or(1, |ports| ports.vxlan);
            format!("{matching} actions={},output:{port}", sends.join(","))
        }
    }
}

fn new_flows(vnid: u32, way: &Way, facts: &Facts) -> Vec<String> {
    let flow = |priority: u16, also: &str, actions: &str| {
        let register = register(vnid);
        format!("table=101,priority={priority},{also}ip,reg0={register} actions={actions}")
    };
    match way {
        Way::Nowhere => vec![drop_flow(101, vnid)],
        Way::Here => vec![flow(100, "", &format!("group:{vnid}"))],
        Way::To(Nodes { sticky: None, .. }) => {
            vec![flow(100, "", &format!("ct(commit),group:{vnid}"))]
        }
        Way::To(Nodes { all, sticky: Some(Sticky { hosts, .. }) }) => {
            let new = format!("group:{}", group_of_new(vnid));
            let mut flows = vec![
                flow(100, "", &format!("group:{vnid}")),
                flow(101, "ct_state=+new+trk,", &new),
                marking_flow(vnid, facts),
            ];
            flows.extend(all.iter().map(|node| {
                let on = format!("ct_mark={:#x},", node.to_bits());
                flow(102, &on, &format!("{},goto_table:{MARKING_TABLE}", to_node(*node)))
            }));
            if hosts != all {
                let on = format!("table={OFFLINE_TABLE},priority=100,ip,reg0={}", register(vnid));
                flows.push(format!("{on} actions={new}"));
            }
            flows
        }
    }
}

/// Marks a connection with the node that its packet is on its way to, and lets it go there.
fn marking_flow(vnid: u32, facts: &Facts) -> String {
    format!(
        "table={MARKING_TABLE},priority=100,ip,reg0={} actions=\
         ct(commit,exec(move:NXM_NX_TUN_IPV4_DST[]->NXM_NX_CT_MARK[])),output:{}",
        register(vnid),
        tunnel(facts)
    )
}

/// The number of a VNID's second group, which is for new connections: above all VNIDs.
pub fn group_of_new(vnid: u32) -> u32 {
    vnid | 1 << 24
}

/// All protocols, not only IP.
fn drop_flow(table: u8, vnid: u32) -> String {
    format!("table={table},priority=100,reg0={} actions=drop", register(vnid))
}

/// A register's value as ovs-ofctl prints it: hex, but a plain 0.
pub fn register(vnid: u32) -> String {
    if vnid == 0 { "0".into() } else { format!("{vnid:#x}") }
}

/// The tunnel's port as a group's bucket names it.
fn tunnel(facts: &Facts) -> String {
    facts.ovs_ports.map_or_else(|| "vxlan0".into(), |ports| ports.vxlan.to_string())
}

fn groups(vnid: u32, way: &Way, facts: &Facts, mode: &Mode) -> Vec<String> {
    let select = |id: u32, buckets: String| format!("group_id={id},type=select,{buckets}");
    let bucket = |node: &Ipv4Addr, then: &str| format!("bucket=actions={},{then}", to_node(*node));
    match way {
        Way::Nowhere => Vec::new(),
        Way::Here => {
            let gateway = facts.ovs_ports.map_or("tun0".into(), |ports| ports.gateway.to_string());
            let actions = to_gateway(vnid, facts, mode);
            vec![select(vnid, format!("bucket=actions={actions},output:{gateway}"))]
        }
        Way::To(Nodes { all, sticky: None }) => {
            let output = format!("output:{}", tunnel(facts));
            vec![select(vnid, all.iter().map(|node| bucket(node, &output)).collect())]
        }
        Way::To(Nodes { all, sticky: Some(Sticky { hosts, new }) }) => {
            let marked = |node: &Ipv4Addr| bucket(node, &format!("resubmit(,{MARKING_TABLE})"));
            let host = |node: &Ipv4Addr| match all.contains(node) {
                true => marked(node),
                false => format!("bucket=actions=resubmit(,{OFFLINE_TABLE})"),
            };
            vec![
                select(vnid, hosts.iter().map(host).collect()),
                select(group_of_new(vnid), new.iter().map(marked).collect()),
            ]
        }
    }
}

fn to_gateway(vnid: u32, facts: &Facts, mode: &Mode) -> String {
    let mark = mark(vnid, mode.masquerade_bit, mode.layout);
    format!("set_field:{}->eth_dst,set_field:{mark:#x}->pkt_mark", facts.gateway_mac)
}

fn to_node(node: Ipv4Addr) -> String {
    format!("move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{node}->tun_dst")
}
