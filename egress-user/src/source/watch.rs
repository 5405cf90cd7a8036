//! Notices changed files: by looking at them, since what changes a file differs (a rename, a
//! mounted ConfigMap's link) and a look costs microseconds.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    allocation::deal_out,
    files::{Input, Memory},
};
use crate::{model::Objects, plan::Health};

/// What tells that a file is another one than before.
type Stamp = (u64, u64, i64, i64);

/// The files the agent lives by.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    /// Whether one of them was given as the AgentConfig's.
    with_config: bool,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    memory: Memory,
}

impl Watched {
    pub fn new(files: &[PathBuf], config: Option<&Path>) -> Self {
        let paths = files.iter().cloned().chain(config.map(Path::to_owned)).collect();
        Self {
            paths,
            with_config: config.is_some(),
            stamps: BTreeMap::new(),
            memory: Memory::default(),
        }
    }

    /// Reads all files.
    ///
    /// # Errors
    /// A file that cannot be read, an AgentConfig that cannot be used or is not there although its
    /// file was given, or no object to work for.
    pub fn read(&mut self) -> Result<Input> {
        self.stamps = self.look();
        let input = Input::read_again(&self.paths, &mut self.memory)?;
        ensure!(
            !self.with_config || input.config.is_some(),
            "--config: there is no AgentConfig in it"
        );
        // A file being written looks like this for a moment; so does a mistake.
        let Objects { host_subnets, net_namespaces, .. } = &input.objects;
        if host_subnets.is_empty() && net_namespaces.is_empty() {
            let mut refused = input.objects.refused();
            let why = refused.next().map_or_else(
                || "give them with -f".to_owned(),
                |first| format!("{} was refused: {}", first.object, first.message),
            );
            bail!("the files hold no HostSubnet and no NetNamespace: {why}");
        }
        Ok(input)
    }

    /// Reads the files again if one has changed since the last reading.
    ///
    /// # Errors
    /// As [`Watched::read`]; the files count as read, so one change is one message.
    pub fn changed(&mut self) -> Result<Option<Input>> {
        if self.look() == self.stamps { Ok(None) } else { self.read().map(Some) }
    }

    /// Deals out egressCIDRs over these files: see [`deal_out`].
    ///
    /// # Errors
    /// As [`deal_out`].
    pub fn deal_out(&self, health: &Health) -> Result<Vec<String>> {
        deal_out(&self.paths, health)
    }

    fn look(&self) -> BTreeMap<PathBuf, Option<Stamp>> {
        let mut stamps = BTreeMap::new();
        for path in &self.paths {
            stamps.insert(path.clone(), stamp(path));
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                stamps.insert(entry.path(), stamp(&entry.path()));
            }
        }
        stamps
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).with_context(|| format!("look at {}", path.display())).ok()?;
    Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}
