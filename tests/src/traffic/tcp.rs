//! TCP: a server that records its peers, exchanges of compared bytes, downloads.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{self, Shutdown as Stop};

use super::{PATIENCE, pattern};
use crate::netns::Netns;

type Peers = Arc<Mutex<HashMap<u64, SocketAddrV4>>>;

/// What a client asks for: its id, whether it sends bytes first, and how many bytes go each way.
struct Request {
    id: u64,
    upload: bool,
    length: u64,
}

impl Request {
    const SIZE: usize = 17;

    fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.id.to_be_bytes());
        bytes[8] = self.upload.into();
        bytes[9..].copy_from_slice(&self.length.to_be_bytes());
        bytes
    }

    fn read(stream: &mut TcpStream) -> Result<Self> {
        let (mut id, mut upload, mut length) = ([0; 8], [0; 1], [0; 8]);
        for part in [&mut id[..], &mut upload, &mut length] {
            stream.read_exact(part).context("read the request")?;
        }
        let (id, length) = (u64::from_be_bytes(id), u64::from_be_bytes(length));
        Ok(Self { id, upload: upload[0] != 0, length })
    }
}

/// A server in a namespace. It stops when dropped; connections in progress end by themselves.
#[derive(Debug)]
pub struct TcpServer {
    address: SocketAddrV4,
    listener: TcpListener,
    peers: Peers,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens at an address of the namespace; port 0 takes a free one.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let listener = netns
            .run(|| TcpListener::bind(address))?
            .with_context(|| format!("listen at TCP {address} in {}", netns.name()))?;
        let SocketAddr::V4(address) = listener.local_addr()? else { bail!("not an IPv4 address") };
        let peers = Peers::default();
        let (accepting, seen) = (listener.try_clone()?, Arc::clone(&peers));
        let thread = thread::spawn(move || {
            // Ends with the error that shutting the listener down gives.
            while let Ok((stream, SocketAddr::V4(peer))) = accepting.accept() {
                let seen = Arc::clone(&seen);
                thread::spawn(move || {
                    // The client sees every failure too, and reports it.
                    let _ = serve(stream, peer, &seen);
                });
            }
        });
        Ok(Self { address, listener, peers, thread: Some(thread) })
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

    /// The addresses all exchanges so far came from.
    #[must_use]
    pub fn peers(&self) -> Vec<SocketAddrV4> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        // Wakes the accepting thread. It owns a copy of the listener: the port is free after it.
        let _ = socket::shutdown(self.listener.as_raw_fd(), Stop::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: TcpStream, peer: SocketAddrV4, peers: &Peers) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let Request { id, upload, length } = Request::read(&mut stream)?;
    peers.lock().unwrap_or_else(PoisonError::into_inner).insert(id, peer);
    if upload {
        pattern::expect(&mut stream, id, 0, length)?;
    }
    pattern::write(&mut stream, !id, length)?;
    stream.shutdown(Shutdown::Write)?;
    Ok(())
}

fn connect(server: SocketAddrV4, request: &Request) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&server.into(), PATIENCE)
        .with_context(|| format!("connect to TCP {server}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&request.to_bytes()).context("send the request")?;
    Ok(stream)
}

/// Sends `length` bytes, then receives as many, and compares; the server compares the others.
pub fn tcp_exchange(server: SocketAddrV4, id: u64, length: u64) -> Result<()> {
    let mut stream = connect(server, &Request { id, upload: true, length })?;
    pattern::write(&mut stream, id, length).context("send to the server")?;
    pattern::expect(&mut stream, !id, 0, length)?;
    expect_end(&mut stream)
}

fn expect_end(stream: &mut TcpStream) -> Result<()> {
    let left = stream.read(&mut [0]).context("wait for the end of the stream")?;
    anyhow::ensure!(left == 0, "the stream goes on after its end");
    Ok(())
}

/// Makes many exchanges from a namespace, at most `parallel` at a time, with the ids from `first`.
///
/// Fails with the first that fails, after those in progress.
pub fn exchange_many(
    netns: &Netns,
    server: SocketAddrV4,
    ids: std::ops::Range<u64>,
    parallel: usize,
    length: u64,
) -> Result<()> {
    let next = AtomicU64::new(ids.start);
    let work = || {
        netns.run(|| {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id >= ids.end {
                    return Ok(());
                }
                if let Err(error) = tcp_exchange(server, id, length) {
                    next.store(ids.end, Ordering::Relaxed);
                    return Err(error).with_context(|| format!("exchange {id:#x}"));
                }
            }
        })?
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..parallel).map(|_| scope.spawn(work)).collect();
        // All are waited for; the first error is the result.
        let results: Vec<Result<()>> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.into_iter().collect()
    })
}

/// A running download. The server sends no more than the socket buffers hold until it is read on:
/// a download that is not read is a connection in the middle of its life.
#[derive(Debug)]
pub struct Download {
    stream: TcpStream,
    id: u64,
    done: u64,
    length: u64,
}

impl Download {
    /// Asks for `length` bytes.
    pub fn start(server: SocketAddrV4, id: u64, length: u64) -> Result<Self> {
        let stream = connect(server, &Request { id, upload: false, length })?;
        Ok(Self { stream, id, done: 0, length })
    }

    /// Reads and compares `length` more bytes.
    pub fn read(&mut self, length: u64) -> Result<()> {
        pattern::expect(&mut self.stream, !self.id, self.done, length)?;
        self.done += length;
        Ok(())
    }

    /// Reads and compares the rest, and the end of the stream.
    pub fn finish(mut self) -> Result<()> {
        self.read(self.length - self.done)?;
        expect_end(&mut self.stream)
    }
}
