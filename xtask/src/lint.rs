//! `cargo xtask lint`: formatting, then clippy with warnings as errors on the host's crates and,
//! with the BPF toolchain's own clippy, on the programs.
use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::ebpf::Toolchain;

use crate::setup;

/// What nobody needs root or the BPF toolchain for comes first.
pub fn run() -> Result<()> {
    pass("formatting", Command::new("cargo").args(["fmt", "--all", "--check"]))?;
    pass(
        "clippy of the host's crates",
        Command::new("cargo").args(["clippy", "--workspace", "--exclude", "egress-ebpf"]).args([
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    setup::run()?;
    let toolchain = Toolchain::find().context("no BPF toolchain: run `cargo xtask setup`")?;
    pass("clippy of the eBPF programs", &mut programs(&toolchain)?)
}

/// What `cargo clippy` does, done by hand: it would call the clippy next to cargo, which belongs
/// to another compiler than the one that has a `core` for BPF.
fn programs(toolchain: &Toolchain) -> Result<Command> {
    let driver = toolchain.clippy_driver().context("the BPF toolchain has no clippy")?;
    let mut command = toolchain.cargo("check");
    command
        .args(["--package", "egress-ebpf", "--target-dir", "target/ebpf-lint"])
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", "-Dwarnings__CLIPPY_HACKERY__");
    Ok(command)
}

fn pass(what: &str, command: &mut Command) -> Result<()> {
    eprintln!("xtask: {what}");
    let status = command.status().with_context(|| format!("start cargo for {what}"))?;
    ensure!(status.success(), "{what}: failed, see above");
    Ok(())
}
