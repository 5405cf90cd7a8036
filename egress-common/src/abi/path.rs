//! The ways of a packet: its next hop on the cluster's side, and which programs it took.
use bytemuck::{Pod, Zeroable};

use super::MacWords;

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
