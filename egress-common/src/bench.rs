//! The benchmark's traffic: which packet the generator sends as its n-th.
//!
//! Owns the arithmetic that the generator (eBPF) and the verification (host) must share, and the
//! layouts of their maps. It is no part of the product: neither the agent nor its programs use it.
//!
//! Surprising: no two flow numbers share remote address and source port, so no variant ever has
//! to look for another port. That is the easy case for everyone, and the only one in which all
//! variants do the same work.
use bytemuck::{Pod, Zeroable};

/// Pods are `POD_BASE` + number of the VNID; one pod a VNID, all behind one source node.
pub const POD_BASE: u32 = u32::from_be_bytes([10, 130, 0, 0]);
/// Egress IPs are `EGRESS_BASE` + number of the VNID: 100.96.0.0/11, half of the uplink's /10.
pub const EGRESS_BASE: u32 = u32::from_be_bytes([100, 96, 0, 0]);
/// A second egress IP of the same VNID, for a storm of changes: so much further on.
pub const OTHER_EGRESS: u32 = 1 << 16;
/// External hosts are 198.18.0.0/15, the block reserved for benchmarks (RFC 2544).
pub const REMOTE_BASE: u32 = u32::from_be_bytes([198, 18, 0, 0]);
/// The destination port of every original packet.
pub const REMOTE_PORT: u16 = 7777;
/// Headers of a VXLAN frame up to the inner payload, in bytes.
pub const VXLAN_HEADERS: usize = 92;
/// Headers of a plain frame up to the payload, in bytes.
pub const PLAIN_HEADERS: usize = 42;
/// Bytes that VXLAN puts in front of a frame.
pub const VXLAN_OVERHEAD: usize = 50;
/// Frames that the sink keeps at most.
pub const CAPTURES: u32 = 64;
/// Bytes of a frame that the sink keeps.
pub const CAPTURE_LEN: usize = 256;
/// Buckets of the latency histogram: 16 for each power of two nanoseconds.
pub const LATENCY_BUCKETS: u32 = 512;

/// What the generator sends. The whole of it is written before a run; numbers in host byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct Shape {
    /// The frame's first bytes: all headers, with zero where they change from flow to flow.
    pub template: [u64; 12],
    /// The interface that the frames are redirected into.
    pub ifindex: u32,
    /// Flows to choose from at random; 0: each packet is the next flow, never repeated.
    pub flows: u32,
    /// The first VNID, as a number from 0.
    pub vnid_first: u32,
    /// How many VNIDs from there the flows are spread over.
    pub vnid_count: u32,
    /// 1: the answers of these flows, from the remote host to the egress IP.
    pub reply: u32,
    /// One's complement sum of the constant words of the innermost IPv4 header.
    pub ip_sum: u32,
    /// One's complement sum of the constant words below the innermost UDP checksum.
    pub udp_sum: u32,
    /// 1: the payload carries the time of sending, for the sink's latency histogram.
    pub timed: u32,
    /// Nanoseconds from packet to packet; 0: as fast as they can be made.
    pub gap: u32,
    /// The address that all answers go to; 0: each VNID's egress IP.
    pub node: u32,
}

/// What the checker makes of a frame: indices of its counts.
pub mod judged {
    /// A pod's packet, rightly translated, with its own port.
    pub const ORIGINAL: u32 = 0;
    /// The same with another port.
    pub const EXCHANGED: u32 = 1;
    /// A reply, rightly translated and encapsulated.
    pub const REPLY: u32 = 2;
    pub const WRONG: u32 = 3;
    /// None of the generator's.
    pub const OTHER: u32 = 4;
    pub const COUNT: u32 = 5;
}

/// What the sink accepts: source address `& mask == network`, IPv4 and UDP; all else is "other".
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct SinkRule {
    pub network: u32,
    pub mask: u32,
    /// 1: keep the first `CAPTURES` accepted frames.
    pub capture: u32,
    /// Offset of the time of sending in an accepted frame; 0: no latency is measured.
    pub time_offset: u32,
}

/// A frame as the sink saw it, from its Ethernet header on.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub struct Capture {
    /// The frame's whole length in bytes.
    pub len: u32,
    pub padding: u32,
    pub bytes: [u8; CAPTURE_LEN],
}

/// Where the reference programs send a frame, and the Ethernet header they give it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Pod, Zeroable)]
pub struct Redirect {
    pub ifindex: u32,
    /// Destination and source MAC.
    pub macs: [u8; 12],
}

/// One flow of the benchmark, as the pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The VNID's number from 0; `vnid` makes the VNID of it.
    pub vnid_number: u32,
    pub pod: u32,
    pub remote: u32,
    pub source_port: u16,
}

/// Spreads consecutive numbers over 32 bits; a bijection (the finaliser of MurmurHash3).
#[inline(always)]
pub fn mix(number: u32) -> u32 {
    let number = (number ^ (number >> 16)).wrapping_mul(0x85eb_ca6b);
    let number = (number ^ (number >> 13)).wrapping_mul(0xc2b2_ae35);
    number ^ (number >> 16)
}

/// `number` of 32 even bits, scaled to `0..limit` without a division.
#[inline(always)]
pub fn scale(number: u32, limit: u32) -> u32 {
    ((number as u64 * limit as u64) >> 32) as u32
}

/// The VNID with this number (below 2^22): bits 0 and 15 stay clear, so the mark is the VNID.
#[inline(always)]
pub fn vnid(number: u32) -> u32 {
    let number = number + 1;
    ((number & 0x3fff) << 1) | ((number >> 14) << 16)
}

/// Which flow the generator's n-th packet belongs to.
#[inline(always)]
pub fn flow_number(shape: &Shape, counter: u32) -> u32 {
    if shape.flows == 0 { counter } else { scale(mix(counter), shape.flows) }
}

/// The flow with this number. Remote address and source port together are its own.
#[inline(always)]
pub fn flow(number: u32, vnid_first: u32, vnid_count: u32) -> Flow {
    let low = number & 0x7fff;
    let vnid_number = vnid_first + scale(mix(number ^ 0x5bd1_e995), vnid_count);
    Flow {
        vnid_number,
        pod: POD_BASE + vnid_number,
        remote: REMOTE_BASE + (((number >> 15) ^ mix(low)) & 0x1_ffff),
        source_port: 0x8000 | low as u16,
    }
}

/// The histogram's bucket for this many nanoseconds: exact below 16, then 16 a power of two.
#[inline(always)]
pub fn latency_bucket(nanoseconds: u64) -> u32 {
    if nanoseconds < 16 {
        return nanoseconds as u32;
    }
    let power = 63 - nanoseconds.leading_zeros();
    let bucket = (power - 3) * 16 + ((nanoseconds >> (power - 4)) as u32 & 15);
    if bucket < LATENCY_BUCKETS { bucket } else { LATENCY_BUCKETS - 1 }
}

/// The shortest time in this bucket, in nanoseconds.
pub fn latency_floor(bucket: u32) -> u64 {
    if bucket < 16 {
        return u64::from(bucket);
    }
    u64::from(16 + bucket % 16) << (bucket / 16 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_flows_share_remote_and_source_port() {
        let seen: HashSet<_> = (0..1 << 20)
            .map(|number| flow(number, 0, 100_000))
            .map(|flow| (flow.remote, flow.source_port))
            .collect();
        assert_eq!(seen.len(), 1 << 20);
    }

    #[test]
    fn vnids_differ_and_have_the_bits_clear_that_a_mark_moves() {
        let seen: HashSet<_> = (0..100_000).map(vnid).collect();
        assert_eq!(seen.len(), 100_000);
        assert!(seen.iter().all(|vnid| vnid & 0x8001 == 0 && *vnid != 0 && *vnid < 1 << 24));
    }

    #[test]
    fn a_latency_lies_between_its_bucket_and_the_next() {
        for nanoseconds in (0..5_000).chain([1 << 20, (1 << 30) + 12_345]) {
            let bucket = latency_bucket(nanoseconds);
            assert!(latency_floor(bucket) <= nanoseconds, "{nanoseconds}");
            assert!(nanoseconds < latency_floor(bucket + 1), "{nanoseconds}");
        }
    }

    #[test]
    fn traffic_reaches_every_vnid_and_no_other() {
        let seen: HashSet<_> = (0..100_000).map(|n| flow(n, 999, 100).vnid_number).collect();
        assert_eq!(seen, (999..1099).collect());
    }
}
