//! What belongs to no flow, and what is no packet.

use egress_common::{
    testing::packet::{Datagram, echo, icmp, tcp, udp},
    wire::tcp::{ACK, FIN, RST, SYN},
};

use super::Script;
use crate::oracle::{Side, What, ports};

/// Packets that nobody waits for, from both sides.
pub fn strays(script: &mut Script) {
    for _ in 0..1 + script.chance.below(3) {
        let flags = [SYN, ACK, FIN | ACK, RST, RST | ACK, SYN | ACK, 0, SYN | FIN];
        let flags = flags[script.chance.below(flags.len())];
        match script.chance.below(8) {
            0 | 1 => {
                script.says(Side::Outside, What::StrayFromOutside, |from, to| tcp(from, to, flags))
            }
            2 => script.says(Side::Outside, What::StrayFromOutside, |from, to| {
                udp(from, to, b"anyone there?")
            }),
            3 => {
                let kind = [8, 0][script.chance.below(2)];
                script.says(Side::Outside, What::StrayFromOutside, |from, to| {
                    echo(kind, from.0, to.0, 77)
                });
            }
            4 => script.says(Side::Outside, What::StrayFromOutside, |from, to| {
                Datagram::new(132, from.0, to.0, &[0x13; 24])
            }),
            5 => {
                let flags = [FIN | ACK, RST, SYN | ACK, 0, SYN | FIN][script.chance.below(5)];
                script.says(Side::Pod, What::StrayFromPod, |from, to| tcp(from, to, flags));
            }
            6 => script.says(Side::Pod, What::StrayFromPod, |from, to| echo(0, from.0, to.0, 78)),
            _ => {
                // Timestamp, address mask, redirect, and a type that nobody knows.
                let kind = [13, 17, 5, 99][script.chance.below(4)];
                let side = if script.one_in(2) { Side::Pod } else { Side::Outside };
                script.says(side, What::OtherIcmp, |from, to| {
                    icmp((kind, 0), from.0, to.0, [0, 1, 0, 1], &[0; 28])
                });
            }
        }
    }
}

/// Packets of pods, made wrong in one way each.
pub fn garbage(script: &mut Script) {
    for _ in 0..1 + script.chance.below(3) {
        let data = script.data(60);
        if script.one_in(2) {
            script.says(Side::Pod, What::BadTransport, |from, to| udp(from, to, &data));
        } else {
            script.says(Side::Pod, What::BadTransport, |from, to| tcp(from, to, SYN));
        }
        let kind = script.chance.below(8);
        let value = script.chance.below(256) as u8;
        let step = script.steps.last_mut().expect("a step was written");
        let packet = &mut step.packets[0];
        let header = usize::from(packet[0] & 15) * 4;
        match kind {
            // The IPv4 header's: version, length, total length, checksum.
            0 => packet[0] = 0x50 | (packet[0] & 15),
            1 => packet[0] = 0x40 | (value % 5),
            2 => packet[2] = 0x7f,
            3 => packet[10] ^= 0x55,
            // Cut short inside the transport's header, and honest about it.
            4 => shorten(packet, header + usize::from(value % 8)),
            // A header longer than the packet, or shorter than it can be.
            5 if packet[9] == 6 => packet[header + 12] = [0x40, 0xf0][usize::from(value & 1)],
            // A UDP length beyond the packet, or too short to be.
            5 => packet[header + 4] = 0x7f,
            6 if packet[9] == 17 => packet[header + 4..header + 6].copy_from_slice(&[0, value % 8]),
            // A source that is no pod's.
            _ => {
                packet[12] = 10 ^ (value | 1);
                step.what = What::ForeignSource;
            }
        }
        if kind < 4 {
            step.what = What::BadHeader;
        }
        if kind != 3 {
            sum(packet);
        }
    }
}

fn shorten(packet: &mut Vec<u8>, length: usize) {
    packet.truncate(length);
    let length = (length as u16).to_be_bytes();
    packet[2..4].copy_from_slice(&length);
}

/// Makes the header's checksum right.
fn sum(packet: &mut [u8]) {
    let header = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
    packet[10..12].copy_from_slice(&[0, 0]);
    let words = packet[..header].chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
    let checksum = !ports::fold(words.sum());
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

impl Script<'_> {
    /// Makes the checksum of the last step's packet wrong.
    pub(super) fn spoil(&mut self) {
        let packet = &mut self.steps.last_mut().expect("a step was written").packets[0];
        let last = packet.len() - 1;
        packet[last] ^= 0x40;
    }

    /// Gives the last step's packet no more hops.
    pub(super) fn last_hop(&mut self, ttl: u8) {
        let step = self.steps.last_mut().expect("a step was written");
        step.what = What::LastHop;
        step.packets[0][8] = ttl;
        sum(&mut step.packets[0]);
    }
}
