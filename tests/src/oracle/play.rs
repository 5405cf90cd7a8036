//! Playing a trace through two gateways at once, and comparing what comes out of them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::{self, Write as _},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_common::testing::packet::udp;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};

use super::{
    Flow, MARKER, PODS, Side, Step, What,
    differences::{self, Class},
    kernel::Kernel,
    ours::Ours,
    ports::{self, Way},
    reassembly,
    seen::Seen,
    trace::Trace,
};
use crate::lone;

/// A gateway under comparison.
pub trait Translator {
    /// What it is called.
    fn name(&self) -> &'static str;
    /// Puts a packet in: of this pod of [`PODS`], or from outside.
    fn put_in(&mut self, from: Side, pod: usize, packet: &[u8]) -> Result<()>;
    /// Takes out what has come so far.
    fn take_out(&mut self, found: &mut Vec<(Side, Vec<u8>)>) -> Result<()>;
}

/// Where the markers go.
const MARKED: [u8; 4] = [100, 127, 255, 9];
/// Time for a marker to cross.
const PATIENCE: Duration = Duration::from_secs(5);

/// A gateway, and the ports that it has given to flows.
struct Rig<T> {
    gateway: T,
    ports: HashMap<Flow, u16>,
    markers: u64,
    packets: u64,
}

impl<T: Translator> Rig<T> {
    fn new(gateway: T) -> Self {
        Self { gateway, ports: HashMap::new(), markers: 0, packets: 0 }
    }

    /// Sends a step's packets and returns what came of them, written as if ports were kept.
    fn play(&mut self, step: &Step) -> Result<Vec<Seen>> {
        let mut sent = step.packets.clone();
        if step.from == Side::Outside {
            let port = self.ports.get(&step.flow).copied();
            sent.iter_mut().for_each(|packet| write(packet, step, Way::In, step.flow.port, port));
        }
        for packet in &sent {
            self.gateway.put_in(step.from, step.pod, packet)?;
        }
        self.packets += sent.len() as u64;
        let found = reassembly::together(self.all_out()?);
        if step.from == Side::Pod {
            self.learn(step, &found);
        }
        let port = self.ports.get(&step.flow).copied();
        let read = |(side, mut packet): (Side, Vec<u8>)| {
            if let (Side::Outside, Some(port)) = (side, port) {
                write(&mut packet, step, Way::Out, port, Some(step.flow.port));
            }
            Seen::read(side, packet, &sent)
        };
        let mut seen: Vec<Seen> = found.into_iter().map(read).collect();
        seen.sort();
        Ok(seen)
    }

    /// All that comes out until a marker does, which goes the longest way.
    fn all_out(&mut self) -> Result<Vec<(Side, Vec<u8>)>> {
        self.markers += 1;
        let number = self.markers.to_be_bytes();
        let marker = udp((PODS[MARKER].address, 50_000), (MARKED, 9), &number).options(&[1; 4]);
        self.gateway.put_in(Side::Pod, MARKER, &marker.bytes())?;
        let is_marker = |(_, packet): &(Side, Vec<u8>)| {
            packet.get(16..20) == Some(&MARKED) && packet.ends_with(&number)
        };
        let mut found = Vec::new();
        let end = Instant::now() + PATIENCE;
        loop {
            self.gateway.take_out(&mut found)?;
            if let Some(at) = found.iter().position(is_marker) {
                let (_, marker) = found.remove(at);
                let source: [u8; 4] = marker[12..16].try_into()?;
                ensure!(source == PODS[MARKER].egress_ip, "a marker from {source:?}");
                return Ok(found);
            }
            ensure!(Instant::now() < end, "{}: a marker did not come out", self.gateway.name());
        }
    }

    /// Notes the port by which the outside knows the step's flow from now on.
    fn learn(&mut self, step: &Step, found: &[(Side, Vec<u8>)]) {
        let egress_ip = PODS[step.flow.pod].egress_ip;
        let mapped = found
            .iter()
            .filter(|(side, packet)| {
                *side == Side::Outside && packet.get(12..16) == Some(&egress_ip)
            })
            .filter(|(_, packet)| packet[9] == step.flow.protocol)
            .filter(|(_, packet)| !is_error(packet))
            .find_map(|(_, packet)| Some(ports::place(packet, Way::Out)?.port(packet)));
        if let Some(port) = mapped {
            self.ports.insert(step.flow, port);
        }
    }
}

fn is_error(packet: &[u8]) -> bool {
    let behind = usize::from(packet[0] & 15) * 4;
    packet[9] == 1 && packet.get(behind).is_some_and(|kind| ports::is_error(*kind))
}

/// Writes another port of the step's flow where the packet has one of it.
fn write(packet: &mut [u8], step: &Step, way: Way, from: u16, to: Option<u16>) {
    if let (Some(place), Some(to)) = (ports::place(packet, way), to)
        && place.protocol == step.flow.protocol
        && place.port(packet) == from
        && from != to
    {
        place.write(packet, to);
    }
}

/// What a trace came to.
#[derive(Debug, Default)]
pub struct Report {
    pub packets: u64,
    /// Steps by what was peculiar about them and what both gateways did alike.
    pub alike: BTreeMap<(What, &'static str), u64>,
    /// Steps by the class of their difference.
    pub differences: BTreeMap<&'static str, u64>,
    /// Flows with another port than their pod's own: ours, theirs.
    pub exchanged: (usize, usize),
    /// What our gateway counted, as `egress status` says it.
    pub paths: serde_json::Value,
    pub drops: serde_json::Value,
    /// What nobody has explained.
    pub failures: Vec<Failure>,
}

/// A difference that is in no class.
#[derive(Debug)]
pub struct Failure {
    pub step: Step,
    pub ours: Vec<Seen>,
    pub theirs: Vec<Seen>,
}

/// What came out, in a word.
fn outcome(seen: &[Seen]) -> &'static str {
    match seen {
        [] => "nothing",
        [Seen::Crossed(..), ..] => "crossed",
        [Seen::Answered(..), ..] => "answered",
        [Seen::Reset(..), ..] => "reset",
    }
}

/// Answers that our gateway may send in a while; the kernel's limits are lifted.
const ANSWERS: usize = 40;
const WHILE: Duration = Duration::from_millis(135);

/// Keeps our gateway's answers below its limit: what it does not say is no difference.
struct Pace {
    answers: Vec<Instant>,
}

impl Pace {
    fn after(&mut self, seen: &[Seen]) {
        let answers = seen.iter().filter(|seen| !matches!(seen, Seen::Crossed(..)));
        self.answers.extend(answers.map(|_| Instant::now()));
        while self.answers.len() >= ANSWERS {
            self.answers.retain(|answer| answer.elapsed() < WHILE);
            std::thread::yield_now();
        }
    }
}

/// Plays a trace until this many packets have gone in.
pub fn play(trace: Trace, data_path: &str, packets: u64) -> Result<Report> {
    let (node, wires) = lone::wired()?;
    let ours = Ours::up(&node, &wires, data_path)?;
    let (mut ours, mut theirs) = (Rig::new(ours), Rig::new(Kernel::up()?));
    stay_on_this_cpu()?;
    let mut report = Report::default();
    let mut pace = Pace { answers: Vec::new() };
    for step in trace {
        if ours.packets >= packets || report.failures.len() >= MOST_FAILURES {
            break;
        }
        let seen = [
            ours.play(&step).with_context(|| describe(&step))?,
            theirs.play(&step).with_context(|| describe(&step))?,
        ];
        pace.after(&seen[0]);
        report.judge(step, seen);
    }
    report.packets = ours.packets;
    let exchanged = |ports: &HashMap<Flow, u16>| {
        ports.iter().filter(|(flow, port)| flow.port != **port).count()
    };
    report.exchanged = (exchanged(&ours.ports), exchanged(&theirs.ports));
    (report.paths, report.drops) = ours.gateway.counters()?;
    Ok(report)
}

/// What a packet sets off happens on its sender's CPU, in order; on two it would not.
fn stay_on_this_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().context("ask for the CPU")?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("stay on one CPU")
}

/// Enough to see what is wrong.
const MOST_FAILURES: usize = 20;

impl Report {
    fn judge(&mut self, step: Step, [ours, theirs]: [Vec<Seen>; 2]) {
        // Whatever the kernel does.
        if ours.iter().any(|seen| !is_of_its_tenant(&step, seen)) {
            self.failures.push(Failure { step, ours, theirs });
            return;
        }
        if ours == theirs {
            *self.alike.entry((step.what, outcome(&ours))).or_default() += 1;
            return;
        }
        match differences::CLASSES.iter().find(|class| class.holds(&step, &ours, &theirs)) {
            Some(Class { name, .. }) => *self.differences.entry(name).or_default() += 1,
            None => self.failures.push(Failure { step, ours, theirs }),
        }
    }
}

/// Whether what came out to the outside bears the tenant's address.
fn is_of_its_tenant(step: &Step, seen: &Seen) -> bool {
    let egress_ip = PODS[step.pod].egress_ip;
    match seen {
        Seen::Crossed(Side::Outside, packet) => packet[12..16] == egress_ip,
        Seen::Answered(Side::Outside, answer) => answer.from == egress_ip,
        Seen::Reset(Side::Outside, reset) => reset[..4] == egress_ip,
        _ => true,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ours, theirs) = self.exchanged;
        writeln!(f, "{} packets; ports exchanged: {ours} here, {theirs} there", self.packets)?;
        for ((what, outcome), count) in &self.alike {
            writeln!(f, "{count:8} alike: {what:?} {outcome}")?;
        }
        for (name, count) in &self.differences {
            writeln!(f, "{count:8} {name}")?;
        }
        write!(f, "paths {}\ndrops {}", self.paths, self.drops)
    }
}

/// A step for the reader.
#[must_use]
pub fn describe(step: &Step) -> String {
    let mut text =
        format!("{:?} from {:?}, {:?} of {:?}", step.what, step.from, step.session, step.flow);
    for packet in &step.packets {
        let _ = write!(text, "\n  {}", hex(packet));
    }
    text
}

/// What came out, for the reader.
#[must_use]
pub fn show(seen: &[Seen]) -> String {
    let line = |seen: &Seen| match seen {
        Seen::Crossed(side, packet) => format!("\n  crossed to {side:?} {}", hex(packet)),
        Seen::Answered(side, answer) => format!("\n  answered to {side:?} {answer:?}"),
        Seen::Reset(side, reset) => format!("\n  reset to {side:?} {}", hex(reset)),
    };
    if seen.is_empty() { " nothing".into() } else { seen.iter().map(line).collect() }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
