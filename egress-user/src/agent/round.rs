//! One whole round: look, ask the planner, let the reconcilers do it, tell.
use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use log::{error, warn};

use super::{Agent, claim::ByLink, failed, node_ports, retry, sources, status::Status, tables};
use crate::{
    condition::{Condition, Reason},
    config::DataPath,
    plan::Plan,
    reconcile::{masquerade, sources as source_maps},
};

impl Agent {
    /// One whole round. What fails is a condition; the rest goes on.
    pub(super) async fn round(&mut self) {
        self.round_with(Vec::new()).await;
    }

    pub(super) async fn round_with(&mut self, mut conditions: Vec<Condition>) {
        if self.is_shadow() {
            return self.look_on(conditions).await;
        }
        self.watch_nodes();
        self.deal_out(&mut conditions);
        self.observe_ovs(&mut conditions).await;
        self.exempt(&mut conditions).await;
        let unclaimed = self.unclaimed().await.unwrap_or_else(|error| {
            conditions.push(failed("Agent/addresses", &error));
            ByLink::new()
        });
        let not_held = unclaimed.values().flatten().filter(|ip| !self.held.contains_key(*ip));
        let unsure: BTreeSet<Ipv4Addr> = not_held.chain(&self.conflicts).copied().collect();
        let unsure = self.plan_without(&unsure);
        let Self { config, devices, objects, bridged, .. } = &*self;
        let sources = sources::desired(config, devices, &unsure, objects, bridged);
        if let Err(error) = source_maps::reconcile(&mut self.source_maps, &sources) {
            conditions.push(failed("Agent/sources", &error));
        }
        if let Err(error) = self.fill_maps(&unsure) {
            // Without its maps a program would let out what it does not know: attach nothing new.
            conditions.push(failed("Agent/maps", &error));
        } else {
            self.attach(&mut conditions).await;
        }
        self.probe(&unclaimed, &mut conditions).await;
        let plan = self.plan_without(&self.conflicts.clone());
        self.claim_addresses(&plan, &mut conditions).await;
        self.program_flows(&plan, &mut conditions).await;
        self.carries = true;
        match self.fill_maps(&plan) {
            Ok(dropped) => conditions.extend(tables::dropped(&dropped, &self.config)),
            Err(error) => conditions.push(failed("Agent/maps", &error)),
        }
        conditions.extend(self.uplinks.conditions());
        conditions.extend(node_ports::conditions(&self.config, &self.objects, &self.identity));
        conditions.extend(plan.conditions.iter().chain(&self.unread).chain(&self.waiting).cloned());
        conditions.extend(self.health_conditions());
        conditions.extend(self.witness_conditions());
        conditions.sort();
        conditions.dedup();
        let again = |condition: &Condition| condition.reason == Reason::Failed;
        let failed = !self.conflicts.is_empty() || conditions.iter().any(again);
        self.retry.note(failed, Instant::now(), retry::chance());
        self.tell(&plan, conditions);
    }

    /// A round in the shadow: the programs know what they would do, and nothing else is touched.
    async fn look_on(&mut self, mut conditions: Vec<Condition>) {
        self.observe_ovs(&mut conditions).await;
        let plan = self.plan_without(&BTreeSet::new());
        match self.fill_maps(&plan) {
            Ok(dropped) => {
                conditions.extend(tables::dropped(&dropped, &self.config));
                self.attach(&mut conditions).await;
            }
            Err(error) => conditions.push(failed("Agent/maps", &error)),
        }
        conditions.extend(plan.conditions.iter().chain(&self.unread).chain(&self.waiting).cloned());
        self.tell(&plan, conditions);
    }

    /// In stack mode the node's own NAT is kept away from what the uplink's egress translates.
    async fn exempt(&mut self, conditions: &mut Vec<Condition>) {
        let wanted = self.config.data_path == DataPath::Stack;
        if !wanted && !self.exempts {
            return;
        }
        let plan = self.plan_without(&self.conflicts.clone());
        let marks = wanted.then(|| tables::marks(&plan));
        match masquerade::reconcile(marks.as_ref()).await {
            Ok(_) => self.exempts = marks.is_some(),
            Err(error) => conditions.push(failed("Agent/masquerade", &error)),
        }
    }

    fn tell(&mut self, plan: &Plan, conditions: Vec<Condition>) {
        let places = self.places();
        let nodes = self.node_health();
        let Self { identity, uplinks, objects, wiring, .. } = self;
        let in_force = &wiring.in_force;
        let status = Status {
            nodes,
            ..Status::new(identity, uplinks, objects, plan, conditions, &places, in_force)
        };
        for condition in self.status.news(&status) {
            warn!("{} {}: {}", condition.object, condition.reason, condition.message);
        }
        if let Err(error) = self.status.write(&status) {
            error!("{error:#}");
        }
    }
}
