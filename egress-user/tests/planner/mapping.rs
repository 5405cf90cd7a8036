//! Which VNIDs get endpoint-independent mapping.
use egress_common::mark::Layout::New;
use egress_user::{condition::Reason, model::Mapping::*};
use serde_json::{Value, json};

use crate::cluster::{Cluster, ips};

fn namespace(name: &str, vnid: u32, egress_ips: &[&str], mapping: &Value) -> Value {
    json!({
        "apiVersion": "network.openshift.io/v1",
        "kind": "NetNamespace",
        "metadata": {"name": name, "annotations": {"egress/mapping": mapping}},
        "netname": name,
        "netid": vnid,
        "egressIPs": egress_ips,
    })
}

fn cluster() -> Cluster {
    Cluster::new(New).node("router", "10.0.0.2", &["10.0.0.11", "10.0.0.12"])
}

#[test]
fn a_namespaces_annotation_says_how_its_vnid_is_mapped() {
    let cluster = cluster()
        .update(namespace("blue", 42, &["10.0.0.11"], &json!("endpoint-independent")))
        .namespace("green", 43, &["10.0.0.12"]);
    assert_eq!(cluster.policy(42).mapping, EndpointIndependent);
    assert_eq!(cluster.policy(43).mapping, EndpointDependent);
}

#[test]
fn of_namespaces_that_share_a_vnid_one_is_enough() {
    let cluster = cluster().namespace("blue", 42, &["10.0.0.11"]).update(namespace(
        "joined",
        42,
        &[],
        &json!("endpoint-independent"),
    ));
    assert_eq!(cluster.policy(42).mapping, EndpointIndependent);
}

#[test]
fn a_mistaken_mapping_is_told_and_costs_nothing_else() {
    let cluster = cluster().update(namespace("blue", 42, &["10.0.0.11"], &json!("full-cone")));
    let policy = cluster.policy(42);
    assert_eq!((policy.mapping, policy.egress_ips), (EndpointDependent, ips(&["10.0.0.11"])));
    let conditions = cluster.plan("router").conditions;
    let [condition] = &conditions[..] else { panic!("{conditions:?}") };
    assert_eq!((&*condition.object, condition.reason), ("NetNamespace/blue", Reason::Invalid));
    assert_eq!(
        condition.message,
        "metadata.annotations: egress/mapping: use endpoint-independent or endpoint-dependent; it \
         is endpoint-dependent meanwhile"
    );
}
