//! A claimed egress IP counts as announced when somebody has shown to take this node for its owner: the
//! gateway, or a neighbour by name, is asked for its own address in the name of the egress IP, and its
//! answer comes here. Until then the address is announced again, within bounds, and a condition says so.
use std::{collections::BTreeMap, net::Ipv4Addr};

use log::warn;

use super::Agent;
use crate::{
    arp::Arp,
    condition::{Condition, Reason},
    config::Witness,
};

impl Agent {
    /// Who is to bear witness on each uplink; who has none lacks none.
    pub(super) async fn find_witnesses(&mut self) {
        let gateways = match self.config.announce.witness {
            Witness::Gateway => self.netlink.gateways().await.unwrap_or_else(|error| {
                warn!("look for the gateways: {error:#}");
                BTreeMap::new()
            }),
            _ => BTreeMap::new(),
        };
        self.witnesses = self
            .links()
            .filter_map(|link| {
                let witness = match self.config.announce.witness {
                    Witness::Gateway => *gateways.get(&link.index)?,
                    Witness::Nobody => return None,
                    Witness::Neighbour(ip) => ip,
                };
                Some((link.name.clone(), witness))
            })
            .collect();
        for (ip, link) in &self.held {
            if !self.witnesses.contains_key(link) {
                self.schedule.witness(*ip);
            }
        }
    }

    /// Asks the witness, if the egress IP lacks one.
    pub(super) async fn ask_witness(&self, ip: Ipv4Addr) {
        let Some((arp, witness)) = self.witness_of(ip) else { return };
        if self.schedule.lacks_witness(ip)
            && let Err(error) = arp.send(&Arp::question(arp.mac(), ip, witness)).await
        {
            warn!("{error:#}");
        }
    }

    /// Takes in what was heard meanwhile.
    pub(super) fn hear_witnesses(&mut self) {
        let mut found = Vec::new();
        for (link, arp) in &self.arp {
            for answer in arp.waiting() {
                let Some(witness) = self.witnesses.get(link) else { continue };
                let ip = answer.target_ip;
                if self.held.get(&ip) == Some(link) && answer.answers(arp.mac(), ip, *witness) {
                    found.push(ip);
                }
            }
        }
        found.into_iter().for_each(|ip| self.schedule.witness(ip));
    }

    /// The egress IPs that may still be taken for somebody else's.
    pub(super) fn witness_conditions(&mut self) -> Vec<Condition> {
        self.unwitnessed = self.schedule.unwitnessed();
        self.unwitnessed
            .iter()
            .copied()
            .filter_map(|ip| {
                let (_, witness) = self.witness_of(ip)?;
                let message = format!(
                    "{witness} has not answered to {ip} since it was claimed here, and may still \
                     send to another machine: it is announced again; look at its ARP cache, or name \
                     another announce.witness"
                );
                Some(Condition::new(format!("Address/{ip}"), Reason::Unwitnessed, message))
            })
            .collect()
    }

    fn witness_of(&self, ip: Ipv4Addr) -> Option<(&crate::arp::socket::ArpSocket, Ipv4Addr)> {
        let link = self.held.get(&ip)?;
        Some((self.arp.get(link)?, *self.witnesses.get(link)?))
    }
}
