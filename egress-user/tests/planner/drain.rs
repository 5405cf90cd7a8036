//! A node that is drained: what the others do with new flows, and where egress IPs are placed.
use egress_common::mark::Layout::{New, Old};

use crate::cluster::{Ask, Cluster, ip};

const A_AND_B: [&str; 2] = ["10.0.0.11", "10.0.0.12"];

/// A namespace with an egress IP on each of a and b, seen from c; b is drained.
fn two_nodes(layout: egress_common::mark::Layout) -> Cluster {
    Cluster::new(layout)
        .node("a", "10.0.0.1", &A_AND_B[..1])
        .node("b", "10.0.0.2", &A_AND_B[1..])
        .node("c", "10.0.0.3", &[])
        .namespace("n", 41, &A_AND_B)
        .draining("b")
}

#[test]
fn new_connections_go_elsewhere_and_established_ones_stay() {
    let plan = two_nodes(New).plan("c");
    let to =
        |node: &str| format!("move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:{node}->tun_dst");
    let (a, b) = (to("10.0.0.1"), to("10.0.0.2"));
    let marked =
        |mark: &str| format!("table=101,priority=102,ct_mark={mark},ip,reg0=0x29 actions=");
    assert_eq!(
        plan.flows,
        [
            "table=101,priority=100,ip,reg0=0x29 actions=group:41".to_owned(),
            "table=101,priority=101,ct_state=+new+trk,ip,reg0=0x29 actions=group:16777257".into(),
            format!("{}{a},goto_table:102", marked("0xa000001")),
            format!("{}{b},goto_table:102", marked("0xa000002")),
            "table=102,priority=100,ip,reg0=0x29 actions=\
             ct(commit,exec(move:NXM_NX_TUN_IPV4_DST[]->NXM_NX_CT_MARK[])),output:vxlan0"
                .into(),
        ]
    );
    let (a, b) = (a + ",resubmit(,102)", b + ",resubmit(,102)");
    assert_eq!(
        plan.groups,
        [
            format!("group_id=16777257,type=select,bucket=actions={a}"),
            format!("group_id=41,type=select,bucket=actions={a}bucket=actions={b}")
        ]
    );
    assert_eq!(plan.policy(41).egress_ips, A_AND_B.map(ip));
}

#[test]
fn a_namespace_with_no_other_egress_ip_stays_until_it_moves() {
    let drained = two_nodes(New).namespace("n", 41, &A_AND_B[1..]);
    let flows = drained.plan("c").flows;
    assert_eq!(flows, ["table=101,priority=100,ip,reg0=0x29 actions=ct(commit),group:41"]);
    assert_eq!(flows, drained.draining("a").plan("c").flows, "all of them drained is none");
}

#[test]
fn the_drained_node_and_the_old_layout_change_nothing() {
    assert_eq!(two_nodes(New).plan("b").flows, two_nodes(New).settled("b").plan("b").flows);
    assert_eq!(two_nodes(Old).plan("c").flows, two_nodes(Old).settled("b").plan("c").flows);
}

#[test]
fn an_offline_node_leaves_the_new_flows_too() {
    let plan = two_nodes(New).node("d", "10.0.0.4", &["10.0.0.14"]).namespace(
        "n",
        41,
        &["10.0.0.11", "10.0.0.12", "10.0.0.14"],
    );
    let groups = plan.offline("10.0.0.1").plan("c").groups;
    assert!(groups[0].starts_with("group_id=16777257,") && groups[0].contains("10.0.0.4"));
    assert!(groups.iter().all(|group| !group.contains("10.0.0.1->")), "{groups:?}");
}

#[test]
fn a_drained_node_keeps_its_ips_and_gets_no_new_ones() {
    let cluster = Cluster::new(New)
        .assigned()
        .automatic_node("a", "10.0.0.1", &["10.0.0.11"], &["10.0.0.0/24"])
        .automatic_node("b", "10.0.0.2", &["10.0.0.12", "10.0.0.13"], &["10.0.0.0/24"])
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.12"])
        .namespace("n3", 43, &["10.0.0.13"])
        .namespace("n4", 44, &["10.0.0.14"])
        .draining("a");
    assert_eq!(cluster.plan("a").ips(), [ip("10.0.0.11")]);
    assert_eq!(cluster.plan("b").ips(), ["10.0.0.12", "10.0.0.13", "10.0.0.14"].map(ip));
}
