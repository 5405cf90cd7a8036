//! The objects that decide who leaves with which address, as `oc get ... -o yaml` prints them.
//!
//! Owns the form of HostSubnet, NetNamespace and ClusterNetwork and what makes one invalid; reads
//! no files and decides nothing. Objects are typed here once, so that the planner meets only
//! addresses and networks that are some.
//!
//! Surprising: a bad egress IP makes a HostSubnet invalid as a whole (the node then hosts nothing),
//! but not a NetNamespace: without its object the namespace would leave with the node's address, so
//! the address is kept as `unparsable` and the planner drops the VNID.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::mark::MAX_VNID;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    cidr::Cidr,
    condition::{Condition, Reason},
};

mod keep;

/// Settings of one object are annotations: the rest of its form is OpenShift's.
const SETTINGS: &str = "egress/";
/// Of a HostSubnet: see [`HostSubnet::draining`].
pub const DRAINING: &str = "egress/draining";
/// Of a NetNamespace: how its flows get their egress ports.
const MAPPING: &str = "egress/mapping";

/// Everything that the planner is told about the cluster, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Objects {
    pub host_subnets: BTreeMap<String, HostSubnet>,
    pub net_namespaces: BTreeMap<String, NetNamespace>,
    pub cluster_networks: BTreeMap<String, ClusterNetwork>,
    /// What was found while reading: objects refused (Invalid) or given twice (Duplicate).
    pub conditions: Vec<Condition>,
}

impl Objects {
    /// Adds one object. One of the same kind and name gives way to it, with a condition.
    pub fn insert(&mut self, object: Object) {
        let name = object.name();
        let replaced = match object {
            Object::HostSubnet(o) => self.host_subnets.insert(o.name.clone(), o).is_some(),
            Object::NetNamespace(o) => self.net_namespaces.insert(o.name.clone(), o).is_some(),
            Object::ClusterNetwork(o) => self.cluster_networks.insert(o.name.clone(), o).is_some(),
        };
        if replaced {
            self.duplicate(name);
        }
    }

    /// Notes that an object was given twice; once, however often it was.
    pub fn duplicate(&mut self, object: String) {
        let message = "given more than once: the last document counts, remove the others";
        let condition = Condition::new(object, Reason::Duplicate, message);
        if !self.conditions.contains(&condition) {
            self.conditions.push(condition);
        }
    }

    /// The conditions of the objects that were refused and are as if absent.
    pub fn refused(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.iter().filter(|condition| condition.reason == Reason::Invalid)
    }
}

/// One object of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    HostSubnet(HostSubnet),
    NetNamespace(NetNamespace),
    ClusterNetwork(ClusterNetwork),
}

impl Object {
    /// `Kind/name`.
    pub fn name(&self) -> String {
        match self {
            Self::HostSubnet(object) => format!("HostSubnet/{}", object.name),
            Self::NetNamespace(object) => format!("NetNamespace/{}", object.name),
            Self::ClusterNetwork(object) => format!("ClusterNetwork/{}", object.name),
        }
    }
}

/// A node, its pods' subnet and the egress IPs that it hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSubnet {
    pub name: String,
    pub host_ip: Ipv4Addr,
    pub subnet: Cidr,
    /// By hand, or the outcome of an earlier allocation; without repetitions, in the order listed.
    pub egress_ips: Vec<Ipv4Addr>,
    /// Not empty: the node takes part in the automatic allocation.
    pub egress_cidrs: Vec<Cidr>,
    /// New flows and newly placed egress IPs go elsewhere where they can.
    pub draining: bool,
}

/// A namespace, its VNID and the egress IPs that it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetNamespace {
    pub name: String,
    pub vnid: u32,
    /// In the order of preference.
    pub egress_ips: Vec<Ipv4Addr>,
    /// What was asked for and is no IPv4 address.
    pub unparsable: Vec<String>,
    /// How its flows get their egress ports.
    pub mapping: Mapping,
    /// What is wrong with its annotation; the default stands in. It is no reason to refuse the object,
    /// without which the namespace would leave with the node's address.
    pub bad_mapping: Option<String>,
}

/// What a flow's egress port depends on (RFC 4787, section 4.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// The remote too: an egress IP has all its ports for each remote.
    #[default]
    EndpointDependent,
    /// The pod's address and port alone: an egress IP has all its ports for all remotes together.
    EndpointIndependent,
}

/// The cluster's own networks, whose addresses are never translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetwork {
    pub name: String,
    pub cluster_networks: Vec<Cidr>,
    pub service_network: Option<Cidr>,
}

/// `Kind/name` of a document; "?" stands for what it does not say.
pub fn object_name(document: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    format!("{}/{}", text(&document["kind"]), text(&document["metadata"]["name"]))
}

/// Reads one object from a document of kind HostSubnet, NetNamespace or ClusterNetwork.
/// The error is a condition that names the object and the cure.
pub fn parse(document: &Value) -> Result<Object, Condition> {
    let object = match document["kind"].as_str() {
        Some("HostSubnet") => typed(document).and_then(host_subnet).map(Object::HostSubnet),
        Some("NetNamespace") => typed(document).and_then(net_namespace).map(Object::NetNamespace),
        Some("ClusterNetwork") => {
            typed(document).and_then(cluster_network).map(Object::ClusterNetwork)
        }
        Some(kind) => Err(format!(
            "unknown kind \"{kind}\": use HostSubnet, NetNamespace, ClusterNetwork or AgentConfig"
        )),
        None => Err("has no kind: use HostSubnet, NetNamespace or ClusterNetwork".into()),
    };
    object.map_err(|message| Condition::new(object_name(document), Reason::Invalid, message))
}

/// The document as `T`; the error names the field.
pub fn typed<T: DeserializeOwned>(document: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string();
        if path == "." { error.inner().to_string() } else { format!("{path}: {}", error.inner()) }
    })
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct AnnotatedMetadata {
    name: String,
    annotations: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HostSubnetDocument {
    api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: AnnotatedMetadata,
    host: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
    subnet: String,
    #[serde(rename = "egressIPs")]
    egress_ips: Option<Vec<String>>,
    #[serde(rename = "egressCIDRs")]
    egress_cidrs: Option<Vec<Cidr>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NetNamespaceDocument {
    api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: AnnotatedMetadata,
    #[serde(rename = "netname")]
    _netname: Option<String>,
    netid: i64,
    #[serde(rename = "egressIPs")]
    egress_ips: Option<Vec<Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ClusterNetworkDocument {
    api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: Metadata,
    network: Option<Cidr>,
    #[serde(rename = "hostsubnetlength")]
    _hostsubnetlength: Option<u32>,
    service_network: Option<Cidr>,
    #[serde(rename = "pluginName")]
    _plugin_name: Option<String>,
    cluster_networks: Option<Vec<ClusterNetworkEntry>>,
    #[serde(rename = "vxlanPort")]
    _vxlan_port: Option<u32>,
    #[serde(rename = "mtu")]
    _mtu: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterNetworkEntry {
    #[serde(rename = "CIDR")]
    cidr: Cidr,
    #[serde(rename = "hostSubnetLength")]
    _host_subnet_length: Option<u32>,
}

/// 3.x printed `v1`, later versions the group's name.
#[derive(Deserialize)]
enum ApiVersion {
    #[serde(rename = "network.openshift.io/v1", alias = "v1")]
    V1,
}

impl AnnotatedMetadata {
    /// The only setting of its kind; another one is an error. `None` within: it is no text.
    fn setting(&self, name: &str) -> Result<Option<Option<&str>>, String> {
        let annotations = self.annotations.iter().flatten();
        let mut settings = annotations.filter(|(key, _)| key.starts_with(SETTINGS));
        if let Some((key, _)) = settings.clone().find(|(key, _)| *key != name) {
            return Err(format!("metadata.annotations: {key} is unknown: use {name}"));
        }
        Ok(settings.next().map(|(_, value)| value.as_str()))
    }

    fn mapping(&self) -> Result<Mapping, String> {
        match self.setting(MAPPING)? {
            None | Some(Some("endpoint-dependent")) => Ok(Mapping::EndpointDependent),
            Some(Some("endpoint-independent")) => Ok(Mapping::EndpointIndependent),
            _ => Err(format!(
                "metadata.annotations: {MAPPING}: use endpoint-independent or endpoint-dependent"
            )),
        }
    }

    fn switch(&self, name: &str) -> Result<bool, String> {
        match self.setting(name)? {
            None | Some(Some("false")) => Ok(false),
            Some(Some("true")) => Ok(true),
            _ => Err(format!("metadata.annotations: {name}: use \"true\" or \"false\"")),
        }
    }
}

fn host_subnet(document: HostSubnetDocument) -> Result<HostSubnet, String> {
    let HostSubnetDocument {
        api_version: ApiVersion::V1,
        _kind,
        metadata,
        host,
        host_ip,
        subnet,
        egress_ips,
        egress_cidrs,
    } = document;
    let draining = metadata.switch(DRAINING)?;
    let name = metadata.name;
    if host != name {
        return Err(format!("host: \"{host}\" must equal metadata.name \"{name}\""));
    }
    let addresses: Result<Vec<Ipv4Addr>, String> =
        egress_ips.unwrap_or_default().iter().map(|text| ipv4(text)).collect();
    Ok(HostSubnet {
        host_ip: ipv4(&host_ip).map_err(|error| format!("hostIP: {error}"))?,
        subnet: subnet.parse().map_err(|error| format!("subnet: {error}"))?,
        egress_ips: unique(addresses.map_err(|error| format!("egressIPs: {error}"))?),
        egress_cidrs: egress_cidrs.unwrap_or_default(),
        draining,
        name,
    })
}

fn net_namespace(document: NetNamespaceDocument) -> Result<NetNamespace, String> {
    let NetNamespaceDocument {
        api_version: ApiVersion::V1,
        _kind,
        metadata,
        _netname,
        netid,
        egress_ips: requested,
    } = document;
    let vnid = u32::try_from(netid).ok().filter(|&vnid| vnid <= MAX_VNID).ok_or_else(|| {
        format!("netid: {netid} is no VNID: those are 24 bits wide, 0 to {MAX_VNID}")
    })?;
    let mut egress_ips = Vec::new();
    let mut unparsable = Vec::new();
    for value in requested.unwrap_or_default() {
        match value.as_str().and_then(|text| ipv4(text).ok()) {
            Some(address) => egress_ips.push(address),
            None => unparsable.push(value.as_str().map_or(value.to_string(), str::to_owned)),
        }
    }
    let (mapping, bad_mapping) = match metadata.mapping() {
        Ok(mapping) => (mapping, None),
        Err(message) => (Mapping::default(), Some(message)),
    };
    let egress_ips = unique(egress_ips);
    let name = metadata.name;
    Ok(NetNamespace { name, vnid, egress_ips, unparsable, mapping, bad_mapping })
}

fn cluster_network(document: ClusterNetworkDocument) -> Result<ClusterNetwork, String> {
    let ClusterNetworkDocument {
        api_version: ApiVersion::V1,
        _kind,
        metadata: Metadata { name },
        network,
        _hostsubnetlength,
        service_network,
        _plugin_name,
        cluster_networks: entries,
        _vxlan_port,
        _mtu,
    } = document;
    // `network` repeats the first entry; it stood alone before 3.7.
    let entries = entries.unwrap_or_default().into_iter().map(|entry| entry.cidr);
    let cluster_networks: Vec<Cidr> = unique(entries.chain(network));
    if cluster_networks.is_empty() {
        return Err("clusterNetworks: names no network: give its CIDR".into());
    }
    Ok(ClusterNetwork { name, cluster_networks, service_network })
}

fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not an IPv4 address"))
}

/// Without repetitions, in the order given.
fn unique<T: Ord + Copy>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    items.into_iter().filter(|item| seen.insert(*item)).collect()
}

#[cfg(test)]
mod tests;
