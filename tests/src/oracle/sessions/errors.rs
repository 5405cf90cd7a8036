//! ICMP errors about what a session has sent, from both sides.

use egress_common::testing::packet::{Datagram, icmp};

use super::Script;
use crate::oracle::{PODS, Side, What};

/// A router on the way, whoever the remote is.
const ROUTER: [u8; 4] = [100, 127, 255, 1];

/// An error about the flow's last packet of one direction, if there was one.
pub fn about(script: &mut Script) {
    let outwards = script.one_in(2);
    let Some(packet) = script.received[usize::from(outwards)].clone() else { return };
    let kinds = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0), (4, 0)];
    let kind = kinds[script.chance.below(kinds.len())];
    let rest = if kind == (3, 4) { [0, 0, 5, 0] } else { [0; 4] };
    let (about_none, packet) =
        if script.one_in(6) { (true, of_no_flow(packet)) } else { (false, packet) };
    let lengths = [8, 8, 8, 12, 20, 28, 500];
    let length = lengths[script.chance.below(lengths.len())];
    let quoted = quoted(script, &packet, length);
    if outwards {
        let (pod, what) = match script.chance.below(6) {
            _ if about_none => (script.flow.pod, What::ErrorAboutNone),
            // A tenant's other pod, which may be a router of its own.
            0 => (script.flow.pod ^ 1, What::Error),
            1 => (script.stranger(), What::ErrorOfAnother),
            _ => (script.flow.pod, What::Error),
        };
        let error = icmp(kind, PODS[pod].address, script.flow.remote, rest, &quoted);
        let (error, _) = script.dressed(error.clone(), error);
        script.sends_by(Side::Pod, pod, what, vec![error.bytes()]);
    } else {
        let what = if about_none { What::ErrorAboutNone } else { What::Error };
        let from = if script.one_in(2) { ROUTER } else { script.flow.remote };
        let error = icmp(kind, from, script.flow.mapped().0, rest, &quoted);
        let (error, _) = script.dressed(error.clone(), error);
        script.sends(Side::Outside, what, vec![error.bytes()]);
    }
}

/// The beginning of a packet as it looked some hops on.
fn quoted(script: &mut Script, packet: &Datagram, length: usize) -> Vec<u8> {
    let ttl = 1 + script.chance.below(usize::from(packet.ttl)) as u8;
    let mut bytes = packet.clone().ttl(ttl).bytes();
    bytes.truncate(packet.header().len() + length);
    bytes
}

/// The same packet between ports that never spoke.
fn of_no_flow(mut packet: Datagram) -> Datagram {
    match packet.protocol {
        6 | 17 => {
            for at in [0, 2] {
                packet.payload[at] ^= 0xff;
            }
        }
        _ => {
            packet.payload[4] ^= 0xff;
        }
    }
    packet
}
