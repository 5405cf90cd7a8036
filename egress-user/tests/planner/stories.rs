//! What happens to a tenant, story by story (behaviours 1 to 14, 26 to 29 and 39 of the original).
use std::collections::BTreeMap;

use egress_common::mark::Layout::*;
use egress_user::{
    condition::Reason::*,
    plan::{Assignment, Uplink},
};

use crate::cluster::{Ask, Cluster, ip, ips, is_drop};

/// Two nodes; one egress IP of one namespace on the second.
fn simple() -> Cluster {
    Cluster::new(New)
        .node("master", "10.0.0.3", &[])
        .node("router", "10.0.0.2", &["10.0.0.11"])
        .namespace("blue", 42, &["10.0.0.11"])
}

#[test]
fn an_ip_that_one_node_lists_and_one_namespace_requests_is_active() {
    let cluster = simple();
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.11"]));
    assert_eq!(
        cluster.hosted(),
        BTreeMap::from([("master", vec![]), ("router", ips(&["10.0.0.11"]))])
    );
    let plan = cluster.plan("router");
    let assignment = Assignment { egress_ip: ip("10.0.0.11"), vnid: 42, node: "router".into() };
    assert_eq!(plan.assignments, [assignment]);
    assert_eq!(plan.conditions, []);
}

#[test]
fn an_ip_that_nobody_requests_is_hosted_nowhere() {
    let cluster = simple().namespace("blue", 42, &[]);
    let plan = cluster.plan("router");
    assert_eq!((plan.ips(), plan.policies.len(), plan.flows.len()), (vec![], 0, 0));
}

#[test]
fn an_ip_that_no_node_lists_drops_its_namespace() {
    let cluster = simple().node("router", "10.0.0.2", &[]);
    assert!(is_drop(&cluster.policy(42)));
    let plan = cluster.plan("master");
    assert_eq!(plan.reasons(), [("NetNamespace/blue", Unhosted)]);
    assert_eq!(plan.assignments, []);
}

#[test]
fn a_namespace_without_ips_is_normal() {
    let plan = simple().namespace("green", 43, &[]).plan("router");
    assert!(plan.policies.iter().all(|policy| policy.vnid != 43));
    assert!(plan.flows.iter().all(|flow| !flow.contains("reg0=0x2b")));
}

#[test]
fn deleting_a_namespace_is_like_taking_its_ips_away() {
    let deleted = simple().without("blue").plan("router");
    assert_eq!(deleted, simple().namespace("blue", 42, &[]).plan("router"));
    assert_eq!(deleted.ips(), ips(&[]));
}

#[test]
fn another_ip_on_the_same_node_changes_the_address_and_not_the_flow() {
    let before = simple().node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"]);
    let after = before.clone().namespace("blue", 42, &["10.0.0.12"]);
    let (before, after) = (before.plan("router"), after.plan("router"));
    assert_eq!((before.ips(), after.ips()), (ips(&["10.0.0.11"]), ips(&["10.0.0.12"])));
    assert_eq!((before.flows, before.groups), (after.flows, after.groups));
}

#[test]
fn an_ip_on_two_nodes_is_on_none_until_one_lets_it_go() {
    let twice = simple().node("master", "10.0.0.3", &["10.0.0.11"]);
    assert!(is_drop(&twice.policy(42)));
    assert_eq!(twice.hosted(), BTreeMap::from([("master", vec![]), ("router", vec![])]));
    assert_eq!(twice.plan("router").reasons(), [("NetNamespace/blue", DuplicateNode)]);
    assert_eq!(twice.plan("router").assignments, []);

    let first = twice.clone().node("router", "10.0.0.2", &[]);
    assert_eq!(first.hosted()["master"], ips(&["10.0.0.11"]));
    let second = twice.node("master", "10.0.0.3", &[]);
    assert_eq!(second.hosted()["router"], ips(&["10.0.0.11"]));
    assert_eq!(second.policy(42).egress_ips, ips(&["10.0.0.11"]));
}

#[test]
fn an_ip_of_two_namespaces_drops_both_whole_and_their_other_ips_stay_claimed() {
    let cluster = simple()
        .node("master", "10.0.0.3", &["10.0.0.12"])
        .namespace("blue", 42, &["10.0.0.12", "10.0.0.11"])
        .namespace("green", 43, &["10.0.0.11"]);
    assert!(is_drop(&cluster.policy(42)));
    assert!(is_drop(&cluster.policy(43)));
    assert_eq!(
        cluster.hosted(),
        BTreeMap::from([("master", ips(&["10.0.0.12"])), ("router", vec![])])
    );
    assert_eq!(
        cluster.plan("master").reasons(),
        [("NetNamespace/blue", DuplicateNamespace), ("NetNamespace/green", DuplicateNamespace)]
    );

    let resolved = cluster.without("green");
    assert_eq!(resolved.policy(42).egress_ips, ips(&["10.0.0.11", "10.0.0.12"]));
}

#[test]
fn two_ips_of_a_vnid_on_one_node_are_both_inactive() {
    let cluster = simple().node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"]).namespace(
        "blue",
        42,
        &["10.0.0.11", "10.0.0.12"],
    );
    assert!(is_drop(&cluster.policy(42)));
    assert_eq!(cluster.hosted()["router"], ips(&[]));
    assert_eq!(cluster.plan("master").reasons(), [("NetNamespace/blue", SameNodeTwice)]);
}

#[test]
fn same_node_twice_counts_an_ip_that_another_namespace_wants_too() {
    let cluster = simple()
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"])
        .namespace("green", 43, &["10.0.0.12"]);
    assert_eq!(cluster.hosted()["router"], ips(&[]));
    assert!(cluster.plan("router").reasons().contains(&("NetNamespace/blue", SameNodeTwice)));
}

#[test]
fn same_node_twice_does_not_count_an_ip_that_two_nodes_list() {
    let cluster = simple()
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
        .node("master", "10.0.0.3", &["10.0.0.12"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12"]);
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.11"]));
    assert_eq!(cluster.plan("router").reasons(), [("NetNamespace/blue", DuplicateNode)]);
}

#[test]
fn same_node_twice_leaves_an_ip_on_another_node_usable() {
    let cluster = simple()
        .node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
        .node("master", "10.0.0.3", &["10.0.0.13"])
        .namespace("blue", 42, &["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.13"]));
}

#[test]
fn a_renumbered_node_is_reached_at_its_new_address() {
    let plan = simple().node("router", "10.0.0.5", &["10.0.0.11"]).plan("master");
    assert!(plan.groups[0].contains("set_field:10.0.0.5->tun_dst"), "{}", plan.groups[0]);
}

#[test]
fn a_node_whose_address_is_not_the_one_of_its_host_subnet_hosts_nothing() {
    let mut cluster = simple();
    cluster.facts.get_mut("router").unwrap().node_ip = Some(ip("10.0.0.9"));
    assert_eq!(cluster.plan("router").ips(), ips(&[]));
}

#[test]
fn deleting_a_node_drops_what_it_hosted() {
    let cluster = simple().without("router");
    assert!(is_drop(&cluster.plan("master").policy(42)));
}

/// Two nodes with one IP of the namespace each, preferred in another order than that of numbers.
fn two_ips(layout: egress_common::mark::Layout) -> Cluster {
    Cluster::new(layout)
        .node("master", "10.0.0.3", &["10.0.0.11"])
        .node("router", "10.0.0.2", &["10.0.0.12"])
        .node("worker", "10.0.0.4", &[])
        .namespace("blue", 42, &["10.0.0.12", "10.0.0.11"])
}

#[test]
fn old_the_first_usable_ip_wins() {
    let cluster = two_ips(Old);
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.12"]));
    // The other one stays claimed.
    assert_eq!(cluster.hosted()["master"], ips(&["10.0.0.11"]));

    let failed = cluster.offline("10.0.0.2");
    assert_eq!(failed.policy(42).egress_ips, ips(&["10.0.0.11"]));
}

#[test]
fn new_all_usable_ips_count_and_are_listed_as_numbers() {
    assert_eq!(two_ips(New).policy(42).egress_ips, ips(&["10.0.0.11", "10.0.0.12"]));
}

#[test]
fn an_offline_node_keeps_its_address_and_loses_its_traffic() {
    let cluster = two_ips(New).offline("10.0.0.2");
    assert_eq!(cluster.policy(42).egress_ips, ips(&["10.0.0.11"]));
    assert_eq!(cluster.hosted()["router"], ips(&["10.0.0.12"]));
    let plan = cluster.plan("worker");
    assert_eq!(plan.reasons(), [("NetNamespace/blue", Offline)]);
    assert_eq!(plan.assignments.len(), 2);
}

#[test]
fn the_last_ip_offline_drops_and_its_return_restores() {
    for layout in [Old, New] {
        let online = two_ips(layout);
        let offline = online.clone().offline("10.0.0.2").offline("10.0.0.3");
        assert!(is_drop(&offline.policy(42)), "{layout:?}");
        assert!(!is_drop(&online.policy(42)), "{layout:?}");
    }
}

#[test]
fn an_offline_node_drops_a_namespace_with_one_ip_in_both_layouts() {
    for layout in [Old, New] {
        let mut cluster = simple().offline("10.0.0.2");
        cluster.mode.layout = layout;
        assert!(is_drop(&cluster.policy(42)), "{layout:?}");
    }
}

#[test]
fn addresses_carry_the_prefix_of_the_subnet_and_a_label_if_it_fits() {
    let mut cluster = simple();
    let address = cluster.plan("router").addresses[0].clone();
    assert_eq!((address.prefix_len, address.label.as_deref()), (Some(24), Some("ens18:eip")));

    let facts = cluster.facts.get_mut("router").unwrap();
    facts.link = Some("enp0s20f0u1".into());
    assert_eq!(cluster.plan("router").addresses[0].label.as_deref(), Some("enp0s20f0u1:eip"));
    cluster.facts.get_mut("router").unwrap().link = Some("enp0s20f0u10".into());
    assert_eq!(cluster.plan("router").addresses[0].label, None);
}

#[test]
fn a_nodes_own_address_is_never_an_egress_ip() {
    for address in ["10.0.0.2", "10.0.0.3"] {
        let cluster =
            simple().node("router", "10.0.0.2", &[address]).namespace("blue", 42, &[address]);
        assert!(is_drop(&cluster.policy(42)), "{address}");
        assert_eq!(cluster.hosted()["router"], ips(&[]));
        for node in ["master", "router"] {
            assert_eq!(cluster.plan(node).reasons(), [("NetNamespace/blue", IsNodeIP)]);
        }
    }
}

#[test]
fn a_nodes_own_address_drops_its_namespace_whole() {
    let cluster = simple().namespace("blue", 42, &["10.0.0.11", "10.0.0.3"]);
    assert!(is_drop(&cluster.policy(42)));
    assert_eq!(cluster.hosted()["router"], ips(&["10.0.0.11"]), "it stays claimed");
}

#[test]
fn an_ip_outside_the_subnet_counts_everywhere_but_on_its_node() {
    let cluster =
        simple().node("router", "10.0.0.2", &["10.9.9.9"]).namespace("blue", 42, &["10.9.9.9"]);
    let (router, master) = (cluster.plan("router"), cluster.plan("master"));
    assert!(is_drop(&router.policy(42)));
    assert_eq!(router.reasons(), [("NetNamespace/blue", NotInSubnet)]);
    assert_eq!(router.ips(), ips(&[]));
    assert_eq!(master.policy(42).egress_ips, ips(&["10.9.9.9"]));
    assert_eq!(master.reasons(), []);
}

#[test]
fn beside_an_ip_outside_the_subnet_the_namespaces_other_ips_count() {
    let cluster = simple()
        .node("router", "10.0.0.2", &["10.9.9.9"])
        .node("master", "10.0.0.3", &["10.0.0.11"])
        .namespace("blue", 42, &["10.9.9.9", "10.0.0.11"]);
    assert_eq!(cluster.plan("router").policy(42).egress_ips, ips(&["10.0.0.11"]));
}

#[test]
fn without_a_prefix_length_the_subnet_is_not_judged() {
    let mut cluster =
        simple().node("router", "10.0.0.2", &["10.9.9.9"]).namespace("blue", 42, &["10.9.9.9"]);
    cluster.facts.get_mut("router").unwrap().prefix_len = None;
    let plan = cluster.plan("router");
    assert_eq!((plan.ips(), plan.addresses[0].prefix_len), (ips(&["10.9.9.9"]), None));
}

/// The cluster with another egress IP, and further uplinks of its node: names and subnets.
fn with_uplinks(egress_ip: &str, uplinks: &[(&str, &[&str])]) -> Cluster {
    let mut cluster =
        simple().node("router", "10.0.0.2", &[egress_ip]).namespace("blue", 42, &[egress_ip]);
    cluster.facts.get_mut("router").unwrap().uplinks = uplinks
        .iter()
        .map(|(link, subnets)| Uplink {
            link: (*link).into(),
            subnets: Some(subnets.iter().map(|subnet| subnet.parse().unwrap()).collect()),
        })
        .collect();
    cluster
}

#[test]
fn an_egress_ip_lives_on_the_uplink_with_the_narrowest_subnet_around_it() {
    let uplinks: [(&str, &[&str]); 3] = [
        ("eth1", &["192.0.2.0/25", "10.0.0.128/25"]),
        ("eth0.100", &["192.0.2.0/24"]),
        ("eth3", &["192.0.2.0/25"]),
    ];
    for (egress_ip, prefix_len, link) in [
        ("10.0.0.11", 24, "ens18"),
        ("10.0.0.200", 25, "eth1"),
        ("192.0.2.7", 25, "eth1"),
        ("192.0.2.200", 24, "eth0.100"),
    ] {
        let plan = with_uplinks(egress_ip, &uplinks).plan("router");
        let [address] = &plan.addresses[..] else { panic!("{egress_ip}: {:?}", plan.addresses) };
        assert_eq!((address.prefix_len, address.link.as_deref()), (Some(prefix_len), Some(link)));
        assert_eq!(address.label, Some(format!("{link}:eip")));
        assert_eq!(plan.reasons(), []);
    }
}

#[test]
fn an_ip_outside_all_subnets_of_the_node_is_named_with_them() {
    let plan = with_uplinks("198.51.100.1", &[("eth1", &["192.0.2.0/24"])]).plan("router");
    assert!(is_drop(&plan.policy(42)));
    assert_eq!(plan.reasons(), [("NetNamespace/blue", NotInSubnet)]);
    assert!(plan.conditions[0].message.contains("outside 10.0.0.0/24, 192.0.2.0/24, the subnets"));
}

#[test]
fn with_an_uplink_whose_subnets_nobody_knows_an_ip_outside_the_others_is_not_judged() {
    let mut cluster = with_uplinks("192.0.2.7", &[]);
    let unknown = Uplink { link: "eth1".into(), subnets: None };
    cluster.facts.get_mut("router").unwrap().uplinks.push(unknown);
    let plan = cluster.plan("router");
    let address = &plan.addresses[0];
    assert_eq!(
        (plan.ips(), address.prefix_len, &address.label),
        (ips(&["192.0.2.7"]), None, &None)
    );
}

#[test]
fn an_ip_that_another_machine_answers_for_is_not_claimed() {
    let cluster = simple().conflict("router", "10.0.0.11");
    let plan = cluster.plan("router");
    assert_eq!(plan.reasons(), [("NetNamespace/blue", Conflict)]);
    assert_eq!(plan.ips(), ips(&[]));
    assert!(is_drop(&plan.policy(42)));
}

#[test]
fn vnid_zero_may_have_an_egress_ip_too() {
    let cluster = simple().namespace("default", 0, &["10.0.0.12"]);
    assert_eq!(cluster.policy(0).mark, 0xff00_0000);
    let flows = cluster.plan("master").flows;
    assert!(flows.contains(&"table=101,priority=100,reg0=0 actions=drop".to_owned()), "{flows:?}");
}
