//! Keeps the node's own source NAT away from marked packets, in stack mode.
//!
//! There the uplink's egress translates behind the stack, where the node's masquerading (such as
//! OPENSHIFT-MASQUERADE-2) has given the packet the node's address already: the guard would stop
//! it. A chain of ours, just before the usual priority of source NAT, translates marked packets to
//! the address they have; the first binding of a connection is the one that counts.
use std::{collections::BTreeSet, io, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

const TABLE: &str = "egress";

/// Makes the table hold exactly these marks; `None`: no table. Whether anything had to change.
pub async fn reconcile(desired: Option<&BTreeSet<u32>>) -> Result<bool> {
    let observed = match observe().await {
        // Without nft there is no table of ours to remove.
        Err(error) if desired.is_none() && is_missing(&error) => return Ok(false),
        observed => observed?,
    };
    if observed.as_ref() == desired {
        return Ok(false);
    }
    apply(&script(desired)).await?;
    Ok(true)
}

fn is_missing(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::NotFound)
}

/// The marks in the table; `None`: there is no table.
async fn observe() -> Result<Option<BTreeSet<u32>>> {
    let output = nft(&["-j", "list", "tables", "ip"], "").await?;
    let listed: Value = serde_json::from_str(&output).context("read what nft printed")?;
    let is_ours = |entry: &Value| entry["table"]["name"] == TABLE;
    if !listed["nftables"].as_array().is_some_and(|entries| entries.iter().any(is_ours)) {
        return Ok(None);
    }
    marks(&nft(&["-j", "list", "table", "ip", TABLE], "").await?).map(Some)
}

fn marks(listing: &str) -> Result<BTreeSet<u32>> {
    let listed: Value = serde_json::from_str(listing).context("read what nft printed")?;
    let entries = listed["nftables"].as_array().context("nft printed no list")?;
    let set = entries.iter().find_map(|entry| entry["set"]["elem"].as_array());
    Ok(set.into_iter().flatten().filter_map(Value::as_u64).map(|mark| mark as u32).collect())
}

/// One transaction: between the old table and the new one there is no moment without.
fn script(desired: Option<&BTreeSet<u32>>) -> String {
    // Adding first makes the deletion succeed whether or not the table was there.
    let clear = format!("add table ip {TABLE}\ndelete table ip {TABLE}\n");
    let Some(marks) = desired else { return clear };
    let listed: Vec<String> = marks.iter().map(|mark| format!("0x{mark:08x}")).collect();
    let elements = if listed.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", listed.join(", "))
    };
    format!(
        "{clear}table ip {TABLE} {{\n  set marks {{ type mark; {elements} }}\n  chain postrouting {{\n    \
         type nat hook postrouting priority srcnat - 1; policy accept;\n    \
         meta mark @marks snat to ip saddr\n  }}\n}}\n"
    )
}

async fn apply(script: &str) -> Result<()> {
    nft(&["-f", "-"], script).await.map(drop)
}

async fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start nft, which dataPath: stack needs: install nftables")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.context("write to nft")?;
    }
    let output = child.wait_with_output().await.context("wait for nft")?;
    if !output.status.success() {
        bail!("nft {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_read_from_a_listing() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "ip", "name": "egress", "handle": 1}},
            {"set": {"family": "ip", "name": "marks", "table": "egress", "type": "mark",
                     "elem": [7305526, 31417682]}}]}"#;
        assert_eq!(marks(listing).unwrap(), BTreeSet::from([0x6f_7936, 0x1df_6552]));
    }

    #[test]
    fn a_table_is_replaced_in_one_transaction() {
        let script = script(Some(&BTreeSet::from([0x6f_7936])));
        assert!(script.starts_with("add table ip egress\ndelete table ip egress\ntable ip egress"));
        assert!(script.contains("elements = { 0x006f7936 }"));
    }
}
