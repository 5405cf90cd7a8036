//! `egress run`: the agent.
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Exit, Place, unfit};
use crate::{
    agent::{self, Settings},
    source::watch::Watched,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Objects as `oc get -o yaml` (or json) prints them: files or directories of files; changes
    /// are noticed
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// A file with the AgentConfig, if it is not among the objects
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only look on: decide and count, change nothing, send nothing on; `egress diff` then tells what
    /// would have been
    #[arg(long)]
    shadow: bool,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<Exit> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let Args { files, config, shadow, place: Place { bpffs, run_dir } } = args;
    // What is wrong with the files is found before anything of the node is touched.
    let mut watched = Watched::new(&files, config.as_deref());
    let input = watched.read()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    match runtime.block_on(agent::run(Settings { bpffs, run_dir }, watched, input, shadow)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Ok(unfit(&error)),
    }
}
