//! What a right translation makes of a packet, by arithmetic of the oracle's own.

use egress_common::wire::protocol;

use super::{PODS, Side, Step, ports::fold, seen::Seen};

/// All packets of a step, rightly translated.
#[must_use]
pub fn translated(step: &Step) -> Vec<Seen> {
    let pod = PODS[step.flow.pod];
    match step.from {
        Side::Pod => each(step, Side::Outside, 12, pod.egress_ip),
        Side::Outside => each(step, Side::Pod, 16, pod.address),
    }
}

/// The same, sent on as they came.
#[must_use]
pub fn leaked(step: &Step) -> Vec<Seen> {
    let forwarded = |packet: &Vec<u8>| {
        let source = [packet[12], packet[13], packet[14], packet[15]];
        with_address(packet.clone(), 12, source)
    };
    let packets = step.packets.iter().map(forwarded);
    packets.map(|packet| Seen::read(Side::Outside, packet, &step.packets)).collect()
}

fn each(step: &Step, side: Side, at: usize, address: [u8; 4]) -> Vec<Seen> {
    let packets = step.packets.iter().map(|packet| with_address(packet.clone(), at, address));
    packets.map(|packet| Seen::read(side, packet, &step.packets)).collect()
}

fn word(packet: &[u8], at: usize) -> u64 {
    u64::from(packet[at]) << 8 | u64::from(packet[at + 1])
}

/// One hop on, and with this address at this place.
fn with_address(mut packet: Vec<u8>, at: usize, address: [u8; 4]) -> Vec<u8> {
    let header = usize::from(packet[0] & 15) * 4;
    let changes: u64 = [0, 2]
        .map(|half| {
            let new = u64::from(address[half]) << 8 | u64::from(address[half + 1]);
            (0xffff - word(&packet, at + half)) + new
        })
        .iter()
        .sum();
    packet[at..at + 4].copy_from_slice(&address);
    packet[8] = packet[8].wrapping_sub(1);
    packet[10..12].copy_from_slice(&[0, 0]);
    let sum = fold((0..header / 2).map(|index| word(&packet, index * 2)).sum());
    packet[10..12].copy_from_slice(&(!sum).to_be_bytes());
    let is_first = word(&packet, 6) & 0x1fff == 0;
    let field = match packet[9] {
        protocol::TCP => header + 16,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => header + 6,
        _ => return packet,
    };
    if is_first
        && packet.len() >= field + 2
        && (packet[9] == protocol::TCP || word(&packet, field) != 0)
    {
        // RFC 1624, equation 3: what was wrong stays wrong by as much.
        let new = !fold((0xffff - word(&packet, field)) + changes);
        let new = if packet[9] != protocol::TCP && new == 0 { 0xffff } else { new };
        packet[field..field + 2].copy_from_slice(&new.to_be_bytes());
    }
    packet
}
