//! Connections stay where they are, with Open vSwitch in the new layout: what was never offline is as the
//! original has it, what was is known by its mark.
use egress_common::mark::Layout::{self, New, Old};

use crate::cluster::Cluster;

const B: &str = "10.0.0.2";

/// A namespace with an egress IP on each of a, b and c, and one with one on b alone; seen from d.
fn cluster(layout: Layout) -> Cluster {
    Cluster::new(layout)
        .node("a", "10.0.0.1", &["10.0.0.11"])
        .node("b", B, &["10.0.0.12", "10.0.0.14"])
        .node("c", "10.0.0.3", &["10.0.0.13"])
        .node("d", "10.0.0.4", &[])
        .namespace("n", 41, &["10.0.0.11", "10.0.0.12", "10.0.0.13"])
        .namespace("alone", 42, &["10.0.0.14"])
}

/// The buckets of one of the first namespace's groups, each by the last byte of its node's address; 0:
/// another node's share.
fn buckets(cluster: &Cluster, id: u32) -> Vec<u8> {
    let groups = cluster.plan("d").groups;
    let group = groups.iter().find(|group| group.starts_with(&format!("group_id={id},")));
    let buckets = group.into_iter().flat_map(|group| group.split("bucket=actions=").skip(1));
    let byte = |bucket: &str| match bucket.split_once("set_field:10.0.0.") {
        Some((_, rest)) => rest.split_once("->tun_dst").and_then(|(byte, _)| byte.parse().ok()),
        None => (bucket == "resubmit(,103)").then_some(0),
    };
    buckets.map(|bucket| byte(bucket).expect("a bucket for a node or for nobody")).collect()
}

/// What those without a mark choose from: established ones and new ones.
fn choices(cluster: &Cluster) -> [Vec<u8>; 2] {
    [buckets(cluster, 41), buckets(cluster, 41 | 1 << 24)]
}

fn marks(cluster: &Cluster) -> usize {
    let flows = cluster.plan("d").flows;
    flows.iter().filter(|flow| flow.contains(",priority=102,ct_mark=0xa00000")).count()
}

#[test]
fn until_a_node_has_left_all_is_as_the_original_has_it() {
    for cluster in [cluster(New), cluster(New).offline(B)] {
        assert_eq!((choices(&cluster)[1].len(), marks(&cluster)), (0, 0));
    }
    assert_eq!(choices(&cluster(New).offline(B))[0], [1, 3], "as `egress plan --offline` has it");
}

/// A group of as many buckets in the same order chooses as before.
#[test]
fn of_an_offline_node_only_its_own_share_moves() {
    let gone = cluster(New).left(B).offline(B);
    assert_eq!(choices(&gone), [vec![1, 0, 3], vec![1, 3]]);
    assert_eq!(marks(&gone), 2, "nothing goes to it by its mark");
    let flows = gone.plan("d").flows;
    let dealt_out = "table=103,priority=100,ip,reg0=0x29 actions=group:16777257".to_owned();
    assert!(flows.contains(&dealt_out), "{flows:?}");
}

#[test]
fn when_it_returns_what_has_a_mark_stays_and_new_connections_go_there_too() {
    let returned = cluster(New).left(B);
    assert_eq!(choices(&returned), [vec![1, 2, 3], vec![1, 2, 3]]);
    assert_eq!(marks(&returned), 3);
    let flows = returned.plan("d").flows;
    assert!(!flows.iter().any(|flow| flow.starts_with("table=103,")), "{flows:?}");
}

#[test]
fn a_drained_node_keeps_its_share_and_gets_nothing_new() {
    let drained = cluster(New).draining("a");
    assert_eq!(choices(&drained), [vec![1, 2, 3], vec![2, 3]]);
    assert_eq!(choices(&drained.left(B).offline(B)), [vec![1, 0, 3], vec![3]]);
}

#[test]
fn the_other_tenants_and_the_old_layout_are_as_ever() {
    let alone = |cluster: Cluster| {
        let flows = cluster.plan("d").flows;
        flows.into_iter().filter(|flow| flow.contains("reg0=0x2a ")).collect::<Vec<_>>()
    };
    assert_eq!(alone(cluster(New).left(B)), alone(cluster(New)));
    assert_eq!(cluster(Old).left(B).plan("d").flows, cluster(Old).plan("d").flows);
    assert!(cluster(New).left(B).plan("b").groups.iter().all(|group| !group.contains("resubmit")));
}
