//! ICMP errors, both directions, and the TTL.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, NODE, OTHER_REMOTE, OTHER_TENANT, Outcome, POD, REMOTE, SECOND_POD,
            TENANT, UDP,
        },
        packet::{DONT_FRAGMENT, Datagram, End, Segment, echo, icmp, segment, tcp, udp},
        stories::{same, stories},
    },
    wire::tcp::{ACK, SYN},
};

stories![
    a_routers_error_reaches_the_pod_with_the_packet_it_sent,
    an_error_quoting_eight_bytes_of_tcp_is_corrected,
    an_error_about_an_echo_is_corrected,
    an_error_about_an_exchanged_port_is_corrected,
    an_error_quoting_ip_options_is_corrected,
    an_error_keeps_its_mtu_and_extensions,
    an_error_neither_ends_nor_refreshes_its_flow,
    an_error_about_no_flow_of_ours_is_dropped,
    an_error_to_another_address_than_the_quoted_source_is_dropped,
    an_error_quoting_a_fragment_without_ports_is_dropped,
    a_pods_error_reaches_the_remote_with_the_packet_it_sent,
    a_pods_error_about_no_flow_is_dropped,
    another_tenants_error_about_a_flow_is_dropped,
    another_pods_error_about_a_flow_leaves_with_the_egress_ip,
    a_pods_packet_out_of_hops_is_answered_by_the_node,
    a_reply_out_of_hops_is_answered_by_the_egress_ip,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);
const ROUTER: [u8; 4] = OTHER_REMOTE;

fn open(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.remote_sends(&tcp(SERVER, MAPPED, SYN | ACK), &tcp(SERVER, CLIENT, SYN | ACK));
}

/// An error about `packet` as it looked after some hops, quoting `length` bytes behind its header.
fn error(what: (u8, u8), from: [u8; 4], to: [u8; 4], packet: &Datagram, length: usize) -> Datagram {
    let mut quoted = packet.clone().ttl(3).bytes();
    quoted.truncate(packet.header().len() + length);
    icmp(what, from, to, [0; 4], &quoted)
}

fn a_routers_error_reaches_the_pod_with_the_packet_it_sent(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"who?"), &udp(MAPPED, SERVER, b"who?"));
    for what in [(3, 1), (3, 3), (11, 0), (12, 0), (4, 0)] {
        gateway.remote_sends(
            &error(what, ROUTER, EGRESS_IP, &udp(MAPPED, SERVER, b"who?"), 12),
            &error(what, ROUTER, POD, &udp(CLIENT, SERVER, b"who?"), 12),
        );
    }
}

fn an_error_quoting_eight_bytes_of_tcp_is_corrected(gateway: &mut dyn Gateway) {
    open(gateway);
    for length in [8, 12, 17, 18, 20] {
        gateway.remote_sends(
            &error((3, 1), ROUTER, EGRESS_IP, &tcp(MAPPED, SERVER, ACK), length),
            &error((3, 1), ROUTER, POD, &tcp(CLIENT, SERVER, ACK), length),
        );
    }
}

fn an_error_about_an_echo_is_corrected(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.leave_pod(TENANT, &echo(8, SECOND_POD, REMOTE, 5).bytes());
    let id = gateway.egress_port((SECOND_POD, 5));
    gateway.remote_sends(
        &error((11, 0), ROUTER, EGRESS_IP, &echo(8, EGRESS_IP, REMOTE, id), 8),
        &error((11, 0), ROUTER, SECOND_POD, &echo(8, SECOND_POD, REMOTE, 5), 8),
    );
}

fn an_error_about_an_exchanged_port_is_corrected(gateway: &mut dyn Gateway) {
    open(gateway);
    let second = (SECOND_POD, CLIENT.1);
    gateway.leave_pod(TENANT, &tcp(second, SERVER, SYN).bytes());
    let mapped = (EGRESS_IP, gateway.egress_port(second));
    for length in [8, 20] {
        gateway.remote_sends(
            &error((3, 0), ROUTER, EGRESS_IP, &tcp(mapped, SERVER, ACK), length),
            &error((3, 0), ROUTER, SECOND_POD, &tcp(second, SERVER, ACK), length),
        );
    }
}

fn an_error_quoting_ip_options_is_corrected(gateway: &mut dyn Gateway) {
    open(gateway);
    let with = |packet: Datagram| packet.options(&[1; 40]);
    gateway.remote_sends(
        &with(error((3, 1), ROUTER, EGRESS_IP, &with(tcp(MAPPED, SERVER, ACK)), 20)),
        &with(error((3, 1), ROUTER, POD, &with(tcp(CLIENT, SERVER, ACK)), 20)),
    );
}

fn an_error_keeps_its_mtu_and_extensions(gateway: &mut dyn Gateway) {
    open(gateway);
    let big = |from, to| {
        let data = [7; 600];
        segment(from, to, Segment { flags: ACK, data: &data, ..Segment::default() })
    };
    let error = |to, packet: &Datagram| {
        let packet = Datagram { fragment: DONT_FRAGMENT, ..packet.clone() };
        icmp((3, 4), ROUTER, to, [0, 0, 5, 0], &packet.bytes())
    };
    gateway
        .remote_sends(&error(EGRESS_IP, &big(MAPPED, SERVER)), &error(POD, &big(CLIENT, SERVER)));
}

fn an_error_neither_ends_nor_refreshes_its_flow(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"x"), &udp(MAPPED, SERVER, b"x"));
    gateway.rest(UDP - 100);
    for code in 0..16 {
        gateway.remote_sends(
            &error((3, code), ROUTER, EGRESS_IP, &udp(MAPPED, SERVER, b"x"), 9),
            &error((3, code), ROUTER, POD, &udp(CLIENT, SERVER, b"x"), 9),
        );
    }
    assert_eq!(gateway.mappings().len(), 1);
    gateway.rest(100);
    let found = gateway.arrive(&udp(SERVER, MAPPED, b"y").bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
}

fn an_error_about_no_flow_of_ours_is_dropped(gateway: &mut dyn Gateway) {
    open(gateway);
    for packet in [
        tcp((EGRESS_IP, 40002), SERVER, ACK),
        tcp(MAPPED, (REMOTE, 444), ACK),
        udp(MAPPED, SERVER, b"x"),
        // What the remote sent is not what we sent.
        tcp(SERVER, MAPPED, ACK),
        Datagram::new(47, EGRESS_IP, REMOTE, &[0; 20]),
    ] {
        let error = error((3, 1), ROUTER, EGRESS_IP, &packet, 20);
        gateway.remote_is_refused(&error, Reason::NoFlow);
    }
}

fn an_error_to_another_address_than_the_quoted_source_is_dropped(gateway: &mut dyn Gateway) {
    open(gateway);
    let error = error((3, 1), ROUTER, [10, 0, 0, 13], &tcp(MAPPED, SERVER, ACK), 20);
    gateway.remote_is_refused(&error, Reason::NoFlow);
}

fn an_error_quoting_a_fragment_without_ports_is_dropped(gateway: &mut dyn Gateway) {
    open(gateway);
    let later = tcp(MAPPED, SERVER, ACK).fragment(3);
    let error = error((11, 1), ROUTER, EGRESS_IP, &later, 20);
    gateway.remote_is_refused(&error, Reason::NoFlow);
}

fn a_pods_error_reaches_the_remote_with_the_packet_it_sent(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"who?"), &udp(MAPPED, SERVER, b"who?"));
    gateway.remote_sends(&udp(SERVER, MAPPED, b"me"), &udp(SERVER, CLIENT, b"me"));
    gateway.pod_sends(
        &error((3, 3), POD, REMOTE, &udp(SERVER, CLIENT, b"me"), 10),
        &error((3, 3), EGRESS_IP, REMOTE, &udp(SERVER, MAPPED, b"me"), 10),
    );
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.pod_sends(
        &error((3, 2), POD, REMOTE, &echo(0, REMOTE, POD, 5), 8),
        &error((3, 2), EGRESS_IP, REMOTE, &echo(0, REMOTE, EGRESS_IP, 5), 8),
    );
}

fn a_pods_error_about_no_flow_is_dropped(gateway: &mut dyn Gateway) {
    open(gateway);
    for packet in [tcp(SERVER, (POD, 40002), ACK), tcp((REMOTE, 444), CLIENT, ACK)] {
        gateway.pod_is_refused(&error((3, 3), POD, REMOTE, &packet, 20), Reason::NoFlow);
    }
}

fn another_tenants_error_about_a_flow_is_dropped(gateway: &mut dyn Gateway) {
    open(gateway);
    let error = error((3, 3), POD, REMOTE, &tcp(SERVER, CLIENT, ACK), 20);
    let found = gateway.leave_pod(OTHER_TENANT, &error.bytes());
    same(found, Outcome::Dropped(Reason::NoFlow));
}

fn another_pods_error_about_a_flow_leaves_with_the_egress_ip(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.pod_sends(
        &error((11, 0), SECOND_POD, REMOTE, &tcp(SERVER, CLIENT, ACK), 8),
        &error((11, 0), EGRESS_IP, REMOTE, &tcp(SERVER, MAPPED, ACK), 8),
    );
}

/// A time exceeded about a packet that was dropped here.
fn exceeded(from: [u8; 4], packet: &Datagram) -> Outcome {
    let mut quoted = packet.bytes();
    quoted.truncate(28);
    let error = icmp((11, 0), from, packet.source, [0; 4], &quoted);
    let error = Datagram { id: 0, fragment: DONT_FRAGMENT, ..error };
    Outcome::Answered(Reason::TtlExceeded, error.bytes())
}

fn a_pods_packet_out_of_hops_is_answered_by_the_node(gateway: &mut dyn Gateway) {
    for ttl in [0, 1] {
        let packet = tcp(CLIENT, SERVER, SYN).ttl(ttl);
        same(gateway.leave_pod(TENANT, &packet.bytes()), exceeded(NODE, &packet));
    }
    assert_eq!(gateway.mappings(), []);
}

fn a_reply_out_of_hops_is_answered_by_the_egress_ip(gateway: &mut dyn Gateway) {
    open(gateway);
    let packet = tcp(SERVER, MAPPED, ACK).ttl(1);
    same(gateway.arrive(&packet.bytes()), exceeded(EGRESS_IP, &packet));
}
