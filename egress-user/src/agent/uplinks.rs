//! The node's further uplinks, beside the one with its own address: which subnets they stand for,
//! and what is the matter with them.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::Result;

use super::{Agent, status::Owned};
use crate::{
    cidr::Cidr,
    condition::{Condition, Reason},
    config::AgentConfig,
    identity::Identity,
    netlink::{Address, Link, Netlink},
    plan,
    reconcile::addresses::label_of,
};

/// An interface that carries the egress IPs of its own subnets.
#[derive(Debug, Clone)]
pub struct Uplink {
    pub link: Link,
    /// The node's on this link; no egress IPs.
    pub addresses: BTreeSet<Ipv4Addr>,
    pub subnets: BTreeSet<Cidr>,
    /// A route leads beyond those.
    leads_beyond: bool,
}

/// What is configured, as far as it exists.
#[derive(Debug, Clone, Default)]
pub struct Uplinks {
    pub further: Vec<Uplink>,
    missing: Vec<String>,
}

impl Uplinks {
    /// What is there now. `owned`: unlabelled egress IPs.
    pub async fn find(
        netlink: &Netlink,
        config: &AgentConfig,
        identity: &Identity,
        owned: &Owned,
    ) -> Result<Self> {
        let mut uplinks = Self::default();
        if config.node.uplinks.is_empty() {
            return Ok(uplinks);
        }
        let beyond = netlink.links_beyond().await?;
        for name in &config.node.uplinks {
            match netlink.link_by_name(name).await? {
                // Found to be the one with the node's address: nothing more to say of it.
                Some(link) if link.index == identity.uplink.index => {}
                Some(link) => {
                    let all = netlink.addresses(link.index).await?;
                    let ours = owned.get(name);
                    let own = all.iter().filter(|address| {
                        address.label != label_of(name)
                            && !ours.is_some_and(|ours| ours.contains(&address.ip))
                    });
                    let leads_beyond = beyond.contains(&link.index);
                    uplinks.further.push(Uplink::new(link, own, leads_beyond));
                }
                None => uplinks.missing.push(name.clone()),
            }
        }
        Ok(uplinks)
    }

    /// What keeps them from being of use, and the cure.
    pub fn conditions(&self) -> Vec<Condition> {
        let missing = self.missing.iter().map(|name| {
            let message = format!(
                "the uplink {name} does not exist: egress IPs of its subnets are dropped; correct \
                 node.uplinks, or make the device"
            );
            Condition::new(format!("Device/{name}"), Reason::NoDevice, message)
        });
        missing.chain(self.further.iter().filter_map(Uplink::condition)).collect()
    }

    /// For the planner.
    pub fn facts(&self) -> Vec<plan::Uplink> {
        let known = self.further.iter().map(|uplink| plan::Uplink {
            link: uplink.link.name.clone(),
            subnets: Some(uplink.subnets.clone()),
        });
        known.collect()
    }
}

impl Uplink {
    fn new<'a>(link: Link, own: impl Iterator<Item = &'a Address>, leads_beyond: bool) -> Self {
        let (mut addresses, mut subnets) = (BTreeSet::new(), BTreeSet::new());
        for Address { ip, prefix_len, .. } in own {
            addresses.insert(*ip);
            subnets.extend(Cidr::around(*ip, *prefix_len));
        }
        Self { link, addresses, subnets, leads_beyond }
    }

    fn condition(&self) -> Option<Condition> {
        let name = &self.link.name;
        let (reason, message) = if self.subnets.is_empty() {
            let message = format!(
                "the uplink {name} has no address, so no egress IP belongs there: give it one of \
                 its network (ip address add ADDRESS/LENGTH dev {name})"
            );
            (Reason::NoAddress, message)
        } else if !self.leads_beyond {
            let message = format!(
                "no route leads beyond the network of the uplink {name}: its egress IPs reach \
                 nothing else; add one by its gateway (ip route add default via GATEWAY dev \
                 {name} metric 1000, or in a table of its own with ip rule add \
                 from SUBNET iif lo)"
            );
            (Reason::NoRoute, message)
        } else {
            return None;
        };
        Some(Condition::new(format!("Device/{name}"), reason, message))
    }
}

impl Agent {
    /// All uplinks, the one with the node's address first.
    pub(super) fn links(&self) -> impl Iterator<Item = &Link> {
        let further = self.uplinks.further.iter().map(|uplink| &uplink.link);
        [&self.identity.uplink].into_iter().chain(further)
    }

    /// Looks at the uplinks anew; returns the names of those that have come back.
    pub(super) async fn renew_uplinks(&mut self) -> Result<()> {
        let found = Uplinks::find(&self.netlink, &self.config, &self.identity, &self.owned).await?;
        let before: BTreeMap<String, Link> = self
            .uplinks
            .further
            .drain(..)
            .map(|uplink| (uplink.link.name.clone(), uplink.link))
            .collect();
        self.uplinks = found;
        let back: Vec<String> = self
            .uplinks
            .further
            .iter()
            .map(|uplink| &uplink.link)
            .filter(|link| before.get(&link.name).is_some_and(|before| link.is_back_since(before)))
            .map(|link| link.name.clone())
            .collect();
        back.iter().for_each(|name| self.announce_again(name));
        Ok(())
    }
}
