//! The texts for OVS, on every kind of node, in both layouts.
use egress_common::mark::Layout::{self, *};
use egress_user::{config::Mac, plan::OvsPorts};

use crate::cluster::Cluster;

const ROUTER: Mac = Mac([0x22, 0x3b, 0xa9, 0xa4, 0x8e, 0x0c]);

/// The cluster of the origin notes.
fn notes(layout: Layout) -> Cluster {
    let mut cluster = Cluster::new(layout)
        .node("ocpmaster01", "10.0.0.3", &[])
        .node("ocprouter01", "10.0.0.2", &["10.0.0.11", "10.0.0.12", "10.0.0.13"])
        .namespace("egress-test", 7305526, &["10.0.0.11"])
        .namespace("egress-test2", 14640467, &["10.0.0.13"])
        .namespace("egress-test3", 3064846, &["10.0.0.12"]);
    cluster.facts.get_mut("ocprouter01").unwrap().gateway_mac = ROUTER;
    cluster
}

#[test]
fn old_source_node_as_in_the_notes() {
    let plan = notes(Old).plan("ocpmaster01");
    assert_eq!(
        plan.flows,
        [
            "table=100,priority=100,ip,reg0=0x2ec40e actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1",
            "table=100,priority=100,ip,reg0=0x6f7936 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1",
            "table=100,priority=100,ip,reg0=0xdf6553 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1",
        ]
    );
    assert_eq!(plan.groups, [""; 0]);
}

#[test]
fn old_egress_node_as_in_the_notes() {
    let plan = notes(Old).plan("ocprouter01");
    assert_eq!(
        plan.flows,
        [
            "table=100,priority=100,ip,reg0=0x2ec40e actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x2ec40e->pkt_mark,goto_table:101",
            "table=100,priority=100,ip,reg0=0x6f7936 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6f7936->pkt_mark,goto_table:101",
            "table=100,priority=100,ip,reg0=0xdf6553 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x1df6552->pkt_mark,goto_table:101",
        ]
    );
    assert_eq!(plan.groups, [""; 0]);
}

#[test]
fn new_source_node_commits_and_uses_groups() {
    let plan = notes(New).plan("ocpmaster01");
    assert_eq!(
        plan.flows,
        [
            "table=101,priority=100,ip,reg0=0x2ec40e actions=ct(commit),group:3064846",
            "table=101,priority=100,ip,reg0=0x6f7936 actions=ct(commit),group:7305526",
            "table=101,priority=100,ip,reg0=0xdf6553 actions=ct(commit),group:14640467",
        ]
    );
    assert_eq!(
        plan.groups,
        [
            "group_id=14640467,type=select,bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:vxlan0",
            "group_id=3064846,type=select,bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:vxlan0",
            "group_id=7305526,type=select,bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:vxlan0",
        ]
    );
}

#[test]
fn new_egress_node_does_not_commit_and_avoids_the_drop_bit() {
    let plan = notes(New).plan("ocprouter01");
    assert_eq!(
        plan.flows,
        [
            "table=101,priority=100,ip,reg0=0x2ec40e actions=group:3064846",
            "table=101,priority=100,ip,reg0=0x6f7936 actions=group:7305526",
            "table=101,priority=100,ip,reg0=0xdf6553 actions=group:14640467",
        ]
    );
    assert_eq!(
        plan.groups,
        [
            "group_id=14640467,type=select,bucket=actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x1df6552->pkt_mark,output:tun0",
            "group_id=3064846,type=select,bucket=actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x102e440e->pkt_mark,output:tun0",
            "group_id=7305526,type=select,bucket=actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6f7936->pkt_mark,output:tun0",
        ]
    );
}

fn on_two_nodes(layout: Layout) -> Cluster {
    Cluster::new(layout)
        .node("a", "10.0.0.10", &["10.0.0.11"])
        .node("b", "10.0.0.9", &["10.0.0.12"])
        .node("c", "10.0.0.8", &[])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"])
}

#[test]
fn new_one_bucket_for_each_remote_node() {
    let plan = on_two_nodes(New).plan("c");
    assert_eq!(plan.flows, ["table=101,priority=100,ip,reg0=0x2a actions=ct(commit),group:42"]);
    assert_eq!(
        plan.groups,
        [concat!(
            "group_id=42,type=select,",
            "bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.9->tun_dst,output:vxlan0",
            "bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.10->tun_dst,output:vxlan0",
        )]
    );
}

#[test]
fn new_a_local_ip_leaves_only_the_local_bucket() {
    let plan = on_two_nodes(New).plan("b");
    assert_eq!(plan.flows, ["table=101,priority=100,ip,reg0=0x2a actions=group:42"]);
    assert_eq!(
        plan.groups,
        [
            "group_id=42,type=select,bucket=actions=set_field:00:00:00:00:00:00->eth_dst,set_field:0x2a->pkt_mark,output:tun0"
        ]
    );
}

#[test]
fn old_a_local_ip_that_is_not_the_first_is_not_used() {
    let plan = on_two_nodes(Old).plan("b");
    assert_eq!(
        plan.flows,
        [
            "table=100,priority=100,ip,reg0=0x2a actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.10->tun_dst,output:1"
        ]
    );
}

#[test]
fn an_offline_node_loses_its_bucket() {
    let plan = on_two_nodes(New).offline("10.0.0.10").plan("c");
    assert_eq!(plan.groups.len(), 1);
    assert!(!plan.groups[0].contains("10.0.0.10"), "{}", plan.groups[0]);
}

#[test]
fn a_drop_matches_all_protocols_and_has_no_group() {
    let cluster = |layout| {
        Cluster::new(layout).node("c", "10.0.0.8", &[]).namespace("blue", 42, &["10.0.0.11"])
    };
    let (old, new) = (cluster(Old).plan("c"), cluster(New).plan("c"));
    assert_eq!(old.flows, ["table=100,priority=100,reg0=0x2a actions=drop"]);
    assert_eq!(new.flows, ["table=101,priority=100,reg0=0x2a actions=drop"]);
    assert_eq!(new.groups, [""; 0]);
}

#[test]
fn the_flow_depends_on_the_vnid_and_not_on_the_ip() {
    let first = notes(Old).plan("ocprouter01").flows;
    let second = notes(Old).namespace("egress-test", 7305526, &["10.0.0.13"]).namespace(
        "egress-test2",
        14640467,
        &["10.0.0.11"],
    );
    assert_eq!(second.plan("ocprouter01").flows, first);
}

#[test]
fn without_ovs_no_flows_are_planned() {
    let mut cluster = notes(New);
    cluster.mode.flows = false;
    let plan = cluster.plan("ocpmaster01");
    assert_eq!((plan.flows.len(), plan.groups.len(), plan.policies.len()), (0, 0, 3));
}

#[test]
fn the_ports_that_the_bridge_told_are_used_by_number() {
    let ports = Some(OvsPorts { vxlan: 7, gateway: 8 });
    let (mut old, mut new) = (on_two_nodes(Old), on_two_nodes(New));
    for facts in old.facts.values_mut().chain(new.facts.values_mut()) {
        facts.ovs_ports = ports;
    }
    assert!(old.plan("c").flows[0].ends_with(",output:7"));
    assert!(new.plan("c").groups[0].ends_with("set_field:10.0.0.10->tun_dst,output:7"));
    assert!(new.plan("b").groups[0].ends_with("->pkt_mark,output:8"));
}
