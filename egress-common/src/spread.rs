//! To which of its egress nodes a tenant's packet goes: spread per flow, and a flow stays where it
//! is as long as its node is there.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): flow and node together make a number, and the
//! node with the highest has the flow. A node that goes gives up its own flows and no others; one
//! that comes takes its share of new ones from all others. No division, a bounded loop.
//!
//! Which way a flow went is kept, so that it stays there when another node comes, or its own is
//! drained. The table forgets those that were used least recently; they go by the hash again, which
//! is the same way as long as the nodes are the same.
//!
//! What makes a flow here: addresses and ports of TCP, and of everything else the addresses alone.
//! For the big datagrams of a UDP flow come in fragments, of which only the first has ports, and the
//! small ones come whole; and an ICMP error belongs to another protocol's flow. All of them have to
//! leave with one address. (A TCP segment in fragments goes by its addresses too, so its stream is
//! cut if that is another node; pods forbid their stack to do that, with DF.)
use bytemuck::{Pod, Zeroable};

use crate::{
    abi::{BEAT, TICK_SHIFT},
    wire::{Ipv4, Packet, protocol, tcp},
};

/// Nodes that one tenant's flows are spread over; more are not used from this node.
pub const MAX_EGRESS_NODES: usize = 16;

/// Ticks after which a flow that is no TCP connection, and was quiet meanwhile, may go elsewhere: the
/// five minutes that RFC 4787 recommends to keep one (REQ-5).
const IDLE: u32 = (300_000_000_000_u64 >> TICK_SHIFT) as u32;

/// The nodes that a tenant's packets can leave by: an entry of the `egress_nodes` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct EgressNodes {
    /// The unused ones, behind the others, are 0.0.0.0.
    pub nodes: [[u8; 4]; MAX_EGRESS_NODES],
    /// So many, at the front, take new flows; those behind them are drained.
    pub fresh: u32,
    /// 1: all of a pod's packets go to one node.
    pub by_pod: u32,
    /// 0: ways are not kept. A tenant of one egress IP has no other.
    pub keeps: u32,
}

/// What makes a flow here: the key of the `ways` map. What does not count is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    pub pod: [u8; 4],
    pub remote: [u8; 4],
    /// The pod's and the remote's.
    pub ports: [u8; 4],
}

/// Which way a flow has gone: an element of the `ways` map.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Way {
    pub node: [u8; 4],
    /// Ticks: when a packet took it, to a beat. Of a TCP connection: when it was chosen.
    pub seen: u32,
}

/// The ways that flows have gone.
pub trait Ways {
    fn way(&self, flow: &FlowKey) -> Option<Way>;
    fn keep(&self, flow: &FlowKey, way: Way);
}

/// What a packet is to its flow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// The first of a TCP connection.
    Begin,
    /// A later one of a TCP connection.
    Rest,
    /// Of what has no beginning.
    Any,
}

impl EgressNodes {
    /// Those nodes, as far as there is room: of more, those that this seed prefers.
    pub fn of(nodes: impl IntoIterator<Item = [u8; 4]>, by_pod: bool, seed: u32) -> Self {
        let mut entry = Self { by_pod: u32::from(by_pod), keeps: 1, ..Self::zeroed() };
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
        entry.fresh = entry.count();
        entry
    }

    /// And those, as far as there is room, which keep the flows that they have: unless they are all
    /// that there are.
    #[must_use]
    pub fn and_drained(mut self, nodes: impl IntoIterator<Item = [u8; 4]>) -> Self {
        for node in nodes {
            if let Some(place) = self.nodes.iter_mut().find(|place| **place == [0; 4]) {
                *place = node;
            }
        }
        if self.fresh == 0 {
            self.fresh = self.count();
        }
        self
    }

    fn count(&self) -> u32 {
        self.nodes.iter().filter(|node| **node != [0; 4]).count() as u32
    }

    /// Whether the node is among them.
    #[inline(always)]
    pub fn contains(&self, node: [u8; 4]) -> bool {
        self.nodes.contains(&node)
    }

    /// The node that a packet goes to; `None`: there is none, or the packet is malformed.
    #[inline(always)]
    pub fn node_for<P: Packet, W: Ways>(&self, packet: &P, ways: &W, now: u32) -> Option<[u8; 4]> {
        let (flow, part) = self.flow_of(packet)?;
        if self.keeps == 0 {
            return self.highest(&flow, self.fresh);
        }
        if part != Part::Begin
            && let Some(way) = ways.way(&flow)
            && self.contains(way.node)
        {
            let quiet = now.wrapping_sub(way.seen);
            if part == Part::Rest || quiet < IDLE {
                if part == Part::Any && quiet >= BEAT {
                    ways.keep(&flow, Way { seen: now, ..way });
                }
                return Some(way.node);
            }
        }
        // A connection that is not known has begun at any of them.
        let among = if part == Part::Rest { MAX_EGRESS_NODES as u32 } else { self.fresh };
        let node = self.highest(&flow, among)?;
        ways.keep(&flow, Way { node, seen: now });
        Some(node)
    }

    #[inline(always)]
    fn flow_of<P: Packet>(&self, packet: &P) -> Option<(FlowKey, Part)> {
        let ip = Ipv4::read(packet, 0)?;
        let mut flow = FlowKey { pod: ip.source, remote: [0; 4], ports: [0; 4] };
        if self.by_pod != 0 {
            return Some((flow, Part::Any));
        }
        flow.remote = ip.destination;
        if ip.protocol != protocol::TCP || ip.is_fragment() {
            return Some((flow, Part::Any));
        }
        let header: [u8; 14] = packet.read(ip.header_len())?;
        flow.ports = [header[0], header[1], header[2], header[3]];
        let begins = header[13] & (tcp::SYN | tcp::ACK) == tcp::SYN;
        Some((flow, if begins { Part::Begin } else { Part::Rest }))
    }

    /// The node with the highest number for a flow, of so many.
    #[inline(always)]
    fn highest(&self, flow: &FlowKey, among: u32) -> Option<[u8; 4]> {
        let flow = [flow.pod, flow.remote, flow.ports]
            .map(u32::from_be_bytes)
            .into_iter()
            .fold(0, |number, word| scatter(number ^ word));
        let (mut best, mut highest) = (None, 0);
        for (at, node) in (0..).zip(self.nodes) {
            if at >= among || node == [0; 4] {
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
