//! `egress takeover` and `egress handback`: a live node over to us, and back.
use std::{future::Future, path::PathBuf};

use anyhow::{Context, Result};

use super::{Exit, Place, live, print, unfit};
use crate::{
    agent::{
        Settings,
        takeover::{self, Order, Report},
    },
    source::watch::Watched,
    takeover::journal::Step,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Objects as for `egress run`
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// A file with the AgentConfig, if it is not among the objects
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
    /// Stop after this step, to look around; the same command goes on from there
    #[arg(long, value_name = "STEP")]
    until: Option<Step>,
    /// Go on even if some connections cannot be kept
    #[arg(long)]
    cut: bool,
}

pub fn over(args: Args) -> Result<Exit> {
    passage(args, async |settings, watched, input, order, bridge| {
        let words = live::words(&bridge).await?;
        takeover::take_over(settings, watched, input, &words, order).await
    })
}

pub fn back(args: Args) -> Result<Exit> {
    passage(args, async |settings, watched, input, order, _| {
        takeover::hand_back(settings, watched, input, order).await
    })
}

fn passage<F: Future<Output = Result<Report>>>(
    args: Args,
    go: impl FnOnce(Settings, Watched, crate::source::files::Input, Order, String) -> F,
) -> Result<Exit> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let Args { files, config, place: Place { bpffs, run_dir }, until, cut } = args;
    let mut watched = Watched::new(&files, config.as_deref());
    let input = watched.read()?;
    let bridge = input.config.clone().unwrap_or_default().ovs.bridge;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    let order = Order { until, cut };
    match runtime.block_on(go(Settings { bpffs, run_dir }, watched, input, order, bridge)) {
        Ok(Report { lines, incomplete }) => {
            for line in lines {
                print(&format!("{line}\n"))?;
            }
            Ok(if incomplete { Exit::Refused } else { Exit::Done })
        }
        Err(error) => Ok(unfit(&error)),
    }
}
