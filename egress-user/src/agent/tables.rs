//! From a plan and a node to what the maps and the uplink shall hold. Pure.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::{Result, ensure};
use bytemuck::Zeroable;
use egress_common::{
    abi::{Config, MAX_NETWORKS, Network, PortRange, TICK_SHIFT, data_path},
    mark::Layout,
    port,
};

use super::{node::Devices, uplinks::Uplinks};
use crate::{
    cidr::Cidr,
    condition::{Condition, Reason},
    config::{AgentConfig, DataPath, MasqueradePorts},
    identity::Identity,
    model::Objects,
    netlink::Link,
    ovs,
    plan::{Action, Plan},
    reconcile::{
        addresses::EgressAddress,
        maps::{Desired, Dropped, Limits, Masquerade, Tenant, Uplink},
        wiring::Wiring,
    },
};

/// What the settings in the maps are made of.
pub struct Node<'a> {
    pub config: &'a AgentConfig,
    pub objects: &'a Objects,
    pub identity: &'a Identity,
    pub uplinks: &'a Uplinks,
    pub wiring: &'a Wiring,
    pub devices: &'a Devices,
    pub ovs: Option<&'a ovs::Facts>,
    /// Of cached next hops; it outlives an agent.
    pub generation: u32,
    /// For the guard; it outlives an agent too.
    pub stamp: [u32; 2],
    /// Where that slot is.
    pub masquerade_slot: u32,
    /// What the flows there are need: a sweep gives back what they do not.
    pub masqueraded_ports: PortRange,
    /// Tenants' packets, as far as this node is concerned.
    pub carries: bool,
    /// Whose what has no flow is (`abi::phase`), and the tick when a hold is over.
    pub phase: (u8, u32),
}

/// The networks that are left untouched, those of pods first. The node's addresses on its further
/// uplinks are among the others: its address on the first one is known to the programs anyway.
///
/// # Errors
/// More of them than the programs have room for.
pub fn networks(
    config: &AgentConfig,
    objects: &Objects,
    uplinks: &Uplinks,
) -> Result<(BTreeSet<Cidr>, BTreeSet<Cidr>)> {
    let mut cluster: BTreeSet<Cidr> = config.cluster_networks.iter().copied().collect();
    let mut service: BTreeSet<Cidr> = config.service_networks.iter().copied().collect();
    for object in objects.cluster_networks.values() {
        cluster.extend(&object.cluster_networks);
        service.extend(object.service_network);
    }
    let own = uplinks.further.iter().flat_map(|uplink| &uplink.addresses);
    service.extend(own.filter_map(|ip| Cidr::around(*ip, 32)));
    let count = cluster.len() + service.len();
    ensure!(
        count <= MAX_NETWORKS,
        "{count} cluster and service networks in the AgentConfig and the ClusterNetworks, and \
         addresses of further uplinks: the programs have room for {MAX_NETWORKS}; join \
         neighbouring ones"
    );
    Ok((cluster, service))
}

/// The settings for the programs.
///
/// # Errors
/// As [`networks`].
pub fn config(node: &Node<'_>) -> Result<Config> {
    let Node { config, objects, identity, uplinks, wiring, devices, .. } = node;
    let (cluster, service) = networks(config, objects, uplinks)?;
    let count = cluster.len() + service.len();
    let mut networks = [Network::zeroed(); MAX_NETWORKS];
    for (place, cidr) in networks.iter_mut().zip(cluster.iter().chain(&service)) {
        *place = network(*cidr);
    }
    let further = uplinks.further.iter().map(|uplink| &uplink.link);
    let all_veth =
        [&identity.uplink].into_iter().chain(further).all(|link| link.device().is_veth());
    let ports = u32::from(config.ports.to) - u32::from(config.ports.from) + 1;
    let MasqueradePorts { from, to } = config.masquerade_ports;
    let masquerade = PortRange { from: from.into(), count: u32::from(to) - u32::from(from) + 1 };
    let pods = objects.host_subnets.get(&identity.name).map(|node| network(node.subnet));
    Ok(Config {
        node: identity.ip.octets(),
        vxlan_port: config.tunnel.port.to_be_bytes(),
        masquerade_bit: config.masquerade_bit,
        mark_old: u8::from(layout(config, node.ovs) == Layout::Old),
        data_path: match config.data_path {
            DataPath::Stack => data_path::STACK,
            DataPath::Tunnel => data_path::TUNNEL,
            DataPath::Auto | DataPath::Tc | DataPath::Xdp => data_path::TC,
        },
        // Packets unwrapped on tc stay marked as tunnelled: only hardware that segments cares.
        unwrap_gso: u8::from(all_veth),
        stamp: node.stamp,
        phase: node.phase.0,
        hold_until: node.phase.1,
        tunnel: devices.tunnel.as_ref().map_or(0, |link| link.index),
        gateway: devices.gateway.as_ref().map_or(0, |link| link.index),
        uplink: identity.uplink.index,
        wire: wiring.wires.get(&identity.uplink.name).copied().unwrap_or_default(),
        // Outer IPv4, UDP and VXLAN headers, and the inner link-layer header.
        tunnel_mtu: identity.uplink.mtu.saturating_sub(50),
        next_hop_generation: node.generation.max(1),
        tcp_established: ticks(config.timeouts.tcp_established),
        tcp_transitory: ticks(config.timeouts.tcp_transitory),
        udp: ticks(config.timeouts.udp),
        icmp: ticks(config.timeouts.icmp),
        port_from: config.ports.from.into(),
        port_count: ports,
        port_step: port::step(ports),
        cluster_networks: cluster.len() as u32,
        network_count: count as u32,
        networks,
        places: config.flows.max.saturating_mul(2),
        masquerade_slot: if config.masquerade { node.masquerade_slot } else { 0 },
        masquerade_ports: masquerade,
        masquerade_step: port::step(masquerade.count),
        masqueraded_ports: masquerade.joined(node.masqueraded_ports),
        local_pods: pods.unwrap_or(NOWHERE),
        carries: u8::from(node.carries),
        // Alone in its cluster a node hears nobody, and need not.
        lease: match objects.host_subnets.values().any(|other| other.host_ip != identity.ip) {
            true => ticks(config.health.lease),
            false => 0,
        },
    })
}

/// A network that no address is in.
const NOWHERE: Network = Network { address: 1, mask: 0 };

/// How pods without a policy leave, if they do; all of them together hold half of the flow table at
/// most, lest they take the tenants' room.
pub fn masquerade(
    config: &AgentConfig,
    identity: &Identity,
    wiring: &Wiring,
) -> Option<Masquerade> {
    let Link { index, mtu, .. } = identity.uplink;
    let wire = wiring.wires.get(&identity.uplink.name).copied().unwrap_or_default();
    config.masquerade.then_some(Masquerade {
        address: identity.ip,
        uplink: Uplink { index, mtu, wire },
        limits: Limits { flows: (config.flows.max / 2).max(1), new_flows: 0, ports: 0 },
    })
}

fn network(cidr: Cidr) -> Network {
    let mask = u32::MAX.checked_shl(32 - u32::from(cidr.prefix_len())).unwrap_or(0);
    Network { address: cidr.network().to_bits(), mask }
}

/// Rounded up: nothing expires before its time.
pub fn ticks(duration: Duration) -> u32 {
    let tick = 1_u128 << TICK_SHIFT;
    u32::try_from(duration.as_nanos().div_ceil(tick)).unwrap_or(u32::MAX / 2).min(u32::MAX / 2)
}

/// The configured layout, else that of the bridge, else the new one.
pub fn layout(config: &AgentConfig, ovs: Option<&ovs::Facts>) -> Layout {
    let found = || match ovs?.layout()? {
        ovs::Layout::Old => Some(Layout::Old),
        ovs::Layout::New => Some(Layout::New),
    };
    config.compat.layout().or_else(found).unwrap_or(Layout::New)
}

/// Every VNID that asks for egress IPs: translated to the one that lives here, else dropped here.
pub fn desired(
    plan: &Plan,
    objects: &Objects,
    (identity, uplinks, wiring): (&Identity, &Uplinks, &Wiring),
    config: &AgentConfig,
) -> Desired {
    let links = || {
        let further = uplinks.further.iter().map(|uplink| &uplink.link);
        [&identity.uplink].into_iter().chain(further)
    };
    let uplink = |name: &str| {
        let Link { index, mtu, .. } = links().find(|link| link.name == name)?;
        let wire = wiring.wires.get(name).copied().unwrap_or_default();
        Some(Uplink { index: *index, mtu: *mtu, wire })
    };
    let here: BTreeMap<Ipv4Addr, Uplink> = plan
        .addresses
        .iter()
        .filter_map(|address| Some((address.ip, uplink(address.link.as_ref()?)?)))
        .collect();
    let limits = Limits {
        flows: config.flows.per_vnid(),
        new_flows: config.flows.max_new_per_vnid,
        ports: config.ports.max_per_vnid,
    };
    let policies = plan
        .policies
        .iter()
        .map(|policy| {
            let hosted = policy.egress_ips.iter().find_map(|ip| here.get_key_value(ip));
            let tenant = match (policy.action, hosted) {
                (Action::Snat, Some((ip, uplink))) => {
                    let (egress_ip, mapping) = (*ip, policy.mapping);
                    Tenant::Snat { egress_ip, uplink: *uplink, limits, mapping }
                }
                _ => Tenant::Drop,
            };
            (policy.vnid, tenant)
        })
        .collect();
    let nodes = objects.host_subnets.values().map(|node| node.host_ip).collect();
    let vnids = || objects.net_namespaces.values().map(|namespace| namespace.vnid).collect();
    let readable = objects.refused().next().map(|_| vnids());
    Desired { policies, nodes, readable }
}

/// Who is dropped without having asked for it.
pub fn dropped(dropped: &Dropped, config: &AgentConfig) -> Vec<Condition> {
    let Dropped { no_room, unread } = dropped;
    let no_room = no_room.iter().map(|vnid| {
        let message = format!(
            "dropped: policies.max is {}, and all are taken: raise it, stop the agent and run \
             `egress cleanup` before the next start",
            config.policies.max
        );
        Condition::new(format!("VNID/{vnid}"), Reason::NoRoom, message)
    });
    let unread = unread.iter().map(|vnid| {
        let message = "dropped: it had an egress IP, and its NetNamespace is not there while an \
                       object could not be read: correct that object";
        Condition::new(format!("VNID/{vnid}"), Reason::Invalid, message)
    });
    no_room.chain(unread).collect()
}

/// The marks of all VNIDs that ask for egress IPs.
pub fn marks(plan: &Plan) -> BTreeSet<u32> {
    plan.policies.iter().map(|policy| policy.mark).collect()
}

/// The egress IPs as they shall be, by the name of their uplink.
pub fn addresses(plan: &Plan, identity: &Identity) -> BTreeMap<String, BTreeSet<EgressAddress>> {
    let mut by_link: BTreeMap<String, BTreeSet<EgressAddress>> = BTreeMap::new();
    for address in &plan.addresses {
        let link = address.link.as_ref().unwrap_or(&identity.uplink.name);
        by_link.entry(link.clone()).or_default().insert(EgressAddress {
            ip: address.ip,
            prefix_len: address.prefix_len.unwrap_or(identity.prefix_len),
            label: address.label.clone(),
        });
    }
    by_link
}
