//! The settings of a node: AgentConfig.
//!
//! Owns the keys, their defaults and what makes a value impossible; what can be found out on the
//! node (`auto`, or a key left out) is found by others.
use std::{collections::BTreeSet, net::Ipv4Addr, net::SocketAddr, time::Duration};

use egress_common::mark::MAX_VNID;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::{
    cidr::{Cidr, parse_with_length},
    model::typed,
};

mod choice;
mod health;

pub use choice::{Affinity, Compat, DataPath, Enabled, Witness};
pub use health::Health;

/// All settings; `AgentConfig::default()` is a document with nothing but its kind.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AgentConfig {
    api_version: ApiVersion,
    kind: Kind,
    pub node: Node,
    pub tunnel: Tunnel,
    /// The device where local pods' traffic arrives.
    pub gateway: Option<String>,
    /// Stands in for what OVSDB tells of the gateway device.
    pub gateway_mac: Option<Mac>,
    /// Pods of this node whose packets come without a tunnel and without a mark.
    pub pods: Vec<Pod>,
    /// In addition to those of the ClusterNetwork objects.
    pub cluster_networks: Vec<Cidr>,
    pub service_networks: Vec<Cidr>,
    /// kube-proxy's bit in the mark, 0 to 31.
    #[serde(deserialize_with = "masquerade_bit")]
    pub masquerade_bit: u8,
    /// The node whose agent deals out egressCIDRs, and writes that into the objects' files.
    pub allocator: Option<String>,
    pub compat: Compat,
    pub affinity: Affinity,
    pub data_path: DataPath,
    pub flows: Flows,
    pub policies: Policies,
    pub ports: Ports,
    /// Whether pods of VNIDs without a policy leave with the node's address through the programs,
    /// and not by the node's own NAT.
    pub masquerade: bool,
    pub masquerade_ports: MasqueradePorts,
    pub timeouts: Timeouts,
    pub announce: Announce,
    pub health: Health,
    pub ovs: Ovs,
    pub metrics: Option<Metrics>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum ApiVersion {
    #[serde(rename = "egress/v1alpha1")]
    V1alpha1,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Kind {
    AgentConfig,
}

/// Who this node is; what is left out is found as OpenShift SDN finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    pub name: Option<String>,
    pub ip: Option<NodeIp>,
    /// The interface with the node's address, by which VXLAN comes and goes.
    pub uplink: Device,
    /// Further interfaces towards the outside: each carries the egress IPs of its own subnets.
    pub uplinks: Vec<String>,
}

/// The node's address, `10.0.0.2` or `10.0.0.2/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIp {
    pub address: Ipv4Addr,
    pub prefix_len: Option<u8>,
}

/// A device by name, or `auto`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Auto,
    Named(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tunnel {
    pub device: Device,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// A MAC address, written `22:3b:a9:a4:8e:0c`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// Whose a pod's packets are: by the device that they come by, or by the pod's address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Everything that arrives on it is the tenant's.
    #[serde(default)]
    pub device: Option<String>,
    /// On the gateway device.
    #[serde(default)]
    pub ip: Option<Ipv4Addr>,
    pub vnid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Flows {
    /// Places in the flow tables.
    pub max: u32,
    /// 0: none of its own, see [`Flows::per_vnid`].
    pub max_per_vnid: u32,
    /// Flows that one VNID may begin in a second; 0: no limit.
    pub max_new_per_vnid: u32,
}

/// How many VNIDs can be translated here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policies {
    pub max: u32,
}

/// The ports that translation may use, both ends included.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Ports {
    pub from: u16,
    pub to: u16,
    /// Ports that one VNID with endpoint-independent mapping may hold; 0: no limit. Of others each
    /// flow has one towards its remote: they are limited by their flows.
    pub max_per_vnid: u32,
}

/// The node's ports that masquerading takes, both ends included: nothing else may use them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MasqueradePorts {
    pub from: u16,
    pub to: u16,
}

/// How long an idle flow lives.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Timeouts {
    #[serde(deserialize_with = "duration")]
    pub tcp_established: Duration,
    #[serde(deserialize_with = "duration")]
    pub tcp_transitory: Duration,
    /// Of every other protocol too, ICMP apart.
    #[serde(deserialize_with = "duration")]
    pub udp: Duration,
    #[serde(deserialize_with = "duration")]
    pub icmp: Duration,
}

/// How an egress IP is announced.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Announce {
    /// Announcements after a claim.
    pub burst: u32,
    /// Between those.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    /// Between later ones; 0s: none.
    #[serde(deserialize_with = "duration")]
    pub refresh: Duration,
    /// Ask before claiming whether another machine has the address.
    pub probe: bool,
    /// Who has to answer to a claimed address before it counts as announced.
    pub witness: Witness,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ovs {
    pub bridge: String,
    pub enabled: Enabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    pub listen: SocketAddr,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            api_version: ApiVersion::V1alpha1,
            kind: Kind::AgentConfig,
            node: Node::default(),
            tunnel: Tunnel::default(),
            gateway: None,
            gateway_mac: None,
            pods: Vec::new(),
            cluster_networks: Vec::new(),
            service_networks: Vec::new(),
            masquerade_bit: 0,
            allocator: None,
            compat: Compat::default(),
            affinity: Affinity::default(),
            data_path: DataPath::default(),
            flows: Flows::default(),
            policies: Policies::default(),
            ports: Ports::default(),
            masquerade: false,
            masquerade_ports: MasqueradePorts::default(),
            timeouts: Timeouts::default(),
            announce: Announce::default(),
            health: Health::default(),
            ovs: Ovs::default(),
            metrics: None,
        }
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self { device: Device::Auto, port: 4789 }
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self { max: 1 << 20, max_per_vnid: 0, max_new_per_vnid: 0 }
    }
}

impl Flows {
    /// The most that one VNID holds. Where no limit is set a quarter of the table is out of reach for
    /// any one of them, so that none can take the others' room by itself.
    pub fn per_vnid(&self) -> u32 {
        match self.max_per_vnid {
            0 => self.max - self.max / 4,
            limit => limit,
        }
    }
}

impl Default for Policies {
    fn default() -> Self {
        Self { max: 16384 }
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self { from: 1024, to: 65535, max_per_vnid: 0 }
    }
}

/// Below what is usually taken: by NodePorts from 30000 on, by the kernel for sockets from 32768 on.
impl Default for MasqueradePorts {
    fn default() -> Self {
        Self { from: 11000, to: 29999 }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_secs(7440),
            tcp_transitory: Duration::from_secs(240),
            udp: Duration::from_secs(300),
            icmp: Duration::from_secs(60),
        }
    }
}

impl Default for Announce {
    fn default() -> Self {
        Self {
            burst: 3,
            interval: Duration::from_secs(1),
            refresh: Duration::from_secs(60),
            probe: true,
            witness: Witness::Gateway,
        }
    }
}

impl Default for Ovs {
    fn default() -> Self {
        Self { bridge: "br0".into(), enabled: Enabled::Auto }
    }
}

impl AgentConfig {
    /// Reads and checks a document; the error names the key.
    pub fn parse(document: &Value) -> Result<Self, String> {
        for key in ["apiVersion", "kind"] {
            if document[key].is_null() {
                return Err(format!(
                    "{key} is missing: begin with `apiVersion: egress/v1alpha1` and \
                     `kind: AgentConfig`"
                ));
            }
        }
        let config: Self = typed(document)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let MasqueradePorts { from, to } = self.masquerade_ports;
        for (key, from, to) in
            [("ports", self.ports.from, self.ports.to), ("masqueradePorts", from, to)]
        {
            if from == 0 || from > to {
                return Err(format!("{key}: from {from} to {to} is no range: 1 <= from <= to"));
            }
        }
        if (from..=to).contains(&self.tunnel.port) {
            return Err(format!(
                "masqueradePorts: from {from} to {to} has VXLAN's port {} in it: leave it out",
                self.tunnel.port
            ));
        }
        self.node.check_uplinks()?;
        self.check_pods()?;
        if self.tunnel.port == 0 {
            return Err("tunnel.port: 0 is no port: VXLAN's is 4789".into());
        }
        if self.flows.max == 0 {
            return Err("flows.max: 0 leaves no room for any flow".into());
        }
        if self.policies.max == 0 {
            return Err("policies.max: 0 leaves no room for any VNID".into());
        }
        self.health.check()?;
        for (key, value, _, _) in self.timeouts.with_minimum() {
            if value < Duration::from_secs(1) {
                return Err(format!("timeouts.{key}: {value:?} is too short: at least 1s"));
            }
        }
        Ok(())
    }

    fn check_pods(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for Pod { device, ip, vnid } in &self.pods {
            let name = match (device, ip) {
                (Some(device), None) => device.clone(),
                (None, Some(ip)) => ip.to_string(),
                _ => return Err(format!("pods: VNID {vnid}: give either a device or an ip")),
            };
            if *vnid > MAX_VNID {
                return Err(format!("pods: {name}: {vnid} is no VNID: those are 24 bits wide"));
            }
            if ip.is_some() && self.gateway.is_none() {
                return Err(format!("pods: {name}: name the device it is behind: gateway"));
            }
            if !seen.insert(name.clone()) {
                return Err(format!("pods: {name} is there twice: a pod has one VNID"));
            }
        }
        Ok(())
    }

    /// What is allowed and unwise, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let below = |(key, value, minimum, rfc): (&str, Duration, u64, &str)| {
            (value < Duration::from_secs(minimum))
                .then(|| format!("timeouts.{key}: {value:?} is below the {minimum}s of {rfc}"))
        };
        self.timeouts.with_minimum().into_iter().filter_map(below).collect()
    }
}

impl Node {
    fn check_uplinks(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for name in &self.uplinks {
            if name.is_empty() || name == "auto" {
                return Err(format!("node.uplinks: \"{name}\" is no device: name each one"));
            }
            if self.uplink == Device::Named(name.clone()) || !seen.insert(name) {
                return Err(format!(
                    "node.uplinks: {name} is there twice: each device once, without node.uplink"
                ));
            }
        }
        Ok(())
    }
}

impl Timeouts {
    /// Key, value, the RFC's minimum in seconds, and where it says so.
    fn with_minimum(&self) -> [(&'static str, Duration, u64, &'static str); 4] {
        [
            ("tcpEstablished", self.tcp_established, 7440, "RFC 5382 REQ-5"),
            ("tcpTransitory", self.tcp_transitory, 240, "RFC 5382 REQ-5"),
            ("udp", self.udp, 120, "RFC 4787 REQ-5"),
            ("icmp", self.icmp, 60, "RFC 5508 REQ-2"),
        ]
    }
}

impl Mac {
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            *byte = u8::from_str_radix(part, 16).ok()?;
        }
        parts.next().is_none().then_some(Self(bytes))
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("\"{text}\" is no MAC address such as 22:3b:a9:a4:8e:0c"))
        })
    }
}

impl<'de> Deserialize<'de> for NodeIp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = match text.parse() {
            Ok(address) => Some((address, None)),
            Err(_) => parse_with_length(&text).map(|(address, length)| (address, Some(length))),
        };
        parsed.map(|(address, prefix_len)| Self { address, prefix_len }).ok_or_else(|| {
            D::Error::custom(format!("\"{text}\" is no IPv4 address such as 10.0.0.2/24"))
        })
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(deserializer)?.as_str() {
            "auto" => Self::Auto,
            "" => return Err(D::Error::custom("is empty: name a device, or write auto")),
            name => Self::Named(name.to_owned()),
        })
    }
}

fn masquerade_bit<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let bit = i64::deserialize(deserializer)?;
    u8::try_from(bit)
        .ok()
        .filter(|&bit| bit < 32)
        .ok_or_else(|| D::Error::custom(format!("{bit} is no bit of a mark: 0 to 31")))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text)
        .ok_or_else(|| D::Error::custom(format!("\"{text}\" is no time such as 300ms, 60s or 2m")))
}

/// A whole number and its unit: `300ms`, `60s`, `2m`, `1h`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

mod reload;

#[cfg(test)]
mod tests;
