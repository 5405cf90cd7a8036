//! Tells the outcome: terminal, `results.json`, `report.md`, SVG charts.
//!
//! Every ratio is paired by round. A void row is shown with its reason and enters no ratio.
mod chart;
mod goals;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{
    campaign::{Effort, Row},
    control,
    machine::Machine,
    measure::Sample,
    memory,
    stats::Summary,
    workload::Workload,
};

const RESULTS: &str = "results.json";

/// The variants that others are held against.
pub const REFERENCES: [&str; 3] = ["iptables-legacy", "nft-map", "xdp-redirect"];

/// One run of the benchmark.
#[derive(Debug, Deserialize, Serialize)]
pub struct Outcome {
    pub machine: Machine,
    pub effort: Effort,
    /// Decides the order of rounds.
    pub seed: u32,
    pub lines: Vec<Line>,
    /// The control plane's.
    pub control: Vec<control::Line>,
    /// Bytes a flow.
    pub memory: Vec<memory::Line>,
}

/// One variant under one workload.
#[derive(Debug, Deserialize, Serialize)]
pub struct Line {
    pub workload: Workload,
    pub variant: String,
    pub void: Option<String>,
    pub facts: String,
    /// Nanoseconds a packet; `None` if void.
    pub cost: Option<Summary>,
    /// How many times cheaper than the reference with this name; above 1, this variant is.
    pub ratios: BTreeMap<String, Summary>,
    /// Median, 99 and 99.9 percent in nanoseconds: the median round. Timed workloads only.
    pub latency: Option<[u64; 3]>,
    /// Sums over all rounds.
    pub steal: u64,
    pub switches: u64,
    pub samples: Vec<Sample>,
}

impl Outcome {
    pub fn new(
        machine: Machine,
        effort: Effort,
        seed: u32,
        rows: Vec<Row>,
        control: Vec<control::Line>,
        memory: Vec<memory::Line>,
    ) -> Self {
        let lines = rows.iter().map(|row| Line::new(row, &rows)).collect();
        Self { machine, effort, seed, lines, control, memory }
    }

    /// The run whose `results.json` is in this directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join(RESULTS);
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} cannot be read", path.display()))
    }

    /// Whether what this run has measured and what another one will belong together.
    ///
    /// # Errors
    /// It is another build, another kernel or another effort.
    pub fn goes_with(&self, machine: &Machine, effort: Effort) -> Result<()> {
        let of = |machine: &Machine, effort: Effort| {
            let Machine { commit, kernel, .. } = machine;
            format!("commit {commit}, kernel {kernel}, {} rounds", effort.rounds)
        };
        let (then, now) = (of(&self.machine, self.effort), of(machine, effort));
        ensure!(
            then == now,
            "the earlier results are of {then}; this run is of {now}: give another --out"
        );
        Ok(())
    }

    /// Takes over what an earlier run has measured and this one has not: a long campaign in pieces.
    pub fn add(&mut self, earlier: Self) {
        let anew: BTreeSet<String> = self.workloads().into_iter().map(str::to_owned).collect();
        let mut lines = earlier.lines;
        lines.retain(|line| !anew.contains(&line.workload.name));
        lines.append(&mut self.lines);
        let mut control = earlier.control;
        control.retain(|line| self.control.iter().all(|now| now.task.name != line.task.name));
        control.append(&mut self.control);
        (self.lines, self.control) = (lines, control);
        if self.memory.is_empty() {
            self.memory = earlier.memory;
        }
    }

    /// The line of this variant under the workload with this name.
    pub fn line(&self, workload: &str, variant: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.workload.name == workload && line.variant == variant)
    }

    /// Names of the workloads, in the order of the run.
    pub fn workloads(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for line in &self.lines {
            if !names.contains(&line.workload.name.as_str()) {
                names.push(&line.workload.name);
            }
        }
        names
    }

    /// The table for the terminal.
    pub fn table(&self) -> String {
        text::terminal(self)
    }

    /// Writes `results.json`, `report.md` and the charts into this directory.
    pub fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        let json = serde_json::to_string_pretty(self).context("results as JSON")?;
        write(RESULTS, &json)?;
        let mut charts = Vec::new();
        for (name, title, svg) in chart::all(self)? {
            write(name, &svg)?;
            charts.push((name, title));
        }
        write("report.md", &text::markdown(self, &charts))
    }
}

impl Line {
    fn new(row: &Row, rows: &[Row]) -> Self {
        let valid = row.void.is_none();
        let costs: Vec<f64> = row.samples.iter().map(|sample| sample.ns).collect();
        let mut ratios = BTreeMap::new();
        let twin = row.variant.trim_end_matches("-against").to_owned();
        for name in REFERENCES.into_iter().chain([twin.as_str()]) {
            let reference = rows
                .iter()
                .find(|other| other.variant == name && other.workload.name == row.workload.name);
            let Some(reference) = reference else { continue };
            if !valid || reference.void.is_some() || reference.variant == row.variant {
                continue;
            }
            let theirs: Vec<f64> = reference.samples.iter().map(|sample| sample.ns).collect();
            if let Some(summary) = Summary::of_ratios(&theirs, &costs) {
                ratios.insert(name.to_owned(), summary);
            }
        }
        let mut latencies: Vec<[u64; 3]> =
            row.samples.iter().filter_map(|sample| sample.latency).collect();
        latencies.sort();
        Self {
            workload: row.workload.clone(),
            variant: row.variant.clone(),
            void: row.void.clone(),
            facts: row.facts.clone(),
            cost: Summary::of(costs).filter(|_| valid),
            ratios,
            latency: latencies.get(latencies.len() / 2).copied().filter(|_| valid),
            steal: row.samples.iter().map(|sample| sample.steal).sum(),
            switches: row.samples.iter().map(|sample| sample.switches).sum(),
            samples: row.samples.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{
        frame::Expect,
        workload::{Entry, Flows, Talk},
    };

    fn row(workload: Workload, variant: &str, costs: &[f64], void: Option<&str>) -> Row {
        let samples = costs.iter().map(|ns| Sample {
            ns: *ns,
            wall_ns: *ns,
            packets: 1000,
            lost: 0.0,
            steal: 1,
            switches: 2,
            latency: None,
        });
        Row {
            workload,
            variant: variant.to_owned(),
            expect: Expect::Translated,
            samples: samples.collect(),
            void: void.map(str::to_owned),
            facts: String::new(),
        }
    }

    fn outcome() -> Outcome {
        let mut rows = Vec::new();
        let flows = [("1", 1, 1.0), ("10k", 10_000, 1.3), ("1m", 1_000_000, 1.9)];
        for (name, flows, factor) in flows {
            let flows = Flows::Established(flows);
            let workload =
                Workload::new(format!("tunnel/established-{name}"), Entry::Tunnel, flows, 1);
            let costs = |ns: f64| [ns * factor, ns * factor * 1.1, ns * factor * 0.95];
            rows.push(row(workload.clone(), "iptables-legacy", &costs(4600.0), None));
            rows.push(row(workload.clone(), "nft-map", &costs(4500.0), Some("it | lost\nall")));
            rows.push(row(workload.clone(), "egress-tc", &costs(1500.0), None));
            rows.push(row(workload, "egress-xdp", &costs(560.0), None));
        }
        for (name, policies) in [("new", 1), ("new-100-vnids", 100), ("new-5000-vnids", 5000)] {
            let name = format!("gateway/{name}");
            let workload = Workload::new(name, Entry::Gateway, Flows::New, policies);
            let rules = 3000.0 + 20.0 * f64::from(policies);
            rows.push(row(workload.clone(), "iptables-legacy", &[rules, rules], None));
            rows.push(row(workload, "egress-tc", &[2400.0, 2420.0], None));
        }
        // They cost by another unit, or beside an idle core: no points of a curve.
        for workload in [
            Workload::sockets("sockets/stream", Talk::Stream, false),
            Workload::new("tunnel/paced", Entry::Tunnel, Flows::Established(1), 1).paced(1000),
        ] {
            rows.push(row(workload, "iptables-legacy", &[7e7, 7e7], None));
        }
        let effort = Effort { rounds: 4, run: std::time::Duration::ZERO, new_flows: 0 };
        let machine = Machine::read().unwrap();
        Outcome::new(machine, effort, 1, rows, Vec::new(), Vec::new())
    }

    #[test]
    fn a_void_row_says_why_and_enters_no_ratio() {
        let outcome = outcome();
        let void = outcome.line("tunnel/established-1", "nft-map").unwrap();
        assert_eq!((void.cost, void.ratios.len()), (None, 0));
        let ours = outcome.line("tunnel/established-1", "egress-tc").unwrap();
        assert_eq!(ours.ratios.keys().collect::<Vec<_>>(), ["iptables-legacy"]);
        assert!(outcome.table().contains("nft-map           void: it / lost\n"));
    }

    #[test]
    fn what_was_measured_anew_replaces_the_earlier_and_the_rest_stays() {
        let earlier = outcome();
        let mut now = outcome();
        now.lines.retain(|line| line.workload.name == "gateway/new");
        now.lines[0].cost = Summary::of([1.0]);
        now.add(earlier);
        assert_eq!(now.lines.len(), outcome().lines.len());
        let median = |workload| now.line(workload, "iptables-legacy").unwrap().cost.unwrap().median;
        assert_eq!(median("gateway/new"), 1.0);
        assert!(median("tunnel/established-1") > 1000.0);
    }

    #[test]
    fn figures_of_another_build_are_not_taken_over() {
        let mut earlier = outcome();
        earlier.machine.commit = "another".to_owned();
        let now = outcome();
        let error = earlier.goes_with(&now.machine, now.effort).unwrap_err().to_string();
        assert!(error.starts_with("the earlier results are of commit another"), "{error}");
    }

    #[test]
    fn results_are_read_back_as_they_were_written() {
        let json = serde_json::to_string(&outcome()).unwrap();
        let read: Outcome = serde_json::from_str(&json).unwrap();
        assert_eq!(read.table(), outcome().table());
    }

    #[test]
    fn a_goal_is_met_or_missed_by_the_median_of_ratios() {
        let table = goals::table(&outcome());
        let line = |part: &str| table.lines().find(|line| line.contains(part)).unwrap();
        assert!(
            line("egress-tc  against iptables-legacy  tunnel/established-1 ").ends_with("goal met")
        );
        assert!(
            line("egress-xdp against iptables-legacy  tunnel/established-1 ").ends_with("goal met")
        );
        assert!(line("gateway/new ").ends_with("above the floor"));
        let unmeasured = "not measured; floor 1.10, goal 1.50";
        assert!(table.contains(&format!("nft-map          gateway/new              {unmeasured}")));
        assert!(table.contains("-100000-vnids by that of tunnel/established-10k: not measured"));
    }

    #[test]
    fn charts_are_drawn_for_what_was_measured_and_read_in_the_dark() {
        let charts = chart::all(&outcome()).unwrap();
        let names: Vec<&str> = charts.iter().map(|(name, ..)| *name).collect();
        assert_eq!(names, ["ratios.svg", "rules.svg", "flows.svg"]);
        for (name, _, svg) in &charts {
            assert!(svg.contains("prefers-color-scheme: dark"), "{name}");
            assert!(svg.contains("egress-tc"), "{name}");
        }
        assert!(!charts[2].2.contains("nft-map"), "a void row is in the chart");
        let points = charts[2].2.matches("<circle").count();
        assert_eq!(points, 9, "three variants with three numbers of flows, no stream, no pace");
    }
}
