//! What holds for all plans, of whatever objects.
use std::{collections::BTreeSet, net::Ipv4Addr};

use egress_common::mark::Layout;
use egress_user::{
    config::Mac,
    model::{self, Objects},
    plan::{Action, Facts, Health, Mode, Plan, Previous, allocate, plan, register},
    source::files::Input,
};
use proptest::{collection::vec, prelude::*, sample::subsequence};
use serde_json::{Value, json};

const NODES: [&str; 4] = ["a", "b", "c", "d"];
/// Egress IPs, among them an address of a node, one outside the subnet, and one that is none.
const IPS: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.11",
    "10.0.0.12",
    "10.0.0.13",
    "10.0.0.14",
    "10.0.0.15",
    "10.0.0.16",
    "10.9.0.1",
    "nonsense",
];
const CIDRS: [&str; 3] = ["10.0.0.0/24", "10.0.0.8/29", "10.9.0.0/16"];

/// A cluster as its documents, and what else the planner is told.
#[derive(Debug, Clone)]
struct Case {
    documents: Vec<Value>,
    health: Health,
    conflicts: BTreeSet<Ipv4Addr>,
    mode: Mode,
}

impl Case {
    fn objects(&self) -> Objects {
        objects(&self.documents)
    }

    fn facts(&self, node: &str) -> Facts {
        Facts {
            prefix_len: Some(24),
            link: Some("ens18".into()),
            gateway_mac: Mac([2, 0, 0, 0, 0, 1]),
            conflicts: self.conflicts.clone(),
            ..Facts::of(node)
        }
    }

    fn plan(&self, node: &str) -> Plan {
        plan(&self.objects(), &self.facts(node), &self.health, &Previous::default(), &self.mode)
    }
}

fn objects(documents: &[Value]) -> Objects {
    let mut objects = Objects::default();
    for document in documents {
        objects.insert(model::parse(document).unwrap());
    }
    objects
}

fn host_subnet(number: usize) -> impl Strategy<Value = Value> {
    // Without the last: a HostSubnet with an address that is none is refused.
    (subsequence(&IPS[..8], 0..4), subsequence(&CIDRS[..], 0..2)).prop_map(move |(ips, cidrs)| {
        json!({
            "apiVersion": "network.openshift.io/v1", "kind": "HostSubnet",
            "metadata": {"name": NODES[number]}, "host": NODES[number],
            "hostIP": format!("10.0.0.{}", number + 1), "subnet": "10.128.0.0/23",
            "egressIPs": ips, "egressCIDRs": cidrs,
        })
    })
}

fn net_namespace(number: usize) -> impl Strategy<Value = Value> {
    (40u32..44, subsequence(&IPS[..], 0..4).prop_shuffle()).prop_map(move |(vnid, ips)| {
        json!({
            "apiVersion": "network.openshift.io/v1", "kind": "NetNamespace",
            "metadata": {"name": format!("n{number}")}, "netname": format!("n{number}"),
            "netid": vnid, "egressIPs": ips,
        })
    })
}

fn case() -> impl Strategy<Value = Case> {
    let nodes = (0..NODES.len()).map(host_subnet).collect::<Vec<_>>();
    let namespaces = (0..5).map(net_namespace).collect::<Vec<_>>();
    let offline = subsequence(vec![1u8, 2, 3, 4], 0..3);
    let left = subsequence(vec![1u8, 2, 3, 4], 0..4);
    let conflicts = subsequence(&IPS[..8], 0..2);
    (nodes, namespaces, offline, left, conflicts, any::<(bool, bool)>()).prop_map(
        |(nodes, namespaces, offline, left, conflicts, (old, assign))| Case {
            documents: nodes.into_iter().chain(namespaces).collect(),
            health: Health {
                offline: offline.into_iter().map(|byte| Ipv4Addr::new(10, 0, 0, byte)).collect(),
                left: left.into_iter().map(|byte| Ipv4Addr::new(10, 0, 0, byte)).collect(),
            },
            conflicts: conflicts.into_iter().map(|ip| ip.parse().unwrap()).collect(),
            mode: Mode {
                layout: if old { Layout::Old } else { Layout::New },
                assign,
                ..Mode::default()
            },
        },
    )
}

proptest! {
    // A case that failed belongs into a test with a name, not into a file of seeds.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_documents_does_not_matter(
        (case, shuffled) in case().prop_flat_map(|case| {
            let documents = case.documents.clone();
            (Just(case), Just(documents).prop_shuffle())
        })
    ) {
        let other = Case { documents: shuffled, ..case.clone() };
        for node in NODES {
            prop_assert_eq!(case.plan(node), other.plan(node));
        }
    }

    #[test]
    fn no_ip_is_on_two_nodes(case in case()) {
        let mut seen = BTreeSet::new();
        for node in NODES {
            for address in case.plan(node).addresses {
                prop_assert!(seen.insert(address.ip), "{} on {}", address.ip, node);
            }
        }
    }

    #[test]
    fn a_vnid_that_asks_never_leaves_normally(case in case()) {
        let asking: BTreeSet<u32> = case
            .documents
            .iter()
            .filter(|document| document["egressIPs"][0].is_string())
            .filter_map(|document| document["netid"].as_u64())
            .map(|vnid| vnid as u32)
            .collect();
        for node in NODES {
            let plan = case.plan(node);
            let policies: BTreeSet<u32> = plan.policies.iter().map(|policy| policy.vnid).collect();
            prop_assert_eq!(&policies, &asking, "a policy for each");
            let for_all = |flow: &&String| {
                flow.contains(",priority=100,") && !flow.starts_with("table=102,")
                    && !flow.starts_with("table=103,")
            };
            prop_assert_eq!(plan.flows.iter().filter(for_all).count(), asking.len(), "one flow for each, no others");
            for policy in &plan.policies {
                let register = format!("reg0={} ", register(policy.vnid));
                let flows: Vec<&String> =
                    plan.flows.iter().filter(|flow| flow.contains(&register)).collect();
                prop_assert!(flows[0].contains(",priority=100,"));
                prop_assert!(flows.iter().all(|flow| !flow.contains("output:2")));
                let drops = flows[0].ends_with("actions=drop");
                prop_assert!(flows.len() == 1 || !drops && !case.health.left.is_empty());
                prop_assert_eq!(drops, policy.action == Action::Drop);
                prop_assert_eq!(drops, policy.egress_ips.is_empty());
            }
        }
    }

    #[test]
    fn packets_leave_here_only_with_an_address_that_is_here(case in case()) {
        for node in NODES {
            let plan = case.plan(node);
            let here: BTreeSet<Ipv4Addr> = plan.addresses.iter().map(|a| a.ip).collect();
            for policy in &plan.policies {
                let group = format!("group_id={},", policy.vnid);
                let register = format!("reg0={} ", register(policy.vnid));
                let marks = plan.flows.iter().chain(&plan.groups).any(|text| {
                    (text.contains(&register) || text.starts_with(&group))
                        && text.contains("pkt_mark")
                });
                prop_assert_eq!(marks, policy.egress_ips.iter().any(|ip| here.contains(ip)));
            }
        }
    }

    #[test]
    fn no_egress_ip_is_used_by_two_vnids_or_is_a_nodes_address(case in case()) {
        for node in NODES {
            let mut seen = BTreeSet::new();
            for ip in case.plan(node).policies.into_iter().flat_map(|policy| policy.egress_ips) {
                prop_assert!(seen.insert(ip), "{} twice", ip);
                prop_assert!(ip.octets()[3] > 4 || ip.octets()[1] == 9, "{} is a node's", ip);
            }
        }
    }

    #[test]
    fn groups_and_flows_name_only_online_nodes(case in case()) {
        for node in NODES {
            let plan = case.plan(node);
            for offline in &case.health.offline {
                let target = format!("set_field:{offline}->tun_dst");
                prop_assert!(!plan.groups.iter().chain(&plan.flows).any(|t| t.contains(&target)));
            }
        }
    }

    #[test]
    fn an_allocation_settles(case in case()) {
        let again = |objects: &Objects| allocate(objects, &case.health, &Previous::default());
        let once = again(&case.objects());
        let mut seen = BTreeSet::new();
        let mut listed =
            case.objects().host_subnets.into_values().flat_map(|node| node.egress_ips);
        // What two nodes list is taken from both, and dealt out when it is seen to be free.
        let once = if listed.all(|ip| seen.insert(ip)) { once } else { again(&once) };
        prop_assert_eq!(&again(&once), &once);
    }

    #[test]
    fn lists_are_sorted(case in case()) {
        let plan = case.plan("a");
        prop_assert!(plan.addresses.is_sorted());
        prop_assert!(plan.policies.is_sorted_by_key(|policy| policy.vnid));
        prop_assert!(plan.policies.iter().all(|policy| policy.egress_ips.is_sorted()));
        prop_assert!(plan.flows.is_sorted() && plan.groups.is_sorted());
        prop_assert!(plan.assignments.is_sorted_by_key(|a| a.egress_ip));
        prop_assert!(plan.conditions.is_sorted());
    }

    #[test]
    fn reading_and_planning_are_total(values in vec(json_value(), 1..6)) {
        let text: Vec<String> = values.iter().map(Value::to_string).collect();
        let mut input = Input::default();
        // An AgentConfig among them may be unusable; nothing may panic.
        let _ = input.add_text(&text.join("\n---\n"), "test");
        for assign in [false, true] {
            let mode = Mode { assign, ..Mode::default() };
            plan(&input.objects, &Facts::of("a"), &Health::default(), &Previous::default(), &mode);
        }
    }

    #[test]
    fn reading_any_text_is_total(text in "[-a:{}\\[\\]\"'&*|>%#!?, \n\t]{0,60}") {
        let _ = Input::default().add_text(&text, "test");
    }
}

/// Values with the words of objects in any place.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(vec![
            "HostSubnet",
            "NetNamespace",
            "ClusterNetwork",
            "AgentConfig",
            "List",
            "a",
            "10.0.0.1",
            "10.0.0.0/24",
            "egress/v1alpha1",
            "network.openshift.io/v1",
        ])
        .prop_map(Value::from),
    ];
    let key = proptest::sample::select(vec![
        "kind",
        "apiVersion",
        "metadata",
        "name",
        "host",
        "hostIP",
        "subnet",
        "egressIPs",
        "egressCIDRs",
        "netid",
        "netname",
        "items",
        "clusterNetworks",
        "CIDR",
    ]);
    leaf.prop_recursive(4, 40, 8, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map(key.clone().prop_map(str::to_owned), inner, 0..9)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}
