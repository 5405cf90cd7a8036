//! What holds for every packet that leaves, whatever came in.
use crate::{
    checksum::fold,
    testing::packet::pseudo_header,
    wire::{icmp, protocol},
};

fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes
        .chunks(2)
        .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
    u64::from(fold(pairs.sum()))
}

/// Whether all checksums of a packet are right, as far as they are in it: the header's, and the
/// transport's of a packet that is no fragment. Error: which is not.
pub fn checksums(packet: &[u8]) -> Result<(), String> {
    let header_len = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if sum(&packet[..header_len]) != 0xffff {
        return Err("the IPv4 header's".into());
    }
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 || packet.len() < total {
        return Ok(());
    }
    let body = &packet[header_len..total];
    let address = |at: usize| [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]];
    let covered = |of_protocol| {
        let mut covered = pseudo_header(address(12), address(16), of_protocol, body.len());
        covered.extend(body);
        covered
    };
    let right = match packet[9] {
        protocol::TCP => sum(&covered(protocol::TCP)) == 0xffff,
        protocol::UDP => body[6..8] == [0, 0] || sum(&covered(protocol::UDP)) == 0xffff,
        protocol::ICMP => sum(body) == 0xffff,
        _ => true,
    };
    if !right {
        return Err(format!("protocol {}'s", packet[9]));
    }
    let quotes = packet[9] == protocol::ICMP
        && [icmp::UNREACHABLE, icmp::TIME_EXCEEDED, icmp::PARAMETER_PROBLEM].contains(&body[0]);
    if quotes && sum(&body[8..8 + usize::from(body[8] & 15) * 4]) != 0xffff {
        return Err("the quoted IPv4 header's".into());
    }
    Ok(())
}
