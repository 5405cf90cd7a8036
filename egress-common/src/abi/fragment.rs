//! Fragments, which carry no ports but for the first of a packet.
use bytemuck::{Pod, Zeroable};

use super::ReplyKey;

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
