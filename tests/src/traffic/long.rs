//! Many connections that live long: each is asked again and again, and says whom it is seen as.
//!
//! The server answers every word with the word itself and the address that the connection comes from.
//! A connection may also be left idle until the server speaks first: what its pod is told then has
//! found its way without the pod having sent anything.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::socket::{self, Shutdown};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::watch,
};

use super::PATIENCE;
use crate::netns::Netns;

/// What a client sends: a number.
const WORD: usize = 8;
/// And gets: the number, the address and the port that it is seen as.
const ANSWER: usize = WORD + 6;
/// The number that is answered only when the server is told to.
const LATER: u64 = u64::MAX;

/// The server. It stops when dropped, with all its connections.
#[derive(Debug)]
pub struct LongServer {
    speak: watch::Sender<bool>,
    listener: std::net::TcpListener,
    thread: Option<JoinHandle<()>>,
}

impl LongServer {
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let listener = netns
            .run(|| std::net::TcpListener::bind(address))?
            .with_context(|| format!("listen at TCP {address} in {}", netns.name()))?;
        let accepting = listener.try_clone()?;
        accepting.set_nonblocking(true)?;
        let (speak, hears) = watch::channel(false);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime for the server");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(accepting).expect("a listener");
                // Ends with the error that shutting the listener down gives.
                while let Ok((stream, SocketAddr::V4(peer))) = listener.accept().await {
                    tokio::spawn(serve(stream, peer, hears.clone()));
                }
            });
        });
        Ok(Self { speak, listener, thread: Some(thread) })
    }

    /// Whom the idle connections wait for.
    pub fn speak(&self) {
        self.speak.send_replace(true);
    }
}

impl Drop for LongServer {
    fn drop(&mut self) {
        let _ = socket::shutdown(self.listener.as_raw_fd(), Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn serve(
    mut stream: tokio::net::TcpStream,
    peer: SocketAddrV4,
    mut hears: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut word = [0; WORD];
    loop {
        stream.read_exact(&mut word).await?;
        if u64::from_be_bytes(word) == LATER {
            let _ = hears.wait_for(|speaks| *speaks).await;
        }
        let mut answer = [0; ANSWER];
        answer[..WORD].copy_from_slice(&word);
        answer[WORD..WORD + 4].copy_from_slice(&peer.ip().octets());
        answer[WORD + 4..].copy_from_slice(&peer.port().to_be_bytes());
        stream.write_all(&answer).await?;
    }
}

/// One connection, and whom it has been seen as since its beginning.
#[derive(Debug)]
pub struct Long {
    stream: TcpStream,
    seen_as: SocketAddrV4,
}

impl Long {
    /// From a port of the caller's choice; 0: any. Must be called in the pod's namespace.
    pub fn open(server: SocketAddrV4, port: u16) -> Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        socket
            .connect_timeout(&SocketAddr::from(server).into(), PATIENCE)
            .with_context(|| format!("connect to TCP {server} from port {port}"))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut long = Self { stream, seen_as: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0) };
        long.seen_as = long.exchange(0)?;
        Ok(long)
    }

    /// Whom the server sees it as.
    #[must_use]
    pub fn seen_as(&self) -> SocketAddrV4 {
        self.seen_as
    }

    /// One word there and back; the server must see whom it always saw.
    pub fn ask(&mut self, word: u64) -> Result<()> {
        let seen_as = self.exchange(word)?;
        ensure!(seen_as == self.seen_as, "seen as {seen_as}, before as {}", self.seen_as);
        Ok(())
    }

    fn exchange(&mut self, word: u64) -> Result<SocketAddrV4> {
        self.stream.write_all(&word.to_be_bytes()).context("send a word")?;
        self.hear(word)
    }

    /// Leaves the next word to the server.
    pub fn wait(&mut self) -> Result<()> {
        self.stream.write_all(&LATER.to_be_bytes()).context("send a word")
    }

    /// The word that was left to the server.
    pub fn heard(&mut self) -> Result<()> {
        let seen_as = self.hear(LATER)?;
        ensure!(seen_as == self.seen_as, "seen as {seen_as}, before as {}", self.seen_as);
        Ok(())
    }

    fn hear(&mut self, word: u64) -> Result<SocketAddrV4> {
        let mut answer = [0; ANSWER];
        self.stream.read_exact(&mut answer).context("hear the answer")?;
        let (said, seen) = answer.split_at(WORD);
        ensure!(said == word.to_be_bytes(), "another word came back");
        let ip = Ipv4Addr::new(seen[0], seen[1], seen[2], seen[3]);
        Ok(SocketAddrV4::new(ip, u16::from_be_bytes([seen[4], seen[5]])))
    }
}

/// Asks all connections again and again until told to stop, and opens one more each turn, which ends
/// with it. Counts the words.
pub fn keep_asking(
    connections: &mut [Long],
    server: SocketAddrV4,
    source: Ipv4Addr,
    stop: &AtomicBool,
    words: &AtomicU64,
) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        for (number, connection) in connections.iter_mut().enumerate() {
            let word = words.fetch_add(1, Ordering::Relaxed);
            let seen_as = connection.seen_as();
            connection
                .ask(word)
                .with_context(|| format!("connection {number}, seen as {seen_as}, word {word}"))?;
        }
        let new = Long::open(server, 0).context("a new connection")?;
        if *new.seen_as().ip() != source {
            bail!("a new connection is seen as {}, not as {source}", new.seen_as());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
