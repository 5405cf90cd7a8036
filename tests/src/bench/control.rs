//! The control plane: how long from a changed object to the first packet that obeys it.
//!
//! Seen from outside and alike for all: packets of one VNID are sent until one comes out with its
//! egress IP. Wall time in milliseconds, as it is mostly waiting for others.
use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use egress_common::bench::vnid;
use serde::{Deserialize, Serialize};

use super::{
    estimate,
    frame::{self, Expect},
    progress::Progress,
    rig::Rig,
    stats::Summary,
    variants::{Agent, Builds, DataPath, Iptables, NftMap, Variant, egress_ip, snat_rule},
    workload::{Entry, Flows, Workload},
};

/// A change that has not shown after this time is not coming.
const PATIENCE: Duration = Duration::from_secs(60);

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// One VNID gets its egress IP while so many others have theirs.
    One,
    /// All VNIDs get theirs at once.
    All,
    /// As one, in a cluster of 10,000 namespaces and 500 nodes with 5,000 egress IPs.
    Cluster,
}

/// One row of the report.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Task {
    /// Unique; `--only` matches a part of it.
    pub name: String,
    pub change: Change,
    pub vnids: u32,
    pub repeats: u32,
}

impl Task {
    pub fn new(change: Change, vnids: u32, repeats: u32) -> Self {
        let what = match change {
            Change::One => "one-beside",
            Change::All => "all",
            Change::Cluster => "one-in-a-cluster-beside",
        };
        Self { name: format!("control/{what}-{vnids}"), change, vnids, repeats }
    }
}

/// How long one way of changing took.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Line {
    pub task: Task,
    pub means: String,
    /// Milliseconds.
    pub time: Option<Summary>,
    pub void: Option<String>,
}

/// A way of giving VNIDs their egress IPs.
enum Means {
    /// One `iptables` call for each.
    Calls(Iptables),
    /// One `iptables-restore` for all.
    Restore(Iptables),
    /// Elements of the map, in one `nft` call.
    Map,
    /// Changed objects; the agent notices.
    Agent(Box<Agent>),
}

impl Means {
    fn all(builds: &Builds, task: &Task) -> Vec<Self> {
        let mut all = vec![
            Self::Calls(Iptables::legacy()),
            Self::Restore(Iptables::legacy()),
            Self::Calls(Iptables::nft()),
            Self::Restore(Iptables::nft()),
            Self::Map,
        ];
        all.extend(builds.egress.clone().map(|binary| {
            let agent = Agent::new(binary, DataPath::Tc, "");
            let in_cluster = task.change == Change::Cluster;
            Self::Agent(Box::new(if in_cluster { agent.in_cluster() } else { agent }))
        }));
        all.retain(|means| means.fits(task));
        all
    }

    fn name(&self) -> String {
        match self {
            Self::Calls(iptables) => format!("{} a call each", iptables.name()),
            Self::Restore(iptables) => format!("{}-restore", iptables.name()),
            Self::Map => "nft map elements".to_owned(),
            Self::Agent(_) => "egress objects".to_owned(),
        }
    }

    /// A thousand calls take as long as they take; ten thousand take minutes and say no more.
    fn fits(&self, task: &Task) -> bool {
        !matches!(self, Self::Calls(_)) || task.change != Change::All || task.vnids <= 1_000
    }

    /// A thousand calls average themselves.
    fn repeats(&self, task: &Task) -> u32 {
        match self {
            Self::Calls(_) if task.vnids > 1 => 1,
            _ => task.repeats,
        }
    }

    /// The state before: `known` VNIDs have their egress IP.
    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::Calls(iptables) | Self::Restore(iptables) => iptables.install(rig),
            Self::Map => NftMap.install(rig),
            Self::Agent(agent) => agent.install(rig),
        }
    }

    /// Ends what runs, so that the next rig can be made.
    fn stop(&mut self) -> Result<()> {
        match self {
            Self::Agent(agent) => agent.close(),
            _ => Ok(()),
        }
    }

    /// All that is to say so that the VNIDs `known..all` get their egress IPs.
    fn prepare(&self, known: u32, all: u32) -> Result<Prepared<'_>> {
        Ok(match self {
            Self::Calls(iptables) => {
                let program = iptables.name();
                let head = [program.as_str(), "--wait", "-t", "nat"].map(str::to_owned);
                let words = |number| snat_rule(number).split(' ').map(str::to_owned).collect();
                let call = |number| [head.to_vec(), words(number)].concat();
                Prepared::Calls((known..all).map(|number| (call(number), String::new())).collect())
            }
            Self::Restore(iptables) => {
                let rules: Vec<String> = (known..all).map(snat_rule).collect();
                let input = format!("*nat\n{}\nCOMMIT\n", rules.join("\n"));
                let program = format!("{}-restore", iptables.name());
                let call = [program.as_str(), "--wait", "--noflush"].map(str::to_owned);
                Prepared::Calls(vec![(call.to_vec(), input)])
            }
            Self::Map => {
                let elements: Vec<String> = (known..all)
                    .map(|number| format!("{:#x} : {}", vnid(number), egress_ip(number)))
                    .collect();
                let line = format!("add element ip egress egress {{ {} }}", elements.join(", "));
                let call = ["nft", "-f", "-"].map(str::to_owned);
                Prepared::Calls(vec![(call.to_vec(), line)])
            }
            Self::Agent(agent) => {
                agent.write_objects(all)?;
                Prepared::Objects(agent)
            }
        })
    }
}

/// A change that only has to be made.
enum Prepared<'a> {
    /// Words and standard input of each call.
    Calls(Vec<(Vec<String>, String)>),
    /// This agent's new objects lie beside those in force.
    Objects(&'a Agent),
}

impl Prepared<'_> {
    fn make(&self, rig: &mut Rig) -> Result<()> {
        match self {
            Self::Objects(agent) => agent.change_objects(),
            Self::Calls(calls) => calls.iter().try_for_each(|(words, input)| {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                rig.node.run_with_input(&words, input).map(drop)
            }),
        }
    }
}

/// What all tasks take by all means.
pub fn planned(tasks: &[Task], builds: &Builds) -> Duration {
    tasks.iter().map(|task| estimate::changing(task) * Means::all(builds, task).len() as u32).sum()
}

/// Measures each task by all means.
pub fn run(tasks: &[Task], builds: &Builds, progress: &mut Progress) -> Vec<Line> {
    let mut lines = Vec::new();
    for task in tasks {
        for mut means in Means::all(builds, task) {
            let name = means.name();
            progress.step(&format!("{}: {name}", task.name), estimate::changing(task));
            let times = match task.change {
                Change::One | Change::Cluster => one_by_one(&mut means, task),
                Change::All => {
                    (0..means.repeats(task)).map(|_| all_at_once(&mut means, task)).collect()
                }
            };
            let (time, void) = match times {
                Ok(times) => (Summary::of(times), None),
                Err(error) => (None, Some(format!("{error:#}"))),
            };
            lines.push(Line { task: task.clone(), means: name, time, void });
        }
    }
    lines
}

/// One VNID after the other on one rig, in milliseconds.
fn one_by_one(means: &mut Means, task: &Task) -> Result<Vec<f64>> {
    let mut rig = installed(means, task.vnids)?;
    let last = task.vnids + task.repeats;
    let times: Result<Vec<f64>> =
        (task.vnids..last).map(|known| measure(means, &mut rig, known, known + 1)).collect();
    means.stop()?;
    times
}

/// All VNIDs on a fresh rig that knows one, in milliseconds.
fn all_at_once(means: &mut Means, task: &Task) -> Result<f64> {
    // One is known, so that there is something to see when the agent is ready.
    let mut rig = installed(means, 1)?;
    let time = measure(means, &mut rig, 1, task.vnids + 1);
    means.stop()?;
    time
}

fn installed(means: &mut Means, known: u32) -> Result<Rig> {
    let setting = Workload::new("control", Entry::Tunnel, Flows::New, known).setting();
    let mut rig = Rig::new("control", setting)?;
    means.install(&mut rig)?;
    Ok(rig)
}

/// From `known` to `all` VNIDs, until the last one's packets have changed.
fn measure(means: &Means, rig: &mut Rig, known: u32, all: u32) -> Result<f64> {
    let mut workload = Workload::new("control", Entry::Tunnel, Flows::New, all).last_vnid();
    workload.batch = 1;
    rig.arm(&workload, frame::rule(&workload, Expect::Translated)?)?;
    ensure!(!probe(rig, &workload)?, "the VNID had its egress IP before the change");
    let prepared = means.prepare(known, all)?;
    let started = Instant::now();
    prepared.make(rig)?;
    while !probe(rig, &workload)? {
        ensure!(started.elapsed() < PATIENCE, "the change has not shown in {PATIENCE:?}");
        thread::sleep(Duration::from_micros(200));
    }
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

/// Sends one packet of a new flow: has one come out with the egress IP?
fn probe(rig: &mut Rig, workload: &Workload) -> Result<bool> {
    let Rig { object, net, .. } = rig;
    net.enter(|| {
        object.send(workload.generator(), workload.frame_len(), 1, 1)?;
        Ok(object.arrived()?.accepted > 0)
    })
}
