//! Packet counters of the switch: nftables rules count each frame of a port, and lose none.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::netns::Netns;

/// What the counters of the switch's table `watch` have counted, by name.
pub fn counted(switch: &Netns) -> Result<BTreeMap<String, u64>> {
    let mut list = Command::new("nft");
    let text = switch.output(list.args(["-j", "list", "counters", "table", "netdev", "watch"]))?;
    let json: Value = serde_json::from_str(&text).context("read nft's counters")?;
    let items = json["nftables"].as_array().context("nft lists nothing")?;
    let counter = |item: &Value| {
        let counter = &item["counter"];
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    Ok(items.iter().filter_map(counter).collect())
}
