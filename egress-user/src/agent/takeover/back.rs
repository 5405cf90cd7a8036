//! The way back: the rules first, then the flows, then the programs go.
use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use egress_common::abi::phase;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    HOLD, HOLDS, Order, Passage, Report,
    copy::{flows, reply_key},
};
use crate::{
    agent::{
        Agent, Settings,
        lock::{self, Lock},
        status::StatusFile,
        tables,
    },
    bpf::{self, Maps, Plain},
    conntrack::{Ends, Entry, ends_of},
    iptables::{self, rules},
    reconcile::{maps, strays},
    source::{files::Input, watch::Watched},
    sweep,
    takeover::{
        adopt, chain,
        journal::{Journal, Step},
    },
};

/// A running agent lets go within this time.
const LET_GO: Duration = Duration::from_secs(10);

/// Hands the node back, or undoes a takeover that was not finished.
///
/// # Errors
/// As [`take_over`].
pub async fn hand_back(
    settings: Settings,
    watched: Watched,
    input: Input,
    order: Order,
) -> Result<Report> {
    let Settings { run_dir, bpffs } = settings.clone();
    let noted = Journal::read(&run_dir)?;
    ensure!(
        noted.is_some() || bpf::pins(&bpffs).exists(),
        "there is nothing to hand back: no programs of this egress are pinned below {}",
        bpffs.display()
    );
    let pins = bpf::pins(&bpffs);
    let held = Maps::open(&pins).and_then(|maps| maps::settings(&maps));
    ensure!(
        !held.is_ok_and(|held| held.is_shadow()),
        "there is nothing to hand back: the programs only look on here (stop that `egress run --shadow`)"
    );
    let mut report = Report::default();
    if let Some(pid) = lock::holder(&run_dir) {
        let_go(&run_dir, pid).await?;
        report.say(format!("the agent (pid {pid}) has let go; the programs went on meanwhile"));
    }
    let agent = Agent::start(settings, watched, input).await?;
    let mut back = Passage::begin(agent, &run_dir, order).await?;
    back.report = report;
    back.journal = noted.unwrap_or_default();
    let in_force = back.settings()?;
    back.agent.phase = (in_force.phase, 0);
    back.put_rules_back().await?;
    if back.stops_at(Step::Ruled) {
        return Ok(back.report);
    }
    let Some(kept) = back.hold_and_give().await? else { return Ok(back.report) };
    back.reached_before(Step::Given)?;
    if back.stops_at(Step::Given) {
        return Ok(back.report);
    }
    if kept > 0 {
        back.report.incomplete = true;
        back.report.say(format!(
            "{kept} connections could not be given to the node: the programs keep them, new ones are \
             the node's; run `egress handback` again when they have ended, or with --cut"
        ));
        if !back.order.cut {
            return Ok(back.report);
        }
    }
    back.end(&bpffs).await
}

/// Lets a running agent go, without its taking anything along.
async fn let_go(run_dir: &Path, pid: u32) -> Result<()> {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGUSR1)
        .with_context(|| format!("tell the agent (pid {pid}) to let go"))?;
    let end = Instant::now() + LET_GO;
    while lock::holder(run_dir) == Some(pid) {
        ensure!(
            Instant::now() < end,
            "the agent (pid {pid}) has not let go after {LET_GO:?}: kill it with SIGKILL and run this again"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

impl Passage {
    async fn put_rules_back(&mut self) -> Result<()> {
        self.reached_before(Step::Ruled)?;
        let read = rules::parse(&iptables::save(&["nat"]).await?);
        let Agent { config, objects, uplinks, .. } = &self.agent;
        let (networks, _) = tables::networks(config, objects, uplinks)?;
        let lines = chain::restorations(&read, &self.journal.rules, &self.plan, &networks);
        iptables::apply("nat", &lines).await.context("put the tenants' rules back")?;
        self.report.say(format!("put {} rules of tenants back into the nat table", lines.len()));
        Ok(())
    }

    /// Holds until the node has all flows, then lets it begin new ones. How many it would not take;
    /// `None`: it was to stop in between.
    async fn hold_and_give(&mut self) -> Result<Option<usize>> {
        self.reached_before(Step::Giving)?;
        for _ in 0..HOLDS {
            let end = self.hold().await?;
            if self.stops_at(Step::Giving) {
                return Ok(None);
            }
            let (given, kept) = self.give().await?;
            if Instant::now() < end {
                self.agent.phase = (phase::BESIDE, 0);
                self.agent.fill_maps(&self.plan)?;
                self.report.say(format!("the node has {given} connections of tenants"));
                return Ok(Some(kept));
            }
        }
        bail!("the flows take longer than {HOLD:?} to copy: run this at a quieter time")
    }

    async fn give(&mut self) -> Result<(usize, usize)> {
        let config = self.settings()?;
        let now = sweep::now()?;
        let there: HashMap<Ends, Entry> = self
            .conntrack
            .entries()
            .await?
            .into_iter()
            .map(|entry| (entry.original, entry))
            .collect();
        let (mut given, mut kept) = (0, 0);
        // A port that is held for every remote is no connection.
        let flows = flows(&self.agent.maps).into_iter();
        for (key, original) in flows.filter(|(key, _)| !key.is_for_any_remote()) {
            let reply = self.agent.maps.flows_reply.get(&Plain(reply_key(&key, &original)), 0);
            let Ok(reply) = reply else { continue };
            let Some(entry) = adopt::entry(&key, &original, &reply.0, &config, now) else {
                continue;
            };
            let is_there =
                there.get(&entry.original).is_some_and(|held| held.seen_as == entry.seen_as);
            match is_there || self.give_one(&entry).await? {
                true => given += 1,
                false => kept += 1,
            }
        }
        Ok((given, kept))
    }

    /// What the node has instead is nobody's: it was made of a packet that slipped by.
    async fn give_one(&self, entry: &Entry) -> Result<bool> {
        if self.conntrack.insert(entry).await? {
            return Ok(true);
        }
        self.conntrack.remove(&entry.original).await?;
        self.conntrack.remove(&entry.original.reversed()).await?;
        let seen = entry.seen_as;
        let back = ends_of(
            entry.original.protocol,
            (*entry.remote.ip(), entry.remote.port()),
            (*seen.ip(), seen.port()),
        );
        self.conntrack.remove(&back).await?;
        self.conntrack.insert(entry).await
    }

    /// The programs go, and nothing of egress is left but the addresses.
    async fn end(mut self, bpffs: &Path) -> Result<Report> {
        strays::reconcile(None).await?;
        let removed = bpf::remove_pins(bpffs)?;
        StatusFile::new(&self.run_dir).remove();
        self.journal.release(&self.run_dir)?;
        Journal::remove(&self.run_dir)?;
        self.report.say(format!(
            "removed the programs and their maps ({} pins); the egress IPs stay on {}",
            removed.len(),
            self.agent.identity.uplink.name
        ));
        let lock: Lock = self.agent.into_lock();
        lock.remove()?;
        Ok(self.report)
    }
}
