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
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use egress_common::abi::{Config, NO_VNID, OriginalKey, phase};
use log::info;

mod back;
mod copy;

pub use back::hand_back;
pub(super) use copy::forget_flows;
use copy::{Ours, enter, flows, tag, widen};

use super::{Agent, Settings, tables};
use crate::{
    bpf, compare,
    config::DataPath,
    conntrack::{Conntrack, Entry},
    import::Words,
    iptables::{self, rules},
    plan::Plan,
    reconcile::maps,
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

/// A way over or back that is being gone.
struct Passage {
    agent: Agent,
    plan: Rc<Plan>,
    run_dir: PathBuf,
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
        let ours = Ours::of(&self.agent, &self.plan)?;
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
        let pods = if self.agent.config.masquerade { chain::pods(read) } else { Vec::new() };
        for rule in chain::tenants(read).into_iter().chain(pods) {
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
        let entries = self.conntrack.entries().await?;
        self.adopt_these(entries.iter().filter(|entry| adopt::is_plain(entry)))
    }

    /// What the node's rule has masqueraded since the programs have all: first datagrams go up the
    /// stack. A flow that is there is newer than the node's entry.
    async fn adopt_late(&mut self) -> Result<()> {
        let there: HashSet<OriginalKey> =
            flows(&self.agent.maps).into_iter().map(|(key, _)| key).collect();
        let ours = Ours::of(&self.agent, &self.plan)?;
        let mut entries = self.conntrack.entries().await?;
        entries.retain(|entry| {
            ours.is_masqueraded(entry) && !there.contains(&adopt::key(entry, NO_VNID))
        });
        self.adopt_these(entries.iter()).map(drop)
    }

    fn adopt_these<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> Result<usize> {
        let ours = Ours::of(&self.agent, &self.plan)?;
        let now = sweep::now()?;
        let mut adopted = Vec::new();
        for entry in entries {
            let home = ours.home(*entry.original.source.ip());
            if let (Some(tenant), Some(home)) = (ours.owner(entry), home) {
                adopted.push((entry.original, adopt::flow(entry, tenant, home, tag()?, now)));
            }
        }
        let beyond = widen(&mut self.agent.maps, adopted.iter().map(|(_, flow)| flow))?;
        self.journal.reserve(&self.run_dir, &beyond)?;
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
        let mut lines = Vec::new();
        if self.agent.config.masquerade {
            lines.extend(chain::narrowings(&read, &self.agent.identity.uplink.name));
            if !lines.is_empty() {
                self.report.say("left the node's masquerading the other interfaces".to_owned());
            }
        }
        lines.extend(gone.iter().cloned());
        iptables::apply("nat", &lines).await.context("remove the tenants' rules")?;
        self.report.say(format!("removed {} rules of tenants from the nat table", gone.len()));
        Ok(())
    }

    /// The node's copies of what is ours now.
    async fn remove_entries(&mut self) -> Result<()> {
        self.adopt_late().await?;
        let ours = Ours::of(&self.agent, &self.plan)?;
        let mut removed = 0;
        for entry in self.conntrack.entries().await? {
            if ours.owner(&entry).is_some() && adopt::is_plain(&entry) {
                removed += usize::from(self.conntrack.remove(&entry.original).await?);
            }
        }
        self.report.say(format!("removed {removed} connections of pods from the node's tracking"));
        Ok(())
    }
}
