//! `cargo xtask setup`: installs what building and testing need and this machine lacks.
//!
//! A second run finds nothing missing and installs nothing. Nothing is ever removed: where a
//! package stands in the way of another, apt refuses and says which.
mod facts;
mod plan;

use std::{
    io,
    os::fd::AsFd,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::ebpf::Toolchain;

use crate::privilege::Privilege;
use facts::{Distribution, LINKER_VERSION, LLVM};
use plan::{OPEN_VSWITCH, Package, Plan, Step};

/// Another apt may be at work, for example the one that starts with the machine.
const APT: [&str; 3] = ["apt-get", "-o", "DPkg::Lock::Timeout=300"];

/// Leaves a machine on which everything can be built and tested, or says what to do by hand.
pub fn run() -> Result<()> {
    let distribution = Distribution::here();
    let mut plan = plan::plan(&facts::gather(&distribution, false));
    if plan == Plan::default() {
        say("everything is there, nothing to install");
        return Ok(());
    }
    say(&format!("this is {}", distribution.name));
    if let Some(packages) = packages(&plan) {
        let privilege = Privilege::find(&apt_by_hand(packages))?;
        say("ask apt what it has");
        apt(privilege, &["update"])?;
        plan = plan::plan(&facts::gather(&distribution, true));
    }
    for sentence in &plan.by_hand {
        say(&format!("this is for you: {sentence}"));
    }
    for step in &plan.steps {
        perform(step)?;
    }
    if !plan.by_hand.is_empty() {
        bail!("setup cannot do the rest: {}", plan.by_hand.join("; "));
    }
    ensure!(
        Toolchain::find().is_some(),
        "bpf-linker was installed where cargo puts binaries, which is not on PATH: add it to PATH"
    );
    say("done");
    Ok(())
}

fn say(what: &str) {
    eprintln!("setup: {what}");
}

fn packages(plan: &Plan) -> Option<&[Package]> {
    plan.steps.iter().find_map(|step| match step {
        Step::Install(packages) => Some(packages.as_slice()),
        _ => None,
    })
}

fn names(packages: &[Package]) -> Vec<&'static str> {
    packages.iter().map(|package| package.name).collect()
}

fn apt_by_hand(packages: &[Package]) -> String {
    format!(
        "run `apt-get update && apt-get install --no-install-recommends {}` as root, then again \
         what you just ran",
        names(packages).join(" ")
    )
}

fn perform(step: &Step) -> Result<()> {
    say(&step.to_string());
    let start = Instant::now();
    match step {
        Step::Install(packages) => {
            let privilege = Privilege::find(&apt_by_hand(packages))?;
            let mut arguments = vec!["install", "-y", "--no-install-recommends", "--no-remove"];
            arguments.extend(names(packages));
            apt(privilege, &arguments)?;
        }
        Step::StopOpenVswitch => {
            let privilege = Privilege::find(&format!("run `service {OPEN_VSWITCH} stop` as root"))?;
            do_it(privilege.command("service").args([OPEN_VSWITCH, "stop"]))?;
            do_it(privilege.command("update-rc.d").args([OPEN_VSWITCH, "disable"]))?;
        }
        Step::Nightly => do_it(
            Command::new("rustup")
                .args(["toolchain", "install", "nightly", "--profile", "minimal"])
                .args(["--component", "rust-src", "--component", "clippy"]),
        )?,
        Step::CompileLinker => do_it(
            Command::new("cargo")
                .args(["install", "--force", "--locked", "bpf-linker", "--version"])
                .arg(linker_version())
                .args(["--no-default-features", "--features", "llvm-22"])
                .env("LLVM_PREFIX", LLVM),
        )?,
        Step::FetchLinker => do_it(
            Command::new("cargo")
                .args(["binstall", "--no-confirm", "--force"])
                .arg(format!("bpf-linker@{}", linker_version())),
        )?,
    }
    say(&format!("that took {} s", start.elapsed().as_secs()));
    Ok(())
}

fn linker_version() -> String {
    let (major, minor, patch) = LINKER_VERSION;
    format!("{major}.{minor}.{patch}")
}

fn apt(privilege: Privilege, arguments: &[&str]) -> Result<()> {
    let mut command = privilege.command("env");
    command.arg("DEBIAN_FRONTEND=noninteractive").args(APT).args(arguments);
    do_it(&mut command)
}

/// Runs `command`, its output on standard error.
fn do_it(command: &mut Command) -> Result<()> {
    let stderr = io::stderr().as_fd().try_clone_to_owned().context("clone standard error")?;
    let line = format!("{command:?}");
    let status = command
        .stdin(Stdio::null())
        .stdout(stderr)
        .status()
        .with_context(|| format!("start {line}"))?;
    ensure!(status.success(), "{line} failed, see above");
    Ok(())
}
