//! Keeps our flows and groups on the bridge, and nobody else's.
//!
//! Observe (two dumps), diff (pure), apply (one atomic bundle). Must not decide which flows there
//! should be.
//!
//! Ownership: a flow is ours if it carries [`COOKIE`]. Groups have no cookie: a group is ours if
//! only our flows refer to it. A group that nobody refers to carries no traffic; it is taken over
//! if its number is wanted (that is how our own are found again after `del-flows`, which leaves
//! groups behind), and else left alone.
//!
//! Surprising: OpenFlow's `add` replaces a flow of the same table, priority and match whatever its
//! cookie. So a wanted flow that meets such a foreign one is not sent, but returned as a
//! [`Conflict`]; every other conflict is resolved to the closed side.
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::time::sleep;

use crate::diff;
use crate::ovs::Ovs;
use crate::ovs::POD_TABLE;
use crate::ovs::text::{Flow, Group, Held};
use crate::ovs::watch::Counts;

pub mod follow;

/// How long a first packet may be underway to a group: a select group hashes it in the datapath, from
/// where it comes back to the switch, which asks for the group by number and drops what finds none.
const UNDERWAY: Duration = Duration::from_millis(50);

/// Marks our flows: "egress01" in ASCII. Never change it, or old flows become foreign.
pub const COOKIE: u64 = u64::from_be_bytes(*b"egress01");

/// What the bridge should hold of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    flows: BTreeSet<Flow>,
    groups: BTreeMap<u32, Group>,
}

/// What the bridge holds, ours and foreign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    flows: Vec<Held>,
    groups: BTreeMap<u32, Group>,
}

/// A wanted flow that a foreign owner's flow or group stands in the way of, which is not touched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The VNID of the wanted flow, if it names one.
    pub vnid: Option<u32>,
    pub kind: ConflictKind,
    /// Our flow, as the planner writes it.
    pub wanted: String,
    /// The foreign flow, or the foreign user of the group that ours needs.
    pub foreign: String,
}

/// How a wanted flow is in conflict, and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConflictKind {
    /// A foreign flow is the same in all, without groups: nothing is wrong until its owner removes
    /// it, which only the next full resync sees.
    AlreadyThere,
    /// A foreign flow has its table, priority and match, but does something else: ours is not there.
    SameMatch,
    /// A foreign flow of its priority may catch the same packets: ours is there, and the switch
    /// may choose either. Leaving it out would open the way for all other packets of the VNID.
    Overlap,
    /// Others use the group that it needs: ours is there as a drop.
    Group,
}

/// What turns the observed state into the desired one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    pub add_groups: Vec<Group>,
    /// Groups that exist with other buckets or of another type.
    pub modify_groups: Vec<Group>,
    /// New flows, and flows whose actions change.
    pub add_flows: Vec<Flow>,
    pub remove_flows: Vec<Flow>,
    pub remove_groups: Vec<u32>,
}

/// What one reconciliation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    pub change: Change,
    pub conflicts: Vec<Conflict>,
    /// What the bridge holds after the change: what [`crate::ovs::watch::Watch`] expects.
    pub held: Counts,
}

impl Desired {
    /// Reads the plan's lines.
    ///
    /// # Errors
    /// A line that is no flow or group, two flows with one match, or a group that is missing.
    pub fn parse(flows: &[String], groups: &[String]) -> Result<Self> {
        let flows: BTreeSet<_> =
            flows.iter().map(|line| Flow::parse(line)).collect::<Result<_>>()?;
        let groups: BTreeMap<_, _> = groups
            .iter()
            .map(|line| Group::parse(line).map(|group| (group.id, group)))
            .collect::<Result<_>>()?;
        let mut matches = BTreeSet::new();
        for flow in &flows {
            ensure!(matches.insert(&flow.on), "two planned flows have the match {}", flow.on);
            for id in flow.groups() {
                ensure!(groups.contains_key(&id), "the planned flow {flow} has no group {id}");
            }
        }
        Ok(Self { flows, groups })
    }
}

impl Observed {
    /// From the two dumps.
    pub fn new(flows: Vec<Held>, groups: Vec<Group>) -> Self {
        Self { flows, groups: groups.into_iter().map(|group| (group.id, group)).collect() }
    }

    fn ours(&self) -> BTreeSet<&Flow> {
        self.flows.iter().filter(|held| held.is_ours()).map(|held| &held.flow).collect()
    }

    fn of_pods(&self) -> u32 {
        number(self.flows.iter().filter(|held| held.flow.on.table == POD_TABLE).count())
    }

    fn foreign(&self) -> impl Iterator<Item = &Flow> {
        self.flows.iter().filter(|held| !held.is_ours()).map(|held| &held.flow)
    }

    /// The others' flows by table and priority: only those of the same place can be in conflict.
    fn foreign_by_place(&self) -> BTreeMap<(u8, u16), Vec<&Flow>> {
        let mut places: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for flow in self.foreign() {
            places.entry((flow.on.table, flow.on.priority)).or_default().push(flow);
        }
        places
    }

    /// Who of the others sends packets to each group.
    fn foreign_users(&self) -> BTreeMap<u32, String> {
        let flows = self.foreign().flat_map(|flow| flow.groups().map(|id| (id, flow.to_string())));
        let chained =
            self.groups.values().flat_map(|group| group.groups().map(|id| (id, group.to_string())));
        flows.chain(chained).collect()
    }
}

impl Held {
    fn is_ours(&self) -> bool {
        self.cookie == COOKIE
    }
}

/// As the watch counts.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// As the bridge holds it after a bundle.
fn ours(flow: Flow) -> Held {
    Held { cookie: COOKIE, flow }
}

impl Change {
    pub fn is_empty(&self) -> bool {
        let Self { add_groups, modify_groups, add_flows, remove_flows, remove_groups } = self;
        add_groups.is_empty()
            && modify_groups.is_empty()
            && add_flows.is_empty()
            && remove_flows.is_empty()
            && remove_groups.is_empty()
    }

    /// The lines of one bundle; of a second one those of [`Self::farewell`].
    ///
    /// The order is safe even without atomicity: a group exists before the flow that uses it, what
    /// replaces a flow comes before the flow goes, and a group is modified, never deleted and added
    /// again, because deleting a group deletes all flows that use it.
    pub fn bundle(&self) -> String {
        let Self { add_groups, modify_groups, add_flows, remove_flows, remove_groups: _ } = self;
        let mut lines = String::new();
        let mut line = |words: std::fmt::Arguments| {
            writeln!(lines, "{words}").expect("a string takes everything");
        };
        add_groups.iter().for_each(|group| line(format_args!("group add {group}")));
        modify_groups.iter().for_each(|group| line(format_args!("group modify {group}")));
        add_flows.iter().for_each(|flow| line(format_args!("flow add cookie={COOKIE:#x},{flow}")));
        remove_flows.iter().for_each(|flow| {
            line(format_args!("flow delete_strict cookie={COOKIE:#x}/-1,{}", flow.on));
        });
        lines
    }

    /// The lines that remove what no flow of ours uses any more.
    pub fn farewell(&self) -> String {
        let lines = self.remove_groups.iter().map(|id| format!("group delete group_id={id}\n"));
        lines.collect()
    }
}

/// Looks at the bridge.
///
/// # Errors
/// The bridge does not answer.
pub async fn observe(ovs: &Ovs) -> Result<Observed> {
    let (flows, groups) = tokio::try_join!(ovs.flows(), ovs.groups())?;
    Ok(Observed::new(flows, groups))
}

/// What is to do, and what cannot be done.
pub fn difference(desired: &Desired, observed: &Observed) -> Outcome {
    let users = observed.foreign_users();
    let places = observed.foreign_by_place();
    let conflicts: Vec<_> = desired
        .flows
        .iter()
        .filter_map(|flow| {
            let beside = places.get(&(flow.on.table, flow.on.priority));
            conflict_of(flow, beside.map_or(&[], Vec::as_slice), &users)
                .map(|conflict| (flow, conflict))
        })
        .collect();
    let displaced: BTreeSet<&Flow> = conflicts
        .iter()
        .filter(|(_, conflict)| conflict.kind != ConflictKind::Overlap)
        .map(|(flow, _)| *flow)
        .collect();
    let closed: Vec<Flow> = conflicts
        .iter()
        .filter(|(_, conflict)| conflict.kind == ConflictKind::Group)
        .map(|(flow, _)| Flow { on: flow.on.clone(), actions: Vec::new() })
        .collect();
    let possible: BTreeSet<&Flow> =
        desired.flows.iter().filter(|flow| !displaced.contains(flow)).chain(&closed).collect();
    let ours = observed.ours();
    let flows = diff::diff(&possible, &ours);
    let mut change = group_changes(desired, observed, &possible, &ours, &users);
    let kept: BTreeSet<_> = possible.iter().map(|flow| &flow.on).collect();
    change.remove_flows =
        flows.remove.into_iter().filter(|flow| !kept.contains(&flow.on)).cloned().collect();
    change.add_flows = flows.add.into_iter().cloned().collect();
    let held = Counts { ours: number(possible.len()), of_pods: observed.of_pods() };
    Outcome {
        change,
        conflicts: conflicts.into_iter().map(|(_, conflict)| conflict).collect(),
        held,
    }
}

/// Sends the change as one bundle, and the removal of groups as another a moment later; nothing is
/// sent where nothing is to do.
///
/// # Errors
/// The bridge does not answer or refuses; then nothing was changed, or groups that carry no traffic
/// are left.
pub async fn apply(ovs: &Ovs, change: &Change) -> Result<()> {
    let (bundle, farewell) = (change.bundle(), change.farewell());
    if !bundle.is_empty() {
        ovs.commit(&bundle).await?;
    }
    if !farewell.is_empty() {
        if !bundle.is_empty() {
            sleep(UNDERWAY).await;
        }
        ovs.commit(&farewell).await?;
    }
    Ok(())
}

/// Observes, compares, applies.
///
/// # Errors
/// As [`observe`] and [`apply`]; a conflict is none.
pub async fn reconcile(ovs: &Ovs, desired: &Desired) -> Result<Outcome> {
    let observed = observe(ovs).await.context("look at the flows of the bridge")?;
    let outcome = difference(desired, &observed);
    apply(ovs, &outcome.change).await.context("change our flows on the bridge")?;
    Ok(outcome)
}

/// Removes all that is ours.
///
/// # Errors
/// As [`reconcile`].
pub async fn cleanup(ovs: &Ovs) -> Result<Change> {
    reconcile(ovs, &Desired::default()).await.map(|outcome| outcome.change)
}

/// The worst conflict of one flow: the one that changes most of what becomes of it.
fn conflict_of(flow: &Flow, foreign: &[&Flow], users: &BTreeMap<u32, String>) -> Option<Conflict> {
    let conflict = |kind, foreign: String| Conflict {
        vnid: flow.on.vnid(),
        kind,
        wanted: flow.to_string(),
        foreign,
    };
    if let Some(same) = foreign.iter().copied().find(|foreign| foreign.on == flow.on) {
        // The same group number may stand for other buckets.
        let already = same == flow && flow.groups().next().is_none();
        let kind = if already { ConflictKind::AlreadyThere } else { ConflictKind::SameMatch };
        return Some(conflict(kind, same.to_string()));
    }
    if let Some(user) = flow.groups().find_map(|id| users.get(&id)) {
        return Some(conflict(ConflictKind::Group, user.clone()));
    }
    let overlap = foreign.iter().find(|foreign| foreign.on.overlaps(&flow.on))?;
    Some(conflict(ConflictKind::Overlap, overlap.to_string()))
}

/// Groups of the flows that are possible, and those that only our flows used and none needs.
fn group_changes(
    desired: &Desired,
    observed: &Observed,
    possible: &BTreeSet<&Flow>,
    ours: &BTreeSet<&Flow>,
    users: &BTreeMap<u32, String>,
) -> Change {
    let needed: BTreeSet<u32> = possible.iter().flat_map(|flow| flow.groups()).collect();
    let used: BTreeSet<u32> = ours.iter().flat_map(|flow| flow.groups()).collect();
    let mut change = Change::default();
    for group in needed.iter().filter_map(|id| desired.groups.get(id)) {
        match observed.groups.get(&group.id) {
            None => change.add_groups.push(group.clone()),
            Some(found) if found != group => change.modify_groups.push(group.clone()),
            Some(_) => {}
        }
    }
    change.remove_groups = used
        .difference(&needed)
        .filter(|id| observed.groups.contains_key(id) && !users.contains_key(id))
        .copied()
        .collect();
    change
}

#[cfg(test)]
#[path = "flows_tests.rs"]
mod tests;
