//! Open vSwitch's bridge: what it tells of itself, and our flows on it.
use std::collections::BTreeSet;

use super::{Agent, failed, tables};
use crate::{
    condition::{Condition, Reason},
    config::Enabled,
    nft,
    ovs::Presence,
    plan::Plan,
    reconcile::strays,
};

impl Agent {
    pub(super) async fn observe_ovs(&mut self, conditions: &mut Vec<Condition>) {
        let Some(ovs) = &self.ovs else { return };
        // Facts change with the bridge, and then its flows are looked at anew too.
        if self.ovs_facts.is_some() && self.ovs_follower.is_following() {
            return self.observe_pods(conditions).await;
        }
        match ovs.presence().await {
            Ok(Presence::Present(facts)) => self.ovs_facts = Some(facts),
            Ok(Presence::Absent(why)) => {
                self.ovs_facts = None;
                if self.config.ovs.enabled == Enabled::Yes {
                    conditions.push(Condition::new("Agent/ovs", Reason::NoOpenVSwitch, why));
                }
            }
            Err(error) => conditions.push(failed("Agent/ovs", &error)),
        }
        self.observe_pods(conditions).await;
    }

    /// What leaves the bridge by its owner's flows is told by its pod. A bridge that does not answer
    /// has the same pods as before.
    async fn observe_pods(&mut self, conditions: &mut Vec<Condition>) {
        let Some(ovs) = self.ovs.as_ref().filter(|_| self.ovs_facts.is_some()) else { return };
        match ovs.pods().await {
            Ok(pods) => self.bridged = pods,
            Err(error) => conditions.push(failed("Agent/ovs", &error)),
        }
    }

    pub(super) async fn program_flows(&mut self, plan: &Plan, conditions: &mut Vec<Condition>) {
        let Some(ovs) = self.ovs.as_ref().filter(|_| self.ovs_facts.is_some()) else {
            return;
        };
        match self.ovs_follower.reconcile(ovs, &plan.flows, &plan.groups).await {
            Ok(outcome) => {
                self.ovs_held = Some(outcome.held);
                self.catch_strays(plan, conditions).await;
                for conflict in outcome.conflicts {
                    let object = conflict
                        .vnid
                        .map_or_else(|| "Agent/ovs".to_owned(), |vnid| format!("VNID/{vnid}"));
                    let message = format!(
                        "the bridge holds a flow of another owner, {}: ours is {} ({:?})",
                        conflict.foreign, conflict.wanted, conflict.kind
                    );
                    conditions.push(Condition::new(object, Reason::Conflict, message));
                }
            }
            // The number of flows that the bridge was seen to hold stands: else the watch would wake
            // us at once, and nothing would wait for its turn to be tried again.
            Err(error) => conditions.push(failed("Agent/ovs", &error)),
        }
    }

    /// What leaves the bridge by its owner's flows although its VNID has a policy.
    async fn catch_strays(&self, plan: &Plan, conditions: &mut Vec<Condition>) {
        let Some(gateway) = self.config.gateway.clone() else { return };
        let vnids: BTreeSet<u32> = plan.policies.iter().map(|policy| policy.vnid).collect();
        let of_policy = self.bridged.iter().filter(|(_, vnid)| vnids.contains(vnid));
        let pods = of_policy.map(|(ip, _)| *ip).collect();
        let done = async {
            let (cluster, service) = tables::networks(&self.config, &self.objects, &self.uplinks)?;
            let untouched = cluster.union(&service).copied().collect();
            strays::reconcile(Some(&strays::Desired { gateway, pods, untouched })).await
        };
        match done.await {
            Ok(_) => {}
            Err(error) if nft::is_missing(&error) => conditions.push(Condition::new(
                "Agent/strays",
                Reason::NoNftables,
                "while our flows are missing on the bridge, pods leave with the node's address: \
                 install nftables",
            )),
            Err(error) => conditions.push(failed("Agent/strays", &error)),
        }
    }
}
