//! `egress doctor`: whether this node is ready, and what is missing.
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Exit, Output, Place, print};
use crate::{
    agent::doctor::{Check, Verdict, examine},
    config::AgentConfig,
    source::files::Input,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file with the AgentConfig; without it, its defaults are looked at
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Nothing stands in the way of `egress run`.
    ready: bool,
    checks: Vec<Check>,
}

pub fn run(args: Args) -> Result<Exit> {
    let config = match &args.config {
        Some(path) => Input::read(std::slice::from_ref(path))?
            .config
            .context("--config: there is no AgentConfig in it")?,
        None => AgentConfig::default(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let Place { bpffs, run_dir } = &args.place;
    let checks = runtime.block_on(examine(&config, bpffs, run_dir));
    let ready = checks.iter().all(|check| check.verdict != Verdict::Missing);
    let report = Report { ready, checks };
    print(&match args.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&report)?,
        Output::Table => table(&report),
    })?;
    Ok(if ready { Exit::Done } else { Exit::Unfit })
}

fn table(Report { ready, checks }: &Report) -> String {
    let mut text = String::new();
    for Check { name, verdict, found } in checks {
        let verdict = match verdict {
            Verdict::Good => "good",
            Verdict::Unwise => "unwise",
            Verdict::Missing => "MISSING",
        };
        text += &format!("{verdict:<8} {name:<12} {found}\n");
    }
    text + if *ready { "ready\n" } else { "not ready: see what is MISSING\n" }
}
