//! What the programs need: their maps filled, and themselves where they belong.
use anyhow::Result;
use log::info;

use super::{Agent, failed, node, tables};
use crate::{
    bpf::Hook,
    condition::{Condition, Reason},
    config::DataPath,
    netlink::Link,
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
        let Self { objects, identity, uplinks, wiring, config, .. } = self;
        let desired = tables::desired(plan, objects, (identity, uplinks, wiring), config);
        // What fails leaves it open what the maps hold.
        let mut held = match self.maps_held.take() {
            Some(held) => held,
            None => maps::Held::read(&self.maps)?,
        };
        let dropped = maps::reconcile(&mut self.maps, &mut held, &desired)?;
        self.maps_held = Some(held);
        configured.map(|()| dropped)
    }

    fn configure(&mut self) -> Result<()> {
        if let Some(masquerade) = tables::masquerade(&self.config, &self.identity, &self.wiring) {
            maps::masquerade(&mut self.maps, masquerade)?;
        }
        let held = maps::settings(&self.maps)?;
        let config = tables::config(&tables::Node {
            config: &self.config,
            objects: &self.objects,
            identity: &self.identity,
            uplinks: &self.uplinks,
            wiring: &self.wiring,
            devices: &self.devices,
            ovs: self.ovs_facts.as_ref(),
            generation: held.next_hop_generation,
            stamp: node::stamp(held.stamp)?,
            masquerade_slot: self.maps.masquerade_slot(),
            masqueraded_ports: held.masqueraded_ports,
            carries: self.carries,
            phase: self.phase,
        })?;
        maps::configure(&mut self.maps, &config)?;
        maps::reconcile_arrivals(&mut self.maps, &self.wiring.arrivals)
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
        let links: Vec<Link> = self.links().cloned().collect();
        // What is sent from XDP passes no shadow.
        let shadow = self.is_shadow();
        let wanted = if shadow { DataPath::Tc } else { self.config.data_path };
        let Self { data_plane, netlink, .. } = self;
        let (mut wiring, found) = xdp::reconcile(data_plane, netlink, &links, wanted).await;
        conditions.extend(found);
        for (name, now) in &mut wiring.in_force {
            if shadow {
                now.path = "shadow".to_owned();
                "the programs only look on, as --shadow asks".clone_into(&mut now.why);
            }
            if self.wiring.in_force.get(name) != Some(now) {
                info!("the data path on {name} is {}: {}", now.path, now.why);
            }
        }
        self.wiring = wiring;
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
