//! The egress IPs on the uplink.
//!
//! Ours is what carries the label `<link>:eip` (the original's), or, where a label would be too
//! long, what the caller's record names. Everything else belongs to somebody else and is never
//! deleted, even if it is a desired egress IP: then it is there already, and stays after release.
//! The node's own address is never touched.
//!
//! Surprising: deleting a primary address deletes its secondaries too. An egress IP is secondary
//! to the node's address, until that address is removed and added again; from then on releasing
//! the egress IP would take the node's address away. So secondaries are promoted while a primary
//! of ours goes ([`Promotion`]), and the link is observed anew until nothing is left to change.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context, Result, anyhow};

use crate::{
    diff::{Change, diff},
    netlink::{Added, Address, Link, NAME_MAX, Netlink, promotion::Promotion},
};

/// Enough for: change, add again what the kernel took along, see that all is well.
const ROUNDS: usize = 4;

/// An address as it shall be on the uplink.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct EgressAddress {
    pub ip: Ipv4Addr,
    /// Of the node's own subnet.
    pub prefix_len: u8,
    /// More than [`NAME_MAX`] bytes: the address is added without a label.
    pub label: Option<String>,
}

/// What became of one address.
#[derive(Debug)]
pub enum Outcome {
    Added,
    Removed,
    /// Ours, and as it shall be.
    Present,
    /// Somebody else's, there before us; it is used and will not be deleted.
    PreExisting,
    Failed(anyhow::Error),
}

/// The label of our addresses on a link; longer than [`NAME_MAX`] for long names.
pub fn label_of(link: &str) -> String {
    format!("{link}:eip")
}

/// The desired egress IPs that `uplink` does not carry: what is to be probed for a conflict before
/// [`reconcile`] claims it.
pub async fn missing(
    netlink: &Netlink,
    uplink: &Link,
    desired: &BTreeSet<EgressAddress>,
) -> Result<BTreeSet<Ipv4Addr>> {
    let observed = netlink.addresses(uplink.index).await?;
    let there: BTreeSet<Ipv4Addr> = observed.iter().map(|address| address.ip).collect();
    Ok(desired.iter().map(|address| address.ip).filter(|ip| !there.contains(ip)).collect())
}

/// Puts exactly `desired` on `uplink`, as far as it is ours to do.
///
/// `owned` is the caller's record of our addresses without a label; it is brought up to date and
/// belongs where it does not outlive the kernel's addresses (/run). An agent killed before it saved
/// the record takes such an address for somebody else's, and leaves it. One failing address does not
/// stop the others. Error: the kernel could not be asked, and nothing is known.
pub async fn reconcile(
    netlink: &Netlink,
    uplink: &Link,
    node_ip: Ipv4Addr,
    desired: &BTreeSet<EgressAddress>,
    owned: &mut BTreeSet<Ipv4Addr>,
) -> Result<BTreeMap<Ipv4Addr, Outcome>> {
    let mut outcomes = BTreeMap::new();
    for round in 0..=ROUNDS {
        let observed = netlink
            .addresses(uplink.index)
            .await
            .with_context(|| format!("observe the addresses of {}", uplink.name))?;
        let view = View { link: &uplink.name, node_ip, observed: &observed, owned };
        let Step { mut change, settled } = view.step(desired);
        for (ip, outcome) in settled {
            outcomes.entry(ip).or_insert(outcome);
        }
        let failed = |ip: &Ipv4Addr| matches!(outcomes.get(ip), Some(Outcome::Failed(_)));
        change.add.retain(|address| !failed(&address.ip));
        change.remove.retain(|address| !failed(&address.ip));
        if change.is_empty() {
            break;
        }
        if round == ROUNDS {
            for address in change.add.iter().chain(&change.remove) {
                let error = anyhow!(
                    "address {} of {} does not settle: something else keeps changing it",
                    address.ip,
                    uplink.name
                );
                outcomes.insert(address.ip, Outcome::Failed(error));
            }
            break;
        }
        let only_adds = change.remove.is_empty();
        let hands = Hands { netlink, uplink, observed: &observed, owned };
        hands.apply(change, &mut outcomes).await;
        if only_adds {
            // Nothing goes along with an address that comes.
            break;
        }
    }
    // What is gone, or somebody else's by now, needs no record.
    owned.retain(|ip| {
        matches!(outcomes.get(ip), Some(Outcome::Added | Outcome::Present | Outcome::Failed(_)))
    });
    Ok(outcomes)
}

/// What a round has to do.
#[derive(Debug)]
struct Step {
    change: Change<EgressAddress>,
    /// Addresses that need nothing, or that nothing can be done for.
    settled: Vec<(Ipv4Addr, Outcome)>,
}

/// What is known before a round; decides, touches nothing.
struct View<'a> {
    link: &'a str,
    node_ip: Ipv4Addr,
    observed: &'a [Address],
    owned: &'a BTreeSet<Ipv4Addr>,
}

impl View<'_> {
    fn step(&self, desired: &BTreeSet<EgressAddress>) -> Step {
        let (ours, foreign): (Vec<&Address>, Vec<&Address>) =
            self.observed.iter().partition(|address| self.is_ours(address));
        let ours: BTreeSet<EgressAddress> =
            ours.into_iter().map(|address| self.as_desired(address)).collect();
        let foreign: BTreeSet<Ipv4Addr> = foreign.into_iter().map(|address| address.ip).collect();

        let mut wanted = BTreeSet::new();
        let mut settled = Vec::new();
        for address in desired.iter().map(fitted) {
            let ip = address.ip;
            if ip == self.node_ip {
                let error = anyhow!(
                    "egress IP {ip} is the node's own address: take it out of the egress IPs"
                );
                settled.push((ip, Outcome::Failed(error)));
            } else if ours.contains(&address) {
                settled.push((ip, Outcome::Present));
                wanted.insert(address);
            } else if foreign.contains(&ip) {
                settled.push((ip, Outcome::PreExisting));
            } else {
                wanted.insert(address);
            }
        }
        Step { change: diff(&wanted, &ours), settled }
    }

    fn is_ours(&self, address: &Address) -> bool {
        let recorded = address.label == self.link && self.owned.contains(&address.ip);
        address.ip != self.node_ip && (recorded || address.label == label_of(self.link))
    }

    fn as_desired(&self, address: &Address) -> EgressAddress {
        let Address { ip, prefix_len, label, secondary: _ } = address;
        let label = (label != self.link).then(|| label.clone());
        EgressAddress { ip: *ip, prefix_len: *prefix_len, label }
    }
}

/// Without a label that the kernel would refuse.
fn fitted(address: &EgressAddress) -> EgressAddress {
    let mut address = address.clone();
    address.label = address.label.filter(|label| label.len() <= NAME_MAX);
    address
}

struct Hands<'a> {
    netlink: &'a Netlink,
    uplink: &'a Link,
    observed: &'a [Address],
    owned: &'a mut BTreeSet<Ipv4Addr>,
}

impl Hands<'_> {
    async fn apply(
        self,
        change: Change<EgressAddress>,
        outcomes: &mut BTreeMap<Ipv4Addr, Outcome>,
    ) {
        // Removals first: a label or a prefix changes only by removing and adding.
        let victims: Vec<&Address> = change.remove.iter().filter_map(|a| self.find(a)).collect();
        let takes_others = |victim: &Address| takes_others_along(victim, &victims, self.observed);
        let promotion = victims
            .iter()
            .any(|victim| takes_others(victim))
            .then(|| Promotion::hold(&self.uplink.name))
            .transpose();
        for victim in &victims {
            let deleted = match &promotion {
                Err(error) if takes_others(victim) => Err(anyhow!(
                    "egress IP {} stays on {link}: deleting it would delete other addresses too; \
                     set the sysctl net.ipv4.conf.{link}.promote_secondaries to 1 ({error:#})",
                    victim.ip,
                    link = self.uplink.name
                )),
                _ => self.netlink.delete_address(self.uplink.index, victim).await,
            };
            outcomes.insert(victim.ip, deleted.map_or_else(Outcome::Failed, |_| Outcome::Removed));
        }
        drop(promotion);
        for EgressAddress { ip, prefix_len, label } in change.add {
            if matches!(outcomes.get(&ip), Some(Outcome::Failed(_))) {
                continue;
            }
            let label = label.as_deref();
            let added = self.netlink.add_address(self.uplink.index, ip, prefix_len, label).await;
            let outcome = match added {
                Ok(Added::New) => Outcome::Added,
                Ok(Added::Existed) => Outcome::PreExisting,
                Err(error) => Outcome::Failed(error),
            };
            if matches!(outcome, Outcome::Added) && label.is_none() {
                self.owned.insert(ip);
            } else {
                self.owned.remove(&ip);
            }
            outcomes.insert(ip, outcome);
        }
    }

    fn find(&self, wanted: &EgressAddress) -> Option<&Address> {
        let label = wanted.label.as_ref().unwrap_or(&self.uplink.name);
        self.observed.iter().find(|address| {
            (address.ip, address.prefix_len, &address.label)
                == (wanted.ip, wanted.prefix_len, label)
        })
    }
}

/// Whether the kernel would delete, with `victim`, an address that is none of the `victims`.
fn takes_others_along(victim: &Address, victims: &[&Address], observed: &[Address]) -> bool {
    !victim.secondary
        && observed.iter().any(|other| victim.same_subnet(other) && !victims.contains(&other))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);

    fn on_link(ip: Ipv4Addr, label: &str) -> Address {
        Address { ip, prefix_len: 24, label: label.into(), secondary: ip != NODE }
    }

    fn egress(ip: Ipv4Addr, label: Option<&str>) -> EgressAddress {
        EgressAddress { ip, prefix_len: 24, label: label.map(str::to_owned) }
    }

    fn step(observed: &[Address], desired: &[EgressAddress], owned: &[Ipv4Addr]) -> Step {
        let owned = owned.iter().copied().collect();
        let view = View { link: "ens18", node_ip: NODE, observed, owned: &owned };
        view.step(&desired.iter().cloned().collect())
    }

    #[test]
    fn a_missing_address_is_added_and_a_stale_labelled_one_removed() {
        let step = step(
            &[on_link(NODE, "ens18"), on_link(SECOND, "ens18:eip")],
            &[egress(FIRST, Some("ens18:eip"))],
            &[],
        );
        assert_eq!(step.change.add, [egress(FIRST, Some("ens18:eip"))]);
        assert_eq!(step.change.remove, [egress(SECOND, Some("ens18:eip"))]);
        assert!(step.settled.is_empty());
    }

    #[test]
    fn an_address_of_somebody_else_is_neither_added_nor_removed() {
        let observed = [on_link(FIRST, "ens18"), on_link(SECOND, "ens18:vip")];
        let step = step(&observed, &[egress(FIRST, Some("ens18:eip"))], &[]);
        assert!(step.change.is_empty());
        assert!(matches!(step.settled[..], [(FIRST, Outcome::PreExisting)]));
    }

    #[test]
    fn without_a_label_the_record_says_what_is_ours() {
        let observed = [on_link(FIRST, "ens18"), on_link(SECOND, "ens18")];
        let step = step(&observed, &[], &[SECOND]);
        assert_eq!(step.change.remove, [egress(SECOND, None)]);
    }

    #[test]
    fn the_node_address_stays_whatever_label_and_record_say() {
        let step = step(&[on_link(NODE, "ens18:eip")], &[egress(NODE, None)], &[NODE]);
        assert!(step.change.is_empty());
        assert!(matches!(step.settled[..], [(NODE, Outcome::Failed(_))]));
    }

    #[test]
    fn a_label_of_sixteen_bytes_is_left_out() {
        let fifteen = egress(FIRST, Some("enp0s31f61a:eip"));
        let sixteen = egress(SECOND, Some("enp0s31f61ab:eip"));
        let step = step(&[], &[fifteen.clone(), sixteen], &[]);
        assert_eq!(step.change.add, [fifteen, egress(SECOND, None)]);
    }

    #[test]
    fn another_prefix_length_replaces_the_address() {
        let wider = EgressAddress { prefix_len: 16, ..egress(FIRST, Some("ens18:eip")) };
        let step = step(&[on_link(FIRST, "ens18:eip")], std::slice::from_ref(&wider), &[]);
        assert_eq!(step.change.add, [wider]);
        assert_eq!(step.change.remove, [egress(FIRST, Some("ens18:eip"))]);
    }

    #[test]
    fn only_a_primary_takes_others_along() {
        let primary = Address { secondary: false, ..on_link(FIRST, "ens18:eip") };
        let secondary = on_link(SECOND, "ens18:eip");
        let observed = [primary.clone(), secondary.clone()];
        assert!(takes_others_along(&primary, &[&primary], &observed));
        assert!(!takes_others_along(&primary, &[&primary, &secondary], &observed));
        assert!(!takes_others_along(&secondary, &[&secondary], &observed));
    }
}
