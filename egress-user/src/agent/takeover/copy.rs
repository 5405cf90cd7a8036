//! Which connections become flows, where their pods are, and both halves of a flow in the tables.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::Result;
use egress_common::{
    abi::{NO_VNID, OriginalKey, OriginalRecord, ReplyKey},
    wire::protocol,
};

use super::super::{Agent, node, tables};
use crate::{
    bpf::{Maps, Plain},
    cidr::Cidr,
    conntrack::Entry,
    plan::Plan,
    reconcile::maps,
    sweep,
    takeover::adopt::{self, Home, Tenant},
};

/// What tells which of the node's connections are tenants'.
pub struct Ours<'a> {
    agent: &'a Agent,
    /// By egress IP.
    tenants: BTreeMap<Ipv4Addr, u32>,
    pods: BTreeSet<Cidr>,
    services: BTreeSet<Cidr>,
    /// The pods that are masqueraded here.
    masqueraded: Option<Cidr>,
}

impl<'a> Ours<'a> {
    pub fn of(agent: &'a Agent, plan: &Plan) -> Result<Self> {
        let here: BTreeSet<Ipv4Addr> = plan.addresses.iter().map(|address| address.ip).collect();
        let tenants = plan
            .policies
            .iter()
            .filter_map(|policy| {
                let ip = policy.egress_ips.iter().find(|ip| here.contains(ip))?;
                Some((*ip, policy.vnid))
            })
            .collect();
        let (pods, services) = tables::networks(&agent.config, &agent.objects, &agent.uplinks)?;
        let own = agent.objects.host_subnets.get(&agent.identity.name);
        let masqueraded = own.filter(|_| agent.config.masquerade).map(|own| own.subnet);
        Ok(Self { agent, tenants, pods, services, masqueraded })
    }

    /// Whose flow a connection becomes; `None`: it stays the node's.
    pub fn owner(&self, entry: &Entry) -> Option<Tenant> {
        self.tenant(entry).or_else(|| {
            let slot = self.agent.maps.masquerade_slot();
            self.is_masqueraded(entry).then_some(Tenant { vnid: NO_VNID, slot })
        })
    }

    /// What is translated at its destination too is kube-proxy's.
    pub fn is_masqueraded(&self, entry: &Entry) -> bool {
        let remote = *entry.remote.ip();
        let mut untouched = self.pods.iter().chain(&self.services);
        self.masqueraded.is_some_and(|own| own.contains(*entry.original.source.ip()))
            && *entry.seen_as.ip() == self.agent.identity.ip
            && adopt::is_plain(entry)
            && !untouched.any(|network| network.contains(remote))
    }

    pub fn tenant(&self, entry: &Entry) -> Option<Tenant> {
        let vnid = *self.tenants.get(entry.seen_as.ip())?;
        let pod = *entry.original.source.ip();
        self.pods.iter().any(|network| network.contains(pod)).then_some(())?;
        // Before the maps are filled there is no slot; nobody asks for it then.
        let slot = self.agent.maps.policy.get(&vnid, 0).unwrap_or(u32::MAX);
        Some(Tenant { vnid, slot })
    }

    pub fn home(&self, pod: Ipv4Addr) -> Option<Home> {
        let Agent { objects, identity, devices, .. } = self.agent;
        let node = objects.host_subnets.values().find(|node| node.subnet.contains(pod))?;
        let device = devices.gateway.as_ref();
        let gateway_mac = device.unwrap_or(&identity.uplink).mac.unwrap_or_default();
        Some(match node.host_ip == identity.ip {
            true => Home {
                node: Ipv4Addr::UNSPECIFIED,
                ifindex: device.map_or(0, |device| device.index),
                gateway_mac,
            },
            false => Home {
                node: node.host_ip,
                ifindex: devices.tunnel.as_ref().unwrap_or(&identity.uplink).index,
                gateway_mac,
            },
        })
    }
}

pub fn flows(maps: &Maps) -> Vec<(OriginalKey, OriginalRecord)> {
    maps.flows_original.iter().flatten().map(|(key, flow)| (key.0, flow.0)).collect()
}

pub fn reply_key(key: &OriginalKey, flow: &OriginalRecord) -> ReplyKey {
    key.reply(flow.egress_ip, flow.egress_port)
}

/// What was decided in the shadow has ports that nobody uses.
pub fn forget_flows(maps: &mut Maps) -> Result<()> {
    for (key, flow) in flows(maps) {
        // Gone already is as good.
        let _ = maps.flows_reply.remove(&Plain(reply_key(&key, &flow)));
        let _ = maps.flows_original.remove(&Plain(key));
    }
    Ok(())
}

/// Enters both halves, the reply's first, unless the flow is there. A port that another flow has is
/// the node's to give: what has it here has ended there.
pub fn enter(maps: &mut Maps, flow: &adopt::Flow) -> Result<()> {
    let (key, original) = flow.original;
    let (reply_key, reply) = flow.reply;
    if let Ok(held) = maps.flows_original.get(&Plain(key), 0) {
        if (held.0.egress_ip, held.0.egress_port) == (original.egress_ip, original.egress_port) {
            return Ok(());
        }
        let _ = maps.flows_reply.remove(&Plain(self::reply_key(&key, &held.0)));
    }
    maps.flows_reply.insert(Plain(reply_key), Plain(reply), 0)?;
    maps.flows_original.insert(Plain(key), Plain(original), 0)?;
    Ok(())
}

/// Replies to these flows of masqueraded pods are looked up from now on. Returns their ports that are
/// not in the range of new ones.
pub fn widen<'a>(
    maps: &mut Maps,
    flows: impl Iterator<Item = &'a adopt::Flow>,
) -> Result<BTreeSet<u16>> {
    let mut config = maps::settings(maps)?;
    let slot = maps.masquerade_slot();
    let mut beyond = BTreeSet::new();
    for adopt::Flow { original: (key, original), .. } in flows {
        let port = original.egress_port;
        let is_ours = original.slot == slot && protocol::has_ports(key.protocol());
        if is_ours && !config.masquerade_ports.contains(port) {
            config.masqueraded_ports = config.masqueraded_ports.joined(sweep::port_alone(port));
            beyond.insert(u16::from_be_bytes(port));
        }
    }
    maps::configure(maps, &config)?;
    Ok(beyond)
}

/// A number of the flow's own; 0 is no flow's.
pub fn tag() -> Result<u32> {
    Ok(node::random()? | 1)
}
