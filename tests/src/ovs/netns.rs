//! Network namespaces of this rig: made, entered for one closure, removed.
//!
//! A closure runs on a thread of its own, so no other thread ever sees another network, and a
//! process started there stays inside.
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// A named network namespace; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes the namespace, with its loopback up and IPv6 off.
    ///
    /// # Errors
    /// The name is taken, or we are not root.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), "")
            .with_context(|| format!("make network namespace {name}; this needs root"))?;
        let file = File::open(PathBuf::from("/run/netns").join(name))
            .with_context(|| format!("open network namespace {name}"))?;
        let netns = Self { name: name.to_owned(), file };
        for key in ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
            netns.sysctl(key, "1")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name under which `ip netns` lists it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure inside and waits for it.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = || {
                setns(&self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter network namespace {}", self.name))?;
                Ok(work())
            };
            let worker = scope.spawn(inside);
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `ip` with a batch of commands, one a line; stops at the first that fails.
    ///
    /// # Errors
    /// What `ip` complained.
    pub fn ip(&self, batch: &str) -> Result<()> {
        run(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch)
            .map(drop)
            .with_context(|| format!("configure network namespace {}", self.name))
    }

    /// Loads an nftables script, as one transaction.
    ///
    /// # Errors
    /// What `nft` complained.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run(|| run(Command::new("nft").args(["-f", "-"]), script))?
            .map(drop)
            .with_context(|| format!("load nftables rules in {}", self.name))
    }

    /// Runs a command inside; what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| run(command, ""))?
    }

    /// Starts a process inside.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.run(|| command.spawn())?
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))
    }

    /// Writes a sysctl below `/proc/sys/net`, which shows the namespace of the thread that looks.
    ///
    /// # Errors
    /// There is no such key.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(key);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("set {} to {value} in {}", path.display(), self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name]), "") {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a command to its end with `input`; what it printed.
///
/// # Errors
/// It cannot be started, or its exit code is not 0; with what it complained.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {tool}: is it installed? `cargo xtask setup` does it"))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    // A tool that ends early closes its stdin; its exit code and words tell more than that.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().with_context(|| format!("run {tool}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}", complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
