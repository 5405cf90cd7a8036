//! `egress run`: the agent.
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Exit, Place, unfit};
use crate::{
    agent::{self, Settings},
    source::files::Input,
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
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<Exit> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let Args { files, config, place: Place { bpffs, run_dir } } = args;
    // What is wrong with the files is found before anything of the node is touched.
    let paths: Vec<PathBuf> = files.iter().chain(&config).cloned().collect();
    Input::read(&paths)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let settings = Settings { files, config, bpffs, run_dir };
    match runtime.block_on(agent::run(settings)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Ok(unfit(&error)),
    }
}
