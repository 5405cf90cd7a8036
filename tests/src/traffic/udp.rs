//! UDP: a server that records its peers and sends every datagram back.

use std::{
    collections::HashMap,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{PATIENCE, pattern};
use crate::netns::Netns;

type Peers = Arc<Mutex<HashMap<u64, SocketAddrV4>>>;

/// A server in a namespace. It stops when dropped.
#[derive(Debug)]
pub struct UdpServer {
    address: SocketAddrV4,
    peers: Peers,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Listens at an address of the namespace; port 0 takes a free one.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let socket = netns
            .run(|| UdpSocket::bind(address))?
            .with_context(|| format!("listen at UDP {address} in {}", netns.name()))?;
        let SocketAddr::V4(address) = socket.local_addr()? else { bail!("not an IPv4 address") };
        // The stop is looked at this often.
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (peers, stop) = (Peers::default(), Arc::new(AtomicBool::new(false)));
        let (seen, stopped) = (Arc::clone(&peers), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut buffer = [0; 65536];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, SocketAddr::V4(peer))) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                if let Some(id) = buffer[..length].first_chunk() {
                    let id = u64::from_be_bytes(*id);
                    seen.lock().unwrap_or_else(PoisonError::into_inner).insert(id, peer);
                }
                // A peer that cannot be answered notices by itself.
                let _ = socket.send_to(&buffer[..length], peer);
            }
        });
        Ok(Self { address, peers, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddrV4 {
        self.address
    }

    /// The address an exchange came from; `None`: it never arrived.
    #[must_use]
    pub fn peer(&self, id: u64) -> Option<SocketAddrV4> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The port is free when the thread has ended.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Sends one datagram, its id and `length` bytes more, and compares what comes back.
pub fn udp_exchange(server: SocketAddrV4, id: u64, length: usize) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server).with_context(|| format!("connect to UDP {server}"))?;
    let mut datagram = id.to_be_bytes().to_vec();
    datagram.extend(pattern::bytes(id, 0, length));
    socket.send(&datagram).context("send the datagram")?;
    let mut answer = vec![0; datagram.len() + 1];
    let got = socket.recv(&mut answer).context("receive the answer")?;
    ensure!(answer[..got] == datagram, "the answer of exchange {id:#x} is not what was sent");
    Ok(())
}
