//! The texts for OVS, on source and egress node alike: what OpenShift SDN would have installed.
//!
//! Written as `ovs-ofctl dump-flows` shows them (registers in hex, the mark without leading zeros),
//! apart from the buckets: those are in the original's own words, joined by `bucket=` without a
//! comma, which ovs-ofctl takes, and with ports by name unless the bridge told their numbers.
use std::{collections::BTreeSet, net::Ipv4Addr};

use egress_common::mark::{Layout, mark};

use super::{Facts, Mode, Tenant};

/// Flows and groups, each sorted as text.
pub fn texts(tenants: &[Tenant<'_>], facts: &Facts, mode: &Mode) -> (Vec<String>, Vec<String>) {
    let mut flows = Vec::new();
    let mut groups = Vec::new();
    for tenant in tenants {
        let way = Way::of(tenant, facts, mode.layout);
        flows.push(match mode.layout {
            Layout::Old => old_flow(tenant.vnid, &way, facts, mode),
            Layout::New => new_flow(tenant.vnid, &way),
        });
        if mode.layout == Layout::New {
            groups.extend(group(tenant.vnid, &way, facts, mode));
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
    /// Through the tunnel to these nodes, as numbers.
    To(BTreeSet<Ipv4Addr>),
}

impl Way {
    fn of(tenant: &Tenant<'_>, facts: &Facts, layout: Layout) -> Self {
        let used = tenant.used(layout);
        let nodes = || used.iter().filter_map(|wish| wish.node);
        if nodes().any(|node| facts.is_here(node)) {
            return Self::Here;
        }
        let addresses: BTreeSet<Ipv4Addr> = nodes().map(|node| node.host_ip).collect();
        if addresses.is_empty() { Self::Nowhere } else { Self::To(addresses) }
    }
}

fn old_flow(vnid: u32, way: &Way, facts: &Facts, mode: &Mode) -> String {
    let matching = format!("table=100,priority=100,ip,reg0={}", register(vnid));
    match way {
        Way::Nowhere => drop_flow(100, vnid),
        Way::Here => format!("{matching} actions={},goto_table:101", to_gateway(vnid, facts, mode)),
        // One IP, so one node.
        Way::To(nodes) => {
            let sends: Vec<String> = nodes.iter().map(|node| to_node(*node)).collect();
            let port = facts.ovs_ports.map_or(1, |ports| ports.vxlan);
            format!("{matching} actions={},output:{port}", sends.join(","))
        }
    }
}

fn new_flow(vnid: u32, way: &Way) -> String {
    let commit = match way {
        Way::Nowhere => return drop_flow(101, vnid),
        Way::Here => "",
        Way::To(_) => "ct(commit),",
    };
    format!("table=101,priority=100,ip,reg0={} actions={commit}group:{vnid}", register(vnid))
}

/// All protocols, not only IP.
fn drop_flow(table: u8, vnid: u32) -> String {
    format!("table={table},priority=100,reg0={} actions=drop", register(vnid))
}

/// A register's value as ovs-ofctl prints it: hex, but a plain 0.
pub fn register(vnid: u32) -> String {
    if vnid == 0 { "0".into() } else { format!("{vnid:#x}") }
}

fn group(vnid: u32, way: &Way, facts: &Facts, mode: &Mode) -> Option<String> {
    let (vxlan, gateway) = match facts.ovs_ports {
        Some(ports) => (ports.vxlan.to_string(), ports.gateway.to_string()),
        None => ("vxlan0".into(), "tun0".into()),
    };
    let buckets: Vec<String> = match way {
        Way::Nowhere => return None,
        Way::Here => {
            vec![format!("bucket=actions={},output:{gateway}", to_gateway(vnid, facts, mode))]
        }
        Way::To(nodes) => nodes
            .iter()
            .map(|node| format!("bucket=actions={},output:{vxlan}", to_node(*node)))
            .collect(),
    };
    Some(format!("group_id={vnid},type=select,{}", buckets.concat()))
}

fn to_gateway(vnid: u32, facts: &Facts, mode: &Mode) -> String {
    let mark = mark(vnid, mode.masquerade_bit, mode.layout);
    format!("set_field:{}->eth_dst,set_field:{mark:#x}->pkt_mark", facts.gateway_mac)
}

fn to_node(node: Ipv4Addr) -> String {
    format!("move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{node}->tun_dst")
}
