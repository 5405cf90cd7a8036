use serde_json::json;

use super::*;

fn node() -> Value {
    json!({
        "apiVersion": "network.openshift.io/v1", "kind": "HostSubnet",
        "metadata": {"name": "router", "uid": "84f2b7d1", "managedFields": [{"manager": "x"}]},
        "host": "router", "hostIP": "10.0.0.2", "subnet": "10.130.0.0/23",
        "egressIPs": ["10.0.0.11", "10.0.0.11"], "egressCIDRs": ["10.0.0.0/24"],
    })
}

fn namespace() -> Value {
    json!({
        "apiVersion": "network.openshift.io/v1", "kind": "NetNamespace",
        "metadata": {"name": "blue"}, "netname": "blue", "netid": 42, "egressIPs": ["10.0.0.11"],
    })
}

/// The message for the document with one field changed, or left out.
fn refused(mut document: Value, field: &str, value: Option<Value>) -> String {
    let fields = document.as_object_mut().unwrap();
    match value {
        Some(value) => fields.insert(field.into(), value),
        None => fields.remove(field),
    };
    let condition = parse(&document).expect_err(field);
    assert_eq!(condition.reason, Reason::Invalid);
    condition.message
}

#[test]
fn a_host_subnet_as_oc_prints_it() {
    let Ok(Object::HostSubnet(node)) = parse(&node()) else { panic!("a HostSubnet") };
    assert_eq!(
        node,
        HostSubnet {
            name: "router".into(),
            host_ip: Ipv4Addr::new(10, 0, 0, 2),
            subnet: "10.130.0.0/23".parse().unwrap(),
            egress_ips: vec![Ipv4Addr::new(10, 0, 0, 11)],
            egress_cidrs: vec!["10.0.0.0/24".parse().unwrap()],
            draining: false,
        }
    );
}

#[test]
fn a_node_is_drained_by_its_annotation_alone() {
    let draining = |annotations: Value| {
        let mut node = node();
        node["metadata"]["annotations"] = annotations;
        match parse(&node) {
            Ok(Object::HostSubnet(node)) => Ok(node.draining),
            other => Err(other.unwrap_err().message),
        }
    };
    assert_eq!(draining(json!({"egress/draining": "true", "pod/x": 1})), Ok(true));
    assert_eq!(draining(json!({"egress/draining": "false"})), Ok(false));
    assert_eq!(draining(Value::Null), Ok(false));
    let message = draining(json!({"egress/draining": true})).unwrap_err();
    assert!(message.contains("use \"true\" or \"false\""), "{message}");
    let message = draining(json!({"egress/drain": "true"})).unwrap_err();
    assert!(message.contains("egress/drain is unknown: use egress/draining"), "{message}");
}

#[test]
fn lists_may_be_null_or_missing() {
    let mut bare = node();
    bare["egressIPs"] = Value::Null;
    bare.as_object_mut().unwrap().remove("egressCIDRs");
    assert!(matches!(parse(&bare), Ok(Object::HostSubnet(node)) if node.egress_ips.is_empty()));
}

#[test]
fn what_makes_a_host_subnet_invalid() {
    for (field, value, message) in [
        ("host", json!("other"), "host: \"other\" must equal metadata.name \"router\""),
        ("hostIP", json!("10.0.0"), "hostIP: \"10.0.0\" is not an IPv4 address"),
        ("hostIP", json!("fd00::1"), "hostIP: \"fd00::1\" is not an IPv4 address"),
        ("subnet", json!(""), "subnet: \"\" is not an IPv4 network such as 10.128.0.0/14"),
        (
            "subnet",
            json!("10.130.0.1/23"),
            "subnet: \"10.130.0.1/23\" has host bits: write 10.130.0.0/23",
        ),
        ("egressIPs", json!(["10.0.0.011"]), "egressIPs: \"10.0.0.011\" is not an IPv4 address"),
        (
            "egressCIDRs",
            json!(["10.0.0.1/24"]),
            "egressCIDRs[0]: \"10.0.0.1/24\" has host bits: write 10.0.0.0/24",
        ),
        ("egressIPs", json!([11]), "egressIPs[0]: invalid type: integer `11`, expected a string"),
    ] {
        assert_eq!(refused(node(), field, Some(value)), message);
    }
    assert_eq!(refused(node(), "subnet", None), "missing field `subnet`");
    assert_eq!(refused(node(), "metadata", None), "missing field `metadata`");
}

#[test]
fn an_unknown_field_is_named() {
    let message = refused(node(), "egressIps", Some(json!([])));
    assert!(message.contains("unknown field `egressIps`"), "{message}");
}

#[test]
fn an_unknown_kind_is_named() {
    let message = refused(node(), "kind", Some(json!("Pod")));
    assert!(message.starts_with("unknown kind \"Pod\""), "{message}");
    let message = refused(node(), "apiVersion", Some(json!("v2")));
    assert!(message.contains("unknown variant `v2`"), "{message}");
}

#[test]
fn a_vnid_has_24_bits() {
    assert!(matches!(parse(&namespace()), Ok(Object::NetNamespace(n)) if n.vnid == 42));
    for netid in [json!(0x0100_0000), json!(-1), json!(u64::from(u32::MAX) + 43)] {
        let message = refused(namespace(), "netid", Some(netid));
        assert!(message.contains("24 bits"), "{message}");
    }
}

#[test]
fn a_namespaces_bad_ips_are_kept_apart() {
    let mut document = namespace();
    document["egressIPs"] = json!(["10.0.0.12", "x", "10.0.0.11", 7, "10.0.0.12"]);
    let Ok(Object::NetNamespace(namespace)) = parse(&document) else { panic!("not refused") };
    let ip = |byte| Ipv4Addr::new(10, 0, 0, byte);
    assert_eq!(namespace.egress_ips, [ip(12), ip(11)]);
    assert_eq!(namespace.unparsable, ["x", "7"]);
}

#[test]
fn a_mapping_is_read_and_a_mistaken_one_is_no_reason_to_refuse_the_namespace() {
    let read = |annotations: Value| {
        let mut document = namespace();
        document["metadata"]["annotations"] = annotations;
        let Ok(Object::NetNamespace(namespace)) = parse(&document) else { panic!("not refused") };
        (namespace.mapping, namespace.bad_mapping)
    };
    let (dependent, independent) = (Mapping::EndpointDependent, Mapping::EndpointIndependent);
    assert_eq!(read(Value::Null), (dependent, None));
    assert_eq!(read(json!({"other/mapping": "x"})), (dependent, None));
    assert_eq!(read(json!({"egress/mapping": "endpoint-dependent"})), (dependent, None));
    assert_eq!(read(json!({"egress/mapping": "endpoint-independent"})), (independent, None));
    let cure = "metadata.annotations: egress/mapping: use endpoint-independent or \
                endpoint-dependent";
    for value in [json!("full-cone"), json!(true), Value::Null] {
        assert_eq!(read(json!({"egress/mapping": value})), (dependent, Some(cure.into())));
    }
    let unknown = "metadata.annotations: egress/maping is unknown: use egress/mapping";
    let mistyped = json!({"egress/maping": "endpoint-independent"});
    assert_eq!(read(mistyped), (dependent, Some(unknown.into())));
}

#[test]
fn a_cluster_network_of_any_age() {
    let old = json!({
        "apiVersion": "v1", "kind": "ClusterNetwork", "metadata": {"name": "default"},
        "network": "10.128.0.0/14", "hostsubnetlength": 9, "serviceNetwork": "172.30.0.0/16",
        "pluginName": "redhat/openshift-ovs-multitenant",
    });
    let mut new = old.clone();
    new["clusterNetworks"] = json!([{"CIDR": "10.128.0.0/14", "hostSubnetLength": 9}]);
    new["mtu"] = json!(1450);
    new["vxlanPort"] = json!(4789);
    assert_eq!(parse(&old), parse(&new));
    assert!(matches!(parse(&old), Ok(Object::ClusterNetwork(n)) if n.cluster_networks.len() == 1));
}
