//! From the settings and a plan to what the source side's maps shall hold. Pure.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use egress_common::{abi::MARKED_ONLY, spread::EgressNodes};

use super::node::Devices;
use crate::{
    config::{Affinity, AgentConfig},
    model::{HostSubnet, Objects},
    plan::{Plan, Policy},
    reconcile::sources::Desired,
};

/// Whose pods are where, and where their packets go. `bridged` are the pods that the bridge knows:
/// where pods without a policy leave unmarked, those of others must not.
pub fn desired(
    config: &AgentConfig,
    devices: &Devices,
    plan: &Plan,
    objects: &Objects,
    bridged: &BTreeMap<Ipv4Addr, u32>,
) -> Desired {
    let tenants: BTreeSet<u32> = plan.policies.iter().map(|policy| policy.vnid).collect();
    let marked_only = bridged
        .iter()
        .filter(|(_, vnid)| config.masquerade && tenants.contains(vnid))
        .map(|(ip, vnid)| (*ip, vnid | MARKED_ONLY));
    let configured = config.pods.iter().filter_map(|pod| Some((pod.ip?, pod.vnid)));
    Desired {
        devices: devices.pods.iter().map(|(link, vnid)| (link.index, *vnid)).collect(),
        pods: marked_only.chain(configured).collect(),
        egress_nodes: egress_nodes(plan, objects, config.affinity),
    }
}

/// Of each VNID that leaves from other nodes: those of all its usable egress IPs, the drained ones
/// apart. A VNID with an egress IP here leaves here.
fn egress_nodes(plan: &Plan, objects: &Objects, affinity: Affinity) -> BTreeMap<u32, EgressNodes> {
    let here: BTreeSet<Ipv4Addr> = plan.addresses.iter().map(|address| address.ip).collect();
    let nodes: BTreeMap<Ipv4Addr, &HostSubnet> = plan
        .assignments
        .iter()
        .filter_map(|assignment| {
            let node = objects.host_subnets.get(&assignment.node)?;
            Some((assignment.egress_ip, node))
        })
        .collect();
    let namespaces = objects.net_namespaces.values();
    let several: BTreeSet<u32> = namespaces
        .filter(|namespace| namespace.egress_ips.len() > 1)
        .map(|namespace| namespace.vnid)
        .collect();
    let mut ways = BTreeMap::new();
    for Policy { vnid, egress_ips, .. } in &plan.policies {
        let hosts: BTreeSet<(Ipv4Addr, bool)> = egress_ips
            .iter()
            .filter_map(|ip| nodes.get(ip))
            .map(|node| (node.host_ip, node.draining))
            .collect();
        if hosts.is_empty() || egress_ips.iter().any(|ip| here.contains(ip)) {
            continue;
        }
        let those = |drained| {
            hosts.iter().filter(move |(_, is)| *is == drained).map(|(node, _)| node.octets())
        };
        let fresh = EgressNodes::of(those(false), affinity == Affinity::Pod, *vnid);
        let keeps = u32::from(several.contains(vnid));
        ways.insert(*vnid, EgressNodes { keeps, ..fresh.and_drained(those(true)) });
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{Facts, Health, Mode, Previous, plan},
        source::files::Input,
    };

    #[test]
    fn a_vnid_goes_to_all_nodes_of_its_usable_egress_ips_unless_it_has_one_here() {
        let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: HostSubnet, metadata: {name: a}, host: a, hostIP: 10.0.0.2, subnet: 10.1.0.0/24, egressIPs: [10.0.0.11]}
- {apiVersion: v1, kind: HostSubnet, metadata: {name: b}, host: b, hostIP: 10.0.0.3, subnet: 10.1.1.0/24, egressIPs: [10.0.0.9]}
- {apiVersion: v1, kind: HostSubnet, metadata: {name: c}, host: c, hostIP: 10.0.0.4, subnet: 10.1.2.0/24}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: n}, netname: n, netid: 7, egressIPs: [10.0.0.11, 10.0.0.9]}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: m}, netname: m, netid: 8, egressIPs: [10.0.0.99]}
";
        let mut input = Input::default();
        input.add_text(text, "test").unwrap();
        let nodes = |node: &str, offline: &[u8]| {
            let offline = offline.iter().map(|number| Ipv4Addr::new(10, 0, 0, *number)).collect();
            let plan = plan(
                &input.objects,
                &Facts::of(node),
                &Health { offline, ..Health::default() },
                &Previous::default(),
                &Mode::default(),
            );
            egress_nodes(&plan, &input.objects, Affinity::Flow)
        };
        let to = |numbers: &[u8]| {
            let nodes = numbers.iter().map(|number| [10, 0, 0, *number]);
            BTreeMap::from([(7, EgressNodes::of(nodes, false, 7))])
        };
        assert_eq!(nodes("c", &[]), to(&[3, 2]));
        assert_eq!(nodes("c", &[2]), to(&[3]));
        assert_eq!(nodes("c", &[2, 3]), BTreeMap::new());
        assert_eq!(nodes("a", &[]), BTreeMap::new());
    }

    #[test]
    fn pods_of_the_bridge_need_their_mark_where_others_leave_without_one() {
        let text = "\
apiVersion: v1
kind: NetNamespace
metadata: {name: n}
netname: n
netid: 7
egressIPs: [10.0.0.11]
";
        let mut input = Input::default();
        input.add_text(text, "test").unwrap();
        let Input { objects, .. } = input;
        let facts = Facts::of("a");
        let plan =
            plan(&objects, &facts, &Health::default(), &Previous::default(), &Mode::default());
        let ip = |last| Ipv4Addr::new(10, 128, 0, last);
        let bridged = BTreeMap::from([(ip(5), 7), (ip(6), 8), (ip(7), 0)]);
        let pods = |masquerade| {
            let mut config = AgentConfig::default();
            config.masquerade = masquerade;
            desired(&config, &Devices::default(), &plan, &objects, &bridged).pods
        };
        assert_eq!(pods(true), BTreeMap::from([(ip(5), 7 | MARKED_ONLY)]));
        assert_eq!(pods(false), BTreeMap::new());
    }
}
