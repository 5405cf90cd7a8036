//! Real TCP through the node: a stream, transactions, connections.
//!
//! Client and server share the measuring core, so that CPU time counts and not the machine's
//! mood: the cost of a unit is that of both threads and of ksoftirqd. The translation is verified
//! in each run: the server must see the egress IP, and every byte must arrive.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use egress_common::bench::{EGRESS_BASE, REMOTE_BASE, REMOTE_PORT};

use super::{
    measure::{Sample, Thread, steal, take_core},
    pace::Kthread,
    rig::Rig,
    workload::{Talk, Workload},
};

/// Whoever hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(3);
const MESSAGE: usize = 64;
const CHUNK: usize = 1 << 16;

/// Units of a pilot run.
pub fn pilot(talk: Talk) -> u32 {
    match talk {
        Talk::Stream => 4096,
        Talk::Transactions => 500,
        Talk::Connections => 200,
    }
}

/// What one thread did.
struct Work {
    before: Thread,
    after: Thread,
    /// Times of the transactions in nanoseconds.
    times: Vec<u64>,
}

/// Has pod and external host do `count` units of talk and says what it cost.
pub fn run(
    rig: &mut Rig,
    workload: &Workload,
    talk: Talk,
    count: u32,
    core: usize,
) -> Result<Sample> {
    let ends = rig.ends.as_ref().context("a rig without sockets")?;
    ends.offload(&rig.node, &rig.net, workload.offload)?;
    let ksoftirqd = Kthread::ksoftirqd(core)?;
    let (deferred, stolen) = (ksoftirqd.nanoseconds()?, steal(core)?);
    let (ready, started) = channel();
    let (client, server) = thread::scope(|scope| {
        let server = scope.spawn(|| {
            ends.outside.enter(move || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, REMOTE_PORT))
                    .context("listen on the external host")?;
                take_core(core)?;
                ready.send(()).context("tell that the server listens")?;
                serve(&listener, talk)
            })
        });
        // If the server failed, its error is told below.
        let client = match started.recv() {
            Ok(()) => ends.pod.enter(|| {
                take_core(core)?;
                converse(talk, count)
            }),
            Err(_) => Err(anyhow!("the server did not start")),
        };
        if let Err(error) = ends.outside.enter(goodbye) {
            eprintln!("{error:#}");
        }
        (client, server.join())
    });
    let server = server.map_err(|_| anyhow!("the server's thread panicked"))??;
    let client = client?;
    let deferred = Duration::from_nanos(ksoftirqd.nanoseconds()? - deferred);
    let spent = |work: &Work| work.after.cpu - work.before.cpu;
    let per_unit = |time: Duration| time.as_nanos() as f64 / f64::from(count);
    Ok(Sample {
        ns: per_unit(spent(&client) + spent(&server) + deferred),
        wall_ns: per_unit(client.after.wall - client.before.wall),
        packets: count,
        lost: 0.0,
        steal: steal(core)? - stolen,
        switches: client.after.switches - client.before.switches,
        latency: percentiles(client.times),
    })
}

fn percentiles(mut times: Vec<u64>) -> Option<[u64; 3]> {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
    Some([at(0.5)?, at(0.99)?, at(0.999)?])
}

fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    stream.set_write_timeout(Some(PATIENCE)).context("set a time limit")?;
    stream.set_nodelay(true).context("switch off Nagle's algorithm")
}

/// The address of the external host with this number.
fn remote(number: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(REMOTE_BASE + 1 + (number & 0xffff)), REMOTE_PORT).into()
}

/// Ends the server: a connection that does not come from an egress IP.
fn goodbye() -> Result<()> {
    TcpStream::connect_timeout(&remote(0), PATIENCE).context("end the server").map(drop)
}

/// Answers connections from the egress IP until one comes from the external host itself.
fn serve(listener: &TcpListener, talk: Talk) -> Result<Work> {
    let egress = IpAddr::from(Ipv4Addr::from_bits(EGRESS_BASE));
    let before = Thread::now()?;
    let mut outcome = Ok(());
    loop {
        let (stream, peer) = listener.accept().context("accept a connection")?;
        if peer.ip() == stream.local_addr().context("a connection's address")?.ip() {
            let after = Thread::now()?;
            return outcome.map(|()| Work { before, after, times: Vec::new() });
        }
        if peer.ip() != egress {
            outcome = Err(anyhow!("the server was reached from {}, not {egress}", peer.ip()));
            continue;
        }
        if let Err(error) = answer(stream, talk) {
            outcome = Err(error);
        }
    }
}

fn answer(mut stream: TcpStream, talk: Talk) -> Result<()> {
    patient(&stream)?;
    match talk {
        Talk::Stream => {
            let (mut chunk, mut total) = (vec![0; CHUNK], 0u64);
            loop {
                match stream.read(&mut chunk).context("receive the stream")? {
                    0 => break,
                    len => total += len as u64,
                }
            }
            stream.write_all(&total.to_be_bytes()).context("acknowledge the stream")
        }
        Talk::Transactions => {
            let mut message = [0; MESSAGE];
            loop {
                match stream.read_exact(&mut message) {
                    Ok(()) => stream.write_all(&message).context("answer a request")?,
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
                    Err(error) => bail!("receive a request: {error}"),
                }
            }
        }
        // Closing is the answer.
        Talk::Connections => Ok(()),
    }
}

fn converse(talk: Talk, count: u32) -> Result<Work> {
    let before = Thread::now()?;
    let connect = |number| -> Result<TcpStream> {
        let to = remote(number);
        let stream = TcpStream::connect_timeout(&to, PATIENCE);
        let stream = stream.with_context(|| format!("connect to {to}"))?;
        patient(&stream)?;
        Ok(stream)
    };
    let mut times = Vec::new();
    match talk {
        Talk::Stream => {
            let mut stream = connect(0)?;
            let chunk = vec![0; CHUNK];
            let mut left = count as usize * 1024;
            while left > 0 {
                let len = left.min(CHUNK);
                stream.write_all(&chunk[..len]).context("send the stream")?;
                left -= len;
            }
            stream.shutdown(Shutdown::Write).context("end the stream")?;
            let mut total = [0; 8];
            stream.read_exact(&mut total).context("hear of the stream's end")?;
            let (total, sent) = (u64::from_be_bytes(total), u64::from(count) * 1024);
            ensure!(total == sent, "{total} of {sent} bytes arrived");
        }
        Talk::Transactions => {
            let mut stream = connect(0)?;
            let mut message = [0; MESSAGE];
            for _ in 0..count {
                let asked = Instant::now();
                stream.write_all(&message).context("send a request")?;
                stream.read_exact(&mut message).context("receive an answer")?;
                times.push(asked.elapsed().as_nanos() as u64);
            }
        }
        Talk::Connections => {
            for number in 0..count {
                let mut stream = connect(number)?;
                let len = stream.read(&mut [0]).context("wait for the connection's end")?;
                ensure!(len == 0, "the server said something");
            }
        }
    }
    Ok(Work { before, after: Thread::now()?, times })
}
