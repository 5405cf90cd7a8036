//! The command line: one verb a file, each with its arguments and a `run` that returns its exit.
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

mod cleanup;
mod completions;
mod diff;
mod doctor;
mod drain;
mod edit;
mod explain;
mod import;
mod input;
mod live;
mod plan;
mod run;
mod status;
mod takeover;
mod vnid;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; whatever conditions a plan has
  1  done, but some objects were refused: each is named on standard error and is as if absent
     (`run` goes on with the others, and tells it in `status`);
     `add`, `del`, `move`, `undrain`: refused, nothing was changed; `drain`: some egress IPs found
     no other node;
     `import`: printed, but something was not understood or is not known: each is a line there;
     `diff`: printed, and there are differences;
     `handback`: done, but some connections stay with the programs until they end
  2  wrong usage, a file that cannot be read, or an AgentConfig that cannot be used
  3  this node is not fit for it, or there is nothing here: no privileges, kernel too old, device or
     address missing, pinned maps of another layout; `status`: no agent runs (what it left is shown);
     `add`, `del`, `move`, `drain` with --wait: written, but not in force;
     `doctor`: not ready;
     `takeover`, `handback`: refused, or stopped halfway: the sentence says which, and the same command
     goes on";

/// Fixed source addresses for the tenants of a VXLAN network.
#[derive(Debug, Parser)]
#[command(name = "egress", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent: until SIGTERM, then give back the addresses
    Run(run::Args),
    /// Show what is hosted, attached and counted here
    Status(status::Args),
    /// Remove every trace: programs, maps, flows, addresses of a killed agent
    Cleanup(cleanup::Args),
    /// Give a VNID an egress IP, by hand: edits a file of objects that the agents read
    Add(edit::AddArgs),
    /// Take an egress IP from a VNID, by hand
    Del(edit::DelArgs),
    /// Move an egress IP to another node, by hand
    Move(drain::MoveArgs),
    /// Empty a node: new flows go elsewhere, then its egress IPs
    Drain(drain::DrainArgs),
    /// Let a drained node take part again
    Undrain(drain::UndrainArgs),
    /// Print what a node would do for these objects; needs neither root nor the node
    Plan(plan::Args),
    /// Print a live node's egress IPs as objects and settings; needs no agent, changes nothing
    Import(import::Args),
    /// Say whether this node is ready, and what is missing; changes nothing
    Doctor(doctor::Args),
    /// Show where a live node and the plan differ, and whom its traffic was seen as; changes nothing
    Diff(diff::Args),
    /// Take a node over from OpenShift SDN under running connections; then `egress run` goes on
    Takeover(takeover::Args),
    /// Give the node back under running connections: rules and connections return, programs go
    Handback(takeover::Args),
    /// Say why a namespace, a VNID or an egress IP gets what it gets
    Explain(explain::Args),
    /// Print a VNID in decimal, in hex, and its mark
    Vnid(vnid::Args),
    /// Print the completions of a shell
    Completions(completions::Args),
}

/// How a verb that did not fail ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    /// Some objects were refused.
    Refused,
    /// This node is not fit, or there is nothing here; the reason is on standard error.
    Unfit,
}

/// The form of what a verb prints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    Json,
    Yaml,
    #[default]
    Table,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Usage errors end the process here, with 2.
    match run(Cli::parse()) {
        Ok(Exit::Done) => ExitCode::SUCCESS,
        Ok(Exit::Refused) => ExitCode::from(1),
        Ok(Exit::Unfit) => ExitCode::from(3),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("egress: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<Exit> {
    match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Status(args) => status::run(args),
        Verb::Cleanup(args) => cleanup::run(args),
        Verb::Add(args) => edit::add(args),
        Verb::Del(args) => edit::del(args),
        Verb::Move(args) => drain::relocate(args),
        Verb::Drain(args) => drain::drain(args),
        Verb::Undrain(args) => drain::undrain(args),
        Verb::Plan(args) => plan::run(args),
        Verb::Import(args) => import::run(args),
        Verb::Diff(args) => diff::run(args),
        Verb::Doctor(args) => doctor::run(args),
        Verb::Takeover(args) => takeover::over(args),
        Verb::Handback(args) => takeover::back(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Vnid(args) => vnid::run(args),
        Verb::Completions(args) => completions::run(args),
    }
}

/// Says why this node is not fit.
fn unfit(error: &anyhow::Error) -> Exit {
    eprintln!("egress: {error:#}");
    Exit::Unfit
}

/// Where an agent keeps what it knows.
const RUN_DIR: &str = "/run/egress";

/// Where things are on this node.
#[derive(Debug, clap::Args)]
struct Place {
    /// The mounted bpffs that programs and maps are pinned below
    #[arg(long, value_name = "DIR", default_value = crate::bpf::BPFFS)]
    bpffs: std::path::PathBuf,
    /// Where the agent keeps what it knows; gone with the next boot
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: std::path::PathBuf,
}

/// Writes to standard output; the reader may have gone (`egress plan … | head`).
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
