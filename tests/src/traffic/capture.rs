//! A packet capture on one device: what arrived there, parsed as far as the tests ask.
//!
//! It copies packets to user space and may lose some under load: use it to find packets. To prove
//! that none came, ask the counters of the switch ([`crate::rig::Rig::untranslated`]).

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt,
            socket,
            sockopt::{RcvBufForce, ReceiveTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::netns::{Netns, wait_until};

/// `PACKET_OUTGOING` of linux/if_packet.h: a packet this namespace sent itself.
const OUTGOING: u8 = 4;
/// What is kept of a packet: headers, and some bytes of payload.
const SNAP: usize = 192;
/// More packets than this are not kept.
const LIMIT: usize = 200_000;

/// An IPv4 packet that arrived at the device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Packet {
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// The type of service: DSCP and ECN.
    pub tos: u8,
    /// Source and destination port of a first fragment of TCP, UDP or SCTP.
    pub ports: Option<(u16, u16)>,
    /// What follows the IP header, cut off at about 150 bytes.
    pub payload: Vec<u8>,
}

impl Packet {
    fn parse(frame: &[u8]) -> Option<Self> {
        let (ethernet, ip) = frame.split_at_checked(14)?;
        if ethernet[12..] != [8, 0] {
            return None;
        }
        let header = ip.first_chunk::<20>()?;
        let payload = ip.get(usize::from(header[0] & 0x0f) * 4..)?;
        let protocol = header[9];
        let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
        let has_ports = first && matches!(protocol, 6 | 17 | 132);
        let ports = payload
            .first_chunk()
            .filter(|_| has_ports)
            .map(|[a, b, c, d]| (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])));
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol,
            tos: header[1],
            ports,
            payload: payload.to_vec(),
        })
    }
}

/// A running capture. It ends when dropped.
#[derive(Debug)]
pub struct Capture {
    packets: Arc<Mutex<Vec<Packet>>>,
    stop: Arc<AtomicBool>,
}

impl Capture {
    /// Captures what arrives at a device of the namespace. It runs when this returns.
    pub fn start(netns: &Netns, device: &str) -> Result<Self> {
        let (socket, index) = netns
            .run(|| open(device))?
            .with_context(|| format!("capture at {device} in {}", netns.name()))?;
        let packets = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, stopped) = (Arc::clone(&packets), Arc::clone(&stop));
        thread::spawn(move || {
            let mut buffer = [0; SNAP];
            while !stopped.load(Ordering::Relaxed) {
                let received = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer);
                let Ok((length, Some(from))) = received else { continue };
                if from.ifindex() != index || from.pkttype() == OUTGOING {
                    continue;
                }
                let Some(packet) = Packet::parse(&buffer[..length.min(SNAP)]) else { continue };
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() < LIMIT {
                    kept.push(packet);
                }
            }
        });
        Ok(Self { packets, stop })
    }

    /// The packets so far.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first packet of which the condition holds, waiting for it until the deadline. The first
    /// `skip` packets of the capture are passed over.
    pub fn find(
        &self,
        skip: usize,
        deadline: Duration,
        condition: impl Fn(&Packet) -> bool,
    ) -> Option<Packet> {
        let mut found = None;
        wait_until(deadline, || {
            let packets = self.packets.lock().unwrap_or_else(PoisonError::into_inner);
            found = packets.iter().skip(skip).find(|packet| condition(packet)).cloned();
            found.is_some()
        });
        found
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Opens a packet socket. It hears all devices of the namespace: the index says which one is meant.
fn open(device: &str) -> Result<(OwnedFd, usize)> {
    let index = if_nametoindex(device).context("find the device")?;
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
            .context("open a packet socket")?;
    setsockopt(&socket, RcvBufForce, &(32 << 20)).context("enlarge the packet socket's buffer")?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
    Ok((socket, index as usize))
}
