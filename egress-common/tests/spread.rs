//! Over which egress nodes a tenant's flows are spread, and what moves when a node goes or comes.
use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
};

use egress_common::{
    spread::{EgressNodes, FlowKey, MAX_EGRESS_NODES, Way, Ways},
    wire::{Packet, protocol, tcp},
};

const POD: [u8; 4] = [10, 130, 0, 7];
const REMOTE: [u8; 4] = [198, 51, 100, 10];
const FLOWS: u16 = 10_000;

/// The beginning of an IPv4 packet.
#[derive(Clone, Copy)]
struct Bytes([u8; 34]);

/// Ways that nobody forgets.
#[derive(Default)]
struct Table(RefCell<HashMap<FlowKey, Way>>);

impl Ways for Table {
    fn way(&self, flow: &FlowKey) -> Option<Way> {
        self.0.borrow().get(flow).copied()
    }

    fn keep(&self, flow: &FlowKey, way: Way) {
        self.0.borrow_mut().insert(*flow, way);
    }
}

/// By the hash alone.
fn hashed(nodes: &EgressNodes, packet: &impl Packet) -> Option<[u8; 4]> {
    nodes.node_for(packet, &Table::default(), 0)
}

impl Packet for Bytes {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset + N)?.try_into().ok()
    }

    fn length(&self) -> u64 {
        self.0.len() as u64
    }
}

/// `fragment`: flags and offset as they stand in the header.
fn packet(number: u8, pod: [u8; 4], ports: [u16; 2], fragment: u16) -> Bytes {
    let mut bytes = [0; 34];
    (bytes[0], bytes[3], bytes[9]) = (0x45, 34, number);
    bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    bytes[12..16].copy_from_slice(&pod);
    bytes[16..20].copy_from_slice(&REMOTE);
    bytes[20..22].copy_from_slice(&ports[0].to_be_bytes());
    bytes[22..24].copy_from_slice(&ports[1].to_be_bytes());
    Bytes(bytes)
}

fn node(number: u8) -> [u8; 4] {
    [10, 0, 0, number]
}

fn spread_over(numbers: &[u8]) -> EgressNodes {
    EgressNodes::of(numbers.iter().copied().map(node), false, 0)
}

/// Where TCP flows of one pod to one server go, by the pod's port.
fn ways(nodes: &EgressNodes) -> Vec<[u8; 4]> {
    let flow = |port| hashed(nodes, &packet(protocol::TCP, POD, [port, 443], 0));
    (0..FLOWS).filter_map(flow).collect()
}

#[test]
fn each_node_gets_its_share_of_the_flows() {
    for count in 1..=MAX_EGRESS_NODES {
        let numbers: Vec<u8> = (1..=count as u8).collect();
        let mut shares = BTreeMap::new();
        for way in ways(&spread_over(&numbers)) {
            *shares.entry(way).or_insert(0) += 1;
        }
        let fair = usize::from(FLOWS) / count;
        assert_eq!(shares.len(), count);
        assert!(shares.values().all(|share| share * 5 > fair * 4 && share * 5 < fair * 6));
    }
}

#[test]
fn a_node_that_goes_gives_up_its_own_flows_and_no_others() {
    let all = ways(&spread_over(&[2, 3, 4]));
    // In whatever order they are listed.
    let fewer = ways(&spread_over(&[4, 2]));
    let mut moved = 0;
    for (before, after) in all.iter().zip(&fewer) {
        assert!(before == after || *before == node(3), "{before:?} to {after:?}");
        moved += usize::from(before != after);
    }
    assert!(moved > 0);
    assert_eq!(ways(&spread_over(&[3, 4, 2])), all, "it came back");
}

#[test]
fn without_a_node_there_is_no_way() {
    assert_eq!(ways(&spread_over(&[])), [[0; 4]; 0]);
    assert_eq!(ways(&spread_over(&[9])), vec![node(9); FLOWS.into()]);
}

/// Small datagrams, the fragments of big ones, and the ICMP errors that answer either.
#[test]
fn what_is_not_tcp_goes_by_its_addresses() {
    let nodes = spread_over(&[2, 3, 4, 5]);
    let way = |number, ports, fragment| hashed(&nodes, &packet(number, POD, ports, fragment));
    let whole = way(protocol::UDP, [5000, 53], 0);
    for other in [
        way(protocol::UDP, [5000, 53], 0x2000),
        way(protocol::UDP, [0xdead, 0xbeef], 185),
        way(protocol::UDP, [5001, 53], 0),
        way(protocol::ICMP, [0x0303, 0], 0),
        way(protocol::TCP, [5000, 53], 0x2000),
        way(protocol::TCP, [0xdead, 0xbeef], 185),
    ] {
        assert_eq!(other, whole);
    }
}

#[test]
fn by_pod_all_of_a_pods_packets_go_to_one_node() {
    let nodes = EgressNodes::of([2, 3, 4].map(node), true, 0);
    let way = |pod, port| hashed(&nodes, &packet(protocol::TCP, pod, [port, 443], 0));
    assert!((0..FLOWS).all(|port| way(POD, port) == way(POD, 0)));
    let pods: Vec<_> = (0..100).map(|pod| way([10, 130, 1, pod], 1)).collect();
    assert!([2, 3, 4].iter().all(|number| pods.contains(&Some(node(*number)))));
}

/// Of more nodes than there is room for, one tenant uses these and another those.
#[test]
fn what_finds_no_room_is_left_out_and_each_tenant_leaves_out_others() {
    let many = || (1..=40).map(node);
    let entry = |vnid| EgressNodes::of(many(), false, vnid);
    let backwards = EgressNodes::of((1..=40).rev().map(node), false, 7);
    assert_eq!(entry(7).nodes, backwards.nodes, "the order of the list does not count");
    assert!(entry(7).nodes.iter().all(|node| *node != [0; 4]));
    assert_ne!(entry(7).nodes, entry(8).nodes);
}

#[test]
fn a_packet_cut_short_has_no_way() {
    struct Short;
    impl Packet for Short {
        fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
            packet(protocol::TCP, POD, [1, 2], 0)
                .0
                .get(offset..offset + N)?
                .try_into()
                .ok()
                .filter(|_| offset < 20)
        }
        fn length(&self) -> u64 {
            20
        }
    }
    assert_eq!(hashed(&spread_over(&[2, 3]), &Short), None);
}

fn segment(port: u16, flags: u8) -> Bytes {
    let mut segment = packet(protocol::TCP, POD, [port, 443], 0);
    segment.0[33] = flags;
    segment
}

#[test]
fn a_connection_stays_when_a_node_comes_and_a_new_one_of_its_ports_need_not() {
    let ways = Table::default();
    let (few, all) = (spread_over(&[2, 3]), spread_over(&[2, 3, 4]));
    let go = |nodes: &EgressNodes, port, flags| nodes.node_for(&segment(port, flags), &ways, 0);
    let before: Vec<_> = (0..FLOWS).map(|port| go(&few, port, tcp::SYN)).collect();
    let after: Vec<_> = (0..FLOWS).map(|port| go(&all, port, tcp::ACK)).collect();
    assert_eq!(before, after);
    let again: Vec<_> = (0..FLOWS).map(|port| go(&all, port, tcp::SYN)).collect();
    assert!(again.contains(&Some(node(4))));
    let rest: Vec<_> = (0..FLOWS).map(|port| go(&all, port, tcp::ACK)).collect();
    assert_eq!(again, rest);
}

#[test]
fn of_a_tenant_with_one_egress_ip_nothing_is_kept() {
    let ways = Table::default();
    let alone = EgressNodes { keeps: 0, ..spread_over(&[2]) };
    assert_eq!(alone.node_for(&segment(1, tcp::SYN), &ways, 0), Some(node(2)));
    assert!(ways.0.borrow().is_empty());
}

#[test]
fn a_drained_node_keeps_what_it_has_and_gets_nothing_new() {
    let ways = Table::default();
    let all = spread_over(&[2, 3]);
    let drained = EgressNodes::of([node(2)], false, 0).and_drained([node(3)]);
    let go = |nodes: &EgressNodes, port, flags| nodes.node_for(&segment(port, flags), &ways, 0);
    let before: Vec<_> = (0..FLOWS).map(|port| go(&all, port, tcp::SYN)).collect();
    assert!(before.contains(&Some(node(3))));
    assert_eq!((0..FLOWS).map(|port| go(&drained, port, 0)).collect::<Vec<_>>(), before);
    let new = |port| go(&drained, port, tcp::SYN) == Some(node(2));
    assert!((0..FLOWS).all(new));
    // One that the table has forgotten may be of either.
    assert_eq!(hashed(&drained, &segment(1, tcp::ACK)), hashed(&all, &segment(1, tcp::ACK)));
    let alone = spread_over(&[]).and_drained([node(2), node(3)]);
    assert_eq!(self::ways(&alone), self::ways(&all), "all that there are");
}

#[test]
fn a_way_whose_node_is_gone_is_chosen_again_and_kept() {
    let ways = Table::default();
    let go = |nodes: &[u8], port| spread_over(nodes).node_for(&segment(port, tcp::ACK), &ways, 0);
    let port = (0..FLOWS).find(|port| go(&[2, 3], *port) == Some(node(3))).unwrap();
    assert_eq!(go(&[2, 4], port).filter(|way| *way != node(3)), go(&[2, 4], port));
    assert_eq!(go(&[2, 3, 4], port), go(&[2, 4], port), "the return is quiet");
}

#[test]
fn what_has_no_beginning_may_move_after_five_quiet_minutes() {
    const MINUTES_5: u32 = 2235;
    let ways = Table::default();
    let datagram = packet(protocol::UDP, POD, [5000, 53], 0);
    let go = |nodes: &[u8], now| spread_over(nodes).node_for(&datagram, &ways, now);
    let kept = go(&[2], 10);
    assert_eq!(kept, Some(node(2)));
    let others: Vec<u8> = (2..16).collect();
    assert_eq!(go(&others, 10 + MINUTES_5 - 1), kept);
    assert_eq!(go(&others, 10 + 2 * MINUTES_5 - 2), kept, "it was not quiet");
    let fresh = hashed(&spread_over(&others), &datagram);
    assert_ne!(fresh, kept, "the test needs another node");
    assert_eq!(go(&others, 10 + 3 * MINUTES_5), fresh);
}
