//! What this node is and has: its identity, its devices, its Open vSwitch.
use std::{fs::File, io::Read};

use anyhow::{Context, Result};

use crate::{
    bpf::Hook,
    config::{AgentConfig, Announce, Device, Enabled},
    identity::{self, Identity, NodeSettings},
    netlink::{Link, Netlink},
    ovs::Ovs,
    reconcile::{announce::AnnounceSettings, attachments::Place},
};

/// The devices that packets come by, as far as they exist.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    pub tunnel: Option<Link>,
    pub gateway: Option<Link>,
    /// Behind each of these are pods of one VNID.
    pub pods: Vec<(Link, u32)>,
    /// On the gateway device, tenants are known by their pods' addresses too.
    pub by_address: bool,
    /// Configured by name, and not there.
    pub missing: Vec<String>,
}

impl Devices {
    /// Which program belongs on which of them.
    pub fn places(&self) -> Vec<Place> {
        let mut places = Vec::new();
        let hook = if self.by_address { Hook::PodIngress } else { Hook::GatewayIngress };
        places.extend(self.gateway.iter().map(|link| (hook, link.name.clone())));
        places.extend(self.pods.iter().map(|(link, _)| (Hook::PodIngress, link.name.clone())));
        places.extend(self.tunnel.iter().map(|link| (Hook::TunnelIngress, link.name.clone())));
        places
    }
}

/// # Errors
/// The node does not know itself: the message names the cure.
pub async fn identify(netlink: &Netlink, config: &AgentConfig) -> Result<Identity> {
    let settings = NodeSettings {
        name: config.node.name.clone(),
        ip: config.node.ip.map(|ip| ip.address),
        uplink: named(&config.node.uplink).map(str::to_owned),
    };
    identity::identify(netlink, &settings).await?.map_err(anyhow::Error::from)
}

/// Looks for the tunnel and the gateway device. `auto` is OVS's name for the tunnel device.
pub async fn devices(netlink: &Netlink, config: &AgentConfig) -> Result<Devices> {
    let mut devices = Devices::default();
    let automatic = format!("vxlan_sys_{}", config.tunnel.port);
    let tunnel = named(&config.tunnel.device);
    devices.tunnel = netlink.link_by_name(tunnel.unwrap_or(&automatic)).await?;
    devices.gateway = match &config.gateway {
        Some(name) => netlink.link_by_name(name).await?,
        None => None,
    };
    let found = [(tunnel, &devices.tunnel), (config.gateway.as_deref(), &devices.gateway)];
    devices.missing = found
        .into_iter()
        .filter_map(|(name, link)| name.filter(|_| link.is_none()))
        .map(str::to_owned)
        .collect();
    devices.by_address = config.pods.iter().any(|pod| pod.ip.is_some());
    for pod in &config.pods {
        let Some(name) = &pod.device else { continue };
        match netlink.link_by_name(name).await? {
            Some(link) => devices.pods.push((link, pod.vnid)),
            None => devices.missing.push(name.clone()),
        }
    }
    Ok(devices)
}

fn named(device: &Device) -> Option<&str> {
    match device {
        Device::Named(name) => Some(name),
        Device::Auto => None,
    }
}

/// Announcements beyond the burst, while no witness has answered.
const INSIST: u32 = 30;

/// How egress IPs are announced.
pub fn announcing(config: &AgentConfig) -> AnnounceSettings {
    let Announce { burst, interval, refresh, probe: _, witness: _ } = config.announce;
    AnnounceSettings { burst, interval, refresh, insist: INSIST }
}

/// The bridge, unless it is switched off.
pub fn ovs(config: &AgentConfig) -> Option<Ovs> {
    let gateway = config.gateway.as_deref().unwrap_or("tun0");
    (config.ovs.enabled != Enabled::No).then(|| Ovs::from_env(&config.ovs.bridge, gateway))
}

/// The stamp in force, or a new one. Random, so that no other program's word equals it.
pub fn stamp(held: [u32; 2]) -> Result<[u32; 2]> {
    if held != [0, 0] {
        return Ok(held);
    }
    Ok([random()? | 1, random()?])
}

/// A random number.
pub fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .context("read a random number from /dev/urandom")?;
    Ok(u32::from_ne_bytes(bytes))
}
