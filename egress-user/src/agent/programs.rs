//! What the programs need: their maps filled, and themselves where they belong.
use std::collections::BTreeMap;

use anyhow::Result;
use log::info;

use super::{Agent, failed, node, tables};
use crate::{
    bpf::Hook,
    condition::{Condition, Reason},
    plan::Plan,
    reconcile::{
        attachments,
        maps::{self, Dropped},
        xdp,
    },
};

impl Agent {
    /// Settings that cannot be written stay as they were; who gets what is written all the same.
    pub(super) fn fill_maps(&mut self, plan: &Plan) -> Result<Dropped> {
        let configured = self.configure();
        let Self { objects, identity, uplinks, config, .. } = self;
        let desired = tables::desired(plan, objects, identity, uplinks, config);
        let dropped = maps::reconcile(&mut self.maps, &desired)?;
        configured.map(|()| dropped)
    }

    fn configure(&mut self) -> Result<()> {
        let held = maps::settings(&self.maps)?;
        let config = tables::config(&tables::Node {
            config: &self.config,
            objects: &self.objects,
            identity: &self.identity,
            uplinks: &self.uplinks,
            devices: &self.devices,
            ovs: self.ovs_facts.as_ref(),
            generation: held.next_hop_generation,
            stamp: node::stamp(held.stamp)?,
            carries: self.carries,
        })?;
        maps::configure(&mut self.maps, &config)?;
        Ok(())
    }

    pub(super) async fn attach(&mut self, conditions: &mut Vec<Condition>) {
        let places = self.places();
        self.attached = true;
        for ((hook, interface), outcome) in attachments::reconcile(&mut self.data_plane, &places) {
            match outcome {
                attachments::Outcome::Attached => info!("attached {hook} to {interface}"),
                attachments::Outcome::Present => {}
                attachments::Outcome::Failed(error) => {
                    self.attached = false;
                    conditions.push(failed(&format!("Device/{interface}"), &error));
                }
            }
        }
        match self.data_plane.detach_all_but(&places) {
            Ok(gone) => gone.iter().for_each(|link| info!("detached {link}")),
            Err(error) => conditions.push(failed("Agent/links", &error)),
        }
        self.attach_xdp(conditions).await;
        for missing in &self.devices.missing {
            conditions.push(Condition::new(
                format!("Device/{missing}"),
                Reason::NoDevice,
                format!("the configured device {missing} does not exist: what comes by it is not treated"),
            ));
        }
    }

    async fn attach_xdp(&mut self, conditions: &mut Vec<Condition>) {
        let mut in_force = BTreeMap::new();
        let main = self.identity.uplink.index;
        for link in self.links().cloned().collect::<Vec<_>>() {
            let Self { data_plane, netlink, config, .. } = self;
            let (now, condition) = if link.index == main {
                xdp::reconcile(data_plane, netlink, &link, config.data_path).await
            } else {
                (xdp::further(config.data_path), None)
            };
            conditions.extend(condition);
            if self.in_force.get(&link.name) != Some(&now) {
                info!("the data path on {} is {}: {}", link.name, now.path, now.why);
            }
            in_force.insert(link.name, now);
        }
        self.in_force = in_force;
    }

    /// Which program belongs where. The guards first: from then on nothing slips out.
    pub(super) fn places(&self) -> Vec<attachments::Place> {
        let mut places = Vec::new();
        for link in self.links() {
            places.extend(
                [Hook::UplinkEgress, Hook::UplinkIngress].map(|hook| (hook, link.name.clone())),
            );
        }
        places.extend(self.devices.places());
        places
    }
}
