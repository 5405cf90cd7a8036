//! A live node's own words, for the verbs that compare or import it.
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{
    import::Words,
    iptables,
    ovs::{Ovs, Presence},
};

/// What asking this node came to.
#[derive(Debug)]
pub enum Live {
    Told(Words),
    /// It cannot be asked; the cure is in the sentence.
    Silent(anyhow::Error),
}

impl Live {
    /// Asks this node. Without Open vSwitch it has no flows.
    ///
    /// # Errors
    /// The runtime does not start.
    pub fn ask(bridge: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        Ok(match runtime.block_on(words(bridge)) {
            Ok(words) => Self::Told(words),
            Err(error) => Self::Silent(error),
        })
    }
}

/// What this node says now.
///
/// # Errors
/// A tool that is missing, or fails.
pub async fn words(bridge: &str) -> Result<Words> {
    let ovs = Ovs::from_env(bridge, "tun0");
    let (flows, groups) = match ovs.presence().await? {
        Presence::Present(_) => ovs.dumps().await?,
        Presence::Absent(_) => (String::new(), String::new()),
    };
    let iptables = iptables::save(&["nat", "filter"]).await?;
    let output = Command::new("ip").args(["-4", "addr"]).output().context("start ip")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip addr failed: {}", complaint.trim());
    let addresses = String::from_utf8(output.stdout).context("ip printed no text")?;
    Ok(Words { iptables, flows, groups, addresses, ..Words::default() })
}
