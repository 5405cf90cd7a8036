//! The packets that tell a sender why nothing became of its own: TCP resets (RFC 9293, section
//! 3.5.2) and ICMP errors (RFC 792, RFC 1812 section 4.3.2). Built as values, sent elsewhere.
use crate::{
    checksum::{finish, sum},
    nat::Answer,
    wire::{Ipv4, Packet, protocol, tcp},
};

/// An ICMP error quotes the header without options and the 8 bytes behind it: 20 + 8 + 20 + 8.
pub const ICMP_LEN: usize = 56;
/// An IPv4 and a TCP header: 20 + 20.
pub const RESET_LEN: usize = 40;

const TTL: u8 = 64;

/// The reset that answers a segment, or `None` for one that must not be answered.
#[inline(always)]
pub fn reset<P: Packet>(packet: &P, ip: &Ipv4) -> Option<[u8; RESET_LEN]> {
    let at = ip.header_len();
    let segment: [u8; 20] = packet.read(at)?;
    let flags = segment[13];
    if flags & tcp::RST != 0 {
        return None;
    }
    let mut out = [0; RESET_LEN];
    ipv4_header(&mut out, RESET_LEN as u16, protocol::TCP, ip.destination, ip.source);
    let (head, _) = (&segment, ());
    out[20..22].copy_from_slice(&head[2..4]);
    out[22..24].copy_from_slice(&head[0..2]);
    if flags & tcp::ACK != 0 {
        // The reset takes its sequence number from the acknowledgement.
        out[24..28].copy_from_slice(&head[8..12]);
        out[33] = tcp::RST;
    } else {
        // It acknowledges all that the segment carried: data, SYN and FIN.
        let header = u32::from(head[12] >> 4) * 4;
        let data = u32::from(ip.total_len).saturating_sub(at as u32).saturating_sub(header);
        let length = data + u32::from(flags & tcp::SYN != 0) + u32::from(flags & tcp::FIN != 0);
        let sequence = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        out[28..32].copy_from_slice(&sequence.wrapping_add(length).to_be_bytes());
        out[33] = tcp::RST | tcp::ACK;
    }
    out[32] = 5 << 4;
    let tail: [u8; 20] = [
        out[20], out[21], out[22], out[23], out[24], out[25], out[26], out[27], out[28], out[29],
        out[30], out[31], out[32], out[33], 0, 0, 0, 0, 0, 0,
    ];
    let pseudo = sum(&ip.source) + sum(&ip.destination) + sum(&[0, protocol::TCP, 0, 20]);
    let checksum = finish(pseudo + sum(&tail));
    out[36] = checksum[0];
    out[37] = checksum[1];
    Some(out)
}

/// The ICMP error of `kind` and `code` about a packet, from where and with what MTU `answer` says.
/// `None`: cut short.
#[inline(always)]
pub fn icmp_error<P: Packet>(
    packet: &P,
    ip: &Ipv4,
    answer: &Answer,
    kind: u8,
    code: u8,
) -> Option<[u8; ICMP_LEN]> {
    let mtu = answer.mtu.to_be_bytes();
    // RFC 1191, section 4: the low half of the header's second word.
    let rest = [0, 0, mtu[0], mtu[1]];
    let header: [u8; 20] = packet.read(0)?;
    let behind: [u8; 8] = packet.read(ip.header_len())?;
    let mut quoted = header;
    if ip.header_len() != 20 {
        // Options are left out of the quotation: the header says so, with a checksum to match.
        quoted[0] = 0x45;
        quoted[10] = 0;
        quoted[11] = 0;
        let checksum = finish(sum(&quoted));
        quoted[10] = checksum[0];
        quoted[11] = checksum[1];
    }
    let mut out = [0; ICMP_LEN];
    ipv4_header(&mut out, ICMP_LEN as u16, protocol::ICMP, answer.from, ip.source);
    out[20] = kind;
    out[21] = code;
    out[24..28].copy_from_slice(&rest);
    out[28..48].copy_from_slice(&quoted);
    out[48..56].copy_from_slice(&behind);
    let total = sum(&[kind, code]) + sum(&rest) + sum(&quoted) + sum(&behind);
    let checksum = finish(total);
    out[22] = checksum[0];
    out[23] = checksum[1];
    Some(out)
}

#[inline(always)]
fn ipv4_header<const N: usize>(
    out: &mut [u8; N],
    total_len: u16,
    of_protocol: u8,
    source: [u8; 4],
    destination: [u8; 4],
) {
    let length = total_len.to_be_bytes();
    let mut header = [
        0x45,
        0,
        length[0],
        length[1],
        0,
        0,
        0x40,
        0,
        TTL,
        of_protocol,
        0,
        0,
        source[0],
        source[1],
        source[2],
        source[3],
        destination[0],
        destination[1],
        destination[2],
        destination[3],
    ];
    let checksum = finish(sum(&header));
    header[10] = checksum[0];
    header[11] = checksum[1];
    out[..20].copy_from_slice(&header);
}
