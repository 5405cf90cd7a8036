//! What the agent tells the planner: its node, its bridge, what it found on the network.
use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Agent, tables};
use crate::{
    config::Mac,
    plan::{Facts, Mode, OvsPorts, Plan, Previous, plan},
};

impl Agent {
    /// The plan, with these egress IPs in conflict.
    pub(super) fn plan_without(&self, conflicts: &BTreeSet<Ipv4Addr>) -> Plan {
        let facts = Facts {
            node_ip: Some(self.identity.ip),
            prefix_len: Some(self.identity.prefix_len),
            link: Some(self.identity.uplink.name.clone()),
            uplinks: self.uplinks.facts(),
            gateway_mac: self.config.gateway_mac.unwrap_or_else(|| {
                Mac(self.ovs_facts.as_ref().map(|facts| facts.gateway_mac).unwrap_or_default())
            }),
            ovs_ports: self
                .ovs_facts
                .as_ref()
                .map(|facts| OvsPorts { vxlan: facts.tunnel_port, gateway: facts.gateway_port }),
            conflicts: conflicts.clone(),
            ..Facts::of(&self.identity.name)
        };
        let mode = Mode {
            layout: tables::layout(&self.config, self.ovs_facts.as_ref()),
            masquerade_bit: self.config.masquerade_bit,
            assign: false,
            flows: self.ovs_facts.is_some(),
        };
        plan(&self.objects, &facts, &self.offline(), &Previous::default(), &mode)
    }
}
