//! The same random packets through our gateway and through the kernel's own NAT, packet by packet.
//!
//! ```text
//!               +--> VXLAN -> ens18 [egress run]         -> ens18 ->+
//!   one trace --+                                                   +-- the same? why not?
//!               +--> tun0 -> [iptables -m mark -j SNAT]  -> ens18 ->+
//! ```
//!
//! A trace is made of sessions, each with a remote port or address of its own, so that a session
//! behaves alike alone and among others. It is written as if every flow kept its pod's port; a rig
//! that has given a flow another one gets its replies with that port, and what comes out is written
//! back ([`ports`]). What may differ is a list of named classes ([`differences`]), each with the
//! steps it may appear on and what both sides must have done; anything else is a failure.
//!
//! Not compared: the time (nothing expires in so few seconds), the identification, hop limit and
//! type of service of answers that a gateway makes itself, and how much they quote beyond 8 bytes.

pub mod differences;
mod kernel;
mod ours;
pub mod play;
mod ports;
mod reassembly;
mod seen;
mod sessions;
pub mod trace;
mod translated;

use egress_common::{testing::packet::End, wire::protocol};

/// A pod of the trace, behind the source node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pod {
    pub address: [u8; 4],
    pub vnid: u32,
    pub egress_ip: [u8; 4],
}

const fn pod(address: [u8; 4], vnid: u32, egress_ip: [u8; 4]) -> Pod {
    Pod { address, vnid, egress_ip }
}

/// Of three tenants of the examples' objects; the first tenant's last one sends the markers.
pub const PODS: [Pod; 7] = [
    pod([10, 128, 0, 11], 7_305_526, [10, 0, 0, 11]),
    pod([10, 128, 0, 12], 7_305_526, [10, 0, 0, 11]),
    pod([10, 128, 0, 21], 14_640_467, [10, 0, 0, 13]),
    pod([10, 128, 0, 22], 14_640_467, [10, 0, 0, 13]),
    pod([10, 128, 0, 31], 3_064_846, [10, 0, 0, 12]),
    pod([10, 128, 0, 32], 3_064_846, [10, 0, 0, 12]),
    pod([10, 128, 0, 99], 7_305_526, [10, 0, 0, 11]),
];
/// The pod of [`PODS`] that only marks the ends of steps.
pub const MARKER: usize = PODS.len() - 1;

/// The nodes' addresses.
pub const NODE: [u8; 4] = [10, 0, 0, 2];
pub const SOURCE_NODE: [u8; 4] = [10, 0, 0, 3];

/// Where a packet is put in or comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Pod,
    Outside,
}

/// A flow, named as its pod sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Flow {
    /// Into [`PODS`].
    pub pod: usize,
    /// Echo identifiers are ports; 0 where the protocol has none for us.
    pub port: u16,
    pub remote: [u8; 4],
    pub remote_port: u16,
    pub protocol: u8,
}

impl Flow {
    /// The pod's end.
    #[must_use]
    pub fn client(&self) -> End {
        (PODS[self.pod].address, self.port)
    }

    /// The same end as the outside sees it, if the port is kept.
    #[must_use]
    pub fn mapped(&self) -> End {
        (PODS[self.pod].egress_ip, self.port)
    }

    /// The remote end.
    #[must_use]
    pub fn server(&self) -> End {
        (self.remote, self.remote_port)
    }

    /// Whether it has a port to be exchanged.
    #[must_use]
    pub fn has_port(&self) -> bool {
        protocol::has_ports(self.protocol)
    }
}

/// What is peculiar about a step: the classes of differences are bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum What {
    /// Nothing.
    Plain,
    /// A segment beyond the window.
    OutOfWindow,
    /// Flags that no stack sends.
    OddFlags,
    /// A segment after a reset.
    AfterReset,
    /// The pod's, in the middle of a stream that nobody has seen begin.
    PickedUp,
    /// The same, with a port that our gateway may have to exchange.
    PickedUpElsewhere,
    /// A simultaneous opening.
    Simultaneous,
    /// A wrong checksum behind the IPv4 header.
    BadChecksum,
    /// An ICMP error about a packet of a flow.
    Error,
    /// The same, from a pod of another tenant.
    ErrorOfAnother,
    /// An ICMP error about no flow.
    ErrorAboutNone,
    /// A message of ICMP that is neither an echo nor an error.
    OtherIcmp,
    /// From outside, towards an egress IP, of no flow.
    StrayFromOutside,
    /// A pod's segment or answer of no flow.
    StrayFromPod,
    /// The hop limit ends here.
    LastHop,
    /// All fragments of a packet, the first one first.
    Fragments,
    /// All fragments, another one first.
    FragmentsShuffled,
    /// One fragment is missing.
    FragmentsMissing,
    /// A fragment is there twice.
    FragmentsTwice,
    /// Fragments that overlap.
    FragmentsOverlap,
    /// A protocol of which only the address is translated.
    AddressOnly,
    /// The same, of a second pod with the same remote.
    ProtocolTaken,
    /// DCCP or UDP-Lite, whose checksum covers the addresses.
    Summed,
    /// A port below 1024.
    LowPort,
    /// An IPv4 header that no router takes.
    BadHeader,
    /// A transport header that cannot be.
    BadTransport,
    /// A source that is no pod's.
    ForeignSource,
}

/// Packets that are sent in a row, from one side.
#[derive(Debug, Clone)]
pub struct Step {
    pub session: u32,
    pub flow: Flow,
    pub from: Side,
    /// Whose packets these are, if a pod's: into [`PODS`].
    pub pod: usize,
    pub what: What,
    /// From their IPv4 header on, with ports as if they were kept.
    pub packets: Vec<Vec<u8>>,
}
