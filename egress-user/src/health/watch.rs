//! Asks the nodes, all at the same time, on a thread of its own: what the agent is busy with must not
//! look like somebody's silence.
//!
//! A turn has four quarters. At its beginning each node is asked; who has not answered after a quarter
//! is asked again in each of the others. At its end it is judged ([`super::Peer`]). What waits in the
//! socket is heard before that: after a pause of this process nobody is judged by what it slept over.
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use egress_common::probe::{self, LEN, Says};
use tokio::{
    net::{TcpSocket, UdpSocket},
    sync::watch,
    task::JoinSet,
    time::{MissedTickBehavior, timeout},
};

use super::{Heard, Known, Patience, Peer, Turn};

/// Quarters of a turn.
const QUARTERS: u32 = 4;
/// Answers to so many questions count: those of this turn and the last.
const REMEMBERED: usize = 2 * QUARTERS as usize;
/// TCP's port of nobody; refused or taken, the node's stack has answered.
const DISCARD: u16 = 9;

/// Whom to ask, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Targets {
    /// This node's address.
    pub from: Ipv4Addr,
    /// Of the tunnel.
    pub port: u16,
    /// Zero: nobody is asked, and nobody is offline.
    pub interval: Duration,
    /// Whether questions can leave: without a link of our own nothing is found out about others.
    pub able: bool,
    pub patience: Patience,
    /// The addresses of nodes, and of their SDN gateways.
    pub nodes: BTreeMap<Ipv4Addr, Ipv4Addr>,
    /// Those of them that are drained.
    pub draining: BTreeSet<Ipv4Addr>,
}

/// What was found of each node, and since when it is so.
pub type Findings = BTreeMap<Ipv4Addr, (Known, SystemTime)>;

/// The asking thread's other end. The thread ends with it.
pub struct Watch {
    targets: watch::Sender<Targets>,
    findings: watch::Receiver<Findings>,
}

impl Watch {
    /// Starts to ask, from the network namespace of the calling thread. `before`: what a predecessor
    /// found, and since when; an offline node is so until it answers.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(targets: Targets, before: Findings) -> Result<Self> {
        let (targets, asked) = watch::channel(targets);
        let (told, findings) = watch::channel(before.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a runtime for the health of nodes")?;
        thread::Builder::new()
            .name("health".into())
            .spawn(move || runtime.block_on(Asking::new(asked, told, before).run()))
            .context("start a thread for the health of nodes")?;
        Ok(Self { targets, findings })
    }

    /// Asks others from now on; the same are no news.
    pub fn set(&self, targets: Targets) {
        self.targets.send_if_modified(|current| {
            let differ = *current != targets;
            *current = targets;
            differ
        });
    }

    /// Waits until something differs from what was last found. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.findings.changed().await.is_err() {
            // The thread has ended, which it does not by itself: there will be no news.
            std::future::pending::<()>().await;
        }
    }

    pub fn findings(&self) -> Findings {
        self.findings.borrow().clone()
    }
}

struct Asking {
    targets: watch::Receiver<Targets>,
    told: watch::Sender<Findings>,
    now: Targets,
    socket: Option<UdpSocket>,
    watched: BTreeMap<Ipv4Addr, Watched>,
    /// Tries of gateways that are under way, each with its node.
    tries: JoinSet<(Ipv4Addr, Heard)>,
    quarter: u32,
    /// Of random numbers.
    chance: RandomState,
    asked: u64,
}

struct Watched {
    peer: Peer,
    since: SystemTime,
    /// The random numbers of the last questions.
    nonces: Vec<[u8; 8]>,
    turn: Turn,
    tries_gateway: bool,
}

const NOT_ASKED: Turn = Turn { probe: Heard::NotAsked, gateway: Heard::NotAsked, stopped: false };

impl Asking {
    fn new(
        mut targets: watch::Receiver<Targets>,
        told: watch::Sender<Findings>,
        before: Findings,
    ) -> Self {
        let now = targets.borrow_and_update().clone();
        let watched: BTreeMap<_, _> = before
            .into_iter()
            .map(|(node, (known, since))| {
                let mut watched = Watched::new(known.offline, since);
                if known.left {
                    watched.peer.leave();
                }
                (node, watched)
            })
            .collect();
        let (socket, tries) = (None, JoinSet::new());
        let chance = RandomState::new();
        Self { targets, told, now, socket, watched, tries, quarter: 0, chance, asked: 0 }
    }

    async fn run(mut self) {
        loop {
            self.open().await;
            self.follow();
            if !self.now.able || self.watched.is_empty() {
                self.tell();
                if self.targets.changed().await.is_err() {
                    return;
                }
            } else if !self.turns().await {
                return;
            }
            self.now = self.targets.borrow_and_update().clone();
        }
    }

    /// Asks until the targets change. `false`: the agent is gone.
    async fn turns(&mut self) -> bool {
        let mut tick = tokio::time::interval(self.now.interval / QUARTERS);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut answer = [0; LEN + 1];
        loop {
            tokio::select! {
                changed = self.targets.changed() => return changed.is_ok(),
                _ = tick.tick() => self.quarter_begins().await,
                Some(Ok((node, heard))) = self.tries.join_next() => self.tried(node, heard),
                (length, from) = received(&self.socket, &mut answer) => {
                    self.answered(&answer[..length], from);
                }
            }
        }
    }

    /// The socket has the node's address, by which others know it.
    async fn open(&mut self) {
        let at = SocketAddrV4::new(self.now.from, 0);
        let there = self.socket.as_ref().and_then(|socket| socket.local_addr().ok());
        if there.is_none_or(|there| there.ip() != *at.ip()) {
            // Without the address the agent has more to say about it than this.
            self.socket = UdpSocket::bind(at).await.ok();
        }
    }

    /// Watches those that the targets name, and nobody else.
    fn follow(&mut self) {
        let Self { watched, now, .. } = self;
        watched.retain(|node, _| now.nodes.contains_key(node) && !now.interval.is_zero());
        for node in now.nodes.keys().filter(|_| !now.interval.is_zero()) {
            let new = || Watched::new(false, SystemTime::now());
            let watched = watched.entry(*node).or_insert_with(new);
            if now.draining.contains(node) {
                watched.peer.leave();
            }
        }
    }

    async fn quarter_begins(&mut self) {
        if self.quarter == 0 {
            self.judge();
            self.open().await;
        }
        let (first, now) = (self.quarter == 0, Instant::now());
        for node in self.now.nodes.keys().copied().collect::<Vec<_>>() {
            let Some(watched) = self.watched.get_mut(&node) else { continue };
            let patience = &self.now.patience;
            let late =
                !first && watched.turn.probe != Heard::Answer && watched.peer.insists(patience);
            if first {
                watched.turn = NOT_ASKED;
                watched.tries_gateway = watched.peer.wants_gateway(now, patience);
            } else {
                watched.tries_gateway |= late;
            }
            let again = first || !watched.peer.is_gone();
            let gateway = again && watched.tries_gateway && watched.turn.gateway != Heard::Answer;
            if first || late {
                self.ask(node);
            }
            if gateway {
                self.try_gateway(node);
            }
        }
        self.quarter = (self.quarter + 1) % QUARTERS;
    }

    fn ask(&mut self, node: Ipv4Addr) {
        self.asked += 1;
        let nonce = self.chance.hash_one(self.asked).to_be_bytes();
        let Some(watched) = self.watched.get_mut(&node) else { return };
        if watched.nonces.len() == REMEMBERED {
            watched.nonces.remove(0);
        }
        watched.nonces.push(nonce);
        let Some(socket) = &self.socket else { return };
        let to = SocketAddr::from((node, self.now.port));
        // What cannot leave this node says nothing about the other.
        if socket.try_send_to(&probe::message(Says::Question, nonce), to).is_ok() {
            watched.turn.probe = watched.turn.probe.or(Heard::Nothing);
        }
    }

    fn try_gateway(&mut self, node: Ipv4Addr) {
        let (Some(watched), Some(gateway)) =
            (self.watched.get_mut(&node), self.now.nodes.get(&node))
        else {
            return;
        };
        watched.turn.gateway = watched.turn.gateway.or(Heard::Nothing);
        let to = SocketAddr::from((*gateway, DISCARD));
        let within = self.now.interval;
        self.tries.spawn(async move { (node, knock(to, within).await) });
    }

    fn tried(&mut self, node: Ipv4Addr, heard: Heard) {
        if let Some(watched) = self.watched.get_mut(&node) {
            match heard {
                Heard::Answer => watched.turn.gateway = Heard::Answer,
                // It cannot be asked: that is no silence.
                Heard::NotAsked if watched.turn.gateway == Heard::Nothing => {
                    watched.turn.gateway = Heard::NotAsked;
                    watched.tries_gateway = false;
                }
                _ => {}
            }
        }
    }

    fn answered(&mut self, message: &[u8], from: SocketAddr) {
        let SocketAddr::V4(from) = from else { return };
        let (Some((says, nonce)), Some(watched)) =
            (probe::read(message), self.watched.get_mut(from.ip()))
        else {
            return;
        };
        let expected = from.port() == self.now.port && watched.nonces.contains(&nonce);
        if expected && says != Says::Question {
            watched.turn.probe = Heard::Answer;
            watched.turn.stopped = says == Says::Stopped;
        }
    }

    /// A turn is over: hears what waits, judges everybody, and tells what differs.
    fn judge(&mut self) {
        let mut answer = [0; LEN + 1];
        while let Some(Ok((length, from))) =
            self.socket.as_ref().map(|socket| socket.try_recv_from(&mut answer))
        {
            self.answered(&answer[..length], from);
        }
        while let Some(Ok((node, heard))) = self.tries.try_join_next() {
            self.tried(node, heard);
        }
        let (now, patience) = (Instant::now(), self.now.patience);
        for watched in self.watched.values_mut().filter(|watched| watched.turn != NOT_ASKED) {
            let before = watched.peer.known(&patience);
            watched.peer.turn(watched.turn, now, &patience);
            if watched.peer.known(&patience).offline != before.offline {
                watched.since = SystemTime::now();
            }
        }
        self.tell();
    }

    fn tell(&self) {
        let findings: Findings = self
            .watched
            .iter()
            .map(|(node, watched)| (*node, (watched.peer.known(&self.now.patience), watched.since)))
            .collect();
        self.told.send_if_modified(|told| {
            let differ = *told != findings;
            *told = findings;
            differ
        });
    }
}

impl Watched {
    fn new(offline: bool, since: SystemTime) -> Self {
        Self {
            peer: Peer::new(offline),
            since,
            nonces: Vec::with_capacity(REMEMBERED),
            turn: NOT_ASKED,
            tries_gateway: false,
        }
    }
}

impl Heard {
    /// What was heard stays; else this.
    fn or(self, other: Self) -> Self {
        if self == Self::NotAsked { other } else { self }
    }
}

/// The next message; without a socket there is none.
async fn received(socket: &Option<UdpSocket>, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        let Some(socket) = socket else { std::future::pending().await };
        // An error is an ICMP message about an earlier question: its silence tells as much.
        if let Ok(received) = socket.recv_from(buffer).await {
            return received;
        }
    }
}

/// The original's test: who refuses is there. A try is one SYN: what is lost is tried again.
async fn knock(gateway: SocketAddr, within: Duration) -> Heard {
    let Ok(socket) = TcpSocket::new_v4() else { return Heard::NotAsked };
    match timeout(within, socket.connect(gateway)).await {
        Ok(Ok(_)) => Heard::Answer,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Heard::Answer,
            ErrorKind::HostUnreachable | ErrorKind::TimedOut => Heard::Nothing,
            // No route, no permission: that says nothing about the other node.
            _ => Heard::NotAsked,
        },
        Err(_) => Heard::Nothing,
    }
}
