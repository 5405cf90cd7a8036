//! What the agent found, for `egress status`: a file in the run directory, written whole.
use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    condition::Condition,
    identity::Identity,
    plan::Plan,
    reconcile::{attachments::Place, xdp::InForce},
};

/// The agent's own word. Counters are not in it: they are read from the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub pid: u32,
    pub node: String,
    pub node_ip: Option<Ipv4Addr>,
    pub uplink: String,
    pub addresses: Vec<Ipv4Addr>,
    pub attached: Vec<Attached>,
    /// What the uplink's hot path runs on.
    #[serde(default)]
    pub data_path: Option<InForce>,
    pub conditions: Vec<Told>,
}

/// A program and the interface it is wanted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub hook: String,
    pub interface: String,
}

/// A condition as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Told {
    pub object: String,
    pub reason: String,
    pub message: String,
}

impl Status {
    pub fn new(
        identity: &Identity,
        plan: &Plan,
        conditions: Vec<Condition>,
        places: &[Place],
        in_force: Option<&InForce>,
    ) -> Self {
        Self {
            pid: process::id(),
            node: identity.name.clone(),
            node_ip: Some(identity.ip),
            uplink: identity.uplink.name.clone(),
            addresses: plan.addresses.iter().map(|address| address.ip).collect(),
            attached: places
                .iter()
                .map(|(hook, interface)| Attached {
                    hook: hook.name().to_owned(),
                    interface: interface.clone(),
                })
                .collect(),
            data_path: in_force.cloned(),
            conditions: conditions
                .into_iter()
                .map(|Condition { object, reason, message }| Told {
                    object,
                    reason: format!("{reason:?}"),
                    message,
                })
                .collect(),
        }
    }

    /// What the agent of this run directory last said; `None`: none has run since the last boot,
    /// or it has left in order.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        let path = run_dir.join(STATUS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        };
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display())).map(Some)
    }
}

const STATUS: &str = "status.json";
const OWNED: &str = "owned.json";

/// The run directory and what was last written there.
#[derive(Debug)]
pub struct StatusFile {
    run_dir: PathBuf,
    last: Status,
}

impl StatusFile {
    pub fn open(run_dir: &Path) -> Result<Self> {
        fs::create_dir_all(run_dir)
            .with_context(|| format!("make the run directory {}", run_dir.display()))?;
        Ok(Self { run_dir: run_dir.to_owned(), last: Status::default() })
    }

    /// The unlabelled addresses that a predecessor added.
    pub fn owned(&self) -> BTreeSet<Ipv4Addr> {
        fs::read_to_string(self.run_dir.join(OWNED))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    pub fn own(&self, owned: &BTreeSet<Ipv4Addr>) {
        if *owned == self.owned() {
            return;
        }
        if let Err(error) = self.put(OWNED, owned) {
            log::error!("{error:#}");
        }
    }

    /// The conditions that are new since the last status.
    pub fn news<'a>(&self, status: &'a Status) -> Vec<&'a Told> {
        status.conditions.iter().filter(|told| !self.last.conditions.contains(told)).collect()
    }

    pub fn write(&mut self, status: &Status) -> Result<()> {
        if self.last == *status {
            return Ok(());
        }
        self.put(STATUS, status)?;
        self.last = status.clone();
        Ok(())
    }

    fn put<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.run_dir.join(name);
        let new = self.run_dir.join(format!("{name}.new"));
        let text = serde_json::to_string_pretty(value)?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The agent leaves in order: nothing more is to be said.
    pub fn remove(&self) {
        for name in [STATUS, OWNED] {
            // What was never written need not be removed.
            let _ = fs::remove_file(self.run_dir.join(name));
        }
    }
}
