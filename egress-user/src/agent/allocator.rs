//! The allocator: the one agent, named in the settings, that deals out egressCIDRs. It writes its
//! decision into the objects' files, which all agents read: from there it comes back to it as any
//! other change does.
use std::net::Ipv4Addr;

use log::info;

use super::{Agent, failed, health};
use crate::condition::{Condition, Reason};

impl Agent {
    /// Deals out what is to be dealt out, if that is this agent's to do.
    pub(super) fn deal_out(&mut self, conditions: &mut Vec<Condition>) {
        if self.config.allocator.as_ref() != Some(&self.identity.name) {
            return;
        }
        let health = self.health_of_nodes();
        if self.dealt_out.as_ref() == Some(&health.offline) {
            return;
        }
        // Of the others nobody is ever found offline.
        let watched = health::watched(&self.objects, &self.identity);
        let others: Vec<Ipv4Addr> = watched.map(|node| node.host_ip).collect();
        if others.len() > 1 && others.iter().all(|ip| health.offline.contains(ip)) {
            // It is likelier that this one is cut off than that all others died.
            let message =
                "all other egress nodes are offline from here: egress IPs stay where they are";
            conditions.push(Condition::new("Agent/allocator", Reason::Offline, message));
            return;
        }
        match self.watched.deal_out(&health) {
            Ok(changes) => {
                changes.iter().for_each(|change| info!("dealt out: {change}"));
                self.dealt_out = Some(health.offline);
            }
            Err(error) => conditions.push(failed("Agent/allocator", &error)),
        }
    }
}
