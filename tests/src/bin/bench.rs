//! `bench`: measures the data path against its competitors. `cargo xtask bench` starts it.
use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use egress_tests::bench::{
    campaign,
    conntrack::{self, Room},
    control, estimate, failover,
    machine::Machine,
    memory, net,
    plan::Level,
    progress::{self, Progress},
    report::{Outcome, REFERENCES},
    variants::{Builds, Variant, catalogue},
};

/// Measures the data path against iptables, nft and what the kernel can do at best.
#[derive(Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Two minutes: the main figures
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// An hour or more: the whole grid
    #[arg(long)]
    full: bool,
    /// Only workloads or variants whose name is or contains this (repeatable)
    #[arg(long, value_name = "PART")]
    only: Vec<String>,
    /// Another build of `egress` to hold this one against
    #[arg(long, value_name = "BINARY")]
    against: Option<PathBuf>,
    /// The build of `egress` under test [default: the one beside this program]
    #[arg(long, value_name = "BINARY")]
    egress: Option<PathBuf>,
    /// Where results.json, report.md and the charts go
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
    /// Decides the order of the rounds
    #[arg(long, default_value_t = 1)]
    seed: u32,
    /// Rounds of each workload, the first of which is dropped [default: the level's]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(2..))]
    rounds: Option<u32>,
    /// Keep what results.json in --out holds of other workloads: a long run in pieces
    #[arg(long)]
    add: bool,
    /// Lists workloads and variants, and runs nothing
    #[arg(long)]
    list: bool,
}

impl Arguments {
    fn level(&self) -> Level {
        match (self.quick, self.full) {
            (true, _) => Level::Quick,
            (_, true) => Level::Full,
            _ => Level::Default,
        }
    }

    fn egress(&self) -> Result<PathBuf> {
        if let Some(binary) = &self.egress {
            return Ok(binary.clone());
        }
        let here = env::current_exe().context("find this program")?;
        Ok(here.parent().unwrap_or(Path::new(".")).join("egress"))
    }
}

/// Whether a name passes `--only`. A part that is a whole name means that name alone; parts that
/// match no name of this kind say nothing about it.
fn chosen(parts: &[String], all: &[String], name: &str) -> bool {
    let matches = |part: &str, name: &str| {
        if all.iter().any(|each| each == part) { name == part } else { name.contains(part) }
    };
    let about_this_kind: Vec<&String> =
        parts.iter().filter(|part| all.iter().any(|each| matches(part, each))).collect();
    about_this_kind.is_empty() || about_this_kind.iter().any(|part| matches(part, name))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let builds = Builds { egress: Some(arguments.egress()?), against: arguments.against.clone() };
    let (workloads, tasks) = (arguments.level().workloads(), arguments.level().tasks());
    let work_names: Vec<String> = workloads
        .iter()
        .map(|workload| workload.name.clone())
        .chain(tasks.iter().map(|task| task.name.clone()))
        .chain([memory::NAME.to_owned()])
        .collect();
    let variant_names: Vec<String> = catalogue(&builds).iter().map(|each| each.name()).collect();
    if arguments.list {
        println!("workloads: {} {}", work_names.join(" "), failover::NAME);
        println!("variants: {}", variant_names.join(" "));
        return Ok(());
    }
    let (failover, rest): (Vec<_>, Vec<_>) =
        arguments.only.iter().cloned().partition(|part| part == failover::NAME);
    if !failover.is_empty() {
        failover::tell(&failover::run(arguments.level(), progress::say), &arguments.out)?;
        if rest.is_empty() {
            return Ok(());
        }
    }
    for part in &rest {
        let known = work_names.iter().chain(&variant_names).any(|name| name.contains(part));
        ensure!(known, "--only {part}: no workload or variant has that in its name; see --list");
    }
    let wanted = |name: &str| chosen(&rest, &work_names, name);
    let workloads: Vec<_> = workloads.into_iter().filter(|each| wanted(&each.name)).collect();
    let tasks: Vec<_> = tasks.into_iter().filter(|each| wanted(&each.name)).collect();
    // The references stay, as a cost without a ratio says little.
    let variants = || -> Vec<Box<dyn Variant>> {
        let mut variants = catalogue(&builds);
        variants.retain(|variant| {
            let name = variant.name();
            REFERENCES.contains(&name.as_str()) || chosen(&rest, &variant_names, &name)
        });
        variants
    };
    let effort = arguments.level().effort(&workloads, &variants(), arguments.rounds);
    let earlier = arguments.add.then(|| Outcome::read(&arguments.out)).transpose()?;
    let room = conntrack::room(&workloads);
    let machine = Machine::read()?;
    if let Some(earlier) = &earlier {
        earlier.goes_with(&machine, effort)?;
    }
    net::sandbox()?;
    let planned = estimate::campaign(&workloads, &variants(), effort)
        + control::planned(&tasks, &builds)
        + estimate::MEMORY;
    println!("about {} minutes", planned.as_secs().div_ceil(60));
    let mut progress = Progress::new(planned);
    let rows = campaign::run(&workloads, variants, effort, arguments.seed, &mut progress)?;
    let control = control::run(&tasks, &builds, &mut progress);
    progress.step(memory::NAME, estimate::MEMORY);
    let memory = if wanted(memory::NAME) { memory::run(&builds) } else { Vec::new() };
    progress::say("");
    room.map_or(Ok(()), Room::give_back)?;
    let mut outcome = Outcome::new(machine, effort, arguments.seed, rows, control, memory);
    if let Some(earlier) = earlier {
        outcome.add(earlier);
    }
    print!("{}", outcome.table());
    outcome.write(&arguments.out)?;
    println!("written: results.json, report.md and charts in {}", arguments.out.display());
    Ok(())
}
