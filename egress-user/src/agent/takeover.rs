//! Taking a node over from the original under running connections, and handing it back.
//!
//! Over: the programs begin beside the node's own NAT, which keeps all that has no flow in their
//! tables; the node's connections are copied into these; for a moment nothing may begin, so that
//! the last are copied; then all is the programs'. Only then the tenants' rules go, and the node's
//! entries. Back: rules first, then all flows are copied to the node, then the programs go.
//!
//! Each step is written down before it is done and can be done again. Where a rerun goes on is read
//! from the maps, not from the journal: only they know whether the last step was reached.
use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use egress_common::abi::{Config, phase};
use log::info;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

mod copy;

pub(super) use copy::forget_flows;
use copy::{Ours, enter, flows, reply_key, tag};

use super::{
    Agent, Settings,
    lock::{self, Lock},
    status::StatusFile,
    tables,
};
use crate::{
    bpf::{self, Maps, Plain},
    compare,
    config::DataPath,
    conntrack::{Conntrack, Ends, Entry, ends_of},
    import::Words,
    iptables::{self, rules},
    plan::Plan,
    reconcile::{maps, strays},
    source::{files::Input, watch::Watched},
    sweep::{self, sweep},
    takeover::{
        adopt, chain,
        journal::{Journal, Step},
    },
};

/// How long nothing may begin at most; whoever is killed meanwhile leaves it to end by itself.
const HOLD: Duration = Duration::from_secs(5);
/// What is under way in the node when the hold begins has arrived by then.
const GRACE: Duration = Duration::from_millis(50);
/// Holds that are tried before it is given up.
const HOLDS: u32 = 5;
/// A running agent lets go within this time.
const LET_GO: Duration = Duration::from_secs(10);

/// What was done, for the one who asked for it.
#[derive(Debug, Default)]
pub struct Report {
    pub lines: Vec<String>,
    /// Something is left to be done: said in the lines.
    pub incomplete: bool,
}

impl Report {
    fn say(&mut self, line: String) {
        info!("{line}");
        self.lines.push(line);
    }
}

/// Which way, and how far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Order {
    /// Stop after this step.
    pub until: Option<Step>,
    /// Connections that cannot be kept may be cut.
    pub cut: bool,
}

/// Takes the node over, or finishes that.
///
/// # Errors
/// Before anything is changed: what stands in the way. Later: what failed; a rerun goes on there.
pub async fn take_over(
    settings: Settings,
    watched: Watched,
    input: Input,
    words: &Words,
    order: Order,
) -> Result<Report> {
    let Settings { run_dir, bpffs } = settings.clone();
    let noted = Journal::read(&run_dir)?;
    let agent = Agent::start(settings, watched, input).await?;
    let mut over = Passage::begin(agent, &run_dir, order).await?;
    let in_force = over.settings()?;
    let ours = in_force.phase == phase::OWN && in_force.node != [0; 4];
    if noted.is_none() && !ours {
        let refused = match over.refuse_differences(words) {
            Ok(()) => over.refuse_what_cannot_be_kept().await,
            refused => refused,
        };
        if refused.is_err() && in_force.node == [0; 4] {
            // The pins are this call's own.
            bpf::remove_pins(&bpffs)?;
        }
        refused?;
    }
    over.journal = noted.unwrap_or_default();
    if ours {
        // Killed after the programs had all: what is left to do is to tidy up.
        over.agent.phase = (phase::OWN, 0);
        over.attach().await?;
    } else {
        let read = rules::parse(&iptables::save(&["nat"]).await?);
        over.note_rules(&read);
        if over.reached(Step::Noted)? {
            return Ok(over.report);
        }
        if in_force.phase == phase::SHADOW {
            forget_flows(&mut over.agent.maps)?;
        }
        over.reached_before(Step::Beside)?;
        over.agent.phase = (phase::BESIDE, 0);
        over.attach().await?;
        let adopted = over.adopt().await?;
        over.report.say(format!(
            "the programs run beside the node's NAT with {adopted} of its connections"
        ));
        if over.stops_at(Step::Beside) {
            return Ok(over.report);
        }
        over.reached_before(Step::Held)?;
        if !over.hold_and_adopt().await? {
            return Ok(over.report);
        }
        over.reached_before(Step::Own)?;
        over.agent.phase = (phase::OWN, 0);
        over.agent.fill_maps(&over.plan)?;
        over.report.say("the programs have all of the tenants' traffic".to_owned());
    }
    if over.stops_at(Step::Own) {
        return Ok(over.report);
    }
    over.remove_rules().await?;
    if over.stops_at(Step::Unruled) {
        return Ok(over.report);
    }
    over.remove_entries().await?;
    over.reached_before(Step::Done)?;
    sweep(&mut over.agent.maps)?;
    Ok(over.report)
}

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

/// A way over or back that is being gone.
struct Passage {
    agent: Agent,
    plan: Plan,
    run_dir: std::path::PathBuf,
    journal: Journal,
    conntrack: Conntrack,
    order: Order,
    report: Report,
}

impl Passage {
    async fn begin(mut agent: Agent, run_dir: &Path, order: Order) -> Result<Self> {
        ensure!(
            agent.config.data_path != DataPath::Stack,
            "dataPath is stack, where the node's own connection tracking goes on: set it to auto or tc"
        );
        let mut conditions = Vec::new();
        agent.observe_ovs(&mut conditions).await;
        if let Some(condition) = conditions.first() {
            bail!("{}: {}", condition.object, condition.message);
        }
        let plan = agent.plan_without(&BTreeSet::new());
        Ok(Self {
            agent,
            plan,
            run_dir: run_dir.to_owned(),
            journal: Journal::default(),
            conntrack: Conntrack::open()?,
            order,
            report: Report::default(),
        })
    }

    fn settings(&self) -> Result<Config> {
        maps::settings(&self.agent.maps)
    }

    fn stops_at(&self, step: Step) -> bool {
        self.order.until == Some(step)
    }

    /// Writes down what is about to be done.
    fn reached_before(&mut self, step: Step) -> Result<()> {
        self.journal.step = step;
        self.journal.write(&self.run_dir)
    }

    fn reached(&mut self, step: Step) -> Result<bool> {
        self.reached_before(step)?;
        Ok(self.stops_at(step))
    }

    /// A tenant that would get another address than it has would lose its connections.
    fn refuse_differences(&self, words: &Words) -> Result<()> {
        let differences = compare::rules_and_addresses(words, &self.plan);
        let Some(first) = differences.first() else { return Ok(()) };
        bail!(
            "the node and the plan differ in {} rules or addresses, the first: {first}; make the \
             objects say what the node does (`egress diff` shows all, `egress import` writes them)",
            differences.len()
        )
    }

    /// Connections through a service with endpoints outside are translated at both ends.
    async fn refuse_what_cannot_be_kept(&mut self) -> Result<()> {
        let ours = Ours::of(&self.agent)?;
        let entries = self.conntrack.entries().await?;
        let lost: Vec<&Entry> = entries
            .iter()
            .filter(|entry| ours.tenant(entry).is_some() && !adopt::is_plain(entry))
            .collect();
        let homeless = entries
            .iter()
            .filter(|entry| ours.tenant(entry).is_some())
            .find(|entry| ours.home(*entry.original.source.ip()).is_none());
        if let Some(entry) = homeless {
            bail!(
                "pod {} is in the subnet of no HostSubnet: add its node's, or its tunnel is refused",
                entry.original.source.ip()
            );
        }
        if let Some(first) = lost.first() {
            ensure!(
                self.order.cut,
                "{} connections are translated at their destination too and would be cut, the first: \
                 {}; wait for them to end, or give --cut",
                lost.len(),
                first.original
            );
        }
        Ok(())
    }

    fn note_rules(&mut self, read: &[rules::Rule]) {
        for rule in chain::tenants(read) {
            if !self.journal.rules.iter().any(|noted| noted.spec == rule.spec) {
                self.journal.rules.push(rule);
            }
        }
    }

    /// Fills the maps and attaches the programs, in the agent's phase.
    async fn attach(&mut self) -> Result<()> {
        self.agent.fill_maps(&self.plan)?;
        let mut conditions = Vec::new();
        self.agent.attach(&mut conditions).await;
        match conditions.first() {
            Some(condition) if !self.agent.attached => {
                bail!("{}: {}", condition.object, condition.message)
            }
            _ => Ok(()),
        }
    }

    /// Copies the node's connections into the tables; how many are there now.
    async fn adopt(&mut self) -> Result<usize> {
        let ours = Ours::of(&self.agent)?;
        let now = sweep::now()?;
        let entries = self.conntrack.entries().await?;
        let mut adopted = Vec::new();
        for entry in entries.iter().filter(|entry| adopt::is_plain(entry)) {
            let home = ours.home(*entry.original.source.ip());
            if let (Some(tenant), Some(home)) = (ours.tenant(entry), home) {
                adopted.push((entry.original, adopt::flow(entry, tenant, home, tag()?, now)));
            }
        }
        for (ends, flow) in &adopted {
            enter(&mut self.agent.maps, flow)
                .with_context(|| format!("enter {ends} into the flow tables"))?;
        }
        Ok(adopted.len())
    }

    /// Holds until all that the node has is copied. `false`: it was to stop there.
    async fn hold_and_adopt(&mut self) -> Result<bool> {
        for _ in 0..HOLDS {
            let end = self.hold().await?;
            if self.stops_at(Step::Held) {
                return Ok(false);
            }
            let adopted = self.adopt().await?;
            // A hold that ended under our hands has let something begin.
            if Instant::now() < end {
                self.report.say(format!("all {adopted} connections of the node are copied"));
                return Ok(true);
            }
        }
        bail!(
            "the node's connections take longer than {HOLD:?} to copy: run this at a quieter time"
        )
    }

    /// From here on nothing begins, until the moment returned at least.
    async fn hold(&mut self) -> Result<Instant> {
        let end = Instant::now() + HOLD;
        let ticks = tables::ticks(HOLD);
        // A tick later: rounding must not end it early.
        self.agent.phase = (phase::HOLD, sweep::now()?.wrapping_add(ticks + 1));
        self.agent.fill_maps(&self.plan)?;
        tokio::time::sleep(GRACE).await;
        Ok(end)
    }

    async fn remove_rules(&mut self) -> Result<()> {
        let read = rules::parse(&iptables::save(&["nat"]).await?);
        self.note_rules(&read);
        self.reached_before(Step::Unruled)?;
        let gone = chain::removals(&chain::tenants(&read));
        iptables::apply("nat", &gone).await.context("remove the tenants' rules")?;
        self.report.say(format!("removed {} rules of tenants from the nat table", gone.len()));
        Ok(())
    }

    /// The node's copies of what is ours now.
    async fn remove_entries(&mut self) -> Result<()> {
        let ours = Ours::of(&self.agent)?;
        let mut removed = 0;
        for entry in self.conntrack.entries().await? {
            if ours.tenant(&entry).is_some() && adopt::is_plain(&entry) {
                removed += usize::from(self.conntrack.remove(&entry.original).await?);
            }
        }
        self.report
            .say(format!("removed {removed} connections of tenants from the node's tracking"));
        Ok(())
    }

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
