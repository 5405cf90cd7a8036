use serde_json::json;

use super::*;

fn document(fields: Value) -> Value {
    let mut document = json!({"apiVersion": "egress/v1alpha1", "kind": "AgentConfig"});
    document.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    document
}

fn refused(fields: Value) -> String {
    AgentConfig::parse(&document(fields)).unwrap_err()
}

#[test]
fn without_a_limit_a_quarter_of_the_table_is_kept_from_any_one_vnid() {
    let flows = |max, max_per_vnid| Flows { max, max_per_vnid, ..Flows::default() };
    assert_eq!(flows(1000, 0).per_vnid(), 750);
    assert_eq!(flows(1, 0).per_vnid(), 1, "no limit of 0, which would be none");
    assert_eq!(flows(1000, 1000).per_vnid(), 1000);
}

#[test]
fn a_document_without_settings_is_the_default() {
    assert_eq!(AgentConfig::parse(&document(json!({}))), Ok(AgentConfig::default()));
}

#[test]
fn the_example_of_the_design() {
    let config = AgentConfig::parse(&document(json!({
        "node": {"name": "ocprouter01", "ip": "10.0.0.2/24", "uplink": "auto"},
        "tunnel": {"device": "vxlan_sys_4789", "port": 4789},
        "gateway": "tun0",
        "clusterNetworks": ["10.128.0.0/14"],
        "serviceNetworks": ["172.30.0.0/16"],
        "masqueradeBit": 0,
        "compat": "auto",
        "dataPath": "auto",
        "flows": {"max": 1048576, "maxPerVnid": 0},
        "ports": {"from": 1024, "to": 65535},
        "timeouts": {
            "tcpEstablished": "7440s", "tcpTransitory": "240s", "udp": "300s", "icmp": "60s",
        },
        "announce": {"burst": 3, "interval": "1s", "refresh": "60s", "probe": true},
        "ovs": {"bridge": "br0", "enabled": "auto"},
        "metrics": {"listen": "127.0.0.1:9099"},
    })))
    .unwrap();
    let expected = AgentConfig {
        node: Node {
            name: Some("ocprouter01".into()),
            ip: Some(NodeIp { address: Ipv4Addr::new(10, 0, 0, 2), prefix_len: Some(24) }),
            uplink: Device::Auto,
            uplinks: Vec::new(),
        },
        tunnel: Tunnel { device: Device::Named("vxlan_sys_4789".into()), port: 4789 },
        gateway: Some("tun0".into()),
        cluster_networks: vec!["10.128.0.0/14".parse().unwrap()],
        service_networks: vec!["172.30.0.0/16".parse().unwrap()],
        metrics: Some(Metrics { listen: "127.0.0.1:9099".parse().unwrap() }),
        ..AgentConfig::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn every_other_value() {
    let config = AgentConfig::parse(&document(json!({
        "node": {"ip": "10.0.0.2", "uplinks": ["eth1", "eth0.100"]}, "gatewayMac": "22:3B:a9:a4:8e:0c", "compat": "old",
        "dataPath": "stack", "ovs": {"enabled": false},
        "announce": {"interval": "300ms", "refresh": "2m"}, "timeouts": {"tcpEstablished": "3h"},
    })))
    .unwrap();
    assert_eq!(config.node.ip.unwrap().prefix_len, None);
    assert_eq!(config.node.uplinks, ["eth1", "eth0.100"]);
    assert_eq!(config.gateway_mac.unwrap().to_string(), "22:3b:a9:a4:8e:0c");
    assert_eq!((config.compat, config.data_path), (Compat::Old, DataPath::Stack));
    assert_eq!(config.ovs, Ovs { bridge: "br0".into(), enabled: Enabled::No });
    assert_eq!(config.announce.interval, Duration::from_millis(300));
    assert_eq!(config.announce.refresh, Duration::from_secs(120));
    assert_eq!(config.timeouts.tcp_established, Duration::from_secs(3 * 3600));
}

#[test]
fn refusals_name_the_key_and_the_cure() {
    for (fields, message) in [
        (json!({"nodes": []}), "nodes: unknown field `nodes`"),
        (json!({"timeouts": {"tcp": "1s"}}), "timeouts.tcp: unknown field `tcp`"),
        (
            json!({"timeouts": {"udp": "5"}}),
            "timeouts.udp: \"5\" is no time such as 300ms, 60s or 2m",
        ),
        (json!({"timeouts": {"udp": 5}}), "timeouts.udp: invalid type"),
        (json!({"timeouts": {"udp": "999ms"}}), "timeouts.udp: 999ms is too short: at least 1s"),
        (json!({"timeouts": {"udp": "18446744073709551615h"}}), "timeouts.udp: "),
        (json!({"masqueradeBit": 32}), "masqueradeBit: 32 is no bit of a mark: 0 to 31"),
        (json!({"masqueradeBit": -1}), "masqueradeBit: -1 is no bit of a mark: 0 to 31"),
        (json!({"ports": {"from": 2000, "to": 1999}}), "ports: from 2000 to 1999 is no range"),
        (json!({"ports": {"from": 0}}), "ports: from 0 to 65535 is no range"),
        (json!({"ports": {"to": 65536}}), "ports.to: "),
        (
            json!({"clusterNetworks": ["10.128.0.1/14"]}),
            "clusterNetworks[0]: \"10.128.0.1/14\" has host bits: write 10.128.0.0/14",
        ),
        (json!({"compat": "3.11"}), "compat: unknown variant `3.11`"),
        (json!({"dataPath": "ebpf"}), "dataPath: unknown variant `ebpf`"),
        (
            json!({"gatewayMac": "22:3b:a9:a4:8e"}),
            "gatewayMac: \"22:3b:a9:a4:8e\" is no MAC address",
        ),
        (json!({"node": {"ip": "10.0.0.2/33"}}), "node.ip: \"10.0.0.2/33\" is no IPv4 address"),
        (
            json!({"node": {"uplink": "eth0", "uplinks": ["eth0"]}}),
            "node.uplinks: eth0 is there twice",
        ),
        (json!({"node": {"uplinks": ["eth1", "eth1"]}}), "node.uplinks: eth1 is there twice"),
        (json!({"node": {"uplinks": ["auto"]}}), "node.uplinks: \"auto\" is no device"),
        (json!({"node": {"uplink": ""}}), "node.uplink: is empty"),
        (json!({"ovs": {"enabled": "yes"}}), "ovs.enabled: \"yes\" is none of true, false, auto"),
        (json!({"metrics": {}}), "metrics: missing field `listen`"),
        (json!({"tunnel": {"port": 0}}), "tunnel.port: 0 is no port"),
        (json!({"flows": {"max": 0}}), "flows.max: 0 leaves no room"),
        (json!({"pods": [{"vnid": 7}]}), "pods: VNID 7: give either a device or an ip"),
        (
            json!({"pods": [{"device": "veth0", "ip": "10.128.0.11", "vnid": 7}]}),
            "pods: VNID 7: give either a device or an ip",
        ),
        (json!({"pods": [{"ip": "10.128.0.11", "vnid": 7}]}), "pods: 10.128.0.11: name the device"),
        (
            json!({"pods": [{"device": "veth0", "vnid": 7}, {"device": "veth0", "vnid": 8}]}),
            "pods: veth0 is there twice: a pod has one VNID",
        ),
        (
            json!({"pods": [{"device": "veth0", "vnid": 16777216}]}),
            "pods: veth0: 16777216 is no VNID",
        ),
        (json!({"apiVersion": "egress/v1"}), "apiVersion: unknown variant `egress/v1`"),
        (json!({"apiVersion": null}), "apiVersion is missing"),
    ] {
        let error = refused(fields.clone());
        assert!(error.starts_with(message), "{fields}: {error}");
    }
}

#[test]
fn a_time_below_the_rfcs_is_a_warning() {
    let config = AgentConfig::parse(&document(json!({
        "timeouts": {"tcpEstablished": "2h", "udp": "2m", "icmp": "59s"},
    })))
    .unwrap();
    assert_eq!(
        config.warnings(),
        [
            "timeouts.tcpEstablished: 7200s is below the 7440s of RFC 5382 REQ-5",
            "timeouts.icmp: 59s is below the 60s of RFC 5508 REQ-2",
        ]
    );
    assert!(AgentConfig::default().warnings().is_empty());
}

#[test]
fn the_health_of_nodes_has_defaults_and_limits() {
    let parsed =
        AgentConfig::parse(&document(json!({"health": {"interval": "100ms", "lease": "2s"}})));
    let health = parsed.unwrap().health;
    let expected = Health {
        interval: Duration::from_millis(100),
        lease: Duration::from_secs(2),
        ..Health::default()
    };
    assert_eq!(health, expected);
    for (key, value) in [
        ("interval", json!("5ms")),
        ("misses", json!(0)),
        ("gatewayInterval", json!("100ms")),
        ("lease", json!("500ms")),
        ("lese", json!("2s")),
    ] {
        let error = refused(json!({"health": {key: value}}));
        assert!(error.contains(key), "{error}");
    }
}
