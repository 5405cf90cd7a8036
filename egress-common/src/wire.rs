//! Reading IPv4, TCP, UDP and ICMP headers (RFC 791, 9293, 768, 792), without writing.
//!
//! Offsets are from the first byte of the outer IPv4 header.

use crate::checksum::{fold, sum};

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const UDP_LITE: u8 = 136;

    /// Whether a flow of this protocol has a port or identifier to translate; of all others only
    /// the address is.
    #[inline(always)]
    pub fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | ICMP)
    }
}

/// Three words as they stand in a packet.
#[inline(always)]
pub fn bytes(words: [u32; 3]) -> [u8; 12] {
    let [a, b, c] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3]]
}

/// TCP flag bits.
pub mod tcp {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// ICMP types.
pub mod icmp {
    pub const ECHO_REPLY: u8 = 0;
    pub const UNREACHABLE: u8 = 3;
    pub const SOURCE_QUENCH: u8 = 4;
    pub const ECHO_REQUEST: u8 = 8;
    pub const TIME_EXCEEDED: u8 = 11;
    pub const PARAMETER_PROBLEM: u8 = 12;
}

/// A packet as the engine sees it: bytes that may not be there.
pub trait Packet {
    /// `N` bytes at `offset`; `None` where the packet is shorter.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Of a packet that stands for several: the transport's payload in each of them. Else 0.
    fn segment(&self) -> u32 {
        0
    }

    /// Bytes from the IPv4 header to the end; padding of the link layer may be among them.
    fn length(&self) -> u64;
}

/// What the engine needs of an IPv4 header. The addresses lie where a word can be read at once.
#[repr(C, align(4))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ipv4 {
    pub source: [u8; 4],
    pub destination: [u8; 4],
    pub total_len: u16,
    pub id: [u8; 2],
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub checksum: [u8; 2],
    /// The header's first byte: version and length.
    pub first: u8,
    pub ttl: u8,
    pub protocol: u8,
    pub dont_fragment: bool,
    pub more_fragments: bool,
}

impl Ipv4 {
    pub const MIN_LEN: usize = 20;

    /// The header at `offset`; `None`: cut short, not version 4, or lengths that contradict.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, offset: usize) -> Option<Self> {
        let header: [u8; Self::MIN_LEN] = packet.read(offset)?;
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let total_len = u16::from_be_bytes([header[2], header[3]]);
        if header[0] >> 4 != 4 || header_len < Self::MIN_LEN || usize::from(total_len) < header_len
        {
            return None;
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        Some(Self {
            first: header[0],
            total_len,
            id: [header[4], header[5]],
            dont_fragment: fragment & 0x4000 != 0,
            more_fragments: fragment & 0x2000 != 0,
            fragment_offset: fragment & 0x1fff,
            ttl: header[8],
            protocol: header[9],
            checksum: [header[10], header[11]],
            source: [header[12], header[13], header[14], header[15]],
            destination: [header[16], header[17], header[18], header[19]],
        })
    }

    /// Bytes of the header, 20 to 60. From its own byte, so that the compiler and the verifier see
    /// the bound wherever it is asked for.
    #[inline(always)]
    pub fn header_len(&self) -> usize {
        usize::from(self.first & 0x0f) * 4
    }

    /// Whether the checksum of this header, the outer one, is right: a router must look (RFC 1812,
    /// section 5.2.2), and what is corrected by difference would stay wrong.
    #[inline(always)]
    pub fn is_intact<P: Packet>(&self, packet: &P) -> bool {
        let Some(header) = packet.read::<{ Self::MIN_LEN }>(0) else { return false };
        let mut total = sum(&header);
        for word in 5..15 {
            // The black box keeps the compiler from counting the words that there are by a
            // difference of packet pointers, of which the verifier learns nothing.
            let at = core::hint::black_box(word * 4);
            if at >= self.header_len() {
                break;
            }
            let Some(option) = packet.read::<4>(at) else { return false };
            total += sum(&option);
        }
        fold(total) == 0xffff
    }

    /// Bytes behind the header.
    #[inline(always)]
    pub fn payload_len(&self) -> usize {
        usize::from(self.total_len).wrapping_sub(self.header_len())
    }

    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Whether the lengths of a fragment can be: whole units of eight bytes but in the last, an end
    /// below 64 KiB, and no TCP header but in the first (RFC 1858, RFC 3128: an overlapping one
    /// would have its flags replaced behind our back).
    #[inline(always)]
    pub fn is_sane_fragment(&self) -> bool {
        let (at, length) = (usize::from(self.fragment_offset) * 8, self.payload_len());
        let whole = !self.more_fragments || length % 8 == 0;
        let behind_tcp = self.protocol != protocol::TCP || at == 0 || at >= 24;
        whole && behind_tcp && length != 0 && at + length + self.header_len() <= 0xffff
    }
}

/// The part of a transport header that names a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ports {
    pub source: [u8; 2],
    pub destination: [u8; 2],
}

/// What is behind an IPv4 header, by what it means to a translator.
#[repr(u32)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Cut short, or of a length that cannot be.
    #[default]
    Malformed = 0,
    /// The fragment is not the first: there is no header.
    Later = 1,
    Tcp = 2,
    Udp = 3,
    EchoRequest = 4,
    EchoReply = 5,
    /// An ICMP error: it speaks of the packet that begins 8 bytes behind it.
    Error = 6,
    /// Other ICMP messages: none of them crosses a translator (RFC 5508, section 7).
    OtherIcmp = 7,
    /// No ports for us, but a checksum that covers the addresses: UDP-Lite, DCCP.
    Summed = 8,
    Other = 9,
}

/// The part of a transport's header that concerns a translator. Flat, since the verifier does not
/// follow the compiler through half-filled variants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transport {
    pub kind: Kind,
    /// What names the flow; zero where the protocol has none for us. An echo request's identifier
    /// is its source, an answer's its destination.
    pub ports: Ports,
    /// TCP's; else 0.
    pub flags: u8,
    /// Bytes of a TCP header; else 8, the length of most others.
    pub header_len: u8,
}

impl Transport {
    /// What is behind the outer IPv4 header.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, ip: &Ipv4) -> Self {
        if u64::from(ip.total_len) > packet.length() {
            return Self::default();
        }
        if ip.fragment_offset != 0 {
            return Self { kind: Kind::Later, ..Self::default() };
        }
        let read = match ip.protocol {
            protocol::TCP => Self::read_tcp(packet, ip),
            protocol::UDP => Self::read_udp(packet, ip),
            protocol::ICMP => Self::read_icmp(packet, ip),
            protocol::DCCP | protocol::UDP_LITE => {
                Self::read_udp(packet, ip).map(|_| Self { kind: Kind::Summed, ..Self::default() })
            }
            _ => Some(Self { kind: Kind::Other, ..Self::default() }),
        };
        read.unwrap_or_default()
    }

    #[inline(always)]
    fn read_tcp<P: Packet>(packet: &P, ip: &Ipv4) -> Option<Self> {
        let header: [u8; 20] = packet.read(ip.header_len())?;
        let header_len = usize::from(header[12] >> 4) * 4;
        if header_len < 20 || header_len > ip.payload_len() {
            return None;
        }
        let ports = Ports { source: [header[0], header[1]], destination: [header[2], header[3]] };
        Some(Self { kind: Kind::Tcp, ports, flags: header[13], header_len: header_len as u8 })
    }

    #[inline(always)]
    fn read_udp<P: Packet>(packet: &P, ip: &Ipv4) -> Option<Self> {
        let header: [u8; 8] = packet.read(ip.header_len())?;
        if ip.payload_len() < 8 {
            return None;
        }
        let ports = Ports { source: [header[0], header[1]], destination: [header[2], header[3]] };
        Some(Self { kind: Kind::Udp, ports, flags: 0, header_len: 8 })
    }

    #[inline(always)]
    fn read_icmp<P: Packet>(packet: &P, ip: &Ipv4) -> Option<Self> {
        let header: [u8; 8] = packet.read(ip.header_len())?;
        if ip.payload_len() < 8 {
            return None;
        }
        let id = [header[4], header[5]];
        let (kind, ports) = match header[0] {
            icmp::ECHO_REQUEST => (Kind::EchoRequest, Ports { source: id, destination: [0, 0] }),
            icmp::ECHO_REPLY => (Kind::EchoReply, Ports { source: [0, 0], destination: id }),
            icmp::UNREACHABLE
            | icmp::SOURCE_QUENCH
            | icmp::TIME_EXCEEDED
            | icmp::PARAMETER_PROBLEM => (Kind::Error, Ports::default()),
            _ => (Kind::OtherIcmp, Ports::default()),
        };
        Some(Self { kind, ports, flags: 0, header_len: 8 })
    }
}
