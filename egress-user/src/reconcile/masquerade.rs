//! Keeps the node's own source NAT away from marked packets, in stack mode.
//!
//! There the uplink's egress translates behind the stack, where the node's masquerading (such as
//! OPENSHIFT-MASQUERADE-2) has given the packet the node's address already: the guard would stop
//! it. A chain of ours, just before the usual priority of source NAT, translates marked packets to
//! the address they have; the first binding of a connection is the one that counts.
use std::collections::BTreeSet;

use anyhow::{Context, Result};

use crate::nft::{self, Table};

const TABLE: &str = "egress";
const CHAIN: &str = "  chain postrouting {
    type nat hook postrouting priority srcnat - 1; policy accept;
    meta mark @marks snat to ip saddr
  }
";

/// Makes the table hold exactly these marks; `None`: no table. Whether anything had to change.
pub async fn reconcile(desired: Option<&BTreeSet<u32>>) -> Result<bool> {
    let observed = match Table::observe(TABLE).await {
        // Without nft there is no table of ours to remove.
        Err(error) if desired.is_none() && nft::is_missing(&error) => return Ok(false),
        observed => observed.context("dataPath: stack")?.map(|table| table.set("marks")),
    };
    let wanted = desired.map(|marks| marks.iter().map(u32::to_string).collect());
    if observed == wanted {
        return Ok(false);
    }
    let body = desired.map(|marks| nft::set("marks", "mark", marks) + CHAIN);
    nft::apply(&nft::script(TABLE, body.as_deref())).await.context("dataPath: stack")?;
    Ok(true)
}
