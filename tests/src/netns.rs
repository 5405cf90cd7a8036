//! Network namespaces: made, entered, removed.
//!
//! A namespace is entered by a thread that lives for one closure, so that no other thread of the
//! process ever sees another network. Sockets keep the namespace they were made in, and so does a
//! process started from such a thread: no `pre_exec`, no wrapper.

use std::{
    fs::File,
    future::Future,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A named network namespace, as `ip netns` knows it. Removed on drop unless kept.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    keep: bool,
}

impl Netns {
    /// Makes the namespace, with its loopback up and IPv6 off. Fails if the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        ensure!(!exists(name), "network namespace {name} exists already");
        let added = run(Command::new("ip").args(["netns", "add", name]), "")
            .and_then(|_| Self::open(name))
            .with_context(|| format!("make network namespace {name}; this needs root"));
        if added.is_err() {
            // A failed `ip` may leave the name behind.
            let _ = remove(name);
        }
        let mut netns = added?;
        netns.keep = false;
        for key in ["ipv6/conf/all/disable_ipv6", "ipv6/conf/default/disable_ipv6"] {
            netns.sysctl(key, "1")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// Makes a namespace that is a test's whole rig. `label` is for the reader: the process id and a
    /// number make the name unique.
    pub fn alone(label: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::create(&format!("eg{}-{count}-{label}", process::id()))
    }

    /// Opens a namespace that someone else made; it stays on drop.
    pub fn open(name: &str) -> Result<Self> {
        let file = File::open(path(name))
            .with_context(|| format!("open network namespace {name}; is the rig up?"))?;
        Ok(Self { name: name.to_owned(), file, keep: true })
    }

    /// The name under which `ip netns` lists it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves the namespace standing after this value is dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs a closure inside, on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| self.enter().map(|()| work()));
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs a future inside, on a tokio runtime of its own.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start a runtime")?;
            runtime.block_on(work())
        })?
    }

    /// Moves the calling thread into the namespace, for good.
    fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Runs `ip` with a batch of commands, one a line. Stops at the first that fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        ip.args(["-n", &self.name, "-batch", "-"]);
        run(&mut ip, batch)
            .map(drop)
            .with_context(|| format!("configure network namespace {}", self.name))
    }

    /// Loads an nftables script, as one transaction.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.run(|| run(Command::new("nft").args(["-f", "-"]), script))?
            .map(drop)
            .with_context(|| format!("load nftables rules in network namespace {}", self.name))
    }

    /// Runs a command inside and returns what it printed. Its exit code must be 0.
    pub fn output(&self, command: &mut Command) -> Result<String> {
        self.run(|| run(command, ""))?
    }

    /// As [`Netns::output`], of a command line of words without quoting.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        self.output(Command::new(program).args(words))
    }

    /// Waits until the kernel has settled that frames can leave through this link.
    pub fn wait_up(&self, link: &str) -> Result<()> {
        let show = format!("ip link show dev {link}");
        wait_for(&format!("{link} up"), || Ok(self.exec(&show)?.contains("state UP")))
    }

    /// Starts a process inside.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.run(|| command.spawn())?
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))
    }

    /// Writes a sysctl below `/proc/sys/net`, which shows the namespace of the thread that looks.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = PathBuf::from("/proc/sys/net").join(key);
        self.run(|| std::fs::write(&path, value))?
            .with_context(|| format!("set {} to {value} in {}", path.display(), self.name))
    }

    /// Makes a mount namespace for the processes to come: see [`Mounts`].
    pub fn private_mounts(&self) -> Result<Mounts> {
        let file = self.run(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("make the mounts private")?;
            for (kind, at) in [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run")] {
                mount(Some(kind), at, Some(kind), MsFlags::empty(), none)
                    .with_context(|| format!("mount {kind} at {at}"))?;
            }
            File::open("/proc/thread-self/ns/mnt").context("hold the mount namespace")
        })??;
        Ok(Mounts { file })
    }

    /// Runs a closure inside the namespace and the mounts, where the working directory is `/`.
    pub fn run_in<T: Send>(&self, mounts: &Mounts, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.run(|| mounts.enter().map(|()| work()))?
    }

    /// Starts a process inside the namespace and the mounts. The terminal's Ctrl-C does not reach
    /// it: whoever started it decides when it ends.
    pub fn spawn_in(&self, mounts: &Mounts, command: &mut Command) -> Result<Child> {
        self.run_in(mounts, || command.process_group(0).spawn())?
            .with_context(|| format!("start {}", command.get_program().to_string_lossy()))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = remove(&self.name)
        {
            eprintln!("{error:#}");
        }
    }
}

/// A mount namespace with a sysfs of its network namespace, an empty bpffs at `/sys/fs/bpf` and an
/// empty `/run`.
///
/// It lives as long as this value or a process in it, so pins outlive the process that made them
/// and nothing of them is ever seen, or left behind, outside.
#[derive(Debug)]
pub struct Mounts {
    file: File,
}

impl Mounts {
    /// Moves the calling thread into the mounts, for good.
    fn enter(&self) -> Result<()> {
        // A thread that shares its working directory with others may not change its mounts.
        unshare(CloneFlags::CLONE_FS).context("take a working directory of one's own")?;
        setns(&self.file, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")
    }
}

/// Whether there is a namespace of that name.
#[must_use]
pub fn exists(name: &str) -> bool {
    path(name).exists()
}

/// Removes a namespace with all that runs in it; none of that name is success.
pub fn remove(name: &str) -> Result<()> {
    if !exists(name) {
        return Ok(());
    }
    // A process in it would keep the namespace and its devices alive, out of everyone's reach.
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let pids = processes(name)?;
        for pid in &pids {
            // One that has just ended is what we wanted.
            let _ = kill(*pid, signal);
        }
        wait_until(Duration::from_secs(5), || processes(name).is_ok_and(|pids| pids.is_empty()));
    }
    run(Command::new("ip").args(["netns", "del", name]), "")
        .map(drop)
        .with_context(|| format!("remove network namespace {name}"))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// The processes of a namespace, never our own: a thread of ours may be inside.
fn processes(name: &str) -> Result<Vec<Pid>> {
    let pids = run(Command::new("ip").args(["netns", "pids", name]), "")?;
    Ok(pids
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != Pid::this())
        .collect())
}

/// Waits for a condition, looking every 10 ms. Returns whether it came true in time.
pub fn wait_until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Looks again until the condition holds. Error: it does not within ten seconds, or looking fails.
pub fn wait_for(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let mut failure = None;
    let came = wait_until(Duration::from_secs(10), || match holds() {
        Ok(holds) => holds,
        Err(error) => {
            failure = Some(error);
            true
        }
    });
    if let Some(error) = failure {
        return Err(error).with_context(|| format!("wait for {what}"));
    }
    ensure!(came, "waited ten seconds in vain for {what}");
    Ok(())
}

/// Runs a command to its end and returns what it printed; a failure carries what it wrote to stderr.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C is for us alone: a command cut off halfway would leave half of what it does.
    command.process_group(0);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("{program} is not installed; `cargo xtask setup` installs it")
        }
        Err(error) => return Err(error).with_context(|| format!("start {program}")),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // Whoever stops reading early says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
