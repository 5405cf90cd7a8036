//! A big cluster: what comes out, and how long it takes (printed, with `--nocapture`).
use std::{net::Ipv4Addr, time::Instant};

use egress_common::mark::Layout;
use egress_user::{
    model::{HostSubnet, Mapping, NetNamespace, Object, Objects},
    plan::{Action, Facts, Health, Mode, Previous, plan},
};

const NODES: u32 = 500;
const NAMESPACES: u32 = 10_000;
const EGRESS_IPS: u32 = 5_000;

fn egress_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + number)
}

/// Every other namespace asks for one egress IP; each node lists ten.
fn objects() -> Objects {
    let mut objects = Objects::default();
    for node in 0..NODES {
        objects.insert(Object::HostSubnet(HostSubnet {
            name: format!("node-{node:03}"),
            host_ip: Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + node),
            subnet: "10.128.0.0/23".parse().unwrap(),
            egress_ips: (0..EGRESS_IPS / NODES).map(|n| egress_ip(n * NODES + node)).collect(),
            egress_cidrs: Vec::new(),
            draining: false,
        }));
    }
    for number in 0..NAMESPACES {
        let egress_ips = if number % 2 == 0 { vec![egress_ip(number / 2)] } else { Vec::new() };
        objects.insert(Object::NetNamespace(NetNamespace {
            name: format!("namespace-{number:05}"),
            vnid: number + 1,
            egress_ips,
            unparsable: Vec::new(),
            mapping: Mapping::default(),
            bad_mapping: None,
        }));
    }
    objects
}

#[test]
fn ten_thousand_namespaces_are_planned_whole() {
    let objects = objects();
    for layout in [Layout::Old, Layout::New] {
        let (facts, mode) = (Facts::of("node-007"), Mode { layout, ..Mode::default() });
        let since = Instant::now();
        let plan = plan(&objects, &facts, &Health::default(), &Previous::default(), &mode);
        println!("{layout:?}: {NAMESPACES} namespaces planned in {:?}", since.elapsed());
        let ips = EGRESS_IPS as usize;
        assert_eq!(
            (plan.policies.len(), plan.flows.len(), plan.assignments.len()),
            (ips, ips, ips)
        );
        assert_eq!((plan.addresses.len(), plan.conditions.len()), (10, 0));
        assert!(plan.policies.iter().all(|policy| policy.action == Action::Snat));
    }
}
