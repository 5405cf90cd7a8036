//! A dead egress node: how long new connections of a namespace with egress IPs on two nodes fail after
//! one of the nodes' cable was pulled, and what 1,000 flows lose.
//!
//! Seen from a pod alone. A connection is begun every 10 ms and counts if it stands before its first SYN
//! would be sent again; the outage ends where the last one that fails was begun. Meanwhile 1,000 UDP
//! flows are echoed, four times a second each; towards many addresses, since UDP is spread by
//! addresses alone. The source address of every packet that leaves is looked at: a wrong
//! one makes the row void.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_user::ovs::Layout;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use super::{plan::Level, stats::Summary};
use crate::{
    gateway::Gateway,
    netns::wait_for,
    rig::trio::{EGRESS, SPREAD, SourceSide, Trio},
    traffic::{TcpServer, UdpServer},
};

/// The name after `--only`.
pub const NAME: &str = "failover";

const POD: &str = "egress-test-1";
const FLOWS: usize = 1_000;
/// Addresses of the far host that the flows go to.
const REMOTES: u8 = 40;
/// Between two datagrams of a flow.
const BEAT: Duration = Duration::from_millis(250);
/// Between two connections.
const STEP: Duration = Duration::from_millis(10);
/// The agents' default `health.interval`.
const TURN: Duration = Duration::from_millis(200);
/// A SYN is sent again after 1 s.
const STANDS_WITHIN: Duration = Duration::from_millis(800);
/// So many connections one after the other stand: it is over.
const ENOUGH: usize = 100;
const DEADLINE: Duration = Duration::from_secs(20);

/// One row of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub means: &'static str,
    pub runs: u32,
    /// Milliseconds.
    pub outage: Option<Summary>,
    /// Datagrams and their echoes, of 4,000 a second.
    pub lost: Option<Summary>,
    pub void: Option<String>,
}

/// How often the cable is pulled.
fn runs(level: Level) -> u32 {
    match level {
        Level::Quick => 5,
        Level::Default | Level::Full => 20,
    }
}

/// Pulls the cable on both kinds of source nodes.
pub fn run(level: Level, say: impl Fn(&str)) -> Vec<Line> {
    let runs = runs(level);
    [
        ("egress, source side in eBPF", SourceSide::Plain),
        ("egress, Open vSwitch on the source node", SourceSide::OpenVSwitch(Layout::New)),
    ]
    .into_iter()
    .map(|(means, side)| {
        say(&format!("{NAME}: {means}"));
        match all(side, runs) {
            Ok(found) => Line {
                means,
                runs,
                outage: Summary::of(found.iter().map(|run| run.outage.as_secs_f64() * 1e3)),
                lost: Summary::of(found.iter().map(|run| run.lost as f64)),
                void: None,
            },
            Err(error) => {
                Line { means, runs, outage: None, lost: None, void: Some(format!("{error:#}")) }
            }
        }
    })
    .collect()
}

/// Prints the rows, and writes them into this directory.
pub fn tell(lines: &[Line], directory: &Path) -> Result<()> {
    for Line { means, runs, outage, lost, void } in lines {
        match (outage, lost, void) {
            (Some(outage), Some(lost), None) => println!(
                "{NAME}: {means}: {runs} runs, new connections after {:.0} ms ({:.0} to {:.0}, at \
                 most {:.0}), datagrams lost {:.0} (at most {:.0})",
                outage.median, outage.q1, outage.q3, outage.max, lost.median, lost.max
            ),
            _ => println!("{NAME}: {means}: void: {}", void.as_deref().unwrap_or("no run")),
        }
    }
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let path = directory.join("failover.json");
    fs::write(&path, serde_json::to_string_pretty(lines)?)
        .with_context(|| format!("write {}", path.display()))
}

struct Run {
    outage: Duration,
    lost: u64,
}

fn all(side: SourceSide, runs: u32) -> Result<Vec<Run>> {
    let room = getrlimit(Resource::RLIMIT_NOFILE).context("ask how many files may be open")?;
    setrlimit(Resource::RLIMIT_NOFILE, room.1, room.1).context("allow more open files")?;
    (0..runs).map(|_| once(side)).collect()
}

/// On a rig of its own: flows stay on the node that was left to them, so a second run would have none on
/// the other.
fn once(side: SourceSide) -> Result<Run> {
    let rig = Trio::up(side)?;
    let agents = rig.agents("")?;
    let far = rig.netns("far");
    let _tcp = TcpServer::start(far, SPREAD.far())?;
    let remotes = rig.remotes(SPREAD, REMOTES)?;
    let started = remotes.iter().map(|remote| UdpServer::start(far, *remote));
    let _udp = started.collect::<Result<Vec<_>>>()?;
    pull(&rig, &agents[0], &remotes)
}

fn is_online(agent: &Gateway<'_>, node: &str) -> Result<bool> {
    let status = agent.status()?;
    let nodes = status["nodes"].as_array().context("no nodes in the status")?;
    let online = |known: &serde_json::Value| {
        known["name"] == node && known["state"] == "online" && known["probe"] == "answers"
    };
    Ok(nodes.iter().any(online))
}

/// Pulls the cable.
fn pull(rig: &Trio, source: &Gateway<'_>, remotes: &[SocketAddrV4]) -> Result<Run> {
    for node in EGRESS {
        wait_for(&format!("{node} to be online"), || is_online(source, node))?;
    }
    let far = SPREAD.far();
    let (stop, sent, echoed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    // When each connection was begun, and whether it stood in time.
    let begun = Mutex::new(Vec::new());
    let run = thread::scope(|scope| -> Result<Run> {
        let flows = scope.spawn(|| rig.netns(POD).run(|| talk(remotes, &stop, &sent, &echoed)));
        let connections = scope.spawn(|| rig.netns(POD).block_on(|| connect(far, &stop, &begun)));
        let found = (|| -> Result<Instant> {
            wait_for("traffic before the cable is pulled", || Ok(stands(&begun, None)))?;
            let before = (sent.load(Ordering::Relaxed), echoed.load(Ordering::Relaxed));
            ensure!(before.1 > 0, "no datagram is echoed");
            // Agents go by turns that began with the rig.
            thread::sleep(TURN.mul_f64(fastrand::f64()));
            let pulled = Instant::now();
            rig.pull(EGRESS[0])?;
            while !stands(&begun, Some(pulled)) {
                ensure!(pulled.elapsed() < DEADLINE, "connections fail after {DEADLINE:?}");
                thread::sleep(STEP);
            }
            Ok(pulled)
        })();
        stop.store(true, Ordering::Relaxed);
        let joined = |what: &str| format!("{what} ended early");
        flows.join().map_err(|_| anyhow::anyhow!(joined("the flows")))???;
        connections.join().map_err(|_| anyhow::anyhow!(joined("the connections")))??;
        let pulled = found?;
        let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = begun.iter().filter(|(at, stood)| *at >= pulled && !stood).map(|(at, _)| *at);
        let lost = sent.load(Ordering::Relaxed).saturating_sub(echoed.load(Ordering::Relaxed));
        Ok(Run { outage: failed.max().map_or(Duration::ZERO, |at| at + STEP - pulled), lost })
    })?;
    let leaks = rig.leaks()?;
    ensure!(leaks.values().all(|packets| *packets == 0), "wrong addresses: {leaks:?}");
    Ok(run)
}

/// Whether enough connections have stood one after the other; all begun after a second since then.
fn stands(begun: &Mutex<Vec<(Instant, bool)>>, since: Option<Instant>) -> bool {
    let begun = begun.lock().unwrap_or_else(PoisonError::into_inner);
    let last = begun.iter().rev().take(ENOUGH);
    last.clone().count() == ENOUGH
        && last.clone().all(|(at, stood)| {
            *stood && since.is_none_or(|since| *at > since + Duration::from_secs(1))
        })
}

/// Begins connections until it is stopped.
async fn connect(
    far: SocketAddrV4,
    stop: &AtomicBool,
    begun: &Mutex<Vec<(Instant, bool)>>,
) -> Result<()> {
    let mut tries = tokio::task::JoinSet::new();
    let mut step = tokio::time::interval(STEP);
    let note = |result: Result<(Instant, bool), tokio::task::JoinError>| {
        if let Ok(done) = result {
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        }
    };
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = step.tick() => {
                tries.spawn(async move {
                    let at = Instant::now();
                    let stream = tokio::net::TcpStream::connect(SocketAddr::from(far));
                    let stream = tokio::time::timeout(STANDS_WITHIN, stream).await;
                    (at, matches!(stream, Ok(Ok(_))))
                });
            }
            Some(result) = tries.join_next() => note(result),
        }
    }
    Ok(())
}

/// Sends datagrams of so many flows in turn, and counts them and their echoes, until it is stopped;
/// what is on its way then is waited for.
fn talk(
    remotes: &[SocketAddrV4],
    stop: &AtomicBool,
    sent: &AtomicU64,
    echoed: &AtomicU64,
) -> Result<()> {
    let sockets = remotes
        .iter()
        .cycle()
        .take(FLOWS)
        .map(|remote| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(remote)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })
        .collect::<Result<Vec<_>>>()?;
    let hear = || {
        let mut buffer = [0; 16];
        for socket in &sockets {
            while socket.recv(&mut buffer).is_ok() {
                echoed.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let slices = 25;
    while !stop.load(Ordering::Relaxed) {
        let round = Instant::now();
        for (slice, number) in sockets.chunks(FLOWS / slices).zip(1..) {
            for socket in slice {
                // Refused by an ICMP error: the next one tells.
                if socket.send(b"datagram").is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
            let due = round + BEAT * number / slices as u32;
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        hear();
    }
    let end = Instant::now() + BEAT;
    while echoed.load(Ordering::Relaxed) < sent.load(Ordering::Relaxed) && Instant::now() < end {
        hear();
    }
    Ok(())
}
