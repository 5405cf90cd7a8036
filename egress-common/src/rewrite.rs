//! A rewrite: the bytes of a packet that change, as a value.
use crate::{
    checksum::{Sum, delta, update},
    reason::Reason,
    wire::{Ipv4, Kind, Transport, bytes, protocol},
};

/// Bytes 8 to 19 of an IPv4 header, in words as they lie in memory: TTL, protocol and checksum;
/// source; destination. As single bytes they would be put together anew where they are written.
pub type IpWords = [u32; 3];

/// The bytes that change. Applied with the kernel's checksum helpers on tc, by stores on XDP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rewrite {
    pub ip: IpWords,
    pub edit: Edit,
}

/// What changes behind the IPv4 header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    Ports(PortEdit),
    Error(ErrorEdit),
}

impl Default for Edit {
    fn default() -> Self {
        Self::Ports(PortEdit::default())
    }
}

/// A port or identifier, and the checksum over it. The default changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortEdit {
    /// Of the port; from the outer IPv4 header, as all offsets. 0: no port changes.
    pub offset: usize,
    pub port: [u8; 2],
    /// 0: no checksum changes.
    pub checksum_offset: usize,
    /// What the changed address adds to the checksum; 0 where no pseudo header is summed.
    pub address_delta: Sum,
    pub port_delta: Sum,
    /// UDP: a checksum of zero means none and stays.
    pub zero_is_none: bool,
}

/// The packet inside an ICMP error, and the ICMP checksum over all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorEdit {
    pub ip_offset: usize,
    /// As [`Rewrite::ip`], of the inner header.
    pub ip: IpWords,
    /// 0: the quoted packet has no port.
    pub port_offset: usize,
    pub port: [u8; 2],
    /// Of the inner checksum; 0: there is none, or the error does not quote that much.
    pub checksum_offset: usize,
    pub checksum: [u8; 2],
    pub icmp_checksum_offset: usize,
    pub icmp_checksum: [u8; 2],
}

/// Where a rewrite's bytes go. Offsets are from the outer IPv4 header.
pub trait Writer {
    /// # Errors
    /// The packet is shorter, or may not be written to.
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Result<(), Reason>;
}

impl ErrorEdit {
    /// ICMP has no pseudo header, and its checksum is never left to a device: plain stores do.
    ///
    /// # Errors
    /// As [`Writer::write`].
    #[inline(always)]
    pub fn apply<W: Writer>(&self, packet: &mut W) -> Result<(), Reason> {
        packet.write(self.ip_offset + 8, bytes(self.ip))?;
        if self.port_offset != 0 {
            packet.write(self.port_offset, self.port)?;
        }
        if self.checksum_offset != 0 {
            packet.write(self.checksum_offset, self.checksum)?;
        }
        packet.write(self.icmp_checksum_offset, self.icmp_checksum)
    }
}

/// Which end of a packet is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Source,
    Destination,
}

/// How a hook sends what it translates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hop {
    /// The program forwards it and so takes one off the TTL.
    #[default]
    Program,
    /// So does this one, before there is a neighbour table to ask: what is due for that, and what
    /// it cannot send, it leaves as if unseen to a hook behind it ([`crate::nat::By::Neighbour`]).
    Early,
    /// The stack has forwarded it.
    Stack,
}

/// An IPv4 header with one address replaced, the TTL taken down by `hop`, and the checksum to match.
#[inline(always)]
pub fn ip_words(ip: &Ipv4, side: Side, address: [u8; 4], hop: Hop) -> IpWords {
    let (old, source, destination) = match side {
        Side::Source => (ip.source, address, ip.destination),
        Side::Destination => (ip.destination, ip.source, address),
    };
    let ttl = match hop {
        Hop::Program | Hop::Early => ip.ttl.wrapping_sub(1),
        Hop::Stack => ip.ttl,
    };
    let changed = delta(&old, &address) + delta(&[ip.ttl, ip.protocol], &[ttl, ip.protocol]);
    let [c0, c1] = update(ip.checksum, changed);
    [[ttl, ip.protocol, c0, c1], source, destination].map(u32::from_ne_bytes)
}

/// The rewrite of a packet that names a flow by itself: one end becomes `address` and, where the
/// protocol has ports for us, `port`.
#[inline(always)]
pub fn rewrite(
    ip: &Ipv4,
    transport: &Transport,
    side: Side,
    (address, port): ([u8; 4], [u8; 2]),
    hop: Hop,
) -> Rewrite {
    let at = ip.header_len();
    let (old_address, old_port, port_offset) = match side {
        Side::Source => (ip.source, transport.ports.source, at),
        Side::Destination => (ip.destination, transport.ports.destination, at + 2),
    };
    let (offset, checksum_offset, covers_addresses) = match transport.kind {
        Kind::Tcp => (port_offset, at + 16, true),
        Kind::Udp => (port_offset, at + 6, true),
        Kind::EchoRequest | Kind::EchoReply => (at + 4, at + 2, false),
        Kind::Summed => (0, at + 6, true),
        _ => (0, 0, false),
    };
    let edit = PortEdit {
        offset,
        port,
        checksum_offset,
        address_delta: if covers_addresses { delta(&old_address, &address) } else { 0 },
        port_delta: if offset != 0 { delta(&old_port, &port) } else { 0 },
        zero_is_none: ip.protocol == protocol::UDP || ip.protocol == protocol::UDP_LITE,
    };
    Rewrite { ip: ip_words(ip, side, address, hop), edit: Edit::Ports(edit) }
}
