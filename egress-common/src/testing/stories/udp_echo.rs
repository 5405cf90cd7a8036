//! UDP and ICMP echo, and what is neither.
use crate::{
    reason::Reason,
    testing::{
        gateway::{EGRESS_IP, Gateway, Mapping, NODE, Outcome, POD, REMOTE, TENANT},
        packet::{Datagram, End, echo, icmp, udp, udp_unchecked},
        stories::{same, stories},
    },
    wire::protocol,
};

stories![
    a_datagram_and_its_answer_cross,
    a_udp_checksum_of_none_stays_none,
    a_udp_checksum_never_becomes_none,
    an_echo_and_its_answer_cross_with_their_identifier,
    a_datagram_from_outside_is_answered_by_port_unreachable,
    an_echo_from_outside_is_answered_by_unreachable_never_delivered,
    an_echo_reply_of_a_pod_without_a_flow_is_dropped,
    an_echo_reply_from_outside_without_a_flow_is_dropped,
    other_icmp_queries_do_not_cross,
    what_is_for_the_node_or_a_stranger_passes,
];

const CLIENT: End = (POD, 5353);
const MAPPED: End = (EGRESS_IP, 5353);
const SERVER: End = (REMOTE, 53);

fn a_datagram_and_its_answer_cross(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"who?"), &udp(MAPPED, SERVER, b"who?"));
    gateway.remote_sends(&udp(SERVER, MAPPED, b"me"), &udp(SERVER, CLIENT, b"me"));
    gateway.remote_sends(&udp(SERVER, MAPPED, b""), &udp(SERVER, CLIENT, b""));
    let flow = Mapping {
        vnid: TENANT,
        protocol: protocol::UDP,
        pod: CLIENT,
        remote: SERVER,
        egress: MAPPED,
    };
    assert_eq!(gateway.mappings(), [flow]);
}

fn a_udp_checksum_of_none_stays_none(gateway: &mut dyn Gateway) {
    let unchecked = udp_unchecked;
    gateway.pod_sends(&unchecked(CLIENT, SERVER, b"x"), &unchecked(MAPPED, SERVER, b"x"));
    gateway.remote_sends(&unchecked(SERVER, MAPPED, b"y"), &unchecked(SERVER, CLIENT, b"y"));
}

fn a_udp_checksum_never_becomes_none(gateway: &mut dyn Gateway) {
    // The payload whose datagram, translated, sums up to zero.
    let zero = (0..=u16::MAX).map(u16::to_be_bytes).find(|data| {
        let plain = udp_unchecked(MAPPED, SERVER, data).payload;
        udp(MAPPED, SERVER, data).payload[6..8] == [0xff, 0xff] && plain[6..8] == [0, 0]
    });
    let data = zero.expect("one of all words makes the sum zero");
    gateway.pod_sends(&udp(CLIENT, SERVER, &data), &udp(MAPPED, SERVER, &data));
}

fn an_echo_and_its_answer_cross_with_their_identifier(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.remote_sends(&echo(0, REMOTE, EGRESS_IP, 5), &echo(0, REMOTE, POD, 5));
    let flow = Mapping {
        vnid: TENANT,
        protocol: protocol::ICMP,
        pod: (POD, 5),
        remote: (REMOTE, 0),
        egress: (EGRESS_IP, 5),
    };
    assert_eq!(gateway.mappings(), [flow]);
}

/// An ICMP error from the egress IP about a packet from outside.
fn unreachable(code: u8, about: &Datagram) -> Vec<u8> {
    let mut quoted = Datagram { options: Vec::new(), ..about.clone() };
    // The quotation leaves the options out, but says the length that was.
    let total = about.bytes().len() as u16;
    quoted.payload.truncate(8);
    let mut bytes = quoted.header();
    bytes[2..4].copy_from_slice(&total.to_be_bytes());
    bytes[10..12].fill(0);
    let checksum = crate::testing::packet::checksum(&bytes);
    bytes[10..12].copy_from_slice(&checksum);
    bytes.extend(&quoted.payload);
    let error = icmp((3, code), about.destination, about.source, [0; 4], &bytes);
    Datagram { id: 0, fragment: 0x4000, ..error }.bytes()
}

fn a_datagram_from_outside_is_answered_by_port_unreachable(gateway: &mut dyn Gateway) {
    for datagram in [udp(SERVER, MAPPED, b"hello"), udp(SERVER, MAPPED, b"hello").options(&[1; 4])]
    {
        let expected = Outcome::Answered(Reason::Refused, unreachable(3, &datagram));
        same(gateway.arrive(&datagram.bytes()), expected);
    }
    assert_eq!(gateway.mappings(), []);
}

fn an_echo_from_outside_is_answered_by_unreachable_never_delivered(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    let request = echo(8, REMOTE, EGRESS_IP, 5);
    let expected = Outcome::Answered(Reason::Refused, unreachable(3, &request));
    same(gateway.arrive(&request.bytes()), expected);
}

fn an_echo_reply_of_a_pod_without_a_flow_is_dropped(gateway: &mut dyn Gateway) {
    gateway.pod_is_refused(&echo(0, POD, REMOTE, 5), Reason::NoFlow);
}

fn an_echo_reply_from_outside_without_a_flow_is_dropped(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.remote_is_refused(&echo(0, REMOTE, EGRESS_IP, 6), Reason::NoFlow);
}

fn other_icmp_queries_do_not_cross(gateway: &mut dyn Gateway) {
    for kind in [13, 15, 17, 5, 9, 10] {
        let outwards = icmp((kind, 0), POD, REMOTE, [0, 5, 0, 1], &[0; 12]);
        gateway.pod_is_refused(&outwards, Reason::Protocol);
        let inwards = icmp((kind, 0), REMOTE, EGRESS_IP, [0, 5, 0, 1], &[0; 12]);
        gateway.remote_is_refused(&inwards, Reason::NoFlow);
    }
}

fn what_is_for_the_node_or_a_stranger_passes(gateway: &mut dyn Gateway) {
    for destination in [NODE, [10, 0, 0, 99]] {
        for packet in [
            udp(SERVER, (destination, 53), b"x"),
            echo(8, REMOTE, destination, 1),
            icmp((3, 1), REMOTE, destination, [0; 4], &udp(MAPPED, SERVER, b"x").bytes()),
            Datagram::new(132, REMOTE, destination, &[0; 12]),
            udp(SERVER, (destination, 53), b"x").fragment(0x2000),
        ] {
            same(gateway.arrive(&packet.bytes()), Outcome::Passed);
        }
    }
}
