//! The types of the maps: what the programs and the agent agree on, byte by byte.
//!
//! Addresses and ports are bytes as on the wire; numbers are in host byte order. Times are ticks of
//! 2^27 ns (0.134 s) of the coarse monotonic clock, 32 bits, compared by wrapping subtraction.
//! A changed layout raises [`ABI_VERSION`]: maps are pinned below a path that carries it.
//!
//! A flow is two entries, one in each table, each 64 bytes: with the 16-byte key and the kernel's
//! 48-byte header an element fills two cache lines. Each direction writes only its own entry.
use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use crate::state::Life;

/// Raised with every change of a layout in this module.
pub const ABI_VERSION: u32 = 8;

/// A tick is 2^27 ns: a shift turns the clock into ticks, no division needed.
pub const TICK_SHIFT: u32 = 27;
/// Ticks between two writes of `last_seen` and two looks at the neighbour table: about a second.
pub const BEAT: u32 = 7;

/// New flows are counted in windows of 2^3 ticks: 1.07 s.
pub const WINDOW_SHIFT: u32 = 3;

/// 224.0.0.0: multicast begins here, and ends with broadcast.
const MULTICAST: u32 = 224 << 24;

/// Above every VNID: that of a pod whose VNID is not known, and of the slot of all pods that have no
/// policy.
///
/// A flow's [`OriginalKey`] has no room for it; such a flow is kept as one of VNID 0. That mixes up
/// nothing: a pod's address is its own in the whole cluster, and whoever finds a flow compares its
/// egress address with that of the slot that he came by.
pub const NO_VNID: u32 = 1 << 24;

/// Beside the VNID in the `pods` map: the pod's packets bear its tenant's mark, or do not leave.
pub const MARKED_ONLY: u32 = 1 << 31;

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

/// The slot of a VNID that found none: the array has no such element.
pub const NO_SLOT: u32 = u32::MAX;

/// What [`Slot::action`] says.
pub mod action {
    /// The element is not in use.
    pub const NONE: u8 = 0;
    pub const SNAT: u8 = 1;
    /// The tenant asks for an egress IP that it cannot have here and now.
    pub const DROP: u8 = 2;
}

/// What [`Slot::mapping`] says: what a new flow's egress port depends on (RFC 4787, section 4.1).
pub mod mapping {
    /// The remote too: meanwhile the port serves other flows towards other remotes.
    pub const ENDPOINT_DEPENDENT: u8 = 0;
    /// The pod's address, port and protocol alone: see [`crate::mapping`].
    pub const ENDPOINT_INDEPENDENT: u8 = 1;
}

/// What a VNID gets on this node. An element of an array that the `policy` map points into.
///
/// One egress IP: a second one of the same VNID on the same node is refused by the planner, since
/// the mark could not tell them apart.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Slot {
    /// [`NO_VNID`]: of all that have no slot of their own.
    pub vnid: u32,
    pub egress_ip: [u8; 4],
    /// Interface towards the outside.
    pub uplink: u32,
    pub action: u8,
    pub mapping: u8,
    pub pad: [u8; 2],
    /// The uplink's, in bytes from the IPv4 header on; 0: not looked at.
    pub mtu: u32,
    /// Most flows at a time; 0: no limit.
    pub max_flows: u32,
    /// Most new flows in a window of [`WINDOW_SHIFT`]; 0: no limit.
    pub max_new_flows: u32,
    /// The uplink as XDP sees it.
    pub wire: Wire,
    /// Most ports that are held for every remote; 0: no limit.
    pub max_ports: u32,
    pub pad2: [u8; 24],
}

/// Stands for every remote in the keys of a port that is held for all of them. No flow's remote:
/// nothing is translated towards it.
pub const ANY_REMOTE: [u8; 4] = [255; 4];
/// Beside the protocol in the reply's key of such a port: no packet's key has it.
const FOR_ANY_REMOTE: u32 = 1 << 8;

/// A flow's key in its original direction.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct OriginalKey {
    pub pod: [u8; 4],
    pub remote: [u8; 4],
    pub pod_port: [u8; 2],
    pub remote_port: [u8; 2],
    /// `vnid << 8 | protocol`.
    pub vnid_protocol: u32,
}

impl Slot {
    /// Whether this is what flows of a VNID may leave by.
    #[inline(always)]
    pub fn serves(&self, vnid: u32) -> bool {
        self.vnid == vnid || self.vnid == NO_VNID
    }
}

impl OriginalKey {
    pub fn vnid(&self) -> u32 {
        self.vnid_protocol >> 8
    }

    pub fn protocol(&self) -> u8 {
        self.vnid_protocol as u8
    }

    /// Whether this is a port held for every remote, and no flow.
    #[inline(always)]
    pub fn is_for_any_remote(&self) -> bool {
        self.remote == ANY_REMOTE
    }

    /// The key of the port that this flow shares with others of its pod's port.
    #[inline(always)]
    pub fn for_any_remote(&self) -> Self {
        Self { remote: ANY_REMOTE, remote_port: [0, 0], ..*self }
    }

    /// The other half's key.
    #[inline(always)]
    pub fn reply(&self, egress_ip: [u8; 4], egress_port: [u8; 2]) -> ReplyKey {
        let beside = if self.is_for_any_remote() { FOR_ANY_REMOTE } else { 0 };
        ReplyKey {
            remote: self.remote,
            egress_ip,
            remote_port: self.remote_port,
            egress_port,
            protocol: u32::from(self.protocol()) | beside,
        }
    }
}

/// A flow's key in its reply direction. Holding it is holding the egress port.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct ReplyKey {
    pub remote: [u8; 4],
    pub egress_ip: [u8; 4],
    pub remote_port: [u8; 2],
    pub egress_port: [u8; 2],
    pub protocol: u32,
}

impl ReplyKey {
    /// Whether this is a port held for every remote, and no flow.
    #[inline(always)]
    pub fn is_for_any_remote(&self) -> bool {
        self.protocol & FOR_ANY_REMOTE != 0
    }

    /// The other half's key.
    #[inline(always)]
    pub fn original(&self, pod: [u8; 4], pod_port: [u8; 2], vnid: u32) -> OriginalKey {
        OriginalKey {
            pod,
            remote: self.remote,
            pod_port,
            remote_port: self.remote_port,
            vnid_protocol: vnid << 8 | self.protocol & 0xff,
        }
    }
}

/// The link-layer header's addresses towards the next hop, in three words: destination, source.
pub type MacWords = [u32; 3];

/// The addresses of the way back: source and destination change places.
#[inline(always)]
pub fn turned(macs: MacWords) -> MacWords {
    let [[d0, d1, d2, d3], [d4, d5, s0, s1], [s2, s3, s4, s5]] = macs.map(u32::to_ne_bytes);
    [[s0, s1, s2, s3], [s4, s5, d0, d1], [d2, d3, d4, d5]].map(u32::from_ne_bytes)
}

/// The original direction's entry, as the programs share it: what changes is a `Cell`, a plain
/// load and a plain store (the BPF target has no relaxed atomics).
#[repr(C)]
#[derive(Debug, Default, Clone)]
pub struct OriginalFlow {
    pub egress_ip: [u8; 4],
    pub egress_port: [u8; 2],
    /// 1: the port is held for every remote, by an entry of its own.
    pub shares: u16,
    pub hop: NextHop,
    pub slot: Cell<u32>,
    /// Where the pod's packets come from: see [`ReplyFlow::node`].
    pub node: Cell<[u8; 4]>,
    pub ifindex: Cell<u32>,
    /// The same number in both entries of a flow: tells a reused entry from the one meant.
    pub tag: u32,
    pub life: Life,
    /// Of a port held for every remote: the flows that share it.
    pub packets: Cell<u64>,
    /// Of such a port: the remote, and its port, of the flow that used it last.
    pub bytes: Cell<u64>,
}

/// The reply direction's entry, as the programs share it.
#[repr(C)]
#[derive(Debug, Default, Clone)]
pub struct ReplyFlow {
    pub pod: [u8; 4],
    pub pod_port: [u8; 2],
    /// As [`OriginalFlow::shares`].
    pub shares: u16,
    pub vnid: u32,
    pub slot: Cell<u32>,
    /// The node whose tunnel the pod is behind; all zero: the pod is behind `ifindex`.
    pub node: Cell<[u8; 4]>,
    /// The device the pod's packets arrived on; 0 without a node: the stack knows the way.
    pub ifindex: Cell<u32>,
    /// The inner link-layer addresses of the way back: the pod's, then the gateway's.
    pub macs: Cell<MacWords>,
    pub tag: u32,
    pub life: Life,
    pub packets: Cell<u64>,
    pub bytes: Cell<u64>,
}

/// [`OriginalFlow`] as it is copied out of the map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct OriginalRecord {
    pub egress_ip: [u8; 4],
    pub egress_port: [u8; 2],
    pub shares: u16,
    pub hop: [u64; 2],
    pub slot: u32,
    pub node: [u8; 4],
    pub ifindex: u32,
    pub tag: u32,
    pub life: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// [`ReplyFlow`] as it is copied out of the map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct ReplyRecord {
    pub pod: [u8; 4],
    pub pod_port: [u8; 2],
    pub shares: u16,
    pub vnid: u32,
    pub slot: u32,
    pub node: [u8; 4],
    pub ifindex: u32,
    pub macs: MacWords,
    pub tag: u32,
    pub life: u64,
    pub packets: u64,
    pub bytes: u64,
}

/// A cached next hop: its link-layer addresses, and the generation they were found under.
///
/// Two words that are not written at once: a reader in between gets one frame to a wrong address,
/// never a packet with a wrong source.
#[repr(C)]
#[derive(Debug, Default, Clone)]
pub struct NextHop([Cell<u64>; 2]);

impl NextHop {
    /// `generation` 0 is never fresh.
    #[inline(always)]
    pub fn new(macs: MacWords, generation: u32) -> Self {
        let [first, second] = Self::words(macs, generation);
        Self([first.into(), second.into()])
    }

    #[inline(always)]
    fn words(macs: MacWords, generation: u32) -> [u64; 2] {
        [
            u64::from(macs[0]) | u64::from(macs[1]) << 32,
            u64::from(macs[2]) | u64::from(generation) << 32,
        ]
    }

    /// The addresses, if they were found under this generation.
    #[inline(always)]
    pub fn fresh(&self, generation: u32) -> Option<MacWords> {
        let second = self.0[1].get();
        if (second >> 32) as u32 != generation {
            return None;
        }
        let first = self.0[0].get();
        Some([first as u32, (first >> 32) as u32, second as u32])
    }

    #[inline(always)]
    pub fn set(&self, macs: MacWords, generation: u32) {
        let [first, second] = Self::words(macs, generation);
        self.0[0].set(first);
        self.0[1].set(second);
    }
}

/// An expired flow that is about to give up its port: the key of the `claims` map. Who enters it
/// first may remove the flow; the BPF target has no compare-and-swap, a map has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Claim {
    pub key: ReplyKey,
    /// The flow's own: a later holder of the same key has another.
    pub tag: u32,
}

/// The fragments of one packet from outside: the key of the `fragments` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    pub remote: [u8; 4],
    pub egress_ip: [u8; 4],
    pub id: [u8; 2],
    pub protocol: u8,
    pub pad: u8,
}

/// Most separate runs of a packet's fragments.
pub const RUNS: usize = 6;

/// The flow that the first fragment belongs to, since the others carry no ports, and what has passed
/// of the packet.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentOwner {
    /// An ICMP error's flow is that of the packet it quotes.
    pub flow: ReplyKey,
    /// When the first fragment came, in ticks.
    pub seen: u32,
    /// Where the packet ends, in units of eight bytes; 0: the last fragment has not come.
    pub end: u16,
    pub pad: u16,
    /// From and to, in those units; none where both are the same.
    pub runs: [[u16; 2]; RUNS],
}

/// Most bytes of a frame that is kept, and one more.
pub const KEPT_BYTES: usize = 2048;

/// A fragment from outside that came before the first of its packet: an element of the `kept` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Kept {
    pub key: FragmentKey,
    /// When it came, in ticks.
    pub seen: u32,
    /// Of the frame.
    pub length: u32,
    pub frame: [u8; KEPT_BYTES],
}

/// Where the clock hand finds a flow: an element of the `places` map.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Place {
    pub key: Cell<ReplyKey>,
    /// The flow's; 0: the place is free.
    pub tag: Cell<u32>,
    /// Ticks: the flow need not be looked at before.
    pub deadline: Cell<u32>,
}

/// What a policy holds, by slot, for all CPUs: an element of the `usage` map.
///
/// Plain additions of several CPUs may lose one now and then; the agent, which counts the flows
/// when it sweeps them, writes the true number, and 0 when it gives the slot to another VNID.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Usage {
    pub flows: Cell<u32>,
    /// The current window's number, and the flows that began in it.
    pub window: Cell<u32>,
    pub new_flows: Cell<u32>,
    /// The tick, but for its first byte, and how many answers were sent in it: see
    /// [`crate::limit::may_answer`].
    pub answers: Cell<u32>,
    /// Held for every remote; each is among `flows` too.
    pub ports: Cell<u32>,
    pub pad: u32,
}

/// [`Usage`] as it is copied out of the map.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UsageRecord {
    pub flows: u32,
    pub window: u32,
    pub new_flows: u32,
    pub answers: u32,
    pub ports: u32,
    pub pad: u32,
}

/// What a policy's packets came to, by slot and CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SlotCounters {
    pub original_packets: u64,
    pub original_bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    /// Packets, either way: why is counted for all tenants together.
    pub dropped: u64,
}

/// A node of the cluster, and the next hop towards it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NodeHop {
    pub macs: MacWords,
    /// The `next_hop_generation` that `macs` were found under; 0: not known.
    pub generation: u32,
    /// Ticks: when the neighbour was last asked for.
    pub asked: u32,
}

/// The paths that translated packets take, an index into the `paths` map.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// VXLAN taken off the uplink by the program itself.
    Underlay = 0,
    /// Behind the tunnel device.
    Tunnel = 1,
    /// From the gateway device.
    Gateway = 2,
    /// On the uplink's egress, after the stack.
    Stack = 3,
    /// Replies sent back through the tunnel device.
    ReplyTunnel = 4,
    /// Replies encapsulated by the program itself.
    ReplyUnderlay = 5,
    /// Replies handed to the gateway device.
    ReplyGateway = 6,
    /// Replies left to the stack.
    ReplyStack = 7,
    /// From a pod of this node to the node that hosts its egress IP.
    Source = 8,
    /// VXLAN taken off and the packet sent on XDP.
    Xdp = 9,
    /// Replies encapsulated and sent on XDP.
    ReplyXdp = 10,
}

impl Path {
    pub const ALL: [(Self, &'static str); 11] = [
        (Self::Underlay, "underlay"),
        (Self::Tunnel, "tunnel"),
        (Self::Gateway, "gateway"),
        (Self::Stack, "stack"),
        (Self::ReplyTunnel, "reply_tunnel"),
        (Self::ReplyUnderlay, "reply_underlay"),
        (Self::ReplyGateway, "reply_gateway"),
        (Self::ReplyStack, "reply_stack"),
        (Self::Source, "source"),
        (Self::Xdp, "xdp"),
        (Self::ReplyXdp, "reply_xdp"),
    ];
}

const _: () = {
    assert!(size_of::<OriginalKey>() == 16);
    assert!(size_of::<ReplyKey>() == 16);
    assert!(size_of::<OriginalFlow>() == 64);
    assert!(size_of::<ReplyFlow>() == 64);
    assert!(size_of::<OriginalRecord>() == 64);
    assert!(size_of::<ReplyRecord>() == 64);
    assert!(size_of::<Slot>() == 64);
    assert!(size_of::<Usage>() == size_of::<UsageRecord>());
};
