//! One run: send packets, count what arrives, and say what it cost.
//!
//! The cost is CPU time, not wall time: the sending thread's plus that of its core's ksoftirqd.
//! The kernel does a packet's whole way inside the sender's system call, so nothing else works
//! on it; what the kernel defers goes to ksoftirqd of the same core. At a fixed rate the node works
//! in threads of its own, whose time it is then (see `pace`).
use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    time::{ClockId, clock_gettime},
    unistd::{Pid, gettid},
};
use serde::{Deserialize, Serialize};

use super::{
    frame::{self, Expect},
    net::command,
    object::Arrived,
    pace::{self, Kthread},
    rig::Rig,
    sockets,
    workload::Workload,
};

/// What a run may lose at most: one packet in a thousand.
const MOST_LOST: f64 = 0.001;
/// What the sender's call may take to end once all is sent: the kernel waits for readers there.
const SENDERS_END: Duration = Duration::from_millis(100);
/// Frames verified before a workload is timed.
pub const VERIFIED: u32 = 40;

/// What a run cost.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Sample {
    /// CPU time a packet (or the workload's unit), in nanoseconds: sender, node and receiver.
    pub ns: f64,
    /// Wall time of the same.
    pub wall_ns: f64,
    pub packets: u32,
    /// Share of packets that did not arrive.
    pub lost: f64,
    /// Time that the hypervisor gave to others, on the sending core, in ticks of 10 ms.
    pub steal: u64,
    /// How often the sending thread was put aside.
    pub switches: u64,
    /// Age of packets at the sink, or time of a transaction, in nanoseconds: median, 99 and 99.9
    /// percent. Timed packets and transactions only.
    pub latency: Option<[u64; 3]>,
}

/// The core that measures: the last one, as the first gets most interrupts.
pub fn measuring_core() -> Result<usize> {
    Ok(thread::available_parallelism().context("count the cores")?.get() - 1)
}

/// Pins the calling thread to this core and gives it real-time priority.
pub fn take_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core).with_context(|| format!("core {core}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to core {core}"))?;
    command("chrt", &["--fifo", "--pid", "10", &gettid().to_string()]).map(drop)
}

/// The eighth number of `cpuCORE` in /proc/stat.
pub fn steal(core: usize) -> Result<u64> {
    let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let prefix = format!("cpu{core} ");
    let line = stat.lines().find(|line| line.starts_with(&prefix));
    let value = line.and_then(|line| line.split_whitespace().nth(8));
    value.and_then(|value| value.parse().ok()).with_context(|| format!("steal of {prefix}"))
}

/// What the sending thread reads of itself before and after.
#[derive(Debug, Clone, Copy)]
pub struct Thread {
    pub cpu: Duration,
    pub wall: Instant,
    pub switches: u64,
}

impl Thread {
    /// Of the calling thread.
    pub fn now() -> Result<Self> {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).context("usage of this thread")?;
        let cpu = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("CPU time")?;
        Ok(Self {
            cpu: cpu.into(),
            wall: Instant::now(),
            switches: usage.involuntary_context_switches().try_into().unwrap_or(0),
        })
    }
}

/// The core that sends: the measuring one, but for a fixed rate.
fn sending_core(rig: &Rig, core: usize) -> Result<usize> {
    if rig.setting.paced { pace::sending_core(core) } else { Ok(core) }
}

/// Sends `count` packets of an armed workload and waits until they have arrived. Costs nothing.
pub fn send(rig: &mut Rig, workload: &Workload, count: u32, core: usize) -> Result<Arrived> {
    let core = sending_core(rig, core)?;
    let Rig { object, net, .. } = rig;
    net.enter(|| {
        take_core(core)?;
        object.send(workload.generator(), workload.frame_len(), count, workload.batch)
    })?;
    settle(rig, count)
}

/// Waits until the sink has seen everything, or nothing more for a while.
fn settle(rig: &mut Rig, count: u32) -> Result<Arrived> {
    let mut arrived = rig.object.arrived()?;
    let mut idle_since = Instant::now();
    while arrived.accepted < u64::from(count) && idle_since.elapsed() < Duration::from_millis(50) {
        thread::sleep(Duration::from_millis(1));
        let now = rig.object.arrived()?;
        if now != arrived {
            idle_since = Instant::now();
        }
        arrived = now;
    }
    Ok(arrived)
}

/// Sends `count` packets and says what they cost. An error is a reason to call the row void.
pub fn run(
    rig: &mut Rig,
    workload: &Workload,
    expect: Expect,
    count: u32,
    core: usize,
) -> Result<Sample> {
    if let Some(talk) = workload.talk {
        return sockets::run(rig, workload, talk, count, core);
    }
    rig.arm(workload, frame::rule(workload, expect)?)?;
    let mut workers = rig.workers.clone();
    workers.push(Kthread::ksoftirqd(core)?);
    let worked = || workers.iter().map(|worker| worker.nanoseconds()).sum::<Result<u64>>();
    let (deferred, stolen) = (worked()?, steal(core)?);
    let sender = sending_core(rig, core)?;
    let Rig { object, net, .. } = rig;
    let (before, after) = net.enter(|| {
        take_core(sender)?;
        let before = Thread::now()?;
        object.send(workload.generator(), workload.frame_len(), count, workload.batch)?;
        Ok((before, Thread::now()?))
    })?;
    let arrived = settle(rig, count)?;
    let deferred = Duration::from_nanos(worked()? - deferred);
    // Apart from the node, the sender's time is none of the node's.
    let own = if sender == core { after.cpu - before.cpu } else { Duration::ZERO };
    let lost = 1.0 - arrived.accepted as f64 / f64::from(count);
    ensure!(
        lost <= MOST_LOST,
        "lost {:.2} % of {count} packets ({} others arrived)",
        lost * 100.0,
        arrived.other
    );
    if workload.rate != 0 {
        let wanted = Duration::from_secs_f64(f64::from(count) / f64::from(workload.rate));
        let taken = after.wall - before.wall;
        ensure!(
            taken < wanted.mul_f64(1.1) + SENDERS_END,
            "{count} packets were sent in {taken:.1?}, not in {wanted:.1?}"
        );
    }
    let per_packet = |time: Duration| time.as_nanos() as f64 / f64::from(count);
    Ok(Sample {
        ns: per_packet(own + deferred),
        wall_ns: per_packet(after.wall - before.wall),
        packets: count,
        lost,
        steal: steal(core)? - stolen,
        switches: after.switches - before.switches,
        latency: workload.timed.then(|| percentiles(rig)).transpose()?,
    })
}

fn percentiles(rig: &mut Rig) -> Result<[u64; 3]> {
    let histogram = rig.object.latency()?;
    let total: u64 = histogram.iter().sum();
    let at = |share: f64| {
        let mut left = (total as f64 * share) as u64;
        let bucket = histogram.iter().position(|count| {
            let here = left < *count;
            left = left.saturating_sub(*count);
            here
        });
        egress_common::bench::latency_floor(bucket.unwrap_or(0) as u32)
    };
    Ok([at(0.5), at(0.99), at(0.999)])
}

/// Captures 40 packets of the workload and holds each against what it must be.
pub fn verify(rig: &mut Rig, workload: &Workload, expect: Expect, core: usize) -> Result<()> {
    let mut rule = frame::rule(workload, expect)?;
    rule.capture = 1;
    rig.arm(workload, rule)?;
    let arrived = send(rig, workload, VERIFIED, core)?;
    let captures = rig.object.captures()?;
    ensure!(
        captures.len() == VERIFIED as usize,
        "{} of {VERIFIED} packets arrived as {expect} ({} others)",
        captures.len(),
        arrived.other
    );
    for (number, capture) in captures.iter().enumerate() {
        frame::verify(capture, workload, expect)
            .with_context(|| format!("packet {number} at the sink is wrong"))?;
    }
    Ok(())
}
