//! The node's iptables: read whole, changed a table at a time in one transaction.
//!
//! Owns the calls of `iptables-save` and `iptables-restore`; which rules mean what is in [`rules`].
//! Decides nothing.
pub mod rules;

use std::{io::ErrorKind, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use tokio::{io::AsyncWriteExt, process::Command};

/// `iptables-save` of these tables, one after the other.
///
/// # Errors
/// The tool is not installed or fails.
pub async fn save(tables: &[&str]) -> Result<String> {
    let mut text = String::new();
    for table in tables {
        text += &run("iptables-save", &["-t", table], "").await?;
    }
    Ok(text)
}

/// Applies the lines to a table, all or none.
///
/// # Errors
/// The tool refused a line, with its words; nothing was changed then.
pub async fn apply(table: &str, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let script = format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"));
    run("iptables-restore", &["--noflush", "--wait"], &script).await.map(drop)
}

async fn run(tool: &str, arguments: &[&str], input: &str) -> Result<String> {
    let child = Command::new(tool)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{tool} is not installed: install iptables, with which the node was set up")
        }
        Err(error) => return Err(error).with_context(|| format!("start {tool}")),
    };
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends early says why on its standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.with_context(|| format!("run {tool}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{tool} failed: {}", complaint.trim());
    String::from_utf8(output.stdout).with_context(|| format!("{tool} printed no text"))
}
