//! The keys whose value is one of a few words.
use std::net::Ipv4Addr;

use egress_common::mark::Layout;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

/// Which OpenShift this node works with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compat {
    /// As the note in OVS table 253 says; without one, as `New`.
    #[default]
    Auto,
    /// 4.2 to 4.7.
    Old,
    /// 4.8 and later.
    New,
}

impl Compat {
    /// `None`: to be found out.
    pub fn layout(self) -> Option<Layout> {
        match self {
            Self::Auto => None,
            Self::Old => Some(Layout::Old),
            Self::New => Some(Layout::New),
        }
    }
}

/// What stays together where a tenant's packets can leave by several nodes. Without Open vSwitch on
/// the source node: the groups of Open vSwitch spread flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affinity {
    /// A flow; its node is the same as long as that is there.
    #[default]
    Flow,
    /// All of a pod's flows.
    Pod,
}

/// Where packets are translated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPath {
    #[default]
    Auto,
    Tc,
    Xdp,
    /// As `Tc`, but VXLAN is left to the tunnel device: for nodes where it has to be seen there.
    Tunnel,
    /// Marked on ingress, forwarded by the kernel, translated on the uplink's egress.
    Stack,
}

/// `true`, `false` or `auto`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Enabled {
    #[default]
    Auto,
    Yes,
    No,
}

impl<'de> Deserialize<'de> for Enabled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(true) => Ok(Self::Yes),
            Value::Bool(false) => Ok(Self::No),
            Value::String(text) if text == "auto" => Ok(Self::Auto),
            other => Err(D::Error::custom(format!("{other} is none of true, false, auto"))),
        }
    }
}

/// `gateway`, `none`, or the address of a neighbour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Witness {
    /// That of the uplink's default route; without one, nobody.
    #[default]
    Gateway,
    Nobody,
    Neighbour(Ipv4Addr),
}

impl<'de> Deserialize<'de> for Witness {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "gateway" => Ok(Self::Gateway),
            "none" => Ok(Self::Nobody),
            other => other.parse().map(Self::Neighbour).map_err(|_| {
                D::Error::custom(format!("\"{text}\" is none of gateway, none, an IPv4 address"))
            }),
        }
    }
}
