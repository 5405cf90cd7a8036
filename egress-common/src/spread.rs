//! To which of its egress nodes a tenant's packet goes: spread per flow, and a flow stays where it
//! is as long as its node is there.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): flow and node together make a number, and the
//! node with the highest has the flow. A node that goes gives up its own flows and no others; one
//! that comes takes its share from all others, and nothing moves between those. No table to keep,
//! no division, a bounded loop.
//!
//! What makes a flow here: addresses and ports of TCP, and of everything else the addresses alone.
//! For the big datagrams of a UDP flow come in fragments, of which only the first has ports, and the
//! small ones come whole; and an ICMP error belongs to another protocol's flow. All of them have to
//! leave with one address. (A TCP segment in fragments goes by its addresses too, so its stream is
//! cut if that is another node; pods forbid their stack to do that, with DF.)
use bytemuck::{Pod, Zeroable};

use crate::wire::{Ipv4, Packet, protocol};

/// Nodes that one tenant's flows are spread over; more are not used from this node.
pub const MAX_EGRESS_NODES: usize = 16;

/// The nodes that a tenant's packets can leave by: an entry of the `egress_nodes` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct EgressNodes {
    /// The unused ones, behind the others, are 0.0.0.0.
    pub nodes: [[u8; 4]; MAX_EGRESS_NODES],
    /// 1: all of a pod's packets go to one node.
    pub by_pod: u32,
}

impl EgressNodes {
    /// Those nodes, as far as there is room: of more, those that this seed prefers.
    pub fn of(nodes: impl IntoIterator<Item = [u8; 4]>, by_pod: bool, seed: u32) -> Self {
        let mut entry = Self { by_pod: u32::from(by_pod), ..Self::zeroed() };
        for node in nodes {
            let mut least = node;
            for place in &mut entry.nodes {
                if *place == [0; 4] {
                    *place = least;
                    break;
                }
                if weight(seed, *place) < weight(seed, least) {
                    core::mem::swap(place, &mut least);
                }
            }
        }
        entry
    }

    /// Whether the node is among them.
    #[inline(always)]
    pub fn contains(&self, node: [u8; 4]) -> bool {
        self.nodes.contains(&node)
    }

    /// The node that a packet goes to; `None`: there is none, or the packet is malformed.
    #[inline(always)]
    pub fn node_for<P: Packet>(&self, packet: &P) -> Option<[u8; 4]> {
        let ip = Ipv4::read(packet, 0)?;
        let mut flow = scatter(u32::from_be_bytes(ip.source));
        if self.by_pod == 0 {
            flow = scatter(flow ^ u32::from_be_bytes(ip.destination));
            if ip.protocol == protocol::TCP && !ip.is_fragment() {
                flow = scatter(flow ^ u32::from_be_bytes(packet.read(ip.header_len())?));
            }
        }
        let (mut best, mut highest) = (None, 0);
        for node in self.nodes {
            if node == [0; 4] {
                break;
            }
            let weight = weight(flow, node);
            if best.is_none() || weight > highest {
                (best, highest) = (Some(node), weight);
            }
        }
        best
    }
}

/// Never the same for two nodes, since each step can be undone.
#[inline(always)]
fn weight(flow: u32, node: [u8; 4]) -> u32 {
    scatter(flow ^ scatter(u32::from_be_bytes(node)))
}

/// Each bit of the number changes half of the result's (the last steps of MurmurHash3).
#[inline(always)]
fn scatter(number: u32) -> u32 {
    let number = (number ^ number >> 16).wrapping_mul(0x85eb_ca6b);
    let number = (number ^ number >> 13).wrapping_mul(0xc2b2_ae35);
    number ^ number >> 16
}
