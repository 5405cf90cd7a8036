//! `cargo xtask`: the project's verbs, one module each.
//!
//! Everything said here goes to standard error; standard output belongs to the program or the
//! tests that a verb runs.
mod artifacts;
mod build;
mod leftovers;
mod lint;
mod privilege;
mod run;
mod setup;
mod test;
mod transcript;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Setup, build, lint, tests and demonstration of the egress gateway.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing: BPF toolchain and packages
    Setup,
    /// Leave target/release/egress with its eBPF programs in it
    Build,
    /// Formatting and clippy, warnings as errors, eBPF programs included
    Lint,
    /// Every test, privileged ones included
    Test(test::Arguments),
    /// Show the gateway at work: real packets of pods in namespaces, as a table
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// The plain VXLAN rig, standing, without an agent: `rig up`, `rig down`
    #[command(disable_help_flag = true)]
    Rig(PassedOn),
    /// Measure the data path
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
}

#[derive(clap::Args)]
struct PassedOn {
    /// Passed on as they are
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    verb(Arguments::parse().verb).unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::from(if error.is::<privilege::Missing>() { 2 } else { 1 })
    })
}

fn verb(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => setup::run()?,
        Verb::Build => drop(build::run()?),
        Verb::Lint => lint::run()?,
        Verb::Test(arguments) => return test::run(&arguments),
        Verb::Demo(passed_on) => run::run("demo", &passed_on.arguments)?,
        Verb::Rig(passed_on) => run::run("rig", &passed_on.arguments)?,
        Verb::Bench(passed_on) => run::run("bench", &passed_on.arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}
