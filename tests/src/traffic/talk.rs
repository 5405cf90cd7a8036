//! Datagrams that say who sent them, and answers that say whom they are for: wherever one is seen, it
//! can be told whether it belongs there.
//!
//! The remote goes on talking to whomever it has ever heard, as one does that is not told that its
//! peer is gone.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Between two words of a speaker, and two that the remote says unasked.
const PAUSE: Duration = Duration::from_millis(2);
/// Whose words the remote's own are.
const REMOTE: u32 = 0;

/// Who says it, and the how-manieth it is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Word {
    pub speaker: u32,
    pub number: u32,
}

impl Word {
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        [self.speaker.to_be_bytes(), self.number.to_be_bytes()].concat()
    }

    /// The word that these bytes begin with.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (speaker, rest) = bytes.split_first_chunk()?;
        let number = u32::from_be_bytes(*rest.first_chunk()?);
        Some(Self { speaker: u32::from_be_bytes(*speaker), number })
    }
}

/// What the remote says: the word it answers or one of its own, and to whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer {
    pub word: Word,
    pub to: SocketAddrV4,
}

impl Answer {
    fn to_bytes(self) -> Vec<u8> {
        let (ip, port) = (self.to.ip().octets(), self.to.port().to_be_bytes());
        [&self.word.to_bytes()[..], &ip, &port].concat()
    }

    /// The answer that these bytes begin with.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let word = Word::read(bytes)?;
        let (ip, rest) = bytes.get(8..)?.split_first_chunk::<4>()?;
        let port = u16::from_be_bytes(*rest.first_chunk()?);
        Some(Self { word, to: SocketAddrV4::new(Ipv4Addr::from(*ip), port) })
    }

    /// Whether the remote was not asked.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        self.word.speaker == REMOTE
    }
}

/// A thread that ends with this value.
#[derive(Debug)]
struct Work {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Work {
    fn start(mut turn: impl FnMut() + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                turn();
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Its port is free when the thread has ended.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the remote has heard, and how many unasked words it has said to each.
#[derive(Debug, Default)]
struct Said {
    heard: Vec<(Word, SocketAddrV4)>,
    unasked: BTreeMap<SocketAddrV4, u32>,
}

/// The remote. It falls silent when dropped.
#[derive(Debug)]
pub struct Remote {
    said: Arc<Mutex<Said>>,
    _work: Work,
}

impl Remote {
    /// Listens and talks at an address of the namespace.
    pub fn start(netns: &Netns, address: SocketAddrV4) -> Result<Self> {
        let socket = bind(netns, address)?;
        let said = Arc::<Mutex<Said>>::default();
        let (saying, mut next) = (Arc::clone(&said), Instant::now());
        let work = Work::start(move || {
            // Whom nothing reaches any more is talked to all the same.
            let say = |word, to| drop(socket.send_to(&Answer { word, to }.to_bytes(), to));
            let mut buffer = [0; 64];
            let received = socket.recv_from(&mut buffer);
            let mut said = lock(&saying);
            if let Ok((length, SocketAddr::V4(peer))) = received
                && let Some(word) = Word::read(&buffer[..length])
            {
                said.heard.push((word, peer));
                said.unasked.entry(peer).or_default();
                say(word, peer);
            }
            if next <= Instant::now() {
                next = Instant::now() + PAUSE;
                for (peer, number) in &mut said.unasked {
                    say(Word { speaker: REMOTE, number: *number }, *peer);
                    *number += 1;
                }
            }
        });
        Ok(Self { said, _work: work })
    }

    /// All words so far, and as whom their speakers were seen.
    #[must_use]
    pub fn heard(&self) -> Vec<(Word, SocketAddrV4)> {
        lock(&self.said).heard.clone()
    }

    /// How many words it has said unasked to whoever is seen so.
    #[must_use]
    pub fn unasked(&self, peer: SocketAddrV4) -> u32 {
        lock(&self.said).unasked.get(&peer).copied().unwrap_or_default()
    }
}

/// One that says word after word to a remote, heard or not. It falls silent when dropped.
#[derive(Debug)]
pub struct Speaker {
    heard: Arc<Mutex<Vec<Answer>>>,
    _work: Work,
}

impl Speaker {
    /// Speaks from a port of the namespace, by a number of its own that is not 0.
    pub fn start(netns: &Netns, speaker: u32, port: u16, remote: SocketAddrV4) -> Result<Self> {
        let socket = bind(netns, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
        let heard = Arc::<Mutex<Vec<Answer>>>::default();
        let (hearing, mut number, mut next) = (Arc::clone(&heard), 0, Instant::now());
        let work = Work::start(move || {
            if next <= Instant::now() {
                next = Instant::now() + PAUSE;
                // A pod that has lost its device has nowhere to send to.
                let _ = socket.send_to(&Word { speaker, number }.to_bytes(), remote);
                number += 1;
            }
            let mut buffer = [0; 64];
            if let Ok(length) = socket.recv(&mut buffer) {
                lock(&hearing).extend(Answer::read(&buffer[..length]));
            }
        });
        Ok(Self { heard, _work: work })
    }

    /// All answers so far.
    #[must_use]
    pub fn heard(&self) -> Vec<Answer> {
        lock(&self.heard).clone()
    }
}

/// A socket that waits for a pause at most.
fn bind(netns: &Netns, address: SocketAddrV4) -> Result<UdpSocket> {
    let socket = netns
        .run(|| UdpSocket::bind(address))?
        .with_context(|| format!("bind UDP {address} in {}", netns.name()))?;
    socket.set_read_timeout(Some(PAUSE))?;
    Ok(socket)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
