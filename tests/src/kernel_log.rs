//! What the kernel complains of while a test runs.
//!
//! A packet whose checksum a program has left wrong is noticed by the kernel's own receive path: it
//! says "hw csum failure", once since it booted. So that it says so again, the kernel is told to
//! forget that it has. The log is the machine's: who else spoils checksums meanwhile is heard too.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    thread,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

const LOG: &str = "/dev/kmsg";
/// What must never be in it.
const COMPLAINT: &str = "csum failure";

/// The kernel's log from now on.
#[derive(Debug)]
pub struct KernelLog {
    log: File,
}

impl KernelLog {
    /// Begins to listen.
    pub fn follow() -> Result<Self> {
        // Where the kernel cannot be told, it may have said so before.
        let _ = thread::scope(|scope| scope.spawn(forget_what_was_said).join());
        let mut log = File::options()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(LOG)
            .with_context(|| format!("open {LOG}"))?;
        log.seek(SeekFrom::End(0)).with_context(|| format!("go to the end of {LOG}"))?;
        Ok(Self { log })
    }

    /// The complaints since, as they stand in the log.
    #[must_use]
    pub fn complaints(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut record = [0; 8192];
        loop {
            match self.log.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    found.extend(text.contains(COMPLAINT).then(|| text.trim().to_owned()));
                }
                // Records that were overwritten before we came to read them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => return found,
            }
        }
    }
}

/// Once-only messages may come again. On a thread of its own, in mounts of its own.
fn forget_what_was_said() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).context("make a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("debugfs"), "/sys/kernel/debug", Some("debugfs"), MsFlags::empty(), none)?;
    fs::write("/sys/kernel/debug/clear_warn_once", "1").context("clear_warn_once")
}
