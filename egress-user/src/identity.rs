//! Who this node is: name, address, subnet, uplink; found as the original's setNodeIP does.
//!
//! The address is the configured one, else what the node's name resolves to, else the address of
//! the default route's interface. The link that carries it is the uplink. Nothing is kept: ask
//! again when addresses, links or routes changed.
use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{
    netlink::{Address, Link, Netlink},
    reconcile::addresses::label_of,
};

/// A name server that does not answer must not hold up the agent.
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);

/// What the configuration says of the node; everything may be left open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// Instead of `uname -n`.
    pub name: Option<String>,
    pub ip: Option<Ipv4Addr>,
    /// The name of the link; `None`: the one that carries the node's address.
    pub uplink: Option<String>,
}

/// The node as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub ip: Ipv4Addr,
    /// As the link says, whatever the configuration does.
    pub prefix_len: u8,
    pub uplink: Link,
}

/// Why the node does not know itself; a condition, which may pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unidentified {
    /// No address configured, the name resolves to none, and no uplink or default route has one.
    NoAddress { name: String },
    /// No link carries the address.
    NotLocal { name: String, ip: Ipv4Addr },
    /// The configured uplink does not exist.
    NoUplink { uplink: String },
    /// Another link than the configured uplink carries the address.
    NotOnUplink { ip: Ipv4Addr, link: String, uplink: String },
}

impl fmt::Display for Unidentified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress { name } => write!(
                f,
                "node {name} has no address: its name resolves to none and there is no default \
                 route; set node.ip"
            ),
            Self::NotLocal { name, ip } => write!(
                f,
                "node address {ip} of {name} is on no link of this machine: correct node.ip, or \
                 what the name resolves to"
            ),
            Self::NoUplink { uplink } => {
                write!(f, "uplink {uplink} does not exist: correct node.uplink")
            }
            Self::NotOnUplink { ip, link, uplink } => write!(
                f,
                "node address {ip} is on {link}, not on the uplink {uplink}: correct node.ip or \
                 node.uplink"
            ),
        }
    }
}

impl std::error::Error for Unidentified {}

/// Finds the node's identity. The outer error: the kernel could not be asked.
pub async fn identify(
    netlink: &Netlink,
    settings: &NodeSettings,
) -> Result<Result<Identity, Unidentified>> {
    let name = match &settings.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let uplink = match &settings.uplink {
        None => None,
        Some(uplink) => match netlink.link_by_name(uplink).await? {
            Some(link) => Some(link),
            None => return Ok(Err(Unidentified::NoUplink { uplink: uplink.clone() })),
        },
    };
    let Some(ip) = address(netlink, settings, &name, uplink.as_ref()).await? else {
        return Ok(Err(Unidentified::NoAddress { name }));
    };
    let Some((link, address)) = netlink.link_with(ip).await? else {
        return Ok(Err(Unidentified::NotLocal { name, ip }));
    };
    if let Some(uplink) = uplink
        && uplink.index != link.index
    {
        let (link, uplink) = (link.name, uplink.name);
        return Ok(Err(Unidentified::NotOnUplink { ip, link, uplink }));
    }
    Ok(Ok(Identity { name, ip, prefix_len: address.prefix_len, uplink: link }))
}

async fn address(
    netlink: &Netlink,
    settings: &NodeSettings,
    name: &str,
    uplink: Option<&Link>,
) -> Result<Option<Ipv4Addr>> {
    if let Some(ip) = settings.ip {
        return Ok(Some(ip));
    }
    if let Some(ip) = resolve(name).await {
        return Ok(Some(ip));
    }
    let link = match uplink {
        Some(link) => Some(link.clone()),
        None => netlink.default_route_link().await?,
    };
    match link {
        Some(link) => Ok(own_address(&link.name, &netlink.addresses(link.index).await?)),
        None => Ok(None),
    }
}

/// The first address of a link that is neither an egress IP nor secondary to another.
fn own_address(link: &str, addresses: &[Address]) -> Option<Ipv4Addr> {
    let egress_label = label_of(link);
    addresses
        .iter()
        .find(|address| !address.secondary && address.label != egress_label)
        .map(|address| address.ip)
}

/// What `uname -n` prints.
pub fn host_name() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    let name = fs::read_to_string(path)
        .with_context(|| format!("read the host name from {path}; or set node.name"))?;
    Ok(name.trim().to_owned())
}

async fn resolve(name: &str) -> Option<Ipv4Addr> {
    let answer = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((name, 0))).await;
    first_usable(answer.ok()?.ok()?.map(|address| address.ip()))
}

fn first_usable(addresses: impl Iterator<Item = IpAddr>) -> Option<Ipv4Addr> {
    addresses
        .filter_map(|ip| match ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        })
        .find(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn a_name_counts_by_its_first_address_that_is_not_loopback() {
        let answers = [
            IpAddr::V6(Ipv6Addr::LOCALHOST),
            Ipv4Addr::new(127, 0, 1, 1).into(),
            Ipv4Addr::new(10, 0, 0, 2).into(),
            Ipv4Addr::new(10, 0, 0, 3).into(),
        ];
        assert_eq!(first_usable(answers.into_iter()), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(first_usable(answers.into_iter().take(2)), None);
    }

    #[test]
    fn an_egress_ip_is_never_taken_for_the_node_address() {
        let on_link = |last, label: &str, secondary| Address {
            ip: Ipv4Addr::new(10, 0, 0, last),
            prefix_len: 24,
            label: label.into(),
            secondary,
        };
        let addresses =
            [on_link(11, "eth0:eip", false), on_link(2, "eth0", false), on_link(3, "eth0", true)];
        assert_eq!(own_address("eth0", &addresses), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(own_address("eth0", &addresses[..1]), None);
    }
}
