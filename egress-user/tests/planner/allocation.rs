//! Dealing out egressCIDRs (behaviours 43 to 47 of the original).
use std::collections::BTreeMap;

use egress_common::mark::Layout::New;
use egress_user::{
    condition::Reason::*,
    plan::{Previous, allocate},
};

use crate::cluster::{Ask, Cluster, ip};

const ALL: &[&str] = &["10.0.0.0/24"];

/// Egress IP's last byte to node name.
fn places(cluster: &Cluster) -> BTreeMap<u8, String> {
    let node = cluster.facts.keys().next().unwrap();
    let assignments = cluster.plan(node).assignments;
    assignments.into_iter().map(|a| (a.egress_ip.octets()[3], a.node)).collect()
}

fn expect<const N: usize>(places: [(u8, &str); N]) -> BTreeMap<u8, String> {
    places.into_iter().map(|(byte, node)| (byte, node.to_owned())).collect()
}

/// Nodes a, b, … without egress IPs that may have all of 10.0.0.0/24.
fn nodes(names: &[&str]) -> Cluster {
    let empty = Cluster::new(New).assigned();
    (1..).zip(names).fold(empty, |cluster, (byte, name)| {
        cluster.automatic_node(name, &format!("10.0.0.{byte}"), &[], ALL)
    })
}

#[test]
fn ips_go_where_fewest_are_then_by_name() {
    let cluster = nodes(&["a", "b"])
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.12"])
        .namespace("n3", 43, &["10.0.0.13"]);
    assert_eq!(places(&cluster), expect([(11, "a"), (12, "b"), (13, "a")]));
}

#[test]
fn the_whole_plan_follows_the_allocation() {
    let plan = nodes(&["a", "b"]).namespace("n1", 41, &["10.0.0.11"]).plan("a");
    assert_eq!(plan.ips(), [ip("10.0.0.11")]);
    assert_eq!(plan.flows, ["table=101,priority=100,ip,reg0=0x29 actions=group:41"]);
    assert_eq!(plan.conditions, []);
}

#[test]
fn without_assign_nothing_is_dealt_out() {
    let mut cluster = nodes(&["a", "b"]).namespace("n1", 41, &["10.0.0.11"]);
    cluster.mode.assign = false;
    assert_eq!(cluster.plan("a").reasons(), [("NetNamespace/n1", Unhosted)]);
}

#[test]
fn previous_placements_are_kept() {
    let cluster = nodes(&["a", "b"])
        .automatic_node("b", "10.0.0.2", &["10.0.0.11", "10.0.0.12"], ALL)
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.12"])
        .namespace("n3", 43, &["10.0.0.13"]);
    assert_eq!(places(&cluster), expect([(11, "b"), (12, "b"), (13, "a")]));
}

#[test]
fn what_was_placed_before_and_is_not_listed_is_kept_too() {
    let mut cluster = nodes(&["a", "b"]).namespace("n1", 41, &["10.0.0.11"]);
    cluster.previous = Previous { assignments: BTreeMap::from([(ip("10.0.0.11"), "b".into())]) };
    assert_eq!(places(&cluster), expect([(11, "b")]));
}

#[test]
fn an_ip_outside_the_nodes_networks_moves_at_once() {
    let cluster = Cluster::new(New)
        .assigned()
        .automatic_node("a", "10.0.0.1", &["10.0.0.11"], &["10.0.0.128/25"])
        .automatic_node("b", "10.0.0.2", &[], &["10.0.0.0/25"])
        .namespace("n1", 41, &["10.0.0.11"]);
    assert_eq!(places(&cluster), expect([(11, "b")]));
    assert!(cluster.hosted()["a"].is_empty());
}

#[test]
fn an_ip_of_an_offline_node_moves_at_once() {
    let cluster = nodes(&["a", "b"])
        .automatic_node("a", "10.0.0.1", &["10.0.0.11"], ALL)
        .namespace("n1", 41, &["10.0.0.11"])
        .offline("10.0.0.1");
    assert_eq!(places(&cluster), expect([(11, "b")]));
    assert_eq!(cluster.plan("b").conditions, []);
}

#[test]
fn an_ip_that_no_node_may_have_is_unhosted() {
    let cluster = nodes(&["a"]).namespace("n1", 41, &["10.1.0.11"]);
    assert_eq!(cluster.plan("a").reasons(), [("NetNamespace/n1", Unhosted)]);
}

#[test]
fn an_ip_of_two_namespaces_is_taken_from_its_node() {
    let cluster = nodes(&["a", "b"])
        .automatic_node("a", "10.0.0.1", &["10.0.0.11"], ALL)
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.11"]);
    assert_eq!(places(&cluster), expect([]));
    let objects = allocate(&cluster.objects(), &cluster.health, &cluster.previous);
    assert!(objects.host_subnets["a"].egress_ips.is_empty());
}

#[test]
fn an_ip_on_two_nodes_is_not_dealt_out() {
    let cluster = nodes(&["a", "b"])
        .automatic_node("a", "10.0.0.1", &["10.0.0.11"], ALL)
        .automatic_node("b", "10.0.0.2", &["10.0.0.11"], ALL)
        .namespace("n1", 41, &["10.0.0.11"]);
    assert_eq!(places(&cluster), expect([]));
}

#[test]
fn what_is_listed_by_hand_stays_where_it_is() {
    let cluster = nodes(&["a", "b"])
        .node("c", "10.0.0.3", &["10.0.0.11"])
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.12"]);
    assert_eq!(places(&cluster), expect([(11, "c"), (12, "a")]));
}

#[test]
fn a_node_never_gets_a_second_ip_of_a_namespace() {
    let cluster = nodes(&["a", "b"]).namespace("n1", 41, &["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    assert_eq!(places(&cluster), expect([(11, "a"), (12, "b")]));
    assert_eq!(cluster.plan("a").reasons(), [("NetNamespace/n1", Unhosted)]);
}

#[test]
fn namespaces_that_share_a_vnid_count_as_one() {
    let cluster =
        nodes(&["a"]).namespace("n1", 41, &["10.0.0.11"]).namespace("n2", 41, &["10.0.0.12"]);
    assert_eq!(places(&cluster), expect([(11, "a")]));
}

#[test]
fn namespaces_take_turns_those_with_fewest_ips_first() {
    // big asks first by name, small comes first by number; big's second IP comes last.
    let cluster = nodes(&["a", "b", "c"])
        .namespace("big", 41, &["10.0.0.21", "10.0.0.22"])
        .namespace("small", 42, &["10.0.0.11"]);
    assert_eq!(places(&cluster), expect([(11, "a"), (21, "b"), (22, "c")]));
}

#[test]
fn an_ip_with_one_option_is_placed_before_the_others() {
    // Taken in turn, .11 would go to a, and .200 would have to share that node.
    let cluster = Cluster::new(New)
        .assigned()
        .automatic_node("a", "10.0.0.1", &[], ALL)
        .automatic_node("b", "10.0.0.2", &[], &["10.0.0.0/25"])
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.200"]);
    assert_eq!(places(&cluster), expect([(11, "b"), (200, "a")]));
}

#[test]
fn a_nodes_own_address_is_not_dealt_out() {
    let cluster = nodes(&["a", "b"]).namespace("n1", 41, &["10.0.0.2"]);
    assert!(cluster.hosted()["a"].is_empty());
    assert_eq!(cluster.plan("a").reasons(), [("NetNamespace/n1", IsNodeIP)]);
}

#[test]
fn a_node_with_less_than_half_of_its_share_gets_it() {
    let four = |cluster: Cluster| {
        (11..15).fold(cluster, |cluster, byte| {
            cluster.namespace(&format!("n{byte}"), byte, &[&format!("10.0.0.{byte}")])
        })
    };
    let on_a = ["10.0.0.11", "10.0.0.12", "10.0.0.13", "10.0.0.14"];
    let cluster = four(nodes(&["a", "b"]).automatic_node("a", "10.0.0.1", &on_a, ALL));
    assert_eq!(places(&cluster), expect([(11, "a"), (12, "b"), (13, "a"), (14, "b")]));
}

#[test]
fn a_node_with_half_of_its_share_is_left_alone() {
    let cluster = nodes(&["a", "b"])
        .automatic_node("a", "10.0.0.1", &["10.0.0.11", "10.0.0.12"], ALL)
        .namespace("n1", 41, &["10.0.0.11"])
        .namespace("n2", 42, &["10.0.0.12"]);
    // b's share is one, of which half, in whole numbers, is none.
    assert_eq!(places(&cluster), expect([(11, "a"), (12, "a")]));
}
