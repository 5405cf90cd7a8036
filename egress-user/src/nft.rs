//! The command `nft`, and what it lists: for the tables of ours that the stack's own hooks need.
use std::{collections::BTreeSet, io, process::Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

/// What is in a table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table(Value);

impl Table {
    /// The table of that name in the family `ip`; `None`: there is none.
    ///
    /// # Errors
    /// nft does not run ([`is_missing`] tells whether it is installed), or is not understood.
    pub async fn observe(name: &str) -> Result<Option<Self>> {
        let output = nft(&["-j", "list", "tables", "ip"], "").await?;
        let listed: Value = serde_json::from_str(&output).context("read what nft printed")?;
        let is_it = |entry: &Value| entry["table"]["name"] == name;
        if !listed["nftables"].as_array().is_some_and(|entries| entries.iter().any(is_it)) {
            return Ok(None);
        }
        Self::parse(&nft(&["-j", "list", "table", "ip", name], "").await?).map(Some)
    }

    /// # Errors
    /// The text is not what nft prints.
    pub fn parse(listing: &str) -> Result<Self> {
        let listed: Value = serde_json::from_str(listing).context("read what nft printed")?;
        Ok(Self(listed["nftables"].as_array().context("nft printed no list")?.clone().into()))
    }

    /// The elements of a set as nft writes them: `10.0.0.1`, `10.0.0.0/8`, `7305526`.
    pub fn set(&self, name: &str) -> BTreeSet<String> {
        let sets = self.0.as_array().into_iter().flatten().map(|entry| &entry["set"]);
        let elements =
            sets.filter(|set| set["name"] == name).filter_map(|set| set["elem"].as_array());
        elements.flatten().map(element).collect()
    }
}

fn element(value: &Value) -> String {
    let prefix = &value["prefix"];
    match (prefix["addr"].as_str(), value.as_str()) {
        (Some(address), _) => format!("{address}/{}", prefix["len"]),
        (None, Some(text)) => text.to_owned(),
        (None, None) => value.to_string(),
    }
}

/// Makes the table hold what `body` says; `None`: no table. One transaction: between the old one and
/// the new one there is no moment without.
pub fn script(table: &str, body: Option<&str>) -> String {
    // Adding first makes the deletion succeed whether or not the table was there.
    let clear = format!("add table ip {table}\ndelete table ip {table}\n");
    match body {
        Some(body) => format!("{clear}table ip {table} {{\n{body}}}\n"),
        None => clear,
    }
}

/// The words of a set of that type.
pub fn set<T: ToString>(name: &str, kind: &str, elements: impl IntoIterator<Item = T>) -> String {
    let listed: Vec<String> = elements.into_iter().map(|element| element.to_string()).collect();
    let elements = match listed.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }}", listed.join(", ")),
    };
    format!("  set {name} {{ type {kind}; {elements} }}\n")
}

/// # Errors
/// nft does not run, or refuses; then nothing was changed.
pub async fn apply(script: &str) -> Result<()> {
    nft(&["-f", "-"], script).await.map(drop)
}

/// Whether the error is that nft is not installed.
pub fn is_missing(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::NotFound)
}

async fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("start nft: install nftables")?;
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
    fn sets_are_read_from_a_listing_by_name() {
        let listing = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "ip", "name": "egress", "handle": 1}},
            {"set": {"family": "ip", "name": "marks", "table": "egress", "type": "mark",
                     "elem": [7305526, 31417682]}},
            {"set": {"family": "ip", "name": "networks", "table": "egress", "type": "ipv4_addr",
                     "elem": ["10.0.0.1", {"prefix": {"addr": "10.128.0.0", "len": 14}}]}}]}"#;
        let table = Table::parse(listing).unwrap();
        let set = |name| table.set(name).into_iter().collect::<Vec<_>>();
        assert_eq!(set("marks"), ["31417682", "7305526"]);
        assert_eq!(set("networks"), ["10.0.0.1", "10.128.0.0/14"]);
        assert_eq!(set("none"), Vec::<String>::new());
    }

    #[test]
    fn a_table_is_replaced_in_one_transaction() {
        let script = script("egress", Some(&set("marks", "mark", ["0x006f7936"])));
        assert!(script.starts_with("add table ip egress\ndelete table ip egress\ntable ip egress"));
        assert!(script.contains("set marks { type mark; elements = { 0x006f7936 } }"), "{script}");
    }
}
