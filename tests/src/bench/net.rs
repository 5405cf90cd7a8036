//! Network namespaces that vanish with the process, and the commands run in them.
//!
//! `sandbox` gives the calling thread (and all threads and processes it starts afterwards) a mount
//! namespace of its own with an empty /run/netns and a BPF file system. Whatever kills the
//! process, the kernel then removes every namespace of the benchmark: nothing of it has a name
//! outside. Surprising: call it before starting any thread that shall see the namespaces.
use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::Uid,
};

const NAMES: &str = "/run/netns";
const NO_PATH: Option<&str> = None;

/// Gives this thread its own mount namespace. Needs root.
pub fn sandbox() -> Result<()> {
    ensure!(Uid::effective().is_root(), "the benchmark needs root: it makes network namespaces");
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    mount(NO_PATH, "/", NO_PATH, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NO_PATH)
        .context("make the mounts private")?;
    fs::create_dir_all(NAMES).with_context(|| format!("create {NAMES}"))?;
    mount(Some("tmpfs"), NAMES, Some("tmpfs"), MsFlags::empty(), NO_PATH)
        .with_context(|| format!("mount a tmpfs on {NAMES}"))?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), NO_PATH)
        .context("mount a BPF file system on /sys/fs/bpf")
}

/// A network namespace; deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
}

impl Netns {
    /// Makes a namespace with this name, `lo` up and IPv6 off.
    pub fn new(name: String) -> Result<Self> {
        command("ip", &["netns", "add", &name])?;
        let path = Path::new(NAMES).join(&name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let netns = Self { name, file };
        netns.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        netns.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The handle that `setns` takes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Runs `work` in a thread inside this namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let inside = || {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter namespace {}", self.name))?;
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
    }

    /// The lines as one `ip -batch`.
    pub fn ip(&self, lines: &[String]) -> Result<()> {
        feed(&["ip", "-n", &self.name, "-batch", "-"], &lines.join("\n")).map(drop)
    }

    /// Runs a program in this namespace and returns what it printed.
    pub fn run(&self, command_line: &[&str]) -> Result<String> {
        self.run_with_input(command_line, "")
    }

    /// The same with `input` on its standard input.
    pub fn run_with_input(&self, command_line: &[&str], input: &str) -> Result<String> {
        self.enter(|| feed(command_line, input))
    }

    /// Writes a value below /proc/sys of this namespace.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| {
            let path = Path::new("/proc/sys").join(key);
            fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
        })
    }

    /// Reads a value below /proc/sys of this namespace.
    pub fn read_sysctl(&self, key: &str) -> Result<String> {
        self.enter(|| {
            let path = Path::new("/proc/sys").join(key);
            let text = fs::read_to_string(&path);
            Ok(text.with_context(|| format!("read {}", path.display()))?.trim().to_owned())
        })
    }

    /// The number of the interface with this name.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        self.enter(|| {
            nix::net::if_::if_nametoindex(device)
                .with_context(|| format!("look up interface {device} in {}", self.name))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = command("ip", &["netns", "del", &self.name]) {
            eprintln!("{error:#}");
        }
    }
}

/// Runs a program and returns what it printed.
pub fn command(program: &str, arguments: &[&str]) -> Result<String> {
    let command_line: Vec<&str> = [program].into_iter().chain(arguments.iter().copied()).collect();
    feed(&command_line, "")
}

fn feed(command_line: &[&str], input: &str) -> Result<String> {
    let [program, arguments @ ..] = command_line else { bail!("an empty command line") };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}: is it installed?"))?;
    let mut stdin = child.stdin.take().context("a child without standard input")?;
    let input = input.to_owned();
    // A pipe is finite: write from aside, so that a talkative program cannot block on us.
    let writer = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("wait for {program}"))?;
    let written = writer.join().map_err(|_| anyhow!("writing to {program} panicked"))?;
    let line = command_line.join(" ");
    ensure!(
        output.status.success(),
        "`{line}` failed with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    written.with_context(|| format!("write to `{line}`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
