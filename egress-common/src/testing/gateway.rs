//! What a story speaks to: a gateway with two tenants, whatever it is made of.
use crate::{
    abi::{Config, NO_VNID, Network, PortRange, Slot, action},
    port::step,
    reason::Reason,
    testing::packet::End,
    wire::protocol,
};
use bytemuck::Zeroable;

/// What became of a packet. Packets begin with their IPv4 header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Dropped(Reason),
    Sent(Vec<u8>),
    /// Dropped and counted, and this went back to its sender.
    Answered(Reason, Vec<u8>),
    /// Kept until the first fragment of its packet comes.
    Kept,
}

/// A flow, as both of its entries tell it. Echo identifiers are ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mapping {
    pub vnid: u32,
    pub protocol: u8,
    pub pod: End,
    pub remote: End,
    pub egress: End,
}

/// A gateway under test.
pub trait Gateway {
    /// A packet of a pod of this node; of [`NO_VNID`]: without a mark.
    fn leave_pod(&mut self, vnid: u32, packet: &[u8]) -> Outcome;
    /// A packet out of the uplink.
    fn arrive(&mut self, packet: &[u8]) -> Outcome;
    /// A packet that the stack has forwarded, with its tenant's mark or (of [`NO_VNID`]) without
    /// one, about to leave the uplink.
    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome;
    /// How many fragments are kept.
    fn kept(&mut self) -> usize;
    /// Lets time pass for all flows.
    fn rest(&mut self, ticks: u32);
    /// The flows, sorted.
    ///
    /// # Panics
    /// If an entry has no partner, or says another thing than its partner.
    fn mappings(&self) -> Vec<Mapping>;
    /// Enters or changes a tenant's policy.
    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]);
    /// Enters [`masquerade_slot`], and switches masquerading on.
    fn masquerade(&mut self);
    /// What is known of a pod by its address: its VNID, or that with [`crate::abi::MARKED_ONLY`].
    fn set_pod(&mut self, address: [u8; 4], value: u32);
    /// A tenant's slot, to be changed.
    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot));
    /// The settings, to be changed.
    fn configure(&mut self, change: &dyn Fn(&mut Config));
}

/// A tenant with [`EGRESS_IP`].
pub const TENANT: u32 = 0x6f_7936;
/// Another, with [`OTHER_EGRESS_IP`].
pub const OTHER_TENANT: u32 = 0xdf_6553;
/// A tenant whose egress IP is not usable.
pub const DROPPED: u32 = 0x2e_c40e;
/// A tenant without a policy.
pub const NORMAL: u32 = 0x10_0001;

pub const NODE: [u8; 4] = [10, 0, 0, 2];
pub const EGRESS_IP: [u8; 4] = [10, 0, 0, 11];
pub const OTHER_EGRESS_IP: [u8; 4] = [10, 0, 0, 13];
pub const POD: [u8; 4] = [10, 129, 0, 5];
/// Of the same tenant, on another node.
pub const SECOND_POD: [u8; 4] = [10, 130, 2, 9];
/// On this node, as [`POD`].
pub const THIRD_POD: [u8; 4] = [10, 129, 1, 77];
pub const SERVICE: [u8; 4] = [172, 30, 0, 1];
pub const REMOTE: [u8; 4] = [203, 0, 113, 7];
pub const OTHER_REMOTE: [u8; 4] = [198, 51, 100, 77];

/// The policies that a gateway under test begins with.
pub const POLICIES: [(u32, u8, [u8; 4]); 3] = [
    (TENANT, action::SNAT, EGRESS_IP),
    (OTHER_TENANT, action::SNAT, OTHER_EGRESS_IP),
    (DROPPED, action::DROP, [0; 4]),
];

/// The ports to masquerade with.
pub const MASQUERADE: PortRange = PortRange { from: 61_000, count: 4_536 };

/// Ticks, near the defaults: 7440 s, 240 s, 300 s, 60 s.
pub const ESTABLISHED: u32 = 55_432;
pub const TRANSITORY: u32 = 1_788;
pub const UDP: u32 = 2_235;
pub const ICMP: u32 = 447;

/// The settings that a gateway under test begins with.
pub fn config() -> Config {
    let mut config = Config {
        node: NODE,
        vxlan_port: 4789_u16.to_be_bytes(),
        // A stamp of zero would be on every packet.
        stamp: [0x5eed_1234, 0x0bad_cafe],
        next_hop_generation: 1,
        tcp_established: ESTABLISHED,
        tcp_transitory: TRANSITORY,
        udp: UDP,
        icmp: ICMP,
        port_from: 1024,
        port_count: 64512,
        port_step: step(64512),
        masquerade_ports: MASQUERADE,
        masquerade_step: step(MASQUERADE.count),
        masqueraded_ports: MASQUERADE,
        local_pods: network([10, 129, 0, 0], 23),
        cluster_networks: 1,
        network_count: 2,
        ..Config::zeroed()
    };
    config.networks[0] = network([10, 128, 0, 0], 14);
    config.networks[1] = network([172, 30, 0, 0], 16);
    config
}

/// What pods without a policy leave by.
pub fn masquerade_slot(uplink: u32) -> Slot {
    Slot { vnid: NO_VNID, action: action::SNAT, egress_ip: NODE, uplink, ..Slot::zeroed() }
}

fn network(address: [u8; 4], length: u32) -> Network {
    Network { address: u32::from_be_bytes(address), mask: u32::MAX << (32 - length) }
}

/// The mapping of a TCP flow.
pub fn tcp_mapping(vnid: u32, pod: End, remote: End, egress: End) -> Mapping {
    Mapping { vnid, protocol: protocol::TCP, pod, remote, egress }
}
