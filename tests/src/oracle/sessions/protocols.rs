//! Protocols of which our gateway translates nothing but the address.

use egress_common::{
    testing::packet::{Datagram, End, icmp, udp_like},
    wire::protocol::{DCCP, UDP_LITE},
};

use super::{Script, remote};
use crate::{
    mutation::Chance,
    oracle::{Flow, Side, Step, What},
};

const SCTP: u8 = 132;
const GRE: u8 = 47;
const ESP: u8 = 50;

/// One pod and its remote; then perhaps another of the tenant, and perhaps an error.
pub fn exchange(mut chance: Chance, session: u32) -> Vec<Step> {
    let of_protocol = [SCTP, GRE, ESP, 41, 89, UDP_LITE, DCCP][chance.below(7)];
    let pod = chance.below(6);
    // An address of its own: there are no ports to tell sessions apart.
    let [_, a, b, c] = session.to_be_bytes();
    let remote = [101 + (remote(session)[1] & 1), a, b, c];
    let flow = Flow { pod, port: 0, remote, remote_port: 0, protocol: of_protocol };
    Script::written(&mut chance, session, flow, false, converse)
}

fn converse(script: &mut Script) {
    let Flow { pod, protocol: of_protocol, remote, .. } = script.flow;
    let summed = [UDP_LITE, DCCP].contains(&of_protocol);
    let what = if summed { What::Summed } else { What::AddressOnly };
    // Ports that no other session has, for who looks at them.
    let port = 1024 + (script.session % 60_000) as u16;
    let make = |from: End, to: End| packet(of_protocol, port, from.0, to.0);
    script.says(Side::Pod, what, make);
    for _ in 0..script.chance.below(4) {
        let side = if script.one_in(2) { Side::Pod } else { Side::Outside };
        script.says(side, what, make);
    }
    if !summed && script.one_in(3) {
        let quoted = make(script.flow.mapped(), script.flow.server()).bytes();
        let error = icmp((3, 2), remote, script.flow.mapped().0, [0; 4], &quoted[..28]);
        script.sends(Side::Outside, What::Error, vec![error.id(7).bytes()]);
    }
    if script.one_in(3) {
        script.flow.pod = pod ^ 1;
        script.says(Side::Pod, What::ProtocolTaken, make);
        script.flow.pod = pod;
        script.says(Side::Outside, what, make);
    }
}

/// A packet that a connection tracker takes for the beginning of something.
fn packet(of_protocol: u8, port: u16, from: [u8; 4], to: [u8; 4]) -> Datagram {
    match of_protocol {
        SCTP => Datagram::new(SCTP, from, to, &init(port)),
        GRE => {
            // No options, version 0, IPv4 inside.
            let inner = Datagram::new(17, [192, 168, 0, 1], [192, 168, 0, 2], &[0; 8]).bytes();
            Datagram::new(GRE, from, to, &[&[0, 0, 8, 0], &inner[..]].concat())
        }
        // Covered is all of it.
        UDP_LITE => udp_like(UDP_LITE, 17, (from, port), (to, port), b"some data"),
        DCCP => udp_like(DCCP, 0, (from, port), (to, port), &[0x11; 24]),
        _ => Datagram::new(of_protocol, from, to, &[0x13; 24]),
    }
}

/// An SCTP packet with an INIT chunk (RFC 9260, section 3.3.2), from a port to the same one.
fn init(port: u16) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    let mut packet = vec![high, low, high, low, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend([1, 0, 0, 20, 0, 0, 0, 9, 0, 0, 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 3]);
    let checksum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&checksum);
    packet
}

/// RFC 9260, appendix A.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0x82f6_3b78 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_sctp_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
