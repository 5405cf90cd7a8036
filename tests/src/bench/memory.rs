//! What a flow costs in memory.
//!
//! Conntrack takes memory as flows come: the growth of the kernel's objects over many new flows.
//! Ours takes it all at the start: the size of its maps, shared out among the flows they hold.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    frame::Expect,
    measure,
    rig::Rig,
    variants::{Agent, Builds, DataPath, MAX_FLOWS, NftMap, Variant},
    workload::{Entry, Flows, Workload},
};

/// The name after `--only`.
pub const NAME: &str = "memory/flow";

const FLOWS: u32 = 100_000;

/// One row of the report.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Line {
    pub means: String,
    pub bytes: Option<f64>,
    pub void: Option<String>,
}

/// Conntrack, and ours if there is a build.
pub fn run(builds: &Builds) -> Vec<Line> {
    let line = |means: &str, bytes: Result<f64>| {
        let (bytes, void) = match bytes {
            Ok(bytes) => (Some(bytes), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        Line { means: means.to_owned(), bytes, void }
    };
    let mut lines = vec![line("conntrack, as flows come", conntrack())];
    lines.extend(builds.egress.clone().map(|binary| {
        let agent = Agent::new(binary, DataPath::Tc, "");
        line("egress-tc, taken at the start", maps(agent))
    }));
    lines
}

/// Bytes of all kernel objects in use, by `/proc/slabinfo`: pages would hide what freed objects
/// of earlier flows give room to.
fn objects() -> Result<u64> {
    let text = fs::read_to_string("/proc/slabinfo").context("read /proc/slabinfo")?;
    let bytes = |line: &str| -> Option<u64> {
        let mut words = line.split_whitespace();
        let active: u64 = words.nth(1)?.parse().ok()?;
        Some(active * words.nth(1)?.parse::<u64>().ok()?)
    };
    Ok(text.lines().skip(2).filter_map(bytes).sum())
}

fn conntrack() -> Result<f64> {
    let workload = Workload::new(NAME, Entry::Gateway, Flows::New, 1);
    let mut rig = Rig::new("memory", workload.setting())?;
    NftMap.install(&mut rig)?;
    measure::verify(&mut rig, &workload, Expect::Translated, measure::measuring_core()?)?;
    let before = objects()?;
    rig.arm(&workload, super::frame::rule(&workload, Expect::Translated)?)?;
    let core = measure::measuring_core()?;
    let arrived = measure::send(&mut rig, &workload, FLOWS, core)?;
    ensure!(arrived.accepted == u64::from(FLOWS), "{} flows came through", arrived.accepted);
    let grown = objects()?.saturating_sub(before);
    Ok(grown as f64 / f64::from(FLOWS))
}

fn maps(mut agent: Agent) -> Result<f64> {
    let workload = Workload::new(NAME, Entry::Tunnel, Flows::New, 1);
    let mut rig = Rig::new("memory", workload.setting())?;
    agent.install(&mut rig)?;
    Ok(agent.map_bytes()? as f64 / f64::from(MAX_FLOWS))
}
