//! What a takeover or a hand-back has done so far: a file in the run directory, written before each
//! step. Whoever comes after a process that was killed reads there what to finish or to undo.
//!
//! It holds the rules that were removed, for the way back, as long as the node is ours.
use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::reserved_ports;

const NAME: &str = "takeover.json";

/// A takeover, and then the way back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub step: Step,
    /// The tenants' rules that the node had, in their order.
    pub rules: Vec<Noted>,
    /// Ports that were reserved for the connections of masqueraded pods, while these live.
    #[serde(default)]
    pub reserved: BTreeSet<u16>,
}

/// A rule of the node's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    pub table: String,
    pub chain: String,
    pub place: u32,
    /// As iptables-restore takes it behind the chain's name.
    pub spec: String,
}

/// What is being done, or was done last. Each can be done again.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Nothing but the note of the rules.
    #[default]
    Noted,
    /// The programs take part beside the node's NAT.
    Beside,
    /// Nothing may begin a flow for a moment, while the last are copied.
    Held,
    /// The programs have all flows.
    Own,
    /// The tenants' rules are gone.
    Unruled,
    /// The node's entries of the tenants' flows are gone: taken over.
    Done,
    /// On the way back: the rules are there again, the programs still have all flows.
    Ruled,
    /// On the way back: nothing may begin a flow for a moment, while all are copied.
    Giving,
    /// On the way back: the node has all flows, the programs are about to go.
    Given,
}

impl Journal {
    /// `None`: nothing was begun here since the last boot, or it was handed back.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        let path = path(run_dir);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let what = || {
            format!("read {}: restore the tenants' rules by hand, then remove it", path.display())
        };
        serde_json::from_str(&text).with_context(what).map(Some)
    }

    /// Writes it, whole and for good: what follows may be the end of this process.
    pub fn write(&self, run_dir: &Path) -> Result<()> {
        let path = path(run_dir);
        let new = path.with_extension("new");
        let what = || format!("write {}", path.display());
        fs::write(&new, serde_json::to_string_pretty(self)?).with_context(what)?;
        fs::File::open(&new).and_then(|file| file.sync_all()).with_context(what)?;
        fs::rename(&new, &path).with_context(what)
    }

    /// Keeps the node's own sockets off these ports.
    pub fn reserve(&mut self, run_dir: &Path, ports: &BTreeSet<u16>) -> Result<()> {
        let added = reserved_ports::missing(ports)?;
        if added.is_empty() {
            return Ok(());
        }
        // In the file before the kernel has them.
        self.reserved.extend(&added);
        self.write(run_dir)?;
        reserved_ports::add(&added)
    }

    /// Lets the node have them again.
    pub fn release(&mut self, run_dir: &Path) -> Result<()> {
        if self.reserved.is_empty() {
            return Ok(());
        }
        reserved_ports::remove(&self.reserved)?;
        self.reserved.clear();
        self.write(run_dir)
    }

    pub fn remove(run_dir: &Path) -> Result<()> {
        let path = path(run_dir);
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Why an agent must not start here now; `None`: it may.
    pub fn unfinished(&self) -> Option<String> {
        let (what, undo) = match self.step {
            Step::Done => return None,
            Step::Noted | Step::Beside | Step::Held | Step::Own | Step::Unruled => {
                ("takeover", "finish it with `egress takeover`, or undo it with `egress handback`")
            }
            Step::Ruled | Step::Giving | Step::Given => {
                ("hand-back", "finish it with `egress handback`, or undo it with `egress takeover`")
            }
        };
        let step = self.step.name();
        Some(format!("a {what} has stopped at the step `{step}`: {undo}"))
    }
}

impl Step {
    pub fn name(self) -> &'static str {
        match self {
            Self::Noted => "noted",
            Self::Beside => "beside",
            Self::Held => "held",
            Self::Own => "own",
            Self::Unruled => "unruled",
            Self::Done => "done",
            Self::Ruled => "ruled",
            Self::Giving => "giving",
            Self::Given => "given",
        }
    }
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join(NAME)
}
