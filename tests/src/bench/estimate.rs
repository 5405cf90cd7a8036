//! What the parts of a run take, in wall time: so that a level fits into the time it promises.
//!
//! Figures of the machine that docs/benchmarks.md is about; on a slower one the remaining time grows
//! as it goes.
use std::time::Duration;

use super::{
    campaign::Effort,
    control::{Change, Task},
    rig::Setting,
    variants::Variant,
    workload::{Flows, Workload},
};

/// What a run takes beside its packets: arming, threads, waiting for the last one.
const AROUND_A_RUN: Duration = Duration::from_millis(20);
/// Both rigs of `memory/flow`.
pub const MEMORY: Duration = Duration::from_secs(3);

/// One variant on its rig.
pub fn installing(setting: Setting) -> Duration {
    Duration::from_millis(700) + Duration::from_micros(200) * setting.policies
}

/// Verifying, three packets of each flow in their order, a pilot, and an agent's start.
pub fn preparing(workload: &Workload) -> Duration {
    let flows = match workload.flows {
        Flows::Established(flows) => flows,
        Flows::New => 0,
    };
    Duration::from_millis(400) + Duration::from_micros(6) * flows
}

/// One variant in one round.
pub fn running(workload: &Workload, effort: Effort) -> Duration {
    effort.run * weight(workload) + AROUND_A_RUN
}

/// A new flow costs more than a packet of a known one, so its runs are longer.
fn weight(workload: &Workload) -> u32 {
    if workload.flows == Flows::New { 2 } else { 1 }
}

/// One means with all its repetitions.
pub fn changing(task: &Task) -> Duration {
    let each = Duration::from_millis(500) + Duration::from_micros(400) * task.vnids;
    match task.change {
        Change::One => each,
        Change::Cluster => each + Duration::from_secs(5),
        Change::All => each * task.repeats,
    }
}

/// How many of these variants carry the workload.
fn carriers(workload: &Workload, variants: &[Box<dyn Variant>]) -> u32 {
    variants.iter().filter(|variant| variant.carries(workload)).count() as u32
}

/// All workloads on all variants but for the runs themselves.
fn around(workloads: &[Workload], variants: &[Box<dyn Variant>], rounds: u32) -> Duration {
    let mut installed: Vec<(Setting, String)> = Vec::new();
    let mut total = Duration::ZERO;
    for workload in workloads {
        total += (preparing(workload) + AROUND_A_RUN * rounds) * carriers(workload, variants);
        for variant in variants.iter().filter(|variant| variant.carries(workload)) {
            let station = (workload.setting(), variant.name());
            if !installed.contains(&station) {
                total += installing(station.0);
                installed.push(station);
            }
        }
    }
    total
}

fn runs(workloads: &[Workload], variants: &[Box<dyn Variant>], rounds: u32) -> u32 {
    let runs = |workload| carriers(workload, variants) * weight(workload) * rounds;
    workloads.iter().map(runs).sum()
}

/// The run that fits as often as it must into this time.
pub fn run(
    workloads: &[Workload],
    variants: &[Box<dyn Variant>],
    rounds: u32,
    time: Duration,
) -> Duration {
    let left = time.saturating_sub(around(workloads, variants, rounds));
    left / runs(workloads, variants, rounds).max(1)
}

/// All workloads on all variants.
pub fn campaign(workloads: &[Workload], variants: &[Box<dyn Variant>], effort: Effort) -> Duration {
    around(workloads, variants, effort.rounds)
        + effort.run * runs(workloads, variants, effort.rounds)
}
