//! What holds for the whole node, and how XDP sees its uplinks.
use bytemuck::{Pod, Zeroable};

/// 224.0.0.0: multicast begins here, and ends with broadcast.
const MULTICAST: u32 = 224 << 24;

/// Most networks (cluster, service) that [`Config`] holds.
pub const MAX_NETWORKS: usize = 32;

/// An IPv4 network as numbers: `address & mask == network`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Network {
    pub address: u32,
    pub mask: u32,
}

impl Network {
    #[inline(always)]
    pub fn contains(&self, address: u32) -> bool {
        address & self.mask == self.address
    }
}

/// Ports in a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PortRange {
    pub from: u32,
    pub count: u32,
}

impl PortRange {
    #[inline(always)]
    pub fn contains(&self, port: [u8; 2]) -> bool {
        u32::from(u16::from_be_bytes(port)).wrapping_sub(self.from) < self.count
    }

    /// The smallest range that both are in.
    #[must_use]
    pub fn joined(self, other: Self) -> Self {
        if self.count == 0 || other.count == 0 {
            return if self.count == 0 { other } else { self };
        }
        let from = self.from.min(other.from);
        Self { from, count: (self.from + self.count).max(other.from + other.count) - from }
    }
}

/// How a tenant's packet leaves: see [`Config::data_path`].
pub mod data_path {
    /// tc programs translate where the packet arrives and redirect it.
    pub const TC: u8 = 0;
    /// The arriving packet is only marked; it is forwarded by the stack and translated on the
    /// uplink's egress.
    pub const STACK: u8 = 1;
    /// As `TC`, but VXLAN is left to the tunnel device, both ways.
    pub const TUNNEL: u8 = 2;
}

/// How XDP sends a frame out of an uplink: see [`Wire::send`].
pub mod xdp_send {
    /// Not at all: the tc programs do it.
    pub const NONE: u8 = 0;
    /// Back out of the device it came by, with `XDP_TX`.
    pub const BACK: u8 = 1;
    /// By redirect, even back out of the same device: a veth delivers what is sent by `XDP_TX` only
    /// once its far end is woken by something else, unless a program runs there.
    pub const REDIRECT: u8 = 2;
}

/// An uplink as XDP sees it, which runs below VLANs' devices.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Wire {
    /// Interface that the frames come and go by; 0: not by XDP.
    pub device: u32,
    /// Number of the VLAN that they are tagged with (IEEE 802.1Q); 0: not tagged.
    pub vlan: u16,
    /// How a frame that came by the first uplink's device gets out here.
    pub send: u8,
    pub pad: u8,
}

/// Where a frame comes from, on XDP: the key of the `arrivals` map, which holds further uplinks.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Arrival {
    pub device: u32,
    pub vlan: u32,
}

/// Whose a packet without a flow is: see [`Config::phase`].
pub mod phase {
    /// The programs': they begin its flow, or refuse it.
    pub const OWN: u8 = 0;
    /// The node's: it goes on as it came. Flows in the tables are the programs'. So stands a node
    /// that is being taken over, or handed back, while its own source NAT has flows too.
    pub const BESIDE: u8 = 1;
    /// As `BESIDE`, but until `hold_until` nothing may begin a flow, here or there: meanwhile all
    /// flows there are can be copied over. From then on as `BESIDE`, whoever forgot to end it.
    pub const HOLD: u8 = 2;
    /// All packets are the node's. The programs decide, make flows and count, and change nothing.
    pub const SHADOW: u8 = 3;
}

/// The node's settings: the one element of the `config` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Config {
    /// This node's address: the tunnel's end.
    pub node: [u8; 4],
    /// UDP port of VXLAN.
    pub vxlan_port: [u8; 2],
    pub masquerade_bit: u8,
    /// 1: marks as releases before 4.8 make them.
    pub mark_old: u8,
    pub data_path: u8,
    /// 1: big packets (GSO) may be taken out of their tunnel on the uplink.
    pub unwrap_gso: u8,
    /// 1: this node carries tenants' packets, and says so to other nodes that ask.
    pub carries: u8,
    /// See [`phase`].
    pub phase: u8,
    /// A random number, written into a translated packet's control block for the guard to see.
    pub stamp: [u32; 2],
    /// Interface of the tunnel device; 0: none.
    pub tunnel: u32,
    /// Interface of the gateway device; 0: none.
    pub gateway: u32,
    /// Interface that VXLAN comes and goes by.
    pub uplink: u32,
    /// The same, as XDP sees it.
    pub wire: Wire,
    /// The biggest inner packet that goes through the tunnel whole.
    pub tunnel_mtu: u32,
    /// Raised when a route, a neighbour or a link changed: cached next hops of an older one lapse.
    pub next_hop_generation: u32,
    /// Ticks.
    pub tcp_established: u32,
    pub tcp_transitory: u32,
    pub udp: u32,
    pub icmp: u32,
    /// First port to translate to, and how many there are.
    pub port_from: u32,
    pub port_count: u32,
    /// A step coprime with `port_count`: the search visits every port once.
    pub port_step: u32,
    /// The first `cluster_networks` of `networks` hold pods; all of them are left untouched.
    pub cluster_networks: u32,
    pub network_count: u32,
    /// Elements of the `places` map, best twice as many as flows; 0: expired flows stay until their
    /// port is wanted.
    pub places: u32,
    /// The slot by which pods without a policy leave, with the node's address; 0: they pass.
    pub masquerade_slot: u32,
    /// The ports that they leave by, which nothing else on the node uses.
    pub masquerade_ports: PortRange,
    /// As `port_step`, for `masquerade_ports`.
    pub masquerade_step: u32,
    /// The node's ports at which their flows are looked for: `masquerade_ports`, and more while
    /// flows live that were begun elsewhere and adopted with their port.
    pub masqueraded_ports: PortRange,
    /// Of this node's pods. Packets of other nodes' pods leave here only with a mark.
    pub local_pods: Network,
    /// Ticks without a sign of any other node after which this one stops answering for its egress
    /// IPs; 0: never.
    pub lease: u32,
    /// Ticks: when a [`phase::HOLD`] is over.
    pub hold_until: u32,
    pub networks: [Network; MAX_NETWORKS],
}

impl Config {
    fn within(&self, address: u32, count: u32) -> bool {
        for (index, network) in (0..).zip(&self.networks) {
            if index == count {
                return false;
            }
            if network.contains(address) {
                return true;
            }
        }
        false
    }

    /// Whether `address` is a pod's.
    #[inline(always)]
    pub fn is_pod(&self, address: [u8; 4]) -> bool {
        self.within(u32::from_be_bytes(address), self.cluster_networks)
    }

    /// Whether what has no flow is left to the node.
    #[inline(always)]
    pub fn is_beside(&self) -> bool {
        self.phase == phase::BESIDE || self.phase == phase::HOLD
    }

    /// Whether nothing may begin a flow.
    #[inline(always)]
    pub fn is_holding(&self, now: u32) -> bool {
        self.phase == phase::HOLD && self.hold_until.wrapping_sub(now).cast_signed() > 0
    }

    #[inline(always)]
    pub fn is_shadow(&self) -> bool {
        self.phase == phase::SHADOW
    }

    /// Whether packets to `address` are none of the gateway's business: the cluster and service
    /// networks, this node itself, multicast and broadcast.
    #[inline(always)]
    pub fn is_untouched(&self, address: [u8; 4]) -> bool {
        let number = u32::from_be_bytes(address);
        number >= MULTICAST
            || number == u32::from_be_bytes(self.node)
            || self.within(number, self.network_count)
    }
}
