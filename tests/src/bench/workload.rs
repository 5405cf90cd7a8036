//! What is sent: entry, direction, flows, VNIDs, frame sizes.
//!
//! A workload says nothing of how it is carried; a variant says which workloads it can carry.
use egress_common::bench::{PLAIN_HEADERS, VXLAN_HEADERS};
use serde::{Deserialize, Serialize};

use super::rig::{HOSTED, Setting};

/// How a pod's packets reach the egress node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Entry {
    /// As VXLAN frames at the uplink, from a pod on another node.
    Tunnel,
    /// As plain frames at the gateway device, from a pod of this node.
    Gateway,
}

/// Whose packets are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the pod to the outside.
    Original,
    /// From the outside to the egress IP.
    Reply,
}

/// Which flows the packets belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Flows {
    /// So many flows, all known beforehand, one at random for each packet.
    Established(u32),
    /// Each packet is a flow never seen before.
    New,
}

/// What two TCP sockets do with each other, a pod's and an external host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Talk {
    /// One connection, as much as goes through; counted in KiB.
    Stream,
    /// One connection, 64 bytes there and back; counted in transactions.
    Transactions,
    /// A connection, closed at once, to another host each time; counted in connections.
    Connections,
}

/// One row of the report.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Workload {
    /// Unique; `--only` matches a part of it.
    pub name: String,
    pub entry: Entry,
    pub direction: Direction,
    pub flows: Flows,
    /// How many VNIDs the egress node knows.
    pub policies: u32,
    /// They have no egress IP and leave with the node's address.
    pub masquerade: bool,
    /// The first VNID with traffic, as a number from 0.
    pub vnid_first: u32,
    /// How many VNIDs have traffic.
    pub vnid_count: u32,
    /// UDP payload in bytes; at least 18, which makes a frame of 60.
    pub payload: usize,
    /// Frames handed to the interface at once; 64 is the most that loses none.
    pub batch: u32,
    /// Packets a second; 0: as fast as they can be made.
    pub rate: u32,
    /// Packets carry the time of sending, and the sink keeps a histogram of their age.
    pub timed: bool,
    /// Real sockets in place of the generator.
    pub talk: Option<Talk>,
    /// Whether the sockets' interfaces leave checksums and segmentation to the receiver.
    pub offload: bool,
}

impl Workload {
    /// Small packets of the original direction, spread over all VNIDs that the node hosts.
    pub fn new(name: impl Into<String>, entry: Entry, flows: Flows, policies: u32) -> Self {
        Self {
            name: name.into(),
            entry,
            direction: Direction::Original,
            flows,
            policies,
            masquerade: false,
            vnid_first: 0,
            vnid_count: policies.min(HOSTED),
            payload: 18,
            batch: 64,
            rate: 0,
            timed: false,
            talk: None,
            offload: false,
        }
    }

    pub fn setting(&self) -> Setting {
        Setting {
            entry: self.entry,
            policies: self.policies,
            masquerade: self.masquerade,
            sockets: self.talk.is_some(),
            paced: self.rate != 0,
        }
    }

    /// Of pods without an egress IP.
    pub fn masqueraded(mut self) -> Self {
        self.masquerade = true;
        self
    }

    /// The same flows in the other direction.
    pub fn replies(mut self) -> Self {
        self.direction = Direction::Reply;
        self
    }

    /// A pod's socket and an external host's, over the tunnel.
    pub fn sockets(name: impl Into<String>, talk: Talk, offload: bool) -> Self {
        let flows = match talk {
            Talk::Stream | Talk::Transactions => Flows::Established(1),
            Talk::Connections => Flows::New,
        };
        Self { talk: Some(talk), offload, ..Self::new(name, Entry::Tunnel, flows, 1) }
    }

    /// What a cost is counted by.
    pub fn unit(&self) -> &'static str {
        match self.talk {
            None => "packet",
            Some(Talk::Stream) => "KiB",
            Some(Talk::Transactions) => "transaction",
            Some(Talk::Connections) => "connection",
        }
    }

    /// Traffic of the last VNID alone: the last rule of a list.
    pub fn last_vnid(mut self) -> Self {
        self.vnid_first = self.policies - 1;
        self.vnid_count = 1;
        self
    }

    /// With this many bytes of UDP payload.
    pub fn payload(mut self, payload: usize) -> Self {
        self.payload = payload;
        self
    }

    /// So many packets at once, each with its age at the sink measured.
    pub fn latency(mut self, batch: u32) -> Self {
        self.batch = batch;
        self.timed = true;
        self
    }

    /// So many packets a second, eight at once, as a NIC does that holds its interrupts back a
    /// little.
    pub fn paced(mut self, rate: u32) -> Self {
        self.batch = 8;
        self.rate = rate;
        self
    }

    /// Whether frames are sent encapsulated.
    pub fn is_vxlan(&self) -> bool {
        self.entry == Entry::Tunnel && self.direction == Direction::Original
    }

    /// The eBPF program that makes the frames.
    pub fn generator(&self) -> &'static str {
        if self.is_vxlan() { "generate_vxlan" } else { "generate_plain" }
    }

    /// Whether frames are sent into the gateway device; else into the uplink.
    pub fn enters_by_gateway(&self) -> bool {
        self.entry == Entry::Gateway && self.direction == Direction::Original
    }

    /// The sent frame's length in bytes, without the frame check sequence.
    pub fn frame_len(&self) -> usize {
        self.payload + if self.is_vxlan() { VXLAN_HEADERS } else { PLAIN_HEADERS }
    }
}
