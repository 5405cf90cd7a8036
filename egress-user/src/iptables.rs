//! The node's iptables, read whole.
//!
//! Owns the call of `iptables-save`; which rules mean what is in [`rules`]. Changes nothing.
pub mod rules;

use std::{io::ErrorKind, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

/// `iptables-save` of these tables, one after the other.
///
/// # Errors
/// The tool is not installed or fails.
pub async fn save(tables: &[&str]) -> Result<String> {
    let mut text = String::new();
    for table in tables {
        text += &run("iptables-save", &["-t", table]).await?;
    }
    Ok(text)
}

async fn run(tool: &str, arguments: &[&str]) -> Result<String> {
    let output = match Command::new(tool).args(arguments).stdin(Stdio::null()).output().await {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{tool} is not installed: install iptables, with which the node was set up")
        }
        Err(error) => return Err(error).with_context(|| format!("run {tool}")),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{tool} failed: {}", complaint.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{tool} printed no text"))
}
