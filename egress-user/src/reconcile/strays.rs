//! The second net below Open vSwitch: what a tenant's pod sends and our flows did not take.
//!
//! OpenShift's own flows lead to the gateway device whatever ours do not catch, and from there the
//! node lets it out with its own address. Where somebody removes our flows, or the bridge's owner
//! loads his anew, that way is open until the repair. A chain of ours in the stack closes it: what
//! comes from the gateway device, without a mark, from a pod whose VNID has a policy, and is not an
//! answer, is dropped. The kernel's own connection tracking tells answers (to a connection from
//! outside, which OpenShift lets back by the node) from what the pod began.
//!
//! Surprising: the destination that counts is the one the pod wrote. A service may have its end
//! outside of the cluster.
use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::Result;

use crate::{
    cidr::Cidr,
    nft::{self, Table},
};

const TABLE: &str = "egress_strays";
const CHAIN: &str = "  chain forward {
    type filter hook forward priority filter - 1; policy accept;
    iifname @gateways ip saddr @pods meta mark 0 ct original ip daddr != @untouched \
      ct direction original counter drop
    iifname @gateways ip saddr @pods meta mark 0 ip daddr != @untouched ct state invalid counter drop
  }
";

/// Whom the chain is for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub gateway: String,
    /// Those whose VNID has a policy.
    pub pods: BTreeSet<Ipv4Addr>,
    /// Cluster and service networks.
    pub untouched: BTreeSet<Cidr>,
}

impl Desired {
    /// Without those within others, which a set of intervals does not take.
    fn networks(&self) -> BTreeSet<String> {
        let multicast = Cidr::around(Ipv4Addr::new(224, 0, 0, 0), 4);
        let all: BTreeSet<Cidr> = self.untouched.iter().copied().chain(multicast).collect();
        let within = |inner: &Cidr, outer: &Cidr| {
            inner != outer
                && outer.prefix_len() <= inner.prefix_len()
                && outer.contains(inner.network())
        };
        let outermost = all.iter().filter(|inner| !all.iter().any(|outer| within(inner, outer)));
        outermost.map(written).collect()
    }

    fn body(&self) -> String {
        let networks = self.networks();
        nft::set("gateways", "ifname", [format!("{:?}", self.gateway)])
            + &nft::set("pods", "ipv4_addr", &self.pods)
            + &nft::set("untouched", "ipv4_addr; flags interval", &networks)
            + CHAIN
    }
}

/// As nft lists it: a single address without a length.
fn written(network: &Cidr) -> String {
    match network.prefix_len() {
        32 => network.network().to_string(),
        _ => network.to_string(),
    }
}

/// Makes the table so; `None`: no table. Whether anything had to change.
///
/// # Errors
/// nft does not run; [`nft::is_missing`] tells whether it is installed.
pub async fn reconcile(desired: Option<&Desired>) -> Result<bool> {
    let observed = match Table::observe(TABLE).await {
        // Without nft there is no table of ours to remove.
        Err(error) if desired.is_none() && nft::is_missing(&error) => return Ok(false),
        observed => observed?,
    };
    let is_so = match (&observed, desired) {
        (None, None) => true,
        (Some(table), Some(desired)) => {
            table.set("gateways") == BTreeSet::from([desired.gateway.clone()])
                && table.set("pods") == desired.pods.iter().map(Ipv4Addr::to_string).collect()
                && table.set("untouched") == desired.networks()
        }
        _ => false,
    };
    if is_so {
        return Ok(false);
    }
    nft::apply(&nft::script(TABLE, desired.map(Desired::body).as_deref())).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_within_others_are_left_out() {
        let networks = ["10.128.0.0/14", "10.128.2.0/23", "172.30.0.0/16", "192.0.2.1/32"];
        let untouched = networks.iter().map(|text| text.parse().unwrap()).collect();
        let desired = Desired { gateway: "tun0".into(), pods: BTreeSet::new(), untouched };
        let listed: Vec<String> = desired.networks().into_iter().collect();
        assert_eq!(listed, ["10.128.0.0/14", "172.30.0.0/16", "192.0.2.1", "224.0.0.0/4"]);
    }
}
