//! A fixed rate: sender and node on two cores, so that the node's CPU time stands alone.
//!
//! The kernel can do a device's receiving in a thread (threaded NAPI). On veth that thread does
//! a packet's whole way from there on, up to the sink. Pinned to the measuring core it is woken, works
//! and sleeps again as a node does that is not busy, while the sender waits from packet to packet
//! on another core.
use std::{collections::BTreeSet, fs, thread};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::net::{Netns, command};

/// A thread of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kthread(i32);

impl Kthread {
    /// All whose name begins so.
    fn named(prefix: &str) -> Result<BTreeSet<Self>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").context("list /proc")?.flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if name.starts_with(prefix) {
                found.insert(Self(pid));
            }
        }
        Ok(found)
    }

    /// The one that does what this core has deferred.
    pub fn ksoftirqd(core: usize) -> Result<Self> {
        let name = format!("ksoftirqd/{core}\n");
        let found = Self::named(&name)?.into_iter().next();
        found.with_context(|| {
            format!("no thread ksoftirqd/{core}: the kernel's threads are not visible here")
        })
    }

    /// Its run time so far.
    pub fn nanoseconds(self) -> Result<u64> {
        let path = format!("/proc/{}/schedstat", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let first = text.split_whitespace().next().unwrap_or_default();
        first.parse().with_context(|| format!("{path} says {text:?}"))
    }

    /// Keeps it on this core, with the priority that senders have.
    fn pin(self, core: usize) -> Result<()> {
        let mut set = CpuSet::new();
        set.set(core).with_context(|| format!("core {core}"))?;
        sched_setaffinity(Pid::from_raw(self.0), &set)
            .with_context(|| format!("pin the kernel's thread {} to core {core}", self.0))?;
        command("chrt", &["--fifo", "--pid", "10", &self.0.to_string()]).map(drop)
    }
}

/// Has a device of the node receive in threads on this core, and says which these are.
pub fn apart(node: &Netns, device: &str, core: usize) -> Result<BTreeSet<Kthread>> {
    let prefix = format!("napi/{device}-");
    let before = Kthread::named(&prefix)?;
    // `ip netns exec` mounts the namespace's own /sys.
    let path = format!("/sys/class/net/{device}/threaded");
    node.run_with_input(&["ip", "netns", "exec", node.name(), "tee", &path], "1")?;
    let threads = &Kthread::named(&prefix)? - &before;
    ensure!(!threads.is_empty(), "{device} receives in no thread of its own");
    threads.iter().try_for_each(|thread| thread.pin(core))?;
    Ok(threads)
}

/// The core that sends while this one works for the node.
pub fn sending_core(measuring: usize) -> Result<usize> {
    let cores = thread::available_parallelism().context("count the cores")?.get();
    ensure!(cores > 1, "a fixed rate takes two cores: one sends, one is measured");
    Ok(if measuring == 0 { 1 } else { 0 })
}
