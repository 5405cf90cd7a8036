//! Links, addresses and the default route, asked of and changed in the kernel.
//!
//! Owns the words: nothing else in the agent speaks netlink. Decides nothing, keeps nothing: each
//! answer is what the kernel says now. Everything concerns the network namespace of the thread
//! that called [`Netlink::open`], and IPv4 alone.
pub mod promotion;
pub mod subscription;
pub mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage},
        link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, VlanProtocol},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};

/// The longest name of a link and the longest label of an address, in bytes (IFNAMSIZ - 1).
pub const NAME_MAX: usize = 15;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// In the order of the wire; `None` for links without Ethernet (tun, ipip, wireguard).
    pub mac: Option<[u8; 6]>,
    /// In bytes, without the link-layer header.
    pub mtu: u32,
    /// As `ip link` names it ("veth", "vxlan"); `None` for a plain hardware interface.
    pub kind: Option<String>,
    /// Switched on and with carrier: a frame sent now can leave.
    pub up: bool,
    /// How often the carrier went, since the link was made.
    pub outages: u32,
    /// Of a VLAN's device (IEEE 802.1Q).
    pub vlan: Option<Box<Vlan>>,
}

/// What is behind a VLAN's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vlan {
    pub id: u16,
    /// The device that the tagged frames come and go by.
    pub device: Link,
}

impl Link {
    /// Whether this link can send now and `before`, an earlier look, was not the same link without
    /// an interruption since: who is beyond may have forgotten us.
    pub fn is_back_since(&self, before: &Self) -> bool {
        let unbroken = before.up && before.index == self.index && before.outages == self.outages;
        self.up && !unbroken
    }

    /// The device that its frames come and go by: itself, or what its VLAN is on.
    pub fn device(&self) -> &Self {
        self.vlan.as_ref().map_or(self, |vlan| &vlan.device)
    }

    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }
}

/// An IPv4 address of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    /// The kernel's label: the link's name where none was given.
    pub label: String,
    /// Deleted by the kernel with its primary, unless `promote_secondaries` is set.
    pub secondary: bool,
}

impl Address {
    /// Whether both lie in the same subnet with the same length: only then can one be the
    /// secondary of the other.
    pub fn same_subnet(&self, other: &Self) -> bool {
        let host_bits = 32u32.saturating_sub(self.prefix_len.into());
        let differing = self.ip.to_bits() ^ other.ip.to_bits();
        self.prefix_len == other.prefix_len && differing.checked_shr(host_bits).unwrap_or(0) == 0
    }
}

/// What became of an address to add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    New,
    /// It was there before (EEXIST).
    Existed,
}

/// A connection to the kernel; a task of the current tokio runtime serves it.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// For the network namespace of this thread. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>> {
        if name.is_empty() || name.len() > NAME_MAX {
            return Ok(None);
        }
        let answer = self.handle.link().get().match_name(name).execute().try_next().await;
        let what = || format!("ask the kernel for link {name}");
        self.with_vlan(found(answer).with_context(what)?).await
    }

    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>> {
        let link = self.bare_link(index).await?;
        self.with_vlan(link).await
    }

    async fn bare_link(&self, index: u32) -> Result<Option<(Link, Option<OnDevice>)>> {
        let answer = self.handle.link().get().match_index(index).execute().try_next().await;
        found(answer).with_context(|| format!("ask the kernel for link number {index}"))
    }

    async fn with_vlan(&self, found: Option<(Link, Option<OnDevice>)>) -> Result<Option<Link>> {
        let Some((mut link, on)) = found else { return Ok(None) };
        if let Some(OnDevice { id, device }) = on
            && let Some((device, _)) = self.bare_link(device).await?
        {
            link.vlan = Some(Box::new(Vlan { id, device }));
        }
        Ok(Some(link))
    }

    /// The IPv4 addresses of a link, in the kernel's order: primaries before secondaries.
    pub async fn addresses(&self, link: u32) -> Result<Vec<Address>> {
        let all = self.all_addresses().await?;
        Ok(all.into_iter().filter(|(of, _)| *of == link).map(|(_, address)| address).collect())
    }

    /// The first link that carries `ip`, and the address with its prefix length.
    pub async fn link_with(&self, ip: Ipv4Addr) -> Result<Option<(Link, Address)>> {
        let all = self.all_addresses().await?;
        let Some((index, address)) = all.into_iter().find(|(_, address)| address.ip == ip) else {
            return Ok(None);
        };
        Ok(self.link_by_index(index).await?.map(|link| (link, address)))
    }

    /// The link of the main table's default route, the one with the lowest metric.
    pub async fn default_route_link(&self) -> Result<Option<Link>> {
        let routes = self.routes().await?;
        let default = routes.iter().filter_map(default_route).min();
        match default {
            Some((_, index)) => self.link_by_index(index).await,
            None => Ok(None),
        }
    }

    /// The links by which a route of any table leads beyond their own networks.
    pub async fn links_beyond(&self) -> Result<BTreeSet<u32>> {
        Ok(self.routes().await?.iter().flat_map(beyond).collect())
    }

    /// By link, the gateway of its default route of any table; of several the one with the lowest
    /// metric.
    pub async fn gateways(&self) -> Result<BTreeMap<u32, Ipv4Addr>> {
        let mut found: Vec<(u32, u32, Ipv4Addr)> =
            self.routes().await?.iter().filter_map(gateway).collect();
        // The last one that is collected counts.
        found.sort_by_key(|(metric, ..)| std::cmp::Reverse(*metric));
        Ok(found.into_iter().map(|(_, link, gateway)| (link, gateway)).collect())
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>> {
        let request = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes = self.handle.route().get(request).execute().try_collect().await;
        routes.map_err(cause).context("list the routes")
    }

    /// Adds an address; one that is there already is left as it is.
    pub async fn add_address(
        &self,
        link: u32,
        ip: Ipv4Addr,
        prefix_len: u8,
        label: Option<&str>,
    ) -> Result<Added> {
        let mut request = self.handle.address().add(link, IpAddr::V4(ip), prefix_len);
        if let Some(label) = label {
            request.message_mut().attributes.push(AddressAttribute::Label(label.to_owned()));
        }
        match request.execute().await {
            Ok(()) => Ok(Added::New),
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(Added::Existed),
            Err(error) => Err(cause(error))
                .with_context(|| format!("add address {ip}/{prefix_len} to link number {link}")),
        }
    }

    /// Deletes exactly this address, its label included; `false`: it was not there.
    pub async fn delete_address(&self, link: u32, address: &Address) -> Result<bool> {
        let Address { ip, prefix_len, label, secondary: _ } = address;
        let mut message =
            AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(*ip, *prefix_len).build();
        message.attributes.push(AddressAttribute::Label(label.clone()));
        match self.handle.address().del(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) => match errno(&error) {
                Some(Errno::EADDRNOTAVAIL | Errno::ENODEV) => Ok(false),
                _ => Err(cause(error)).with_context(|| {
                    format!("delete address {ip}/{prefix_len} from link number {link}")
                }),
            },
        }
    }

    async fn all_addresses(&self) -> Result<Vec<(u32, Address)>> {
        let mut request = self.handle.address().get();
        request.message_mut().header.family = AddressFamily::Inet;
        let messages: Vec<AddressMessage> =
            request.execute().try_collect().await.map_err(cause).context("list the addresses")?;
        Ok(messages.iter().filter_map(address_of).collect())
    }
}

/// The tag of a VLAN's device, and the device below by its number.
struct OnDevice {
    id: u16,
    device: u32,
}

fn found(
    answer: Result<Option<LinkMessage>, rtnetlink::Error>,
) -> Result<Option<(Link, Option<OnDevice>)>> {
    match answer {
        Ok(message) => Ok(message.map(link_of)),
        Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
        Err(error) => Err(cause(error)),
    }
}

fn link_of(message: LinkMessage) -> (Link, Option<OnDevice>) {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        kind: None,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        outages: 0,
        vlan: None,
    };
    let (mut lower, mut tag) = (None, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::CarrierDownCount(count) => link.outages = count,
            LinkAttribute::Link(index) => lower = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vlan(data)) => tag = vlan_id(&data),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let on = tag.zip(lower).map(|(id, device)| OnDevice { id, device });
    (link, on)
}

/// The number of an IEEE 802.1Q VLAN; others (802.1ad) are none that we speak.
fn vlan_id(data: &[InfoVlan]) -> Option<u16> {
    let plain = data.iter().all(|info| {
        !matches!(info, InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q)
    });
    let id = data.iter().find_map(|info| match info {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    });
    id.filter(|_| plain)
}

fn address_of(message: &AddressMessage) -> Option<(u32, Address)> {
    let (mut local, mut peer, mut label, mut flags) = (None, None, String::new(), None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => local = Some(*ip),
            AddressAttribute::Address(IpAddr::V4(ip)) => peer = Some(*ip),
            AddressAttribute::Label(text) => label.clone_from(text),
            AddressAttribute::Flags(all) => flags = Some(*all),
            _ => {}
        }
    }
    let secondary = match flags {
        Some(flags) => flags.contains(AddressFlags::Secondary),
        None => message.header.flags.contains(AddressHeaderFlags::Secondary),
    };
    let address =
        Address { ip: local.or(peer)?, prefix_len: message.header.prefix_len, label, secondary };
    Some((message.header.index, address))
}

/// Metric and link of a unicast default route of the main table; of several next hops the first.
fn default_route(route: &RouteMessage) -> Option<(u32, u32)> {
    let header = &route.header;
    if header.address_family != AddressFamily::Inet
        || header.destination_prefix_length != 0
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.kind != RouteType::Unicast
    {
        return None;
    }
    let (mut metric, mut link) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                link = link.or(hops.first().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    Some((metric, link?))
}

/// Metric, link and gateway of a unicast default route with one next hop.
fn gateway(route: &RouteMessage) -> Option<(u32, u32, Ipv4Addr)> {
    if route.header.kind != RouteType::Unicast || route.header.destination_prefix_length != 0 {
        return None;
    }
    let (mut metric, mut link, mut gateway) = (0, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(*ip),
            _ => {}
        }
    }
    Some((metric, link?, gateway?))
}

/// The links of a unicast route's next hops, if it has a gateway there or is a default route.
fn beyond(route: &RouteMessage) -> Vec<u32> {
    if route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(attribute, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))
    };
    let is_default = route.header.destination_prefix_length == 0;
    let leads = is_default || route.attributes.iter().any(is_gateway);
    let links = route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) if leads => vec![*index],
        RouteAttribute::MultiPath(hops) => hops
            .iter()
            .filter(|hop| is_default || hop.attributes.iter().any(is_gateway))
            .map(|hop| hop.interface_index)
            .collect(),
        _ => Vec::new(),
    });
    links.collect()
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            Some(Errno::from_raw(message.raw_code().saturating_abs()))
        }
        _ => None,
    }
}

/// The kernel's error in the words of the system, not of the library.
fn cause(error: rtnetlink::Error) -> anyhow::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: [u8; 4], prefix_len: u8) -> Address {
        Address { ip: ip.into(), prefix_len, label: "eth0".into(), secondary: false }
    }

    #[test]
    fn subnets_are_the_same_only_with_the_same_length() {
        let node = address([10, 0, 0, 2], 24);
        assert!(node.same_subnet(&address([10, 0, 0, 255], 24)));
        assert!(!node.same_subnet(&address([10, 0, 1, 2], 24)));
        assert!(!node.same_subnet(&address([10, 0, 0, 3], 25)));
        assert!(address([10, 0, 0, 2], 0).same_subnet(&address([192, 0, 2, 1], 0)));
        assert!(!address([10, 0, 0, 2], 32).same_subnet(&address([10, 0, 0, 3], 32)));
    }
}
