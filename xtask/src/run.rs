//! `cargo xtask demo`, `rig` and `bench`: build the binary of that name in egress-tests and become
//! it, as root.
use std::{ffi::OsString, os::unix::process::CommandExt};

use anyhow::{Context, Result, anyhow};

use crate::{artifacts, build, privilege::Privilege};

/// Replaces this process by the binary `name`; returns only with an error. The binary finds the
/// agent's path in the environment variable `EGRESS_BIN`.
pub fn run(name: &str, arguments: &[OsString]) -> Result<()> {
    let privilege = Privilege::find(&format!("run `cargo xtask {name}` as root"))?;
    let egress = build::run()?;
    let artifacts = artifacts::build("egress-tests", &["--bin", name])
        .with_context(|| format!("`cargo xtask {name}` is the binary `{name}` of egress-tests"))?;
    let executable = artifacts.executables.first().context("cargo named no executable")?;
    let error = privilege.command(executable).args(arguments).env("EGRESS_BIN", egress).exec();
    Err(anyhow!(error).context(format!("start {}", executable.display())))
}
