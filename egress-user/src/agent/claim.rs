//! The egress IPs on the uplinks: probed before they are claimed, claimed, announced.
//!
//! What has not been probed yet is treated as in conflict: until the network is known to be free
//! of it, its VNID is dropped. What this run has held before may be taken at once; an answer to the
//! probe still ends that.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Instant,
};

use anyhow::Result;
use log::{error, info, warn};

use super::{Agent, failed, tables};
use crate::{
    arp::{
        probe::{Occupancy, probe},
        socket::ArpSocket,
    },
    condition::Condition,
    netlink::Link,
    plan::Plan,
    reconcile::{
        addresses::{self, Outcome},
        announce::announce,
    },
};

/// Egress IPs by the name of their uplink.
pub(super) type ByLink = BTreeMap<String, BTreeSet<Ipv4Addr>>;

impl Agent {
    /// The egress IPs that this node would have to claim first. Error: the kernel cannot be asked.
    pub(super) async fn unclaimed(&mut self) -> Result<ByLink> {
        let desired = tables::addresses(&self.plan_without(&BTreeSet::new()), &self.identity);
        let mut unclaimed = ByLink::new();
        for link in self.links() {
            let desired = desired.get(&link.name).cloned().unwrap_or_default();
            let missing = addresses::missing(&self.netlink, link, &desired).await?;
            unclaimed.insert(link.name.clone(), missing);
        }
        Ok(unclaimed)
    }

    /// Asks the networks for the egress IPs that are about to be claimed, those in conflict too.
    pub(super) async fn probe(&mut self, unclaimed: &ByLink, conditions: &mut Vec<Condition>) {
        self.conflicts.retain(|ip| unclaimed.values().any(|ips| ips.contains(ip)));
        let links: Vec<Link> = self.links().cloned().collect();
        self.arp.retain(|name, _| links.iter().any(|link| link.name == *name));
        for link in &links {
            let unclaimed = unclaimed.get(&link.name).cloned().unwrap_or_default();
            if let Err(error) = self.probe_on(link, &unclaimed).await {
                conditions.push(failed(&format!("Probe/{}", link.name), &error));
            }
        }
    }

    async fn probe_on(&mut self, link: &Link, unclaimed: &BTreeSet<Ipv4Addr>) -> Result<()> {
        if !self.arp.get(&link.name).is_some_and(|arp| arp.fits(link)) {
            self.arp.remove(&link.name);
            self.arp.insert(link.name.clone(), ArpSocket::open(link)?);
        }
        let Some(arp) = self.arp.get(&link.name).filter(|_| link.up) else { return Ok(()) };
        if unclaimed.is_empty() || !self.config.announce.probe {
            return Ok(());
        }
        arp.forget();
        for (ip, occupancy) in probe(arp, unclaimed).await? {
            match occupancy {
                Occupancy::Free => self.conflicts.remove(&ip),
                Occupancy::TakenBy(_) => self.conflicts.insert(ip),
            };
        }
        Ok(())
    }

    /// On each uplink what belongs there, and nothing of ours on those that are uplinks no more.
    pub(super) async fn claim_addresses(&mut self, plan: &Plan, conditions: &mut Vec<Condition>) {
        let mut desired = tables::addresses(plan, &self.identity);
        let now = Instant::now();
        let mut held = BTreeMap::new();
        let mut added = Vec::new();
        let mut links: Vec<Link> = self.former_uplinks(conditions).await;
        links.extend(self.links().cloned());
        for link in links {
            let desired = desired.remove(&link.name).unwrap_or_default();
            let Self { netlink, identity, owned, .. } = self;
            let owned = owned.entry(link.name.clone()).or_default();
            let outcomes = addresses::reconcile(netlink, &link, identity.ip, &desired, owned).await;
            let outcomes = match outcomes {
                Ok(outcomes) => outcomes,
                Err(error) => {
                    conditions.push(failed(&format!("Addresses/{}", link.name), &error));
                    continue;
                }
            };
            for (ip, outcome) in outcomes {
                match outcome {
                    Outcome::Added => {
                        info!("claimed {ip} on {}", link.name);
                        added.push(ip);
                        held.insert(ip, link.name.clone());
                    }
                    Outcome::Present | Outcome::PreExisting => {
                        held.insert(ip, link.name.clone());
                    }
                    Outcome::Removed => info!("released {ip} on {}", link.name),
                    Outcome::Failed(error) => {
                        conditions.push(failed(&format!("Address/{ip}"), &error));
                    }
                }
            }
        }
        self.owned.retain(|_, owned| !owned.is_empty());
        self.status.own(&self.owned);
        self.schedule.hold(&held.keys().copied().collect(), now);
        for ip in added {
            self.schedule.restart(ip, now);
        }
        self.held = held;
        self.find_witnesses().await;
    }

    /// The uplinks of a predecessor that are none any more: asked for once.
    async fn former_uplinks(&mut self, conditions: &mut Vec<Condition>) -> Vec<Link> {
        let current: BTreeSet<String> = self.links().map(|link| link.name.clone()).collect();
        let mut links = Vec::new();
        for name in std::mem::take(&mut self.former) {
            if current.contains(&name) {
                continue;
            }
            match self.netlink.link_by_name(&name).await {
                Ok(link) => links.extend(link),
                Err(error) => conditions.push(failed(&format!("Addresses/{name}"), &error)),
            }
        }
        links
    }

    /// Gives back all egress IPs of ours, on every uplink. What fails is logged; error: a kernel
    /// that cannot be asked.
    pub(super) async fn release_addresses(&mut self) -> Result<()> {
        let mut released = Ok(());
        for link in self.links().cloned().collect::<Vec<_>>() {
            let Self { netlink, identity, owned, .. } = self;
            let owned = owned.entry(link.name.clone()).or_default();
            let nothing = BTreeSet::new();
            match addresses::reconcile(netlink, &link, identity.ip, &nothing, owned).await {
                Ok(outcomes) => {
                    for (ip, outcome) in outcomes {
                        if let Outcome::Failed(error) = outcome {
                            error!("release {ip}: {error:#}");
                        }
                    }
                }
                Err(error) => released = released.and(Err(error)),
            }
        }
        released
    }

    /// The link was away, or is another one: who forgot us meanwhile is told again.
    pub(super) fn announce_again(&mut self, link: &str) {
        info!("{link} is back: announcing again");
        let now = Instant::now();
        for (ip, _) in self.held.iter().filter(|(_, on)| *on == link) {
            self.schedule.restart(*ip, now);
        }
    }

    /// Announces what is due; returns when the next turn is.
    pub(super) async fn announce_due(&mut self) -> Option<Instant> {
        let due = self.schedule.due(Instant::now());
        for ip in due.addresses {
            let Some(link) = self.held.get(&ip).filter(|name| self.is_up(name)) else { continue };
            let Some(arp) = self.arp.get(link) else { continue };
            if let Err(error) = announce(arp, ip).await {
                warn!("{error:#}");
            }
            self.ask_witness(ip).await;
        }
        due.wake
    }

    fn is_up(&self, name: &str) -> bool {
        self.links().any(|link| link.name == name && link.up)
    }
}
