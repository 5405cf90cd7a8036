//! ARP for IPv4 over Ethernet (RFC 826): the packets that claim an address, byte for byte those of
//! iputils' `arping`, and the reading of what others say.
//!
//! Pure: sockets are in [`socket`], the conflict probe in [`probe`]. Surprising: the target MAC of
//! an announcement means nothing (RFC 5227 2.3), yet `arping` fills it differently in a reply (the
//! own MAC) and in a request (broadcast), and so do we: that is what has been seen to work.
pub mod probe;
pub mod socket;

use std::net::Ipv4Addr;

/// An Ethernet address in the order of the wire.
pub type Mac = [u8; 6];

/// Ethernet header and ARP packet; without the padding that the interface adds.
pub const FRAME_LEN: usize = 42;

pub const ETHERTYPE: u16 = 0x0806;

const BROADCAST: Mac = [0xff; 6];

/// Ethertype, then hardware Ethernet, protocol IPv4, lengths 6 and 4.
const FIXED: [u8; 8] = [0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

/// An ARP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    pub operation: Operation,
    pub sender_mac: Mac,
    pub sender_ip: Ipv4Addr,
    pub target_mac: Mac,
    pub target_ip: Ipv4Addr,
}

impl Arp {
    /// "`ip` is at `mac`", unasked, as a reply: what `arping -A` sends (RFC 5944 4.6).
    pub fn announcement_reply(mac: Mac, ip: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Reply,
            sender_mac: mac,
            sender_ip: ip,
            target_mac: mac,
            target_ip: ip,
        }
    }

    /// The same as a request: what `arping -U` sends (RFC 5227 2.3).
    pub fn announcement_request(mac: Mac, ip: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac: mac,
            sender_ip: ip,
            target_mac: BROADCAST,
            target_ip: ip,
        }
    }

    /// "Has anybody `ip`?", which no cache learns from: what `arping -D` sends (RFC 5227 2.1.1).
    pub fn probe(mac: Mac, ip: Ipv4Addr) -> Self {
        Self { sender_ip: Ipv4Addr::UNSPECIFIED, ..Self::announcement_request(mac, ip) }
    }

    /// "Who has `target`? Tell `ip`", asked in the name of an egress IP: the answer goes to whom the
    /// other side now takes for its owner.
    pub fn question(mac: Mac, ip: Ipv4Addr, target: Ipv4Addr) -> Self {
        Self { target_ip: target, ..Self::announcement_request(mac, ip) }
    }

    /// Whether this is `witness` answering a question of [`Arp::question`] in the name of `ip`.
    pub fn answers(&self, mac: Mac, ip: Ipv4Addr, witness: Ipv4Addr) -> bool {
        self.operation == Operation::Reply
            && (self.sender_ip, self.target_ip, self.target_mac) == (witness, ip, mac)
    }

    /// To everyone on the link.
    pub fn to_frame(&self) -> [u8; FRAME_LEN] {
        let operation = match self.operation {
            Operation::Request => 1u16,
            Operation::Reply => 2,
        };
        let mut frame = [0; FRAME_LEN];
        frame[..6].copy_from_slice(&BROADCAST);
        frame[6..12].copy_from_slice(&self.sender_mac);
        frame[12..20].copy_from_slice(&FIXED);
        frame[20..22].copy_from_slice(&operation.to_be_bytes());
        frame[22..28].copy_from_slice(&self.sender_mac);
        frame[28..32].copy_from_slice(&self.sender_ip.octets());
        frame[32..38].copy_from_slice(&self.target_mac);
        frame[38..].copy_from_slice(&self.target_ip.octets());
        frame
    }

    /// `None`: not ARP for IPv4 over Ethernet, cut short, or an operation without meaning here.
    /// Padding behind the packet is ignored.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let frame: &[u8; FRAME_LEN] = frame.first_chunk()?;
        if frame[12..20] != FIXED {
            return None;
        }
        let operation = match frame[20..22] {
            [0, 1] => Operation::Request,
            [0, 2] => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: *frame[22..].first_chunk()?,
            sender_ip: Ipv4Addr::from(*frame[28..].first_chunk::<4>()?),
            target_mac: *frame[32..].first_chunk()?,
            target_ip: Ipv4Addr::from(*frame[38..].first_chunk::<4>()?),
        })
    }

    /// The address that another than `mac` uses, or is about to claim, according to this packet
    /// (RFC 5227 2.1.1): the sender's, or the target's of a probe.
    pub fn claimed_by_another(&self, mac: Mac) -> Option<Ipv4Addr> {
        if self.sender_mac == mac {
            return None;
        }
        if !self.sender_ip.is_unspecified() {
            return Some(self.sender_ip);
        }
        (self.operation == Operation::Request).then_some(self.target_ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 0x0a];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 0x0b];
    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

    /// Recorded from `arping -A` of iputils 20221126.
    const ARPING_A: [u8; FRAME_LEN] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0x0a, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2,
        0, 0, 0, 0, 0x0a, 10, 0, 0, 11, 2, 0, 0, 0, 0, 0x0a, 10, 0, 0, 11,
    ];

    #[test]
    fn the_reply_is_what_arping_sends() {
        assert_eq!(Arp::announcement_reply(OURS, IP).to_frame(), ARPING_A);
    }

    #[test]
    fn the_request_differs_in_operation_and_target() {
        let mut expected = ARPING_A;
        expected[21] = 1;
        expected[32..38].fill(0xff);
        assert_eq!(Arp::announcement_request(OURS, IP).to_frame(), expected);
        expected[28..32].fill(0);
        assert_eq!(Arp::probe(OURS, IP).to_frame(), expected);
    }

    #[test]
    fn a_frame_reads_as_it_was_written_padding_or_not() {
        let arp = Arp::announcement_request(OURS, IP);
        let mut padded = arp.to_frame().to_vec();
        padded.resize(60, 0);
        assert_eq!(Arp::parse(&padded), Some(arp));
    }

    #[test]
    fn what_is_cut_short_or_not_arp_for_ipv4_is_refused() {
        let frame = ARPING_A;
        for len in 0..FRAME_LEN {
            assert_eq!(Arp::parse(&frame[..len]), None, "{len} bytes");
        }
        for position in 12..22 {
            let mut frame = frame;
            frame[position] ^= 0x40;
            assert_eq!(Arp::parse(&frame), None, "byte {position}");
        }
    }

    #[test]
    fn an_answer_an_announcement_and_a_probe_of_another_claim_the_address() {
        for arp in [
            Arp::announcement_reply(THEIRS, IP),
            Arp::announcement_request(THEIRS, IP),
            Arp::probe(THEIRS, IP),
        ] {
            assert_eq!(arp.claimed_by_another(OURS), Some(IP), "{arp:?}");
            assert_eq!(arp.claimed_by_another(THEIRS), None, "{arp:?}");
        }
    }

    #[test]
    fn only_the_witness_own_answer_to_us_is_one() {
        let witness = Ipv4Addr::new(10, 0, 0, 1);
        let answer = Arp {
            operation: Operation::Reply,
            sender_mac: THEIRS,
            sender_ip: witness,
            target_mac: OURS,
            target_ip: IP,
        };
        assert!(answer.answers(OURS, IP, witness));
        for other in [
            Arp { operation: Operation::Request, ..answer },
            Arp { sender_ip: Ipv4Addr::new(10, 0, 0, 9), ..answer },
            Arp { target_mac: THEIRS, ..answer },
            Arp { target_ip: Ipv4Addr::new(10, 0, 0, 12), ..answer },
            Arp::question(OURS, IP, witness),
        ] {
            assert!(!other.answers(OURS, IP, witness), "{other:?}");
        }
    }

    #[test]
    fn who_merely_asks_for_an_address_does_not_claim_it() {
        let asks = Arp { sender_ip: [10, 0, 0, 1].into(), ..Arp::announcement_request(THEIRS, IP) };
        assert_eq!(asks.claimed_by_another(OURS), Some(Ipv4Addr::new(10, 0, 0, 1)));
    }
}
