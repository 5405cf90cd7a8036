//! The egress IPs on the uplink: asked for, claimed, announced.
use std::{collections::BTreeSet, time::Instant};

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
    pub(super) async fn probe(&mut self, plan: &Plan) -> Result<()> {
        self.open_arp()?;
        if !self.config.announce.probe {
            return Ok(());
        }
        let desired = tables::addresses(plan, &self.identity);
        let missing = addresses::missing(&self.netlink, &self.identity.uplink, &desired).await?;
        let Some(arp) = self.arp.as_ref().filter(|_| !missing.is_empty()) else { return Ok(()) };
        for (ip, occupancy) in probe(arp, &missing).await? {
            if let Occupancy::TakenBy(_) = occupancy {
                self.conflicts.insert(ip);
            }
        }
        Ok(())
    }

    fn open_arp(&mut self) -> Result<()> {
        let link = &self.identity.uplink;
        if self.arp.as_ref().is_none_or(|arp| Some(arp.mac()) != link.mac) {
            self.arp = Some(ArpSocket::open(link)?);
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
    }

    /// Announces what is due; returns when the next turn is.
    pub(super) async fn announce_due(&mut self) -> Option<Instant> {
        let due = self.schedule.due(Instant::now());
        if let Some(arp) = &self.arp {
            for ip in due.addresses {
                if let Err(error) = announce(arp, ip).await {
                    warn!("{error:#}");
                }
            }
        }
        due.wake
    }
}
