//! What a VNID gets on this node, and what it has had of it.
use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use super::{NO_VNID, Wire};

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
    /// Most new flows in a window of [`super::WINDOW_SHIFT`]; 0: no limit.
    pub max_new_flows: u32,
    /// The uplink as XDP sees it.
    pub wire: Wire,
    /// Most ports that are held for every remote; 0: no limit.
    pub max_ports: u32,
    pub pad2: [u8; 24],
}

impl Slot {
    /// Whether this is what flows of a VNID may leave by.
    #[inline(always)]
    pub fn serves(&self, vnid: u32) -> bool {
        self.vnid == vnid || self.vnid == NO_VNID
    }
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
