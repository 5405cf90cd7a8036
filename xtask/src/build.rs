//! `cargo xtask build`: the agent with its programs in it.
use std::path::PathBuf;

use anyhow::{Context, Result};
use xtask::ebpf;

use crate::{artifacts, setup};

/// Sets up, builds and returns the path of the release build of `egress`. A build without
/// programs, which plain `cargo build` allows, is an error here.
pub fn run() -> Result<PathBuf> {
    setup::run()?;
    let artifacts = artifacts::build("egress-user", &["--bin", "egress"])?;
    let out_dir = artifacts.out_dir.context("cargo did not name the build script's directory")?;
    ebpf::check_object(&out_dir.join("egress.o"))?;
    let egress = artifacts.executables.into_iter().next().context("cargo built no `egress`")?;
    eprintln!("xtask: built {}", egress.display());
    Ok(egress)
}
