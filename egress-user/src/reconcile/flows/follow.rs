//! Keeps a bridge as one plan after the other says, at the cost of what changes between them.
//!
//! What a plan says as the last one did is taken to be on the bridge as it was left there, until
//! that is forgotten. What changes is looked at on the bridge first: an owner of the same match may
//! have come meanwhile. Where more than a few VNIDs change, or others stand in the way, or anything
//! goes wrong, all is looked at.
use std::collections::BTreeSet;

use anyhow::{Context, Result};
use egress_common::mark::MAX_VNID;

use super::{Change, Desired, Observed, Outcome, apply, difference, number, observe};
use crate::ovs::{
    Ovs,
    text::{Flow, Group},
    watch::Counts,
};

/// Lines of each kind that are followed: a look at everything takes as long as about so many.
const FEW: usize = 8;

/// Follows the plans on one bridge.
#[derive(Debug, Default)]
pub struct Follower {
    last: Option<Last>,
}

/// What was wanted last, and left on the bridge.
#[derive(Debug)]
struct Last {
    flows: Vec<String>,
    groups: Vec<String>,
    desired: Desired,
    observed: Observed,
}

impl Follower {
    /// The next plan is compared with what the bridge holds then.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// Whether the bridge is taken to hold what was left there.
    pub fn is_following(&self) -> bool {
        self.last.is_some()
    }

    /// Makes the bridge hold what the plan's lines say, which are sorted.
    ///
    /// # Errors
    /// As [`super::reconcile`], and lines that cannot be read.
    pub async fn reconcile(
        &mut self,
        ovs: &Ovs,
        flows: &[String],
        groups: &[String],
    ) -> Result<Outcome> {
        if let Some(mut last) = self.last.take()
            && let Some(outcome) = last.step(ovs, flows, groups).await
        {
            self.last = Some(last);
            return Ok(outcome);
        }
        let desired = Desired::parse(flows, groups)?;
        let mut observed = observe(ovs).await.context("look at the flows of the bridge")?;
        let outcome = difference(&desired, &observed);
        apply(ovs, &outcome.change).await.context("change our flows on the bridge")?;
        // Others' flows may go at any time, and ours must then come.
        if outcome.conflicts.is_empty() {
            observed.apply(&outcome.change);
            let (flows, groups) = (flows.to_vec(), groups.to_vec());
            self.last = Some(Last { flows, groups, desired, observed });
        }
        Ok(outcome)
    }
}

impl Last {
    /// `None`: a look at everything has to tell.
    async fn step(&mut self, ovs: &Ovs, flows: &[String], groups: &[String]) -> Option<Outcome> {
        let places = self.follow(flows, groups).ok()??;
        for (table, vnid) in &places {
            let found = ovs.flows_of(*table, *vnid).await.ok()?;
            let here = (*table, Some(*vnid));
            self.observed.flows.retain(|held| (held.flow.on.table, held.flow.on.vnid()) != here);
            self.observed.flows.extend(found);
        }
        let vnids = places.into_iter().map(|(_, vnid)| vnid).collect();
        let outcome = difference(&self.desired.only(&vnids), &self.observed.only(&vnids));
        if !outcome.conflicts.is_empty() {
            return None;
        }
        apply(ovs, &outcome.change).await.ok()?;
        self.observed.apply(&outcome.change);
        let ours = self.observed.flows.iter().filter(|held| held.is_ours()).count();
        // A pod that came or went since makes the watch differ, and then all is looked at.
        let held = Counts { ours: number(ours), of_pods: self.observed.of_pods() };
        Some(Outcome { held, ..outcome })
    }

    /// Takes the plan's lines over; returns the tables and VNIDs in which they differ from the last
    /// ones. `None`: there are too many, or a flow is for no VNID.
    fn follow(
        &mut self,
        flows: &[String],
        groups: &[String],
    ) -> Result<Option<BTreeSet<(u8, u32)>>> {
        let (gone, come) = changed(&self.flows, flows);
        let (gone_groups, come_groups) = changed(&self.groups, groups);
        if [&gone, &come, &gone_groups, &come_groups].iter().any(|lines| lines.len() > FEW) {
            return Ok(None);
        }
        let mut vnids = BTreeSet::new();
        for line in gone_groups {
            let id = Group::parse(line)?.id;
            self.desired.groups.remove(&id);
            vnids.insert(vnid_of(id));
        }
        for line in come_groups {
            let group = Group::parse(line)?;
            vnids.insert(vnid_of(group.id));
            self.desired.groups.insert(group.id, group);
        }
        for line in gone {
            let flow = Flow::parse(line)?;
            let Some(vnid) = flow.on.vnid() else { return Ok(None) };
            self.desired.flows.remove(&flow);
            vnids.insert(vnid);
        }
        for line in come {
            let flow = Flow::parse(line)?;
            let Some(vnid) = flow.on.vnid() else { return Ok(None) };
            self.desired.flows.insert(flow);
            vnids.insert(vnid);
        }
        (self.flows, self.groups) = (flows.to_vec(), groups.to_vec());
        Ok(Some(self.places(&vnids)))
    }

    /// Where flows of ours for these VNIDs are or shall be.
    fn places(&self, vnids: &BTreeSet<u32>) -> BTreeSet<(u8, u32)> {
        let ours = self.observed.flows.iter().filter(|held| held.is_ours()).map(|held| &held.flow);
        self.desired
            .flows
            .iter()
            .chain(ours)
            .filter_map(|flow| Some((flow.on.table, flow.on.vnid()?)))
            .filter(|(_, vnid)| vnids.contains(vnid))
            .collect()
    }
}

/// Whose group it is: a VNID has one of its number, and one above all VNIDs.
fn vnid_of(group: u32) -> u32 {
    group & MAX_VNID
}

/// The lines of `old` that are not in `new`, and the other way round; both are sorted.
fn changed<'a>(old: &'a [String], new: &'a [String]) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    let (mut olds, mut news) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (olds.peek(), news.peek()) {
            (Some(old), Some(new)) if old == new => {
                olds.next();
                news.next();
            }
            (Some(old), new) if new.is_none_or(|new| old < new) => {
                gone.push(old.as_str());
                olds.next();
            }
            (_, Some(new)) => {
                come.push(new.as_str());
                news.next();
            }
            (_, None) => return (gone, come),
        }
    }
}

impl Desired {
    /// What is wanted for these VNIDs.
    fn only(&self, vnids: &BTreeSet<u32>) -> Self {
        let concerns = |flow: &&Flow| flow.on.vnid().is_some_and(|vnid| vnids.contains(&vnid));
        let groups = self.groups.iter().filter(|(id, _)| vnids.contains(&vnid_of(**id)));
        Self {
            flows: self.flows.iter().filter(concerns).cloned().collect(),
            groups: groups.map(|(id, group)| (*id, group.clone())).collect(),
        }
    }
}

impl Observed {
    /// Ours for these VNIDs, and what of the others could be in their way: flows for the same VNIDs
    /// or for no certain one, and whatever uses a group.
    fn only(&self, vnids: &BTreeSet<u32>) -> Self {
        let concerns = |flow: &Flow| flow.on.vnid().is_none_or(|vnid| vnids.contains(&vnid));
        Self {
            flows: self
                .flows
                .iter()
                .filter(|held| {
                    concerns(&held.flow) || !held.is_ours() && held.flow.groups().next().is_some()
                })
                .cloned()
                .collect(),
            groups: self
                .groups
                .iter()
                .filter(|(id, group)| {
                    vnids.contains(&vnid_of(**id)) || group.groups().next().is_some()
                })
                .map(|(id, group)| (*id, group.clone()))
                .collect(),
        }
    }

    /// What the bridge holds after the change.
    fn apply(&mut self, change: &Change) {
        let Change { add_groups, modify_groups, add_flows, remove_flows, remove_groups } = change;
        for group in add_groups.iter().chain(modify_groups) {
            self.groups.insert(group.id, group.clone());
        }
        let replaced: BTreeSet<_> =
            add_flows.iter().chain(remove_flows).map(|flow| &flow.on).collect();
        self.flows.retain(|held| !(held.is_ours() && replaced.contains(&held.flow.on)));
        self.flows.extend(add_flows.iter().cloned().map(super::ours));
        for id in remove_groups {
            self.groups.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn lines_that_went_and_came_are_told_apart_from_those_that_stay() {
        let old = lines(&["a", "b", "d"]);
        for (new, gone, come) in [
            (lines(&["a", "b", "d"]), vec![], vec![]),
            (lines(&["b", "c", "d", "e"]), vec!["a"], vec!["c", "e"]),
            (lines(&[]), vec!["a", "b", "d"], vec![]),
        ] {
            assert_eq!(changed(&old, &new), (gone, come), "{new:?}");
        }
        assert_eq!(changed(&[], &old).1.len(), 3);
    }

    #[test]
    fn a_step_changes_what_a_look_at_everything_would() {
        let flow = |v: u32| format!("table=101,priority=100,ip,reg0={v:#x} actions=group:{v}");
        let drop = |v: u32| format!("table=101,priority=100,reg0={v:#x} actions=drop");
        let group =
            |v: u32, port: u32| format!("group_id={v},type=select,bucket=actions=output:{port}");
        let plans = [
            (vec![flow(1), flow(2)], vec![group(1, 1), group(2, 1)]),
            (vec![flow(1), flow(2)], vec![group(1, 1), group(2, 9)]),
            (vec![flow(1), drop(2)], vec![group(1, 1)]),
            (vec![drop(1)], vec![]),
            (
                vec![flow(1), flow(2).replace("group:2", "group:16777218")],
                vec![group(1, 1), group(2, 1), group(2 | 1 << 24, 5)],
            ),
            (vec![], vec![]),
        ];
        for (from_flows, from_groups) in &plans {
            for (flows, groups) in &plans {
                let desired = Desired::parse(from_flows, from_groups).unwrap();
                let mut observed = Observed::new(Vec::new(), Vec::new());
                observed.apply(&difference(&desired, &observed).change);
                let whole = difference(&Desired::parse(flows, groups).unwrap(), &observed);
                let (before, groups_before) = (from_flows.clone(), from_groups.clone());
                let mut last = Last { flows: before, groups: groups_before, desired, observed };
                let places = last.follow(flows, groups).unwrap().unwrap();
                let vnids = places.into_iter().map(|(_, vnid)| vnid).collect();
                let part = difference(&last.desired.only(&vnids), &last.observed.only(&vnids));
                assert_eq!(part.change, whole.change, "{from_flows:?} {flows:?}");
                last.observed.apply(&part.change);
                assert!(difference(&last.desired, &last.observed).change.is_empty());
            }
        }
    }
}
