//! The frames: the template that the generator fills in, and what must come out of the node.
//!
//! Verification starts from the flow number in the payload, so it knows every byte to expect.
use std::fmt;

use anyhow::{Context as _, Result, bail, ensure};
use egress_common::bench::{
    Capture, EGRESS_BASE, Flow, REMOTE_PORT, Shape, SinkRule, VXLAN_OVERHEAD, flow, vnid,
};

use super::{
    rig::{self, MAC_GW, MAC_NET_GW, MAC_NET_UP, MAC_TUNNEL, MAC_UP, NODE, SOURCE_NODE},
    workload::{Direction, Entry, Flows, Workload},
};

const TTL: u8 = 64;
const VXLAN_PORT: u16 = 4789;

/// What a variant makes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// From the VNID's egress IP, or back to the pod: the product.
    Translated,
    /// Routed with the pod's address.
    Forwarded,
    /// As it came, but for the Ethernet header.
    Untouched,
    /// Dropped and counted at the entry.
    Dropped,
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Translated => "translated",
            Self::Forwarded => "forwarded",
            Self::Untouched => "untouched",
            Self::Dropped => "dropped",
        })
    }
}

/// The generator's order for this workload.
pub fn shape(workload: &Workload, ifindex: u32) -> Shape {
    let udp_len = 8 + workload.payload as u16;
    let (destination, source) = match (workload.entry, workload.direction) {
        (Entry::Tunnel, Direction::Original) => (MAC_TUNNEL, [0x0a, 0x58, 10, 130, 0, 0]),
        (Entry::Gateway, Direction::Original) => (MAC_GW, MAC_NET_GW),
        (_, Direction::Reply) => (MAC_UP, MAC_NET_UP),
    };
    let inner = ethernet_ipv4_udp(destination, source, udp_len);
    let mut bytes = Vec::new();
    if workload.is_vxlan() {
        let inner_len = workload.payload + inner.len();
        let mut outer = ethernet_ipv4_udp(MAC_UP, MAC_NET_UP, 8 + 8 + inner_len as u16);
        outer[26..30].copy_from_slice(&SOURCE_NODE);
        outer[30..34].copy_from_slice(&NODE);
        let check = !fold(sum(&outer[14..34]));
        outer[24..26].copy_from_slice(&check.to_be_bytes());
        outer[36..38].copy_from_slice(&VXLAN_PORT.to_be_bytes());
        bytes.extend(outer);
        bytes.extend([8, 0, 0, 0, 0, 0, 0, 0]);
    }
    bytes.extend(&inner);
    bytes.resize(96, 0);
    let mut template = [0; 12];
    for (word, bytes) in template.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().expect("chunks of 8"));
    }
    Shape {
        template,
        ifindex,
        flows: match workload.flows {
            Flows::Established(flows) => flows,
            Flows::New => 0,
        },
        vnid_first: workload.vnid_first,
        vnid_count: workload.vnid_count,
        reply: u32::from(workload.direction == Direction::Reply),
        ip_sum: sum(&inner[14..34]),
        udp_sum: u32::from(udp_len) * 2 + 17,
        timed: u32::from(workload.timed),
        gap: 1_000_000_000_u32.checked_div(workload.rate).unwrap_or(0),
        node: if workload.masquerade { u32::from_be_bytes(NODE) } else { 0 },
    }
}

/// 42 bytes with addresses, ports and checksums zero.
fn ethernet_ipv4_udp(destination: [u8; 6], source: [u8; 6], udp_len: u16) -> Vec<u8> {
    let mut bytes = Vec::from(destination);
    bytes.extend(source);
    bytes.extend([0x08, 0x00, 0x45, 0]);
    bytes.extend((20 + udp_len).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, TTL, 17, 0, 0]);
    bytes.extend([0; 12]);
    bytes.extend(udp_len.to_be_bytes());
    bytes.extend([0; 2]);
    bytes
}

/// The sink's rule for the frames that must come out.
pub fn rule(workload: &Workload, expect: Expect) -> Result<SinkRule> {
    let tunnel = workload.entry == Entry::Tunnel;
    let (mut rule, vxlan) = match (expect, workload.direction) {
        (Expect::Translated, Direction::Original) if workload.masquerade => {
            (rig::from_address(NODE), false)
        }
        (Expect::Translated, Direction::Original) => (rig::from_egress_ip(), false),
        (Expect::Translated, Direction::Reply) if tunnel => (rig::from_address(NODE), true),
        (Expect::Translated, Direction::Reply) => (rig::from_remote(), false),
        (Expect::Forwarded, Direction::Original) => (rig::from_pod(), false),
        (Expect::Untouched | Expect::Dropped, Direction::Original) if tunnel => {
            (rig::from_address(SOURCE_NODE), true)
        }
        (Expect::Untouched | Expect::Dropped, Direction::Original) => (rig::from_pod(), false),
        (expect, Direction::Reply) => bail!("no reply is ever {expect}"),
    };
    if workload.timed {
        rule.time_offset = 46 + if vxlan { VXLAN_OVERHEAD as u32 } else { 0 };
    }
    Ok(rule)
}

/// Whether this captured frame is what `expect` promises of the packet with its flow number.
pub fn verify(capture: &Capture, workload: &Workload, expect: Expect) -> Result<()> {
    // What is beyond the bytes kept belongs to the payload, which ends in zeros.
    let mut frame = capture.bytes.to_vec();
    frame.resize(capture.len as usize, 0);
    let frame = frame.as_slice();
    let tunnel = workload.entry == Entry::Tunnel;
    match (expect, workload.direction) {
        (Expect::Translated, Direction::Reply) if tunnel => {
            encapsulated(frame, workload, NODE, SOURCE_NODE, TTL - 1)
        }
        (Expect::Untouched | Expect::Dropped, _) if tunnel => {
            encapsulated(frame, workload, SOURCE_NODE, NODE, TTL)
        }
        (Expect::Untouched | Expect::Dropped, _) => {
            innermost(frame, workload, expect, TTL).map(drop)
        }
        _ => innermost(frame, workload, expect, TTL - 1).map(drop),
    }
}

fn encapsulated(
    frame: &[u8],
    workload: &Workload,
    source: [u8; 4],
    destination: [u8; 4],
    inner_ttl: u8,
) -> Result<()> {
    let outer = Packet::parse(frame).context("outer headers")?;
    ensure!(outer.source == source, "outer source is {:?}, not {source:?}", outer.source);
    let to = outer.destination;
    ensure!(to == destination, "outer destination is {to:?}, not {destination:?}");
    let port = outer.destination_port;
    ensure!(port == VXLAN_PORT, "outer destination port is {port}");
    let [8, _, _, _, a, b, c, _, inner @ ..] = outer.payload else { bail!("no VXLAN header") };
    let expect = match workload.direction {
        Direction::Original => Expect::Untouched,
        Direction::Reply => Expect::Translated,
    };
    let flow = innermost(inner, workload, expect, inner_ttl)?;
    let (found, wanted) = (u32::from_be_bytes([0, *a, *b, *c]), vnid(flow.vnid_number));
    ensure!(found == wanted, "the frame's VNI is {found}, not {wanted}");
    Ok(())
}

fn innermost(frame: &[u8], workload: &Workload, expect: Expect, ttl: u8) -> Result<Flow> {
    let packet = Packet::parse(frame)?;
    let len = packet.payload.len();
    ensure!(len == workload.payload, "the payload has {len} bytes, not {}", workload.payload);
    let (number, _) =
        packet.payload.split_first_chunk().context("no flow number in the payload")?;
    let flow = flow(u32::from_be_bytes(*number), workload.vnid_first, workload.vnid_count);
    let pod = flow.pod.to_be_bytes();
    let remote = flow.remote.to_be_bytes();
    let egress = match workload.masquerade {
        true => NODE,
        false => (EGRESS_BASE + flow.vnid_number).to_be_bytes(),
    };
    let (source, destination, port) = match (workload.direction, expect) {
        (Direction::Original, Expect::Translated) => (egress, remote, REMOTE_PORT),
        (Direction::Original, _) => (pod, remote, REMOTE_PORT),
        (Direction::Reply, _) => (remote, pod, flow.source_port),
    };
    let (from, to) = (packet.source, packet.destination);
    ensure!(from == source, "source is {from:?}, not {source:?}");
    ensure!(to == destination, "destination is {to:?}, not {destination:?}");
    let found = packet.destination_port;
    ensure!(found == port, "destination port is {found}, not {port}");
    ensure!(packet.ttl == ttl, "TTL is {}, not {ttl}", packet.ttl);
    Ok(flow)
}

struct Packet<'a> {
    source: [u8; 4],
    destination: [u8; 4],
    ttl: u8,
    destination_port: u16,
    payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Ethernet, IPv4 without options, UDP; both checksums are checked, a UDP checksum of 0 passes.
    fn parse(frame: &'a [u8]) -> Result<Self> {
        ensure!(frame.len() >= 42, "a frame of {} bytes", frame.len());
        ensure!(frame[12..15] == [0x08, 0x00, 0x45], "not IPv4 without options");
        ensure!(frame[23] == 17, "protocol {} is not UDP", frame[23]);
        ensure!(fold(sum(&frame[14..34])) == 0xffff, "the IPv4 checksum is wrong");
        let udp_len = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
        let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        ensure!(total == 20 + udp_len, "IPv4 length {total}, UDP length {udp_len}");
        let udp =
            frame.get(34..34 + udp_len).context("the frame is shorter than its UDP length")?;
        let pseudo = sum(&frame[26..34]) + 17 + udp_len as u32;
        let checked = udp[6..8] == [0, 0] || fold(pseudo + sum(udp)) == 0xffff;
        ensure!(checked, "the UDP checksum is wrong");
        Ok(Self {
            source: frame[26..30].try_into().context("source")?,
            destination: frame[30..34].try_into().context("destination")?,
            ttl: frame[22],
            destination_port: u16::from_be_bytes([frame[36], frame[37]]),
            payload: &udp[8..],
        })
    }
}

fn sum(bytes: &[u8]) -> u32 {
    let mut pairs = bytes.chunks_exact(2);
    let whole: u32 = pairs.by_ref().map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    whole + pairs.remainder().first().map_or(0, |byte| u32::from(*byte) << 8)
}

fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::bench::CAPTURE_LEN;

    fn workload() -> Workload {
        Workload::new("one", Entry::Gateway, Flows::Established(10), 3)
    }

    /// The frame of flow 5 as a correct node sends it out.
    fn translated() -> Vec<u8> {
        let flow = flow(5, 0, 3);
        let mut frame = ethernet_ipv4_udp(MAC_NET_UP, MAC_UP, 8 + 18);
        frame.extend(5u32.to_be_bytes());
        frame.extend([0; 14]);
        frame[22] = TTL - 1;
        frame[26..30].copy_from_slice(&(EGRESS_BASE + flow.vnid_number).to_be_bytes());
        frame[30..34].copy_from_slice(&flow.remote.to_be_bytes());
        frame[34..36].copy_from_slice(&flow.source_port.to_be_bytes());
        frame[36..38].copy_from_slice(&REMOTE_PORT.to_be_bytes());
        let udp = !fold(sum(&frame[26..34]) + 17 + 26 + sum(&frame[34..]));
        frame[40..42].copy_from_slice(&udp.to_be_bytes());
        let ip = !fold(sum(&frame[14..34]));
        frame[24..26].copy_from_slice(&ip.to_be_bytes());
        frame
    }

    fn verdict(frame: &[u8]) -> Result<()> {
        let mut bytes = [0; CAPTURE_LEN];
        bytes[..frame.len()].copy_from_slice(frame);
        let capture = Capture { len: frame.len() as u32, padding: 0, bytes };
        verify(&capture, &workload(), Expect::Translated)
    }

    #[test]
    fn a_translated_frame_passes() {
        verdict(&translated()).unwrap();
    }

    #[test]
    fn no_changed_byte_behind_the_macs_passes() {
        let frame = translated();
        // Identification, fragment bits and the UDP payload are covered by checksums.
        for place in 12..frame.len() {
            let mut damaged = frame.clone();
            damaged[place] ^= 0x01;
            assert!(verdict(&damaged).is_err(), "byte {place} was changed unseen");
        }
    }

    #[test]
    fn a_frame_cut_short_is_refused_without_a_panic() {
        let frame = translated();
        for len in 0..frame.len() {
            assert!(verdict(&frame[..len]).is_err(), "{len} bytes passed");
        }
    }
}
