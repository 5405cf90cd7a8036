//! `egress completions`.
use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::{Cli, Exit, print};

#[derive(Debug, clap::Args)]
pub struct Args {
    shell: Shell,
}

pub fn run(args: Args) -> Result<Exit> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "egress", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
