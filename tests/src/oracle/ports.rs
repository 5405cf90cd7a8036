//! Where a packet carries the port by which the outside knows a flow, and writing another one there.
//!
//! The arithmetic is the oracle's own: what is held against the engine must not share its mistakes.

use egress_common::wire::protocol;

/// Which way a packet crosses a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From an egress IP.
    Out,
    /// To an egress IP.
    In,
}

/// A port's place, and the checksums that cover it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub protocol: u8,
    at: usize,
    /// The innermost first: a change of it changes what is around it.
    checksums: Vec<(usize, u8)>,
}

fn number(packet: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]))
}

/// Whether an ICMP type is that of an error, which quotes a packet.
pub fn is_error(kind: u8) -> bool {
    matches!(kind, 3 | 4 | 5 | 11 | 12)
}

/// Where the packet's own header ends, unless it is a later fragment.
fn behind(packet: &[u8], at: usize) -> Option<usize> {
    let first = packet.get(at)?;
    let is_first = number(packet, at + 6)? & 0x1fff == 0;
    let length = usize::from(first & 15) * 4;
    (first >> 4 == 4 && length >= 20 && is_first).then_some(at + length)
}

/// The place of the port or identifier; `None`: the packet carries none.
#[must_use]
pub fn place(packet: &[u8], way: Way) -> Option<Place> {
    let transport = behind(packet, 0)?;
    if packet[9] == protocol::ICMP && is_error(*packet.get(transport)?) {
        let inner = transport + 8;
        let quoted = behind(packet, inner)?;
        // The quoted packet went the other way.
        let way = if way == Way::Out { Way::In } else { Way::Out };
        let mut place = own_place(packet, packet[inner + 9], quoted, way)?;
        place.checksums.push((transport + 2, protocol::ICMP));
        return Some(place);
    }
    own_place(packet, packet[9], transport, way)
}

fn own_place(packet: &[u8], of_protocol: u8, at: usize, way: Way) -> Option<Place> {
    let (port, checksum) = match (of_protocol, way) {
        (protocol::TCP, Way::Out) => (at, at + 16),
        (protocol::TCP, Way::In) => (at + 2, at + 16),
        (protocol::UDP, Way::Out) => (at, at + 6),
        (protocol::UDP, Way::In) => (at + 2, at + 6),
        (protocol::ICMP, Way::Out) if *packet.get(at)? == 8 => (at + 4, at + 2),
        (protocol::ICMP, Way::In) if *packet.get(at)? == 0 => (at + 4, at + 2),
        _ => return None,
    };
    number(packet, port)?;
    Some(Place { protocol: of_protocol, at: port, checksums: vec![(checksum, of_protocol)] })
}

impl Place {
    /// What stands there.
    #[must_use]
    pub fn port(&self, packet: &[u8]) -> u16 {
        number(packet, self.at).expect("the place is in the packet")
    }

    /// Writes another port, and what the checksums become by it.
    pub fn write(&self, packet: &mut [u8], port: u16) {
        let mut changes = vec![(self.port(packet), port)];
        packet[self.at..self.at + 2].copy_from_slice(&port.to_be_bytes());
        for &(at, of_protocol) in &self.checksums {
            let Some(old) = number(packet, at) else { continue };
            if of_protocol == protocol::UDP && old == 0 {
                continue;
            }
            // RFC 1624, equation 3.
            let sum = changes
                .iter()
                .fold(u64::from(!old), |sum, (from, to)| sum + u64::from(!from) + u64::from(*to));
            let new = !fold(sum);
            let new = if of_protocol == protocol::UDP && new == 0 { 0xffff } else { new };
            packet[at..at + 2].copy_from_slice(&new.to_be_bytes());
            changes.push((old, new));
        }
    }
}

/// A sum of 16-bit words in 16 bits.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use egress_common::testing::{
        checks,
        packet::{echo, icmp, tcp, udp, udp_unchecked},
    };

    use super::*;

    const A: [u8; 4] = [10, 0, 0, 11];
    const B: [u8; 4] = [203, 0, 113, 7];

    fn written(mut packet: Vec<u8>, way: Way, port: u16) -> Vec<u8> {
        place(&packet, way).expect("a place").write(&mut packet, port);
        packet
    }

    #[test]
    fn a_port_is_written_as_if_the_packet_had_been_built_with_it() {
        for (out, back) in [(1, 65_535), (40_001, 2), (7, 7)] {
            let (from, to) = ((A, out), (A, back));
            let server = (B, 443);
            assert_eq!(
                written(tcp(from, server, 2).bytes(), Way::Out, back),
                tcp(to, server, 2).bytes()
            );
            assert_eq!(
                written(udp(server, from, b"odd").bytes(), Way::In, back),
                udp(server, to, b"odd").bytes()
            );
            let unchecked = |end| udp_unchecked(end, server, b"x").bytes();
            assert_eq!(written(unchecked(from), Way::Out, back), unchecked(to));
            assert_eq!(
                written(echo(8, A, B, out).bytes(), Way::Out, back),
                echo(8, A, B, back).bytes()
            );
        }
    }

    #[test]
    fn a_quoted_port_is_written_with_all_checksums_around_it() {
        for length in [8, 18, 20, 24] {
            let error = |port| {
                let mut quoted = udp((A, port), (B, 53), &[7; 40]).bytes();
                quoted.truncate(20 + length);
                icmp((3, 3), B, A, [0; 4], &quoted).bytes()
            };
            let found = written(error(40_001), Way::In, 99);
            assert_eq!(found, error(99));
            assert_eq!(checks::checksums(&found), Ok(()));
        }
    }
}
