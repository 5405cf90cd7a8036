//! All runs: rigs of one setting alive at once, rounds interleaved and shuffled.
use std::time::Duration;

use anyhow::Result;
use egress_common::bench::{mix, scale};
use serde::{Deserialize, Serialize};

use super::{
    estimate,
    frame::Expect,
    measure::{self, Sample},
    progress::Progress,
    rig::{Rig, Setting},
    sockets,
    variants::Variant,
    workload::{Direction, Flows, Workload},
};

/// How long and how often.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub struct Effort {
    /// Rounds of each workload; the first is dropped.
    pub rounds: u32,
    /// CPU time of one run.
    pub run: Duration,
    /// The most packets of a run of new flows, so that no flow table fills up.
    pub new_flows: u32,
}

/// One variant under one workload.
#[derive(Debug, Clone)]
pub struct Row {
    pub workload: Workload,
    pub variant: String,
    pub expect: Expect,
    /// One for each round but the first; rows of one workload can be paired by index.
    pub samples: Vec<Sample>,
    /// Why the row counts for nothing.
    pub void: Option<String>,
    /// Table sizes and the like.
    pub facts: String,
}

/// The most packets of a run of new flows, so that no flow table fills up.
pub const NEW_FLOWS: u32 = 100_000;
/// Packets of the pilot that tells how many fit into a run.
const PILOT: u32 = 10_000;
/// New flows are numbered from here: beyond every established one.
const FIRST_NEW_FLOW: u32 = 1 << 24;

/// A variant on its rig.
struct Station {
    variant: Box<dyn Variant>,
    rig: Result<Rig>,
}

/// Runs every workload on every variant that carries it. Rows come in the order of workloads,
/// then variants. `seed` decides the order of the rounds.
pub fn run(
    workloads: &[Workload],
    catalogue: impl Fn() -> Vec<Box<dyn Variant>>,
    effort: Effort,
    seed: u32,
    progress: &mut Progress,
) -> Result<Vec<Row>> {
    let core = measure::measuring_core()?;
    let mut settings: Vec<Setting> = Vec::new();
    for workload in workloads {
        if !settings.contains(&workload.setting()) {
            settings.push(workload.setting());
        }
    }
    let mut dice = Dice(seed);
    let mut rows = Vec::new();
    for setting in settings {
        let group: Vec<&Workload> =
            workloads.iter().filter(|workload| workload.setting() == setting).collect();
        let mut stations = install(catalogue(), &group, setting, progress);
        for workload in group {
            rows.extend(compare(workload, &mut stations, effort, core, &mut dice, progress));
        }
    }
    Ok(rows)
}

fn install(
    catalogue: Vec<Box<dyn Variant>>,
    group: &[&Workload],
    setting: Setting,
    progress: &mut Progress,
) -> Vec<Station> {
    let mut stations = Vec::new();
    for (number, mut variant) in catalogue.into_iter().enumerate() {
        if !group.iter().any(|workload| variant.carries(workload)) {
            continue;
        }
        let what = format!("{} VNIDs: {}", setting.policies, variant.name());
        progress.step(&what, estimate::installing(setting));
        let rig = Rig::new(&number.to_string(), setting).and_then(|mut rig| {
            variant.install(&mut rig)?;
            rig.object.set_counter(FIRST_NEW_FLOW)?;
            Ok(rig)
        });
        stations.push(Station { variant, rig });
    }
    stations
}

/// One workload on all stations: prepare each, then the rounds.
fn compare(
    workload: &Workload,
    stations: &mut [Station],
    effort: Effort,
    core: usize,
    dice: &mut Dice,
    progress: &mut Progress,
) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut counts = Vec::new();
    let mut carriers: Vec<&mut Station> =
        stations.iter_mut().filter(|station| station.variant.carries(workload)).collect();
    for station in &mut carriers {
        let what = format!("{}: {} warms up", workload.name, station.variant.name());
        progress.step(&what, estimate::preparing(workload));
        let (count, facts, void) = match station.prepare(workload, effort, core) {
            Ok((count, facts)) => (count, facts, None),
            Err(error) => (0, String::new(), Some(format!("{error:#}"))),
        };
        counts.push(count);
        rows.push(Row {
            workload: workload.clone(),
            variant: station.variant.name(),
            expect: station.variant.expect(),
            samples: Vec::new(),
            void,
            facts,
        });
    }
    for round in 0..effort.rounds {
        for index in dice.shuffled(carriers.len()) {
            let what = format!("{}: {}", workload.name, rows[index].variant);
            progress.step(&what, estimate::running(workload, effort));
            if rows[index].void.is_some() {
                continue;
            }
            match carriers[index].round(workload, counts[index], core) {
                Ok(_) if round == 0 => {}
                Ok(sample) => rows[index].samples.push(sample),
                Err(error) => rows[index].void = Some(format!("{error:#}")),
            }
        }
    }
    rows
}

impl Station {
    fn rig(&mut self) -> Result<&mut Rig> {
        self.rig.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))
    }

    /// Verifies the translation, warms the flow tables in both directions, and says how many
    /// packets make a run.
    fn prepare(
        &mut self,
        workload: &Workload,
        effort: Effort,
        core: usize,
    ) -> Result<(u32, String)> {
        self.rig()?;
        let Self { variant, rig: Ok(rig) } = self else { unreachable!("checked above") };
        variant.prepare(rig, workload)?;
        let expect = variant.expect();
        let count = match workload.flows {
            _ if let Some(talk) = workload.talk => {
                variant.forget(rig)?;
                let pilot = sockets::run(rig, workload, talk, sockets::pilot(talk), core)?;
                (effort.run.as_nanos() as f64 / pilot.ns.max(1.0)) as u32 + 1
            }
            Flows::New => {
                variant.forget(rig)?;
                measure::verify(rig, workload, expect, core)?;
                let pilot = measure::run(rig, workload, expect, PILOT / 5, core)?;
                let in_time = effort.run.as_nanos() as f64 * 3.0 / pilot.ns.max(1.0);
                (in_time as u32).max(PILOT / 2).min(effort.new_flows)
            }
            Flows::Established(flows) => {
                // The original direction first: it knows the better reason if all is wrong.
                let original =
                    Workload { direction: Direction::Original, timed: false, ..workload.clone() };
                measure::verify(rig, &original, expect, core)?;
                warm(rig, workload, expect, flows, core)?;
                measure::verify(rig, workload, expect, core)?;
                let pilot = measure::run(rig, workload, expect, PILOT, core)?;
                let time = effort.run.as_secs_f64();
                let in_time = match workload.rate {
                    0 => (time * 1e9 / pilot.ns.max(1.0)) as u32,
                    rate => (time * f64::from(rate)) as u32,
                };
                in_time.max(PILOT)
            }
        };
        Ok((count, variant.facts(rig)?))
    }

    fn round(&mut self, workload: &Workload, count: u32, core: usize) -> Result<Sample> {
        self.rig()?;
        let Self { variant, rig: Ok(rig) } = self else { unreachable!("checked above") };
        if workload.flows == Flows::New {
            variant.forget(rig)?;
        }
        measure::run(rig, workload, variant.expect(), count, core)
    }
}

/// Sends each flow's first packet and its answer, then the first packet again; up to three times, for a
/// busy core may overrun a queue.
fn warm(rig: &mut Rig, workload: &Workload, expect: Expect, flows: u32, core: usize) -> Result<()> {
    let counter = rig.object.counter()?;
    let in_order = Workload {
        flows: Flows::New,
        direction: Direction::Original,
        batch: 64,
        timed: false,
        ..workload.clone()
    };
    let directions: &[Direction] = match expect {
        Expect::Translated => &[Direction::Original, Direction::Reply, Direction::Original],
        _ => &[Direction::Original],
    };
    for direction in directions {
        let pass = Workload { direction: *direction, ..in_order.clone() };
        rig.arm(&pass, super::frame::rule(&pass, expect)?)?;
        let is_enough = |accepted: u64| accepted * 1000 >= u64::from(flows) * 999;
        let mut accepted = 0;
        for _ in 0..3 {
            rig.object.set_counter(0)?;
            accepted = measure::send(rig, &pass, flows, core)?.accepted;
            if is_enough(accepted) {
                break;
            }
        }
        anyhow::ensure!(
            is_enough(accepted),
            "only {accepted} of {flows} flows came through in the {direction:?} direction",
        );
    }
    rig.object.set_counter(counter)
}

/// A reproducible order.
struct Dice(u32);

impl Dice {
    fn roll(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        scale(mix(self.0), limit as u32) as usize
    }

    fn shuffled(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            order.swap(last, self.roll(last + 1));
        }
        order
    }
}
