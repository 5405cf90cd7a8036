//! The sysctl `promote_secondaries` of one link, switched on for a moment.
//!
//! Without it the kernel deletes the secondary addresses of a subnet together with the primary:
//! a released egress IP that had become primary would take the node's address with it.
use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// While this lives, the secondaries of the link outlive their primary. Dropping it puts the
/// sysctl back.
#[must_use]
pub struct Promotion {
    switched_on: Option<PathBuf>,
}

impl Promotion {
    /// Error: /proc/sys cannot be written (a container without that right).
    pub fn hold(link: &str) -> Result<Self> {
        let path = setting(link);
        for path in [&path, &setting("all")] {
            let value = fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
            if value.trim() != "0" {
                return Ok(Self { switched_on: None });
            }
        }
        fs::write(&path, "1").with_context(|| format!("write 1 to {path:?}"))?;
        Ok(Self { switched_on: Some(path) })
    }
}

impl Drop for Promotion {
    fn drop(&mut self) {
        if let Some(path) = &self.switched_on {
            // Left on, it does no harm: most distributions ship it so.
            let _ = fs::write(path, "0");
        }
    }
}

fn setting(link: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv4/conf/{link}/promote_secondaries"))
}
