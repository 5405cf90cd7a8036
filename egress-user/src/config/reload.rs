//! What of a changed AgentConfig a running agent takes over.
use super::{AgentConfig, Flows};

impl AgentConfig {
    /// The settings to go on with: `new` where that can be applied to a running agent, else as they
    /// are. With the keys that only a restart takes over.
    pub fn reloaded(&self, new: Self) -> (Self, Vec<&'static str>) {
        // In full, so that a new key has to be thought of here.
        let Self {
            api_version,
            kind,
            node,
            tunnel,
            gateway,
            gateway_mac,
            cluster_networks,
            service_networks,
            masquerade_bit,
            allocator,
            compat,
            affinity,
            data_path,
            flows,
            policies,
            ports,
            masquerade,
            masquerade_ports,
            timeouts,
            announce,
            health,
            ovs,
            metrics,
            pods,
        } = new;
        let waiting = [
            ("node", node != self.node),
            ("tunnel", tunnel != self.tunnel),
            ("gateway", gateway != self.gateway),
            ("flows.max", flows.max != self.flows.max),
            ("policies.max", policies != self.policies),
            ("ovs", ovs != self.ovs),
            ("metrics", metrics != self.metrics),
        ];
        let settings = Self {
            api_version,
            kind,
            node: self.node.clone(),
            tunnel: self.tunnel.clone(),
            gateway: self.gateway.clone(),
            gateway_mac,
            cluster_networks,
            service_networks,
            masquerade_bit,
            allocator,
            compat,
            affinity,
            data_path,
            flows: Flows { max: self.flows.max, ..flows },
            policies: self.policies.clone(),
            ports,
            masquerade,
            masquerade_ports,
            timeouts,
            announce,
            health,
            ovs: self.ovs.clone(),
            pods,
            metrics: self.metrics.clone(),
        };
        let waiting = waiting.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key);
        (settings, waiting.collect())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Device, Ports, Timeouts};

    #[test]
    fn timeouts_and_ports_are_taken_over_and_sizes_and_devices_wait_for_a_restart() {
        let running = AgentConfig::default();
        let live = AgentConfig {
            timeouts: Timeouts { udp: Duration::from_secs(120), ..Timeouts::default() },
            ports: Ports { from: 2000, to: 3000, ..Ports::default() },
            ..AgentConfig::default()
        };
        let mut new = live.clone();
        new.flows.max = 1;
        new.policies.max = 1;
        new.node.uplink = Device::Named("ens19".into());
        assert_eq!(running.reloaded(new), (live, vec!["node", "flows.max", "policies.max"]));
    }

    #[test]
    fn unchanged_settings_wait_for_nothing() {
        let running = AgentConfig::default();
        assert_eq!(running.reloaded(running.clone()), (running.clone(), vec![]));
    }
}
