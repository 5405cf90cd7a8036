//! What was imported, as the documents that `egress plan` and `egress run` take.
use anyhow::Result;
use egress_common::mark::Layout;
use serde_json::{Map, Value, json};

use super::Imported;

const API: &str = "network.openshift.io/v1";

/// The objects and the AgentConfig, as YAML documents.
///
/// # Errors
/// None that is known: a value that YAML cannot hold.
pub fn yaml(imported: &Imported) -> Result<String> {
    let documents = std::iter::once(config(imported)).chain(objects(imported));
    let texts: Vec<String> =
        documents.map(|document| serde_saphyr::to_string(&document)).collect::<Result<_, _>>()?;
    Ok(texts.join("---\n"))
}

fn objects(imported: &Imported) -> Vec<Value> {
    let mut objects = Vec::new();
    if let (Some((ip, _)), Some(subnet)) = (imported.node.ip, imported.node.subnet) {
        let name = &imported.node.name;
        objects.push(json!({
            "apiVersion": API, "kind": "HostSubnet", "metadata": {"name": name}, "host": name,
            "hostIP": ip, "subnet": subnet, "egressIPs": imported.node.egress_ips,
        }));
    }
    for (ip, other) in &imported.others {
        let Some(subnet) = other.subnet else { continue };
        // Its name is known to the cluster, not to its neighbours.
        let name = format!("node-{ip}");
        objects.push(json!({
            "apiVersion": API, "kind": "HostSubnet", "metadata": {"name": name}, "host": name,
            "hostIP": ip, "subnet": subnet, "egressIPs": other.egress_ips,
        }));
    }
    for (vnid, tenant) in &imported.tenants {
        let name = tenant.name.clone().unwrap_or_else(|| format!("vnid-{vnid}"));
        objects.push(json!({
            "apiVersion": API, "kind": "NetNamespace", "metadata": {"name": name}, "netname": name,
            "netid": vnid, "egressIPs": tenant.egress_ips,
        }));
    }
    objects
}

fn config(imported: &Imported) -> Value {
    let node = &imported.node;
    let mut named = Map::from_iter([("name".to_owned(), json!(node.name))]);
    if let Some((ip, length)) = node.ip {
        let length = length.map_or(String::new(), |length| format!("/{length}"));
        named.insert("ip".to_owned(), json!(format!("{ip}{length}")));
    }
    named.extend(node.uplink.iter().map(|uplink| ("uplink".to_owned(), json!(uplink))));
    let mut config = Map::from_iter([
        ("apiVersion".to_owned(), json!("egress/v1alpha1")),
        ("kind".to_owned(), json!("AgentConfig")),
        ("node".to_owned(), Value::Object(named)),
        ("clusterNetworks".to_owned(), json!(imported.cluster_networks)),
        ("serviceNetworks".to_owned(), json!(imported.service_networks)),
        ("masqueradeBit".to_owned(), json!(imported.masquerade_bit)),
    ]);
    let mut put = |key: &str, value: Option<Value>| {
        config.extend(value.map(|value| (key.to_owned(), value)));
    };
    put("gateway", node.gateway.as_ref().map(|gateway| json!(gateway)));
    put("gatewayMac", node.gateway_mac.map(|mac| json!(mac.to_string())));
    put("tunnel", imported.vxlan_port.map(|port| json!({"port": port})));
    put(
        "compat",
        imported.layout.map(|layout| match layout {
            Layout::Old => json!("old"),
            Layout::New => json!("new"),
        }),
    );
    Value::Object(config)
}
