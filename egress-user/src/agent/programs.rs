//! What the programs need: their maps filled, and themselves where they belong.
use anyhow::Result;
use log::info;

use super::{Agent, failed, node, tables};
use crate::{
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
        let desired = tables::desired(plan, &self.objects, &self.identity, &self.config);
        let dropped = maps::reconcile(&mut self.maps, &desired)?;
        configured.map(|()| dropped)
    }

    fn configure(&mut self) -> Result<()> {
        let held = maps::settings(&self.maps)?;
        let config = tables::config(&tables::Node {
            config: &self.config,
            objects: &self.objects,
            identity: &self.identity,
            devices: &self.devices,
            ovs: self.ovs_facts.as_ref(),
            generation: held.next_hop_generation,
            stamp: node::stamp(held.stamp)?,
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
        let Self { data_plane, netlink, identity, config, .. } = self;
        let (in_force, condition) =
            xdp::reconcile(data_plane, netlink, &identity.uplink, config.data_path).await;
        conditions.extend(condition);
        if self.in_force.as_ref() != Some(&in_force) {
            info!("the data path is {}: {}", in_force.path, in_force.why);
            self.in_force = Some(in_force);
        }
        for missing in &self.devices.missing {
            conditions.push(Condition::new(
                format!("Device/{missing}"),
                Reason::NoDevice,
                format!("the configured device {missing} does not exist: what comes by it is not treated"),
            ));
        }
    }

    pub(super) fn places(&self) -> Vec<attachments::Place> {
        self.devices.places(&self.identity)
    }
}
