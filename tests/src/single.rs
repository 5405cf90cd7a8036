//! Network namespaces of a test's own, removed when the test ends, however it ends.
use std::{
    fs::File,
    future::Future,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

/// A network namespace that lives as long as this value.
pub struct Netns {
    name: String,
}

impl Netns {
    /// `name` is for the reader: process id and a number make it unique.
    pub fn new(name: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("egress-{}-{count}-{name}", process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.exec("ip link set lo up")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command of words without quoting inside, and returns what it printed. Error: it
    /// failed, with what it said.
    pub fn exec(&self, command: &str) -> Result<String> {
        run(Command::new("ip").args(["netns", "exec", &self.name]).args(command.split_whitespace()))
    }

    /// Waits until the kernel has settled that frames can leave through this link.
    pub fn wait_up(&self, link: &str) -> Result<()> {
        let show = format!("ip link show dev {link}");
        wait_until(&format!("{link} is up"), || Ok(self.exec(&show)?.contains("state UP")))
    }

    /// Runs `work` in a thread inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("enter {}", self.name))?;
                Ok(work())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs a future on a tokio runtime of its own inside.
    pub fn block_on<T: Send, F: Future<Output = Result<T>>>(
        &self,
        work: impl FnOnce() -> F + Send,
    ) -> Result<T> {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })?
    }
}

/// Asks again and again until the answer is yes. Error: not within ten seconds, or the question
/// could not be asked.
pub fn wait_until(what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !ask().with_context(|| format!("wait until {what}"))? {
        ensure!(Instant::now() < deadline, "waited ten seconds in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, said.trim());
    match String::from_utf8(output.stdout) {
        Ok(printed) => Ok(printed),
        Err(_) => bail!("{command:?} printed no text"),
    }
}
