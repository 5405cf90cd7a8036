//! The defects of the original that this planner must not have, each by its number.
use egress_common::mark::Layout::*;
use egress_user::condition::Reason::*;

use crate::cluster::{Ask, Cluster, ips, is_drop};

fn conflicting() -> Cluster {
    Cluster::new(New)
        .node("master", "10.0.0.3", &[])
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"])
}

#[test]
fn b1_a_second_ip_on_the_node_silences_both_whichever_event_brought_it() {
    let through_node = Cluster::new(New)
        .node("router", "10.0.0.2", &["10.0.0.11"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"])
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"]);
    let through_namespace = Cluster::new(New)
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
        .namespace("blue", 42, &["10.0.0.11"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"]);
    assert_eq!(through_node.plan("router"), through_namespace.plan("router"));
    assert_eq!(through_node.plan("router").ips(), ips(&[]));
}

#[test]
fn b2_the_survivor_of_a_conflict_is_claimed_at_once() {
    let cluster = conflicting().node("router", "10.0.0.2", &["10.0.0.12"]);
    assert_eq!(cluster.hosted()["router"], ips(&["10.0.0.12"]));
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.12"]));
}

#[test]
fn b5_an_ip_that_cannot_be_assigned_here_has_no_local_flow() {
    for cluster in [
        conflicting().namespace("blue", 42, &["10.0.0.11"]).conflict("router", "10.0.0.11"),
        conflicting().node("router", "10.0.0.2", &["10.9.0.1"]).namespace(
            "blue",
            42,
            &["10.9.0.1"],
        ),
        conflicting().node("router", "10.0.0.2", &["10.0.0.2"]).namespace(
            "blue",
            42,
            &["10.0.0.2"],
        ),
    ] {
        let plan = cluster.plan("router");
        assert_eq!(plan.flows, ["table=101,priority=100,reg0=0x2a actions=drop"]);
        assert_eq!((plan.groups.len(), plan.ips()), (0, vec![]));
    }
}

#[test]
fn b6_a_vnid_that_asks_has_a_flow_on_every_node_also_where_it_is_not_hosted() {
    for cluster in [conflicting(), conflicting().node("router", "10.0.0.2", &["10.0.0.11"])] {
        for node in ["master", "router"] {
            assert_eq!(cluster.plan(node).flows.len(), 1);
        }
    }
}

#[test]
fn b7_what_is_planned_does_not_multiply_with_cluster_networks() {
    // An address and a policy stand for themselves; there is no rule per network to be forgotten.
    let cluster = conflicting().namespace("blue", 42, &["10.0.0.11"]);
    let plan = cluster.plan("router");
    assert_eq!((plan.addresses.len(), plan.policies.len()), (1, 1));
}

#[test]
fn b8_namespaces_that_share_a_vnid_have_the_union_of_their_ips() {
    let cluster = |layout| {
        Cluster::new(layout)
            .node("master", "10.0.0.3", &["10.0.0.11"])
            .node("router", "10.0.0.2", &["10.0.0.12"])
            .namespace("c", 42, &[])
            .namespace("b", 42, &["10.0.0.11"])
            .namespace("a", 42, &["10.0.0.12", "10.0.0.11"])
    };
    assert_eq!(cluster(New).policy(42).egress_ips, ips(&["10.0.0.11", "10.0.0.12"]));
    // In the order of the namespaces' names: a's first.
    assert_eq!(cluster(Old).policy(42).egress_ips, ips(&["10.0.0.12"]));
    assert_eq!(cluster(New).plan("router").conditions, [], "not DuplicateNamespace");
}

#[test]
fn b8_a_namespace_without_ips_does_not_clear_those_of_its_vnid() {
    let cluster = Cluster::new(New)
        .node("router", "10.0.0.2", &["10.0.0.11"])
        .namespace("a", 42, &["10.0.0.11"])
        .namespace("z", 42, &[]);
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.11"]));
}

#[test]
fn b9_two_nodes_that_swap_addresses_are_reached_at_their_own() {
    let cluster = Cluster::new(New)
        .node("master", "10.0.0.3", &["10.0.0.11"])
        .node("router", "10.0.0.2", &["10.0.0.12"])
        .node("worker", "10.0.0.4", &[])
        .namespace("blue", 42, &["10.0.0.11"])
        .node("master", "10.0.0.2", &["10.0.0.11"])
        .node("router", "10.0.0.3", &["10.0.0.12"]);
    assert!(cluster.plan("worker").groups[0].contains("set_field:10.0.0.2->tun_dst"));
    assert_eq!(cluster.hosted()["master"], ips(&["10.0.0.11"]));
}

#[test]
fn b10_what_is_planned_names_only_requested_addresses() {
    // Whether an address was there before is for the reconciler to see; the plan claims no others.
    let cluster = conflicting().namespace("blue", 42, &["10.0.0.11"]);
    assert_eq!(cluster.hosted()["router"], ips(&["10.0.0.11"]));
}

#[test]
fn b11_a_node_without_a_known_link_is_planned() {
    let mut cluster = conflicting().namespace("blue", 42, &["10.0.0.11"]);
    let facts = cluster.facts.get_mut("router").unwrap();
    (facts.link, facts.prefix_len) = (None, None);
    let address = cluster.plan("router").addresses[0].clone();
    assert_eq!((address.prefix_len, address.label), (None, None));
}

#[test]
fn b12_ties_are_settled_by_name() {
    let cluster = |first, second| {
        Cluster::new(New)
            .automatic_node(first, "10.0.0.2", &[], &["10.0.0.0/24"])
            .automatic_node(second, "10.0.0.3", &[], &["10.0.0.0/24"])
            .namespace("blue", 42, &["10.0.0.11"])
            .assigned()
    };
    assert_eq!(cluster("a", "b").plan("a").assignments[0].node, "a");
    assert_eq!(cluster("b", "a").plan("a").assignments[0].node, "a");
}

#[test]
fn an_unparsable_ip_drops_the_vnid_and_says_so() {
    for asked in [&["10.0.0.300"][..], &["10.0.0.11", "fd00::1"], &[""]] {
        let cluster = conflicting().namespace("blue", 42, asked);
        assert!(is_drop(&cluster.policy(42)), "{asked:?}");
        assert_eq!(cluster.plan("master").reasons(), [("NetNamespace/blue", Invalid)]);
    }
}
