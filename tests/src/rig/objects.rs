//! The configuration and the objects that the agent gets in the rig: the examples as they are, since
//! the rig is what they describe.

/// The AgentConfig of the egress node.
pub const AGENT_CONFIG: &str = include_str!("../../../examples/agent.yaml");

/// HostSubnets of both nodes, a NetNamespace for each tenant, the ClusterNetwork.
pub const CLUSTER_OBJECTS: &str = include_str!("../../../examples/objects.yaml");

#[cfg(test)]
mod tests {
    use egress_user::source::files::Input;

    use super::*;
    use crate::rig::topology;

    #[test]
    fn the_examples_describe_the_rig() {
        let mut input = Input::default();
        input.add_text(AGENT_CONFIG, "agent.yaml").expect("a configuration");
        input.add_text(CLUSTER_OBJECTS, "objects.yaml").expect("objects");
        let config = input.config.expect("an AgentConfig");
        let nodes = [topology::source_node(), topology::egress_node()];
        assert_eq!(config.node.name.as_ref(), Some(&nodes[1].name));
        assert_eq!(config.node.ip.map(|ip| ip.address), Some(nodes[1].ip));
        assert_eq!(input.objects.conditions, []);
        for node in nodes {
            let object = &input.objects.host_subnets[&node.name];
            assert_eq!((object.host_ip, object.subnet.to_string()), (node.ip, node.subnet));
        }
        for pod in topology::pods() {
            let object = &input.objects.net_namespaces[&pod.namespace];
            let egress_ips = pod.egress_ip.as_slice();
            assert_eq!((object.vnid, object.egress_ips.as_slice()), (pod.vnid, egress_ips));
        }
    }
}
