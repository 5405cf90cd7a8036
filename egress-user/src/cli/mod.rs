//! The command line: one verb a file, each with its arguments and a `run` that returns its exit.
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

mod completions;
mod explain;
mod input;
mod plan;
mod vnid;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; whatever conditions a plan has
  1  done, but some objects were refused: each is named on standard error and is as if absent
  2  wrong usage, a file that cannot be read, or an AgentConfig that cannot be used";

/// Fixed source addresses for the tenants of a VXLAN network.
#[derive(Debug, Parser)]
#[command(name = "egress", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print what a node would do for these objects; needs neither root nor the node
    Plan(plan::Args),
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
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("egress: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> Result<Exit> {
    match cli.verb {
        Verb::Plan(args) => plan::run(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Vnid(args) => vnid::run(args),
        Verb::Completions(args) => completions::run(args),
    }
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
