//! Whole packets, built with checksums computed over all of them: what the engine's incremental
//! arithmetic is compared with.
use crate::wire::protocol;

/// An address and a port.
pub type End = ([u8; 4], u16);

/// An IPv4 packet. `bytes` puts length and checksum of the header in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub tos: u8,
    pub id: u16,
    /// Flags and offset, as on the wire.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub source: [u8; 4],
    pub destination: [u8; 4],
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

/// "Don't fragment" in [`Datagram::fragment`].
pub const DONT_FRAGMENT: u16 = 0x4000;
/// "More fragments" in [`Datagram::fragment`].
pub const MORE_FRAGMENTS: u16 = 0x2000;

impl Datagram {
    pub fn new(of_protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Self {
        Self {
            tos: 0,
            id: 0x1234,
            fragment: 0,
            ttl: 64,
            protocol: of_protocol,
            source,
            destination,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    pub fn ttl(mut self, ttl: u8) -> Self {
        self.ttl = ttl;
        self
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub fn fragment(mut self, fragment: u16) -> Self {
        self.fragment = fragment;
        self
    }

    pub fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    /// The payload cut into fragments whose payloads are `size` bytes long, a multiple of eight.
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        let count = self.payload.chunks(size).count();
        let cut = |(index, piece): (usize, &[u8])| {
            let more = if index + 1 < count { MORE_FRAGMENTS } else { 0 };
            let fragment = (index * size / 8) as u16 | more;
            Self { fragment, payload: piece.to_vec(), ..self.clone() }
        };
        self.payload.chunks(size).enumerate().map(cut).collect()
    }

    pub fn header(&self) -> Vec<u8> {
        let length = (20 + self.options.len() + self.payload.len()) as u16;
        let mut header = vec![0x40 | (5 + self.options.len() as u8 / 4), self.tos];
        header.extend(length.to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, self.protocol, 0, 0]);
        header.extend(self.source);
        header.extend(self.destination);
        header.extend(&self.options);
        let checksum = checksum(&header);
        header[10..12].copy_from_slice(&checksum);
        header
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        bytes.extend(&self.payload);
        bytes
    }
}

/// The Internet checksum of these bytes, their own field being zero.
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// What a transport's checksum covers besides its own bytes.
pub fn pseudo_header(
    source: [u8; 4],
    destination: [u8; 4],
    of_protocol: u8,
    length: usize,
) -> Vec<u8> {
    let mut bytes = [source, destination].concat();
    bytes.extend([0, of_protocol]);
    bytes.extend((length as u16).to_be_bytes());
    bytes
}

fn transport(of_protocol: u8, from: End, to: End, mut body: Vec<u8>, field: usize) -> Datagram {
    let mut covered = pseudo_header(from.0, to.0, of_protocol, body.len());
    covered.extend(&body);
    let mut sum = checksum(&covered);
    if of_protocol != protocol::TCP && sum == [0, 0] {
        sum = [0xff, 0xff];
    }
    body[field..field + 2].copy_from_slice(&sum);
    Datagram::new(of_protocol, from.0, to.0, &body)
}

/// A TCP segment's own fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct Segment<'a> {
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgement: u32,
    pub window: u16,
    pub data: &'a [u8],
}

/// A segment without options.
pub fn segment(from: End, to: End, segment: Segment) -> Datagram {
    let mut body = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    body.extend(segment.sequence.to_be_bytes());
    body.extend(segment.acknowledgement.to_be_bytes());
    body.extend([5 << 4, segment.flags]);
    body.extend(segment.window.to_be_bytes());
    body.extend([0; 4]);
    body.extend(segment.data);
    transport(protocol::TCP, from, to, body, 16)
}

/// A segment that is nothing but its flags.
pub fn tcp(from: End, to: End, flags: u8) -> Datagram {
    let numbers = Segment { sequence: 0x0102_0304, acknowledgement: 0x0a0b_0c0d, ..zero() };
    segment(from, to, Segment { flags, window: 8192, ..numbers })
}

fn zero() -> Segment<'static> {
    Segment::default()
}

pub fn udp(from: End, to: End, data: &[u8]) -> Datagram {
    udp_like(protocol::UDP, (8 + data.len()) as u16, from, to, data)
}

/// UDP's own header with other meanings of the third field.
pub fn udp_like(of_protocol: u8, third: u16, from: End, to: End, data: &[u8]) -> Datagram {
    let mut body = [from.1.to_be_bytes(), to.1.to_be_bytes(), third.to_be_bytes()].concat();
    body.extend([0, 0]);
    body.extend(data);
    transport(of_protocol, from, to, body, 6)
}

/// The same without a checksum.
pub fn udp_unchecked(from: End, to: End, data: &[u8]) -> Datagram {
    let mut datagram = udp(from, to, data);
    datagram.payload[6..8].fill(0);
    datagram
}

/// An ICMP message: `rest` is the header's second word, `data` what follows.
pub fn icmp(
    (kind, code): (u8, u8),
    from: [u8; 4],
    to: [u8; 4],
    rest: [u8; 4],
    data: &[u8],
) -> Datagram {
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest);
    body.extend(data);
    let sum = checksum(&body);
    body[2..4].copy_from_slice(&sum);
    Datagram::new(protocol::ICMP, from, to, &body)
}

/// An echo request (`kind` 8) or its answer (0).
pub fn echo(kind: u8, from: [u8; 4], to: [u8; 4], id: u16) -> Datagram {
    let [a, b] = id.to_be_bytes();
    icmp((kind, 0), from, to, [a, b, 0, 1], b"are you there?")
}
