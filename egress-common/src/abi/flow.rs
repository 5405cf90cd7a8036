//! The two halves of a flow, what finds them, and what ends them.
use core::cell::Cell;

use bytemuck::{Pod, Zeroable};

use crate::state::Life;

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
