//! Room in conntrack for a million flows: the machine's own settings, lent and given back.
//!
//! There is one limit and one hash table for all namespaces. Surprising: they are given back by a
//! process of its own, which waits for the end of this one; so they are after a Ctrl-C, a panic or
//! a kill too.
use std::{
    fs,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::workload::{Flows, Workload};

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// What conntrack has room for by itself on a machine of more than 4 GiB.
const DEFAULT: u64 = 1 << 18;
/// Flows of one namespace with a million of the benchmark's, and then some.
const FLOWS: u64 = 1 << 21;
/// The tables of all variants share these: best case, about a flow in each.
const ALL_FLOWS: u64 = 1 << 22;

/// Waits for the end of its standard input, then writes each value into its file.
const GIVE_BACK: &str = "cat; echo $2 > $1; echo $4 > $3";

/// Dropping it gives the settings back.
#[derive(Debug)]
pub struct Room(Child);

fn read(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} says {text:?}"))
}

fn write(path: &str, value: u64) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("write {value} to {path}"))
}

/// Makes room if one of the workloads needs it. Where the machine does not let us, the netfilter
/// variants' rows of that workload will say so.
pub fn room(workloads: &[Workload]) -> Option<Room> {
    let many = |flows| matches!(flows, Flows::Established(flows) if u64::from(flows) * 2 > DEFAULT);
    if !workloads.iter().any(|workload| many(workload.flows)) {
        return None;
    }
    Room::make().inspect_err(|error| eprintln!("no room in conntrack: {error:#}")).ok()
}

impl Room {
    /// Makes room where there is less. An error: this machine does not let us.
    pub fn make() -> Result<Self> {
        let (max, buckets) = (read(MAX)?, read(BUCKETS)?);
        let (max_text, buckets_text) = (max.to_string(), buckets.to_string());
        let child = Command::new("sh")
            .args(["-c", GIVE_BACK, "give-back", MAX, &max_text, BUCKETS, &buckets_text])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A Ctrl-C is for the terminal's own group of processes.
            .process_group(0)
            .spawn()
            .context("start sh, which gives conntrack's settings back")?;
        let room = Self(child);
        write(MAX, max.max(FLOWS))?;
        write(BUCKETS, buckets.max(ALL_FLOWS))?;
        Ok(room)
    }

    /// Gives the settings back now, and says whether that worked.
    pub fn give_back(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = self.0.wait().context("wait for conntrack's settings to be given back")?;
        ensure!(status.success(), "giving conntrack's settings back failed: {status}");
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}
