//! The kernel's connection tracking, read and written over netlink.
//!
//! Owns the words of ctnetlink (the parts that `netlink-packet-netfilter` leaves open are NAT and
//! ICMP's identifiers). Decides nothing. Concerns the network namespace of the thread that called
//! [`Conntrack::open`], IPv4, and the default zone: the zones of Open vSwitch are its own.
//!
//! Surprising: an entry that is made gets the reply's tuple as if there were no NAT, and the kernel
//! sets it up; one that has the translated tuple already would count as not translated.
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, anyhow};
use egress_common::wire::protocol;
use futures_util::StreamExt;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{
        ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Status,
        TCPFlags, Tuple,
    },
};
use nix::errno::Errno;
use rtnetlink::{
    packet_core::{
        DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
        NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    proto::{ConnectionHandle, new_connection},
    sys::{SocketAddr, protocols::NETLINK_NETFILTER},
};

/// Attributes of `enum ctattr_type`, `ctattr_nat`, `ctattr_protonat` and `ctattr_l4proto` in
/// `linux/netfilter/nfnetlink_conntrack.h`.
mod cta {
    pub const HELP: u16 = 5;
    pub const NAT_SRC: u16 = 6;
    pub const ZONE: u16 = 18;
    pub const NAT_V4_MINIP: u16 = 1;
    pub const NAT_V4_MAXIP: u16 = 2;
    pub const NAT_PROTO: u16 = 3;
    pub const PROTONAT_PORT_MIN: u16 = 1;
    pub const PROTONAT_PORT_MAX: u16 = 2;
    pub const ICMP_ID: u16 = 4;
    pub const ICMP_TYPE: u16 = 5;
    pub const ICMP_CODE: u16 = 6;
    /// `NLA_F_NESTED`.
    pub const NESTED: u16 = 1 << 15;
}

/// `IP_CT_TCP_FLAG_BE_LIBERAL`: segments out of the window are no reason to doubt, since who made
/// the entry has not seen the sequence numbers.
const BE_LIBERAL: u8 = 0x08;

/// States of TCP in connection tracking (`linux/netfilter/nf_conntrack_tcp.h`).
pub mod tcp_state {
    pub const SYN_SENT: u8 = 1;
    pub const SYN_RECV: u8 = 2;
    pub const ESTABLISHED: u8 = 3;
    pub const FIN_WAIT: u8 = 4;
    pub const CLOSE_WAIT: u8 = 5;
    pub const LAST_ACK: u8 = 6;
    pub const TIME_WAIT: u8 = 7;
    pub const CLOSE: u8 = 8;
    pub const SYN_SENT2: u8 = 9;
}

/// Both ends of one direction. An echo's identifier is the source's port; without ports they are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    pub protocol: u8,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
}

/// A connection that began with a packet in the original direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub original: Ends,
    /// Whom the answers come from: another than the destination of `original` after DNAT.
    pub remote: SocketAddrV4,
    /// Whom the answers go to: the source as the outside sees it.
    pub seen_as: SocketAddrV4,
    /// See [`tcp_state`]; 0 unless TCP.
    pub tcp_state: u8,
    pub seen_reply: bool,
    /// Seconds that it may still rest.
    pub timeout: u32,
    /// Somebody (FTP, SIP) reads along and expects more connections.
    pub helped: bool,
}

/// A connection to the kernel; a task of the current tokio runtime serves it.
pub struct Conntrack {
    handle: ConnectionHandle<NetfilterMessage>,
}

impl Conntrack {
    /// For the network namespace of this thread. Must be called inside a tokio runtime.
    pub fn open() -> Result<Self> {
        let (connection, handle, _) =
            new_connection(NETLINK_NETFILTER).context("open a netlink socket for conntrack")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All entries.
    pub async fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let answers = self.ask(NLM_F_DUMP, ConntrackMessage::Get(Vec::new()))?;
        let mut answers = std::pin::pin!(answers);
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(NetfilterMessage {
                    inner: NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)),
                    ..
                }) => entries.extend(read(&attributes)),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(error.to_io()).context("list the kernel's connections");
                }
                _ => {}
            }
        }
        Ok(entries)
    }

    /// Enters a connection with its source translated; `false`: one with its ends is there.
    pub async fn insert(&self, entry: &Entry) -> Result<bool> {
        let message = ConntrackMessage::New(attributes(entry));
        match self.order(NLM_F_CREATE | NLM_F_EXCL, message).await? {
            None => Ok(true),
            Some(Errno::EEXIST) => Ok(false),
            Some(errno) => Err(anyhow!(errno))
                .with_context(|| format!("enter {} into conntrack", entry.original)),
        }
    }

    /// Removes the connection that has these ends, in either direction; `false`: there was none.
    pub async fn remove(&self, ends: &Ends) -> Result<bool> {
        let ends_only = vec![ConntrackAttribute::CtaTupleOrig(tuple(ends))];
        match self.order(0, ConntrackMessage::Delete(ends_only)).await? {
            None => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(errno) => {
                Err(anyhow!(errno)).with_context(|| format!("remove {ends} from conntrack"))
            }
        }
    }

    fn ask(
        &self,
        flags: u16,
        message: ConntrackMessage,
    ) -> Result<impl futures_util::Stream<Item = NetlinkMessage<NetfilterMessage>> + use<>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let family = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        let message = NetfilterMessage::new(family, message);
        let message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        self.handle
            .clone()
            .request(message, SocketAddr::new(0, 0))
            .map_err(|error| anyhow!("ask the kernel for its connections: {error}"))
    }

    /// The kernel's refusal, if it refuses.
    async fn order(&self, flags: u16, message: ConntrackMessage) -> Result<Option<Errno>> {
        let answers = self.ask(NLM_F_ACK | flags, message)?;
        let mut answers = std::pin::pin!(answers);
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Ok(error.code.map(|code| Errno::from_raw(code.get().saturating_abs())));
            }
        }
        // A plain acknowledgement is the end of the answers.
        Ok(None)
    }
}

/// `None`: not IPv4, of another zone, or without what makes a connection.
fn read(attributes: &[ConntrackAttribute]) -> Option<Entry> {
    let (mut original, mut reply) = (None, None);
    let (mut tcp_state, mut seen_reply, mut timeout, mut helped) = (0, false, 0, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = ends(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = ends(tuple),
            ConntrackAttribute::CtaStatus(status) => {
                seen_reply = status.contains(Status::SeenReply)
            }
            ConntrackAttribute::CtaTimeout(seconds) => timeout = *seconds,
            ConntrackAttribute::CtaProtoInfo(infos) => tcp_state = state_of(infos),
            ConntrackAttribute::Other(other) => {
                use rtnetlink::packet_core::Nla;
                match other.kind() {
                    cta::ZONE => return None,
                    cta::HELP => helped = true,
                    _ => {}
                }
            }
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let is_icmp = original.protocol == protocol::ICMP;
    // An echo's identifier is the same on its way back, and stands with the source there too.
    let (remote, seen_as) = match is_icmp {
        true => (
            SocketAddrV4::new(*reply.source.ip(), 0),
            SocketAddrV4::new(*reply.destination.ip(), reply.source.port()),
        ),
        false => (reply.source, reply.destination),
    };
    Some(Entry { original, remote, seen_as, tcp_state, seen_reply, timeout, helped })
}

fn state_of(infos: &[ProtoInfo]) -> u8 {
    let tcp = infos.iter().find_map(|info| match info {
        ProtoInfo::TCP(attributes) => Some(attributes),
        _ => None,
    });
    let state = tcp.into_iter().flatten().find_map(|attribute| match attribute {
        ProtoInfoTCP::State(state) => Some(*state),
        _ => None,
    });
    state.unwrap_or(0)
}

fn ends(tuples: &[Tuple]) -> Option<Ends> {
    let (mut source, mut destination) = (None, None);
    let (mut protocol, mut ports, mut echo) = (None, (0, 0), None);
    for tuple in tuples {
        match tuple {
            Tuple::Ip(ips) => {
                for ip in ips {
                    match ip {
                        IPTuple::SourceAddress(IpAddr::V4(ip)) => source = Some(*ip),
                        IPTuple::DestinationAddress(IpAddr::V4(ip)) => destination = Some(*ip),
                        _ => {}
                    }
                }
            }
            Tuple::Proto(attributes) => {
                for attribute in attributes {
                    match attribute {
                        ProtoTuple::Protocol(number) => protocol = Some(u8::from(*number)),
                        ProtoTuple::SourcePort(port) => ports.0 = *port,
                        ProtoTuple::DestinationPort(port) => ports.1 = *port,
                        ProtoTuple::Other(other) => echo = echo.or(identifier(other)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let (source_port, port) = echo.map_or(ports, |id| (id, 0));
    Some(Ends {
        protocol: protocol?,
        source: SocketAddrV4::new(source?, source_port),
        destination: SocketAddrV4::new(destination?, port),
    })
}

fn identifier(attribute: &DefaultNla) -> Option<u16> {
    use rtnetlink::packet_core::Nla;
    if attribute.kind() != cta::ICMP_ID {
        return None;
    }
    let mut bytes = [0; 2];
    (attribute.value_len() == bytes.len()).then(|| attribute.emit_value(&mut bytes))?;
    Some(u16::from_be_bytes(bytes))
}

fn tuple(ends: &Ends) -> Vec<Tuple> {
    let ips = vec![
        IPTuple::SourceAddress(IpAddr::V4(*ends.source.ip())),
        IPTuple::DestinationAddress(IpAddr::V4(*ends.destination.ip())),
    ];
    let mut proto = vec![ProtoTuple::Protocol(ends.protocol.into())];
    if ends.protocol == protocol::ICMP {
        // An answer's tuple has the identifier as its destination's port.
        let reply = ends.source.port() == 0 && ends.destination.port() != 0;
        let (id, kind) = match reply {
            true => (ends.destination.port(), 0),
            false => (ends.source.port(), 8),
        };
        proto.extend([
            ProtoTuple::Other(DefaultNla::new(cta::ICMP_ID, id.to_be_bytes().to_vec())),
            ProtoTuple::Other(DefaultNla::new(cta::ICMP_TYPE, vec![kind])),
            ProtoTuple::Other(DefaultNla::new(cta::ICMP_CODE, vec![0])),
        ]);
    } else {
        proto.extend([
            ProtoTuple::SourcePort(ends.source.port()),
            ProtoTuple::DestinationPort(ends.destination.port()),
        ]);
    }
    vec![Tuple::Ip(ips), Tuple::Proto(proto)]
}

fn attributes(entry: &Entry) -> Vec<ConntrackAttribute> {
    let mut status = Status::Confirmed;
    if entry.seen_reply {
        status |= Status::SeenReply | Status::Assured;
    }
    let mut attributes = vec![
        ConntrackAttribute::CtaTupleOrig(tuple(&entry.original)),
        ConntrackAttribute::CtaTupleReply(tuple(&entry.original.reversed())),
        ConntrackAttribute::CtaTimeout(entry.timeout),
        ConntrackAttribute::CtaStatus(status),
        ConntrackAttribute::Other(source_nat(entry)),
    ];
    if entry.original.protocol == protocol::TCP {
        let liberal = || TCPFlags::parse(&[BE_LIBERAL, BE_LIBERAL]);
        let mut tcp = vec![ProtoInfoTCP::State(entry.tcp_state)];
        tcp.extend(liberal().map(ProtoInfoTCP::OriginalFlags));
        tcp.extend(liberal().map(ProtoInfoTCP::ReplyFlags));
        attributes.push(ConntrackAttribute::CtaProtoInfo(vec![ProtoInfo::TCP(tcp)]));
    }
    attributes
}

fn source_nat(entry: &Entry) -> DefaultNla {
    let ip = entry.seen_as.ip().octets().to_vec();
    let mut nat = vec![
        DefaultNla::new(cta::NAT_V4_MINIP, ip.clone()),
        DefaultNla::new(cta::NAT_V4_MAXIP, ip),
    ];
    if entry.seen_as.port() != 0 {
        let port = entry.seen_as.port().to_be_bytes().to_vec();
        let ports = [
            DefaultNla::new(cta::PROTONAT_PORT_MIN, port.clone()),
            DefaultNla::new(cta::PROTONAT_PORT_MAX, port),
        ];
        nat.push(DefaultNla::new(cta::NAT_PROTO | cta::NESTED, bytes(&ports)));
    }
    DefaultNla::new(cta::NAT_SRC | cta::NESTED, bytes(&nat))
}

fn bytes(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

impl Ends {
    /// Those of the answers, where nothing is translated.
    pub fn reversed(&self) -> Self {
        Self { protocol: self.protocol, source: self.destination, destination: self.source }
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "protocol {} from {} to {}", self.protocol, self.source, self.destination)
    }
}

/// Both ends of a connection in the original direction.
pub fn ends_of(protocol: u8, source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> Ends {
    Ends {
        protocol,
        source: SocketAddrV4::new(source.0, source.1),
        destination: SocketAddrV4::new(destination.0, destination.1),
    }
}
