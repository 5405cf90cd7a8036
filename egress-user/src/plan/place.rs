//! On which of its uplinks a node carries an egress IP: the one with the narrowest subnet around it.
use std::{collections::BTreeSet, net::Ipv4Addr};

use super::Facts;
use crate::cidr::Cidr;

/// An interface towards the outside, besides the one with the node's own address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub link: String,
    /// `None`: not known here, so no IP can be said to be outside of them.
    pub subnets: Option<BTreeSet<Cidr>>,
}

/// Where an egress IP lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// `None`: not known here.
    pub(super) link: Option<&'a str>,
    /// Of the subnet; `None`: not known here.
    pub(super) prefix_len: Option<u8>,
}

impl Facts {
    /// Where this node, whose HostSubnet has the address `host_ip`, carries an egress IP; of equal
    /// subnets the first uplink's. `None`: it is outside all of them.
    pub(super) fn place(&self, ip: Ipv4Addr, host_ip: Ipv4Addr) -> Option<Place<'_>> {
        let own = self.link.as_deref();
        let around = self.subnets(host_ip).filter(|(_, subnet)| subnet.contains(ip));
        let narrower = |best: (_, Cidr), next: (_, Cidr)| {
            if next.1.prefix_len() > best.1.prefix_len() { next } else { best }
        };
        if let Some((link, subnet)) = around.reduce(narrower) {
            return Some(Place { link, prefix_len: Some(subnet.prefix_len()) });
        }
        let all_known =
            self.prefix_len.is_some() && self.uplinks.iter().all(|uplink| uplink.subnets.is_some());
        let link = own.filter(|_| self.uplinks.is_empty());
        (!all_known).then_some(Place { link, prefix_len: None })
    }

    /// The known subnets, the node's own first.
    pub(super) fn subnets(&self, host_ip: Ipv4Addr) -> impl Iterator<Item = (Option<&str>, Cidr)> {
        let own = self.prefix_len.and_then(|length| Cidr::around(host_ip, length));
        let further = self.uplinks.iter().flat_map(|Uplink { link, subnets }| {
            subnets.iter().flatten().map(|subnet| (Some(link.as_str()), *subnet))
        });
        own.map(|subnet| (self.link.as_deref(), subnet)).into_iter().chain(further)
    }
}
