//! Beside a node's own source NAT, while it is taken over or handed back; and in the shadow.
use crate::{
    abi::phase,
    reason::Reason,
    testing::{
        gateway::{
            DROPPED, EGRESS_IP, Gateway, NODE, OTHER_REMOTE, Outcome, POD, REMOTE, SECOND_POD,
            TENANT, tcp_mapping,
        },
        packet::{Datagram, End, echo, icmp, tcp, udp},
        stories::{same, stories},
    },
    wire::tcp::{ACK, FIN, SYN},
};

stories![
    beside_the_node_a_flow_goes_on_and_all_else_is_the_nodes,
    beside_the_node_fragments_are_the_nodes_even_of_a_flow,
    beside_the_node_what_must_not_leave_does_not,
    while_held_nothing_begins_and_what_runs_goes_on,
    a_hold_that_nobody_ends_ends_by_itself,
    the_shadow_makes_flows_and_changes_nothing,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);
/// Of another pod: no flow of ours.
const STRANGER: End = (SECOND_POD, 40002);
const STRANGERS: End = (EGRESS_IP, 40002);
/// Later than any test.
const LATER: u32 = 0x7000_0000;

fn set(gateway: &mut dyn Gateway, phase: u8, hold_until: u32) {
    gateway.configure(&|config| {
        config.phase = phase;
        config.hold_until = hold_until;
    });
}

fn open(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.remote_sends(&tcp(SERVER, MAPPED, SYN | ACK), &tcp(SERVER, CLIENT, SYN | ACK));
}

#[track_caller]
fn goes_on(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, ACK), &tcp(MAPPED, SERVER, ACK));
    gateway.remote_sends(&tcp(SERVER, MAPPED, ACK), &tcp(SERVER, CLIENT, ACK));
}

#[track_caller]
fn pod_is_left(gateway: &mut dyn Gateway, packet: &Datagram) {
    same(gateway.leave_pod(TENANT, &packet.bytes()), Outcome::Passed);
}

#[track_caller]
fn remote_is_left(gateway: &mut dyn Gateway, packet: &Datagram) {
    same(gateway.arrive(&packet.bytes()), Outcome::Passed);
}

/// An error about the stranger's packet, which the node may have translated.
fn error() -> Datagram {
    let quoted = tcp(STRANGERS, SERVER, SYN).bytes();
    icmp((3, 1), OTHER_REMOTE, EGRESS_IP, [0; 4], &quoted)
}

fn beside_the_node_a_flow_goes_on_and_all_else_is_the_nodes(gateway: &mut dyn Gateway) {
    open(gateway);
    set(gateway, phase::BESIDE, 0);
    goes_on(gateway);
    for flags in [SYN, ACK, SYN | ACK, FIN | ACK] {
        pod_is_left(gateway, &tcp(STRANGER, SERVER, flags));
        remote_is_left(gateway, &tcp(SERVER, STRANGERS, flags));
    }
    pod_is_left(gateway, &udp(STRANGER, SERVER, b"x"));
    remote_is_left(gateway, &udp(SERVER, STRANGERS, b"x"));
    for kind in [0, 8] {
        pod_is_left(gateway, &echo(kind, SECOND_POD, REMOTE, 7));
        remote_is_left(gateway, &echo(kind, REMOTE, EGRESS_IP, 7));
    }
    remote_is_left(gateway, &error());
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn beside_the_node_fragments_are_the_nodes_even_of_a_flow(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"x"), &udp(MAPPED, SERVER, b"x"));
    set(gateway, phase::BESIDE, 0);
    for fragment in udp(CLIENT, SERVER, &[1; 100]).fragments(40) {
        pod_is_left(gateway, &fragment);
    }
    for fragment in udp(SERVER, MAPPED, &[1; 100]).fragments(40) {
        remote_is_left(gateway, &fragment);
    }
}

fn beside_the_node_what_must_not_leave_does_not(gateway: &mut dyn Gateway) {
    set(gateway, phase::BESIDE, 0);
    let refused = gateway.leave_pod(DROPPED, &tcp(CLIENT, SERVER, SYN).bytes());
    same(refused, Outcome::Dropped(Reason::PolicyDrop));
    // What the node's own rule has translated leaves; what it has not, or to its own address, stays.
    let mut leave = |from: End| gateway.leave_stack(TENANT, &tcp(from, SERVER, SYN).bytes());
    same(leave(MAPPED), Outcome::Passed);
    same(leave(CLIENT), Outcome::Dropped(Reason::Untranslated));
    same(leave((NODE, 40001)), Outcome::Dropped(Reason::Untranslated));
}

fn while_held_nothing_begins_and_what_runs_goes_on(gateway: &mut dyn Gateway) {
    open(gateway);
    set(gateway, phase::HOLD, LATER);
    goes_on(gateway);
    gateway.pod_is_refused(&tcp(STRANGER, SERVER, SYN), Reason::Held);
    gateway.pod_is_refused(&udp(STRANGER, SERVER, b"x"), Reason::Held);
    gateway.pod_is_refused(&echo(8, SECOND_POD, REMOTE, 7), Reason::Held);
    // A stream that the node has, or may pick up, and all that is answered to it.
    pod_is_left(gateway, &tcp(STRANGER, SERVER, ACK));
    remote_is_left(gateway, &tcp(SERVER, STRANGERS, SYN | ACK));
    remote_is_left(gateway, &udp(SERVER, STRANGERS, b"x"));
    set(gateway, phase::OWN, 0);
    gateway.pod_sends(&tcp(STRANGER, SERVER, SYN), &tcp(STRANGERS, SERVER, SYN));
}

fn a_hold_that_nobody_ends_ends_by_itself(gateway: &mut dyn Gateway) {
    set(gateway, phase::HOLD, 0);
    pod_is_left(gateway, &tcp(STRANGER, SERVER, SYN));
    assert_eq!(gateway.mappings(), []);
}

fn the_shadow_makes_flows_and_changes_nothing(gateway: &mut dyn Gateway) {
    set(gateway, phase::SHADOW, 0);
    pod_is_left(gateway, &tcp(CLIENT, SERVER, SYN));
    remote_is_left(gateway, &tcp(SERVER, MAPPED, SYN | ACK));
    // Each of these would be dropped, refused or answered.
    pod_is_left(gateway, &tcp(STRANGER, SERVER, FIN));
    pod_is_left(gateway, &tcp(CLIENT, SERVER, ACK).ttl(1));
    remote_is_left(gateway, &tcp(SERVER, STRANGERS, SYN));
    same(gateway.leave_pod(DROPPED, &tcp(CLIENT, SERVER, SYN).bytes()), Outcome::Passed);
    let untranslated = tcp(CLIENT, SERVER, SYN).bytes();
    same(gateway.leave_stack(TENANT, &untranslated), Outcome::Passed);
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}
