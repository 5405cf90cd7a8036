//! Reading IPv4, TCP, UDP and ICMP headers (RFC 791, 9293, 768, 792), without writing.
//!
//! Offsets are from the first byte of the outer IPv4 header.

/// IP protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
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

    /// Bytes from the IPv4 header to the end; padding of the link layer may be among them.
    fn length(&self) -> u64;
}

/// What the engine needs of an IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4 {
    /// Bytes of the header, 20 to 60.
    pub header_len: usize,
    pub total_len: u16,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// In units of 8 bytes.
    pub fragment_offset: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub source: [u8; 4],
    pub destination: [u8; 4],
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
            header_len,
            total_len,
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

    /// Bytes behind the header.
    #[inline(always)]
    pub fn payload_len(&self) -> usize {
        usize::from(self.total_len).wrapping_sub(self.header_len)
    }

    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }
}

/// The part of a transport header that names a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The identifier for an ICMP echo.
    pub source: [u8; 2],
    /// The identifier for an ICMP echo, too.
    pub destination: [u8; 2],
}

/// The first bytes behind an IPv4 header, by what they mean to a translator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        ports: Ports,
        flags: u8,
    },
    Udp {
        ports: Ports,
    },
    Echo {
        id: [u8; 2],
        request: bool,
    },
    /// An ICMP error: it speaks of the packet that begins 8 bytes behind it.
    Error {
        kind: u8,
    },
    /// Other ICMP messages: none of them crosses a translator (RFC 5508, section 7).
    OtherIcmp,
    Other,
}

impl Transport {
    /// What is behind the outer IPv4 header; `None`: cut short, or of a length that cannot be.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, ip: &Ipv4) -> Option<Self> {
        let (offset, room) = (ip.header_len, ip.payload_len());
        if u64::from(ip.total_len) > packet.length() {
            return None;
        }
        Some(match ip.protocol {
            protocol::TCP => {
                let header: [u8; 20] = packet.read(offset)?;
                let header_len = usize::from(header[12] >> 4) * 4;
                if header_len < 20 || header_len > room {
                    return None;
                }
                let ports =
                    Ports { source: [header[0], header[1]], destination: [header[2], header[3]] };
                Self::Tcp { ports, flags: header[13] }
            }
            protocol::UDP => {
                let header: [u8; 8] = packet.read(offset)?;
                if room < 8 {
                    return None;
                }
                let ports =
                    Ports { source: [header[0], header[1]], destination: [header[2], header[3]] };
                Self::Udp { ports }
            }
            protocol::ICMP => {
                let header: [u8; 8] = packet.read(offset)?;
                if room < 8 {
                    return None;
                }
                match header[0] {
                    kind @ (icmp::ECHO_REPLY | icmp::ECHO_REQUEST) => Self::Echo {
                        id: [header[4], header[5]],
                        request: kind == icmp::ECHO_REQUEST,
                    },
                    kind @ (icmp::UNREACHABLE
                    | icmp::SOURCE_QUENCH
                    | icmp::TIME_EXCEEDED
                    | icmp::PARAMETER_PROBLEM) => Self::Error { kind },
                    _ => Self::OtherIcmp,
                }
            }
            _ => Self::Other,
        })
    }
}
