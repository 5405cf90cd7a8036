//! What an outside host saw of a pod: one row for each pod and protocol.
//!
//! The address is the peer of the connection or datagram as the server saw it; where no answer was
//! possible, that of the first packet that arrived.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::Result;
use serde::{Serialize, Serializer};

use crate::{
    netns::Netns,
    traffic::{Capture, Packet, TcpServer, UdpServer, ping, tcp_exchange, udp_exchange},
};

/// Bytes of an exchange, each way.
const BYTES: u32 = 100_000;
/// Bytes of a datagram.
const DATAGRAM: usize = 1000;

/// What pods talk with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// A connection with an exchange in both directions.
    Tcp,
    /// A datagram and its answer.
    Udp,
    /// An echo request and its reply.
    Ping,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Ping];
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Ping => "ping",
        })
    }
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What was seen of one exchange.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The pod's name.
    pub pod: String,
    /// Its namespace, the tenant.
    pub namespace: String,
    /// The tenant's VNID.
    pub vnid: u32,
    /// The tenant's mark.
    #[serde(skip)]
    pub mark: String,
    /// How it talked.
    pub protocol: Protocol,
    /// The egress IP of its namespace; without one, the address of its node.
    pub expected: Ipv4Addr,
    /// The source address at the outside host; `None`: nothing arrived.
    pub seen: Option<Ipv4Addr>,
    /// The address was the expected one, and all bytes came back.
    pub ok: bool,
    /// Why the exchange failed, if it did.
    #[serde(skip)]
    pub failure: Option<String>,
}

/// A pod that talks, and what is expected of it.
#[derive(Debug)]
pub struct Talker<'a> {
    pub pod: &'a str,
    pub namespace: &'a str,
    pub vnid: u32,
    /// Its tenant's mark.
    pub mark: u32,
    /// The egress IP of its namespace; without one, the address of its node.
    pub expected: Ipv4Addr,
    /// The name of its network namespace.
    pub netns: &'a str,
}

/// An outside host with servers and a capture.
#[derive(Debug)]
pub struct Witness {
    host: Ipv4Addr,
    tcp: TcpServer,
    udp: UdpServer,
    capture: Capture,
    next: u64,
}

impl Witness {
    /// Starts the servers of a host: its network namespace by name, its address on `eth0`.
    pub fn start(netns: &str, host: Ipv4Addr) -> Result<Self> {
        let netns = Netns::open(netns)?;
        Ok(Self {
            host,
            tcp: TcpServer::start(&netns, SocketAddrV4::new(host, 8000))?,
            udp: UdpServer::start(&netns, SocketAddrV4::new(host, 8000))?,
            capture: Capture::start(&netns, "eth0")?,
            next: 1,
        })
    }

    /// Lets a pod talk to the host, and looks.
    pub fn observe(&mut self, pod: &Talker<'_>, protocol: Protocol) -> Result<Row> {
        let id = self.next;
        self.next += 1;
        let before = self.capture.packets().len();
        let host = self.host;
        let exchange = Netns::open(pod.netns)?.run(|| match protocol {
            Protocol::Tcp => tcp_exchange(self.tcp.address(), id, BYTES.into()),
            Protocol::Udp => udp_exchange(self.udp.address(), id, DATAGRAM),
            Protocol::Ping => ping(host, id),
        })?;
        let peer = match protocol {
            Protocol::Tcp => self.tcp.peer(id),
            Protocol::Udp => self.udp.peer(id),
            Protocol::Ping => None,
        };
        let seen = peer.map(|peer| *peer.ip()).or_else(|| self.first_packet(before, protocol, id));
        let Talker { pod, namespace, vnid, mark, expected, .. } = *pod;
        Ok(Row {
            pod: pod.to_owned(),
            namespace: namespace.to_owned(),
            vnid,
            mark: format!("{mark:#010x}"),
            protocol,
            expected,
            seen,
            ok: exchange.is_ok() && seen == Some(expected),
            failure: exchange.err().map(|error| format!("{error:#}")),
        })
    }

    /// Lets every pod talk in every way, one after the other.
    pub fn observe_all(&mut self, pods: &[Talker<'_>]) -> Result<Vec<Row>> {
        let exchanges = pods.iter().flat_map(|pod| Protocol::ALL.map(|protocol| (pod, protocol)));
        exchanges.map(|(pod, protocol)| self.observe(pod, protocol)).collect()
    }

    /// The source of the first packet of an exchange, of those after the first `before`.
    fn first_packet(&self, before: usize, protocol: Protocol, id: u64) -> Option<Ipv4Addr> {
        let echo = |packet: &Packet| packet.payload.get(8..16) == Some(&id.to_be_bytes()[..]);
        let mine = |packet: &Packet| match protocol {
            Protocol::Tcp => packet.protocol == 6,
            Protocol::Udp => packet.protocol == 17 && echo(packet),
            Protocol::Ping => packet.protocol == 1 && echo(packet),
        };
        // One that was answered is there already; the capture is a moment behind at most.
        self.capture.find(before, Duration::from_millis(500), mine).map(|packet| packet.source)
    }
}
