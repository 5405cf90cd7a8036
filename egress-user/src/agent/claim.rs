//! The egress IPs on the uplink: probed before they are claimed, claimed, announced.
//!
//! What has not been probed yet is treated as in conflict: until the network is known to be free
//! of it, its VNID is dropped. What this run has held before may be taken at once; an answer to the
//! probe still ends that.
use std::{collections::BTreeSet, net::Ipv4Addr, time::Instant};

use anyhow::Result;
use log::{info, warn};

use super::{Agent, failed, tables};
use crate::{
    arp::{
        probe::{Occupancy, probe},
        socket::ArpSocket,
    },
    condition::Condition,
    plan::Plan,
    reconcile::{
        addresses::{self, Outcome},
        announce::announce,
    },
};

impl Agent {
    /// The egress IPs that this node would have to claim first. `None`: the kernel cannot be asked.
    pub(super) async fn unclaimed(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let desired = tables::addresses(&self.plan_without(&BTreeSet::new()), &self.identity);
        addresses::missing(&self.netlink, &self.identity.uplink, &desired).await
    }

    /// Asks the network for the egress IPs that are about to be claimed, those in conflict too.
    pub(super) async fn probe(&mut self, unclaimed: &BTreeSet<Ipv4Addr>) -> Result<()> {
        self.conflicts.retain(|ip| unclaimed.contains(ip));
        let link = &self.identity.uplink;
        // What waits in an old socket was said before we asked, or has left no room for answers.
        if !unclaimed.is_empty() || !self.arp.as_ref().is_some_and(|arp| arp.fits(link)) {
            self.arp = Some(ArpSocket::open(link)?);
        }
        let Some(arp) = self.arp.as_ref().filter(|_| self.config.announce.probe && link.up) else {
            return Ok(());
        };
        if unclaimed.is_empty() {
            return Ok(());
        }
        for (ip, occupancy) in probe(arp, unclaimed).await? {
            match occupancy {
                Occupancy::Free => self.conflicts.remove(&ip),
                Occupancy::TakenBy(_) => self.conflicts.insert(ip),
            };
        }
        Ok(())
    }

    pub(super) async fn claim_addresses(&mut self, plan: &Plan, conditions: &mut Vec<Condition>) {
        let desired = tables::addresses(plan, &self.identity);
        let Self { netlink, identity, owned, .. } = self;
        let outcomes =
            addresses::reconcile(netlink, &identity.uplink, identity.ip, &desired, owned).await;
        let outcomes = match outcomes {
            Ok(outcomes) => outcomes,
            Err(error) => return conditions.push(failed("Agent/addresses", &error)),
        };
        self.status.own(&self.owned);
        let now = Instant::now();
        let mut held = BTreeSet::new();
        let mut added = Vec::new();
        for (ip, outcome) in outcomes {
            match outcome {
                Outcome::Added => {
                    info!("claimed {ip} on {}", self.identity.uplink.name);
                    added.push(ip);
                    held.insert(ip);
                }
                Outcome::Present | Outcome::PreExisting => {
                    held.insert(ip);
                }
                Outcome::Removed => info!("released {ip}"),
                Outcome::Failed(error) => {
                    conditions.push(failed(&format!("Address/{ip}"), &error));
                }
            }
        }
        self.schedule.hold(&held, now);
        for ip in added {
            self.schedule.restart(ip, now);
        }
        self.held = held;
    }

    /// The link was away, or is another one: who forgot us meanwhile is told again.
    pub(super) fn announce_again(&mut self) {
        let now = Instant::now();
        for ip in &self.held {
            self.schedule.restart(*ip, now);
        }
    }

    /// Announces what is due; returns when the next turn is.
    pub(super) async fn announce_due(&mut self) -> Option<Instant> {
        let due = self.schedule.due(Instant::now());
        if let Some(arp) = self.arp.as_ref().filter(|_| self.identity.uplink.up) {
            for ip in due.addresses {
                if let Err(error) = announce(arp, ip).await {
                    warn!("{error:#}");
                }
            }
        }
        due.wake
    }
}
