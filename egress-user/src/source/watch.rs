//! Notices changed files: by looking at them, since what changes a file differs (a rename, a
//! mounted ConfigMap's link) and a look costs microseconds.
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::files::Input;

/// What tells that a file is another one than before.
type Stamp = (u64, u64, i64, i64);

/// The files the agent lives by.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
}

impl Watched {
    pub fn new(files: &[PathBuf], config: Option<&Path>) -> Self {
        let paths = files.iter().cloned().chain(config.map(Path::to_owned)).collect();
        Self { paths, stamps: BTreeMap::new() }
    }

    /// Reads all files. Refused objects are named in the log.
    ///
    /// # Errors
    /// A file that cannot be read, or an AgentConfig that cannot be used.
    pub fn read(&mut self) -> Result<Input> {
        self.stamps = self.look();
        let input = Input::read(&self.paths)?;
        for condition in input.objects.refused() {
            log::warn!("{} refused: {}", condition.object, condition.message);
        }
        Ok(input)
    }

    /// Reads the files again if one has changed since the last reading.
    ///
    /// # Errors
    /// As [`Watched::read`]; the files count as read, so one change is one message.
    pub fn changed(&mut self) -> Result<Option<Input>> {
        if self.look() == self.stamps {
            return Ok(None);
        }
        let input = self.read()?;
        if input.objects.host_subnets.is_empty() && input.objects.net_namespaces.is_empty() {
            // A file being written looks like this for a moment; so does a mistake.
            bail!("the files hold no HostSubnet and no NetNamespace any more");
        }
        Ok(Some(input))
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
