//! The texts for OVS, on source and egress node alike: what OpenShift SDN would have installed.
//!
//! Written as `ovs-ofctl dump-flows` shows them (registers in hex, the mark without leading zeros),
//! apart from the buckets: those are in the original's own words, joined by `bucket=` without a
//! comma, which ovs-ofctl takes, and with ports by name unless the bridge told their numbers.
//!
//! Beyond the original: while a node is drained, a VNID that has others too gets a second group in
//! the new layout, without that node. New connections take it and are known by their conntrack mark
//! from then on; those that are established go where they went. So a flow that nobody answers counts
//! as new. The old layout tracks no connections and uses one egress IP: there nothing changes before
//! the address itself moves.
use std::{collections::BTreeSet, net::Ipv4Addr};

use egress_common::mark::{Layout, mark};

use super::{Facts, Mode, Tenant};

/// Flows and groups, each sorted as text.
pub fn texts(tenants: &[Tenant<'_>], facts: &Facts, mode: &Mode) -> (Vec<String>, Vec<String>) {
    let mut flows = Vec::new();
    let mut groups = Vec::new();
    for tenant in tenants {
        let way = Way::of(tenant, facts, mode.layout);
        match mode.layout {
            Layout::Old => flows.push(old_flow(tenant.vnid, &way, facts, mode)),
            Layout::New => {
                flows.extend(new_flows(tenant.vnid, &way));
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
    /// Those that new connections go to, if that is not all of them.
    fresh: Option<BTreeSet<Ipv4Addr>>,
}

impl Way {
    fn of(tenant: &Tenant<'_>, facts: &Facts, layout: Layout) -> Self {
        let used = tenant.used(layout);
        let nodes = || used.iter().filter_map(|wish| wish.node);
        if nodes().any(|node| facts.is_here(node)) {
            return Self::Here;
        }
        let all: BTreeSet<Ipv4Addr> = nodes().map(|node| node.host_ip).collect();
        if all.is_empty() {
            return Self::Nowhere;
        }
        let fresh: BTreeSet<Ipv4Addr> =
            nodes().filter(|node| !node.draining).map(|node| node.host_ip).collect();
        let fresh = Some(fresh).filter(|fresh| !fresh.is_empty() && *fresh != all);
        Self::To(Nodes { all, fresh })
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

fn new_flows(vnid: u32, way: &Way) -> Vec<String> {
    let to_group = |priority: u16, also: &str, actions: &str, group: u32| {
        let register = register(vnid);
        format!(
            "table=101,priority={priority},{also}ip,reg0={register} actions={actions}group:{group}"
        )
    };
    match way {
        Way::Nowhere => vec![drop_flow(101, vnid)],
        Way::Here => vec![to_group(100, "", "", vnid)],
        Way::To(Nodes { fresh: None, .. }) => vec![to_group(100, "", "ct(commit),", vnid)],
        Way::To(Nodes { fresh: Some(_), .. }) => {
            let begin = "ct(commit,exec(set_field:0x1->ct_mark)),";
            vec![
                to_group(100, "", "ct(commit),", vnid),
                to_group(101, "ct_state=+new+trk,", begin, fresh_group(vnid)),
                to_group(102, "ct_mark=0x1,", "ct(commit),", fresh_group(vnid)),
            ]
        }
    }
}

/// The number of a VNID's second group: above all VNIDs.
pub fn fresh_group(vnid: u32) -> u32 {
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

fn groups(vnid: u32, way: &Way, facts: &Facts, mode: &Mode) -> Vec<String> {
    let (vxlan, gateway) = match facts.ovs_ports {
        Some(ports) => (ports.vxlan.to_string(), ports.gateway.to_string()),
        None => ("vxlan0".into(), "tun0".into()),
    };
    let select = |id: u32, buckets: String| format!("group_id={id},type=select,{buckets}");
    let to_nodes = |id: u32, nodes: &BTreeSet<Ipv4Addr>| {
        let bucket = |node| format!("bucket=actions={},output:{vxlan}", to_node(node));
        select(id, nodes.iter().copied().map(bucket).collect())
    };
    match way {
        Way::Nowhere => Vec::new(),
        Way::Here => {
            let actions = to_gateway(vnid, facts, mode);
            vec![select(vnid, format!("bucket=actions={actions},output:{gateway}"))]
        }
        Way::To(Nodes { all, fresh }) => {
            let fresh = fresh.iter().map(|nodes| to_nodes(fresh_group(vnid), nodes));
            [to_nodes(vnid, all)].into_iter().chain(fresh).collect()
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
