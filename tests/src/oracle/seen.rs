//! What has come out of a gateway, so that two gateways can be compared.

use egress_common::wire::{protocol, tcp};

use super::{Side, ports::is_error};

/// One thing that came out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Seen {
    /// A packet that crossed, byte by byte.
    Crossed(Side, Vec<u8>),
    /// An ICMP error of the gateway's own about what was sent.
    Answered(Side, Answer),
    /// A TCP reset of the gateway's own: its ends, sequence, acknowledgement, flags.
    Reset(Side, Vec<u8>),
}

/// What an ICMP error of a gateway's own says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    pub from: [u8; 4],
    pub to: [u8; 4],
    pub kind: u8,
    pub code: u8,
    /// The header's second word.
    pub rest: [u8; 4],
    /// The quoted packet's identification, protocol and addresses, and 8 bytes behind its header.
    pub about: Vec<u8>,
}

impl Seen {
    /// Reads what came out in consequence of `sent`.
    #[must_use]
    pub fn read(side: Side, packet: Vec<u8>, sent: &[Vec<u8>]) -> Self {
        if !sent.iter().any(|sent| same_make(sent, &packet)) {
            if let Some(answer) = answer(&packet) {
                return Self::Answered(side, answer);
            }
            if let Some(reset) = reset(&packet) {
                return Self::Reset(side, reset);
            }
        }
        Self::Crossed(side, canonical(packet))
    }

    /// The source address of a packet that crossed.
    #[must_use]
    pub fn source(&self) -> Option<[u8; 4]> {
        match self {
            Self::Crossed(_, packet) => packet.get(12..16)?.try_into().ok(),
            _ => None,
        }
    }
}

/// Whether a packet can be the translated other: a translation changes neither its protocol, nor
/// its length, nor its identification.
fn same_make(sent: &[u8], packet: &[u8]) -> bool {
    let of = |packet: &[u8]| Some((packet.get(2..6)?.to_vec(), *packet.get(9)?));
    super::reassembly::is_fragment(sent) || of(sent) == of(packet)
}

fn behind(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 15) * 4..)
}

fn address(packet: &[u8], at: usize) -> [u8; 4] {
    [packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]
}

fn answer(packet: &[u8]) -> Option<Answer> {
    let body = behind(packet)?;
    if packet[9] != protocol::ICMP || !is_error(*body.first()?) {
        return None;
    }
    let quoted = body.get(8..)?;
    let header = quoted.get(..20)?;
    let mut about = [&header[4..6], &header[9..10], &header[12..20]].concat();
    about.extend(behind(quoted)?.iter().take(8));
    let (from, to) = (address(packet, 12), address(packet, 16));
    Some(Answer { from, to, kind: body[0], code: body[1], rest: address(body, 4), about })
}

fn reset(packet: &[u8]) -> Option<Vec<u8>> {
    let body = behind(packet)?;
    if packet[9] != protocol::TCP || body.get(13)? & tcp::RST == 0 {
        return None;
    }
    Some([&packet[12..20], &body[..12], &body[13..14]].concat())
}

/// A sum of zero has two spellings: one of them.
fn canonical(mut packet: Vec<u8>) -> Vec<u8> {
    if super::reassembly::is_fragment(&packet) {
        return packet;
    }
    let header = usize::from(packet[0] & 15) * 4;
    let field = match packet[9] {
        protocol::TCP => header + 16,
        protocol::ICMP => header + 2,
        _ => return packet,
    };
    if packet.get(field..field + 2) == Some(&[0, 0]) {
        packet[field..field + 2].copy_from_slice(&[0xff, 0xff]);
    }
    packet
}
