//! Fragments put together again, so that it does not matter how a gateway has cut a packet.

use std::collections::BTreeMap;

use super::Side;

/// Flags and offset of an IPv4 header.
fn fragment(packet: &[u8]) -> u16 {
    u16::from_be_bytes([packet[6], packet[7]])
}

/// Whether a packet is a part of one.
#[must_use]
pub fn is_fragment(packet: &[u8]) -> bool {
    packet.len() >= 20 && fragment(packet) & 0x3fff != 0
}

/// Where packets of fragments are all there, the packets; the rest as it is, in its order.
#[must_use]
pub fn together(packets: Vec<(Side, Vec<u8>)>) -> Vec<(Side, Vec<u8>)> {
    let mut parts: BTreeMap<(Side, Vec<u8>), Vec<Vec<u8>>> = BTreeMap::new();
    let mut whole = Vec::new();
    for (side, packet) in packets {
        if is_fragment(&packet) {
            // Identification, protocol and both addresses.
            let key = [&packet[4..6], &packet[9..10], &packet[12..20]].concat();
            parts.entry((side, key)).or_default().push(packet);
        } else {
            whole.push((side, packet));
        }
    }
    for ((side, _), parts) in parts {
        match one(&parts) {
            Some(packet) => whole.push((side, packet)),
            None => whole.extend(parts.into_iter().map(|part| (side, part))),
        }
    }
    whole
}

/// The packet that these are all fragments of.
fn one(parts: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut parts: Vec<&Vec<u8>> = parts.iter().collect();
    parts.sort_by_key(|part| fragment(part) & 0x1fff);
    parts.dedup();
    let first = parts.first().filter(|first| fragment(first) & 0x1fff == 0)?;
    let mut packet = first[..usize::from(first[0] & 15) * 4].to_vec();
    let header = packet.len();
    for (index, part) in parts.iter().enumerate() {
        let offset = usize::from(fragment(part) & 0x1fff) * 8;
        let is_last = fragment(part) & 0x2000 == 0;
        if packet.len() - header != offset || is_last != (index + 1 == parts.len()) {
            return None;
        }
        packet.extend(&part[usize::from(part[0] & 15) * 4..]);
    }
    let length = (packet.len() as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
    packet[6..8].copy_from_slice(&[0, 0]);
    packet[10..12].copy_from_slice(&[0, 0]);
    let checksum = egress_common::testing::packet::checksum(&packet[..header]);
    packet[10..12].copy_from_slice(&checksum);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use egress_common::testing::packet::udp;

    use super::*;

    #[test]
    fn fragments_in_any_order_and_twice_are_their_packet() {
        let packet = udp(([10, 0, 0, 11], 1), ([203, 0, 113, 7], 2), &[3; 100]);
        let parts = packet.fragments(40);
        let some = |order: &[usize]| {
            order.iter().map(|index| (Side::Outside, parts[*index].bytes())).collect::<Vec<_>>()
        };
        assert_eq!(together(some(&[2, 0, 1, 0])), [(Side::Outside, packet.bytes())]);
        assert_eq!(together(some(&[0, 2])), some(&[0, 2]));
    }
}
