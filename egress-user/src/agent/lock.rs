//! One agent a node: a lock on a file in the run directory, which ends with its process, however
//! that ends. The kernel knows the holder's process id.
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

const LOCK: &str = "lock";

/// Held as long as this value lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Makes the run directory and takes its lock.
    ///
    /// # Errors
    /// Another process has it: the message names it.
    pub fn take(run_dir: &Path) -> Result<Self> {
        fs::create_dir_all(run_dir)
            .with_context(|| format!("make the run directory {}", run_dir.display()))?;
        let path = run_dir.join(LOCK);
        loop {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .with_context(|| format!("open the lock {}", path.display()))?;
            match fcntl(&file, FcntlArg::F_SETLK(&whole())) {
                Ok(_) => {}
                Err(Errno::EACCES | Errno::EAGAIN) => {
                    let pid =
                        holder_of(&file).map_or_else(String::new, |pid| format!(" (pid {pid})"));
                    bail!("an agent runs here{pid}, it holds {}: stop it first", path.display());
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("lock {}", path.display()));
                }
            }
            let lock = Self { file, path: path.clone() };
            if lock.is_current() {
                return Ok(lock);
            }
        }
    }

    /// Whether the file is still the one of that name: `egress cleanup` may have removed it.
    fn is_current(&self) -> bool {
        let identity = |found: fs::Metadata| (found.dev(), found.ino());
        let there = fs::metadata(&self.path).map(identity);
        there.is_ok_and(|there| self.file.metadata().is_ok_and(|own| identity(own) == there))
    }

    /// Removes the file with the lock.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

/// The process that holds the lock of this run directory.
pub fn holder(run_dir: &Path) -> Option<u32> {
    holder_of(&File::open(run_dir.join(LOCK)).ok()?)
}

fn holder_of(file: &File) -> Option<u32> {
    let mut found = whole();
    fcntl(file, FcntlArg::F_GETLK(&mut found)).ok()?;
    (i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_pid.cast_unsigned())
}

/// The whole file, for one writer.
fn whole() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// POSIX locks are a process's: a second taker in the same process gets it too, so what another
    /// process sees is tested with the agent itself.
    #[test]
    fn a_lock_that_nobody_holds_has_no_holder() {
        let run_dir = std::env::temp_dir().join(format!("egress-lock-{}", std::process::id()));
        assert_eq!(holder(&run_dir), None);
        let lock = Lock::take(&run_dir).expect("nobody has it");
        assert!(lock.is_current());
        fs::remove_file(run_dir.join(LOCK)).expect("is there");
        assert!(!lock.is_current(), "a removed file is not what the next one will lock");
        fs::remove_dir(&run_dir).expect("is empty");
    }
}
