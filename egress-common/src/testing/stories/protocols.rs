//! Protocols without ports for us: only the address is translated.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, Mapping, OTHER_EGRESS_IP, OTHER_REMOTE, OTHER_TENANT, Outcome, POD,
            REMOTE, SECOND_POD, TENANT, UDP,
        },
        packet::{Datagram, icmp, udp_like},
        stories::{same, stories},
    },
    wire::protocol::{DCCP, UDP_LITE},
};

stories![
    sctp_gre_and_esp_cross_with_nothing_but_their_address_changed,
    udp_lite_and_dccp_have_their_checksum_corrected,
    a_second_pod_with_the_same_protocol_and_remote_is_refused,
    the_protocol_is_free_towards_another_remote_and_for_another_tenant,
    an_expired_holder_makes_way,
    an_error_about_a_packet_without_ports_is_corrected,
    what_was_not_asked_for_is_answered_by_protocol_unreachable,
    a_protocol_header_cut_short_is_dropped,
];

const SCTP: u8 = 132;
const GRE: u8 = 47;
const ESP: u8 = 50;

fn plain(of_protocol: u8, from: [u8; 4], to: [u8; 4]) -> Datagram {
    Datagram::new(of_protocol, from, to, &[0x13; 21])
}

fn sctp_gre_and_esp_cross_with_nothing_but_their_address_changed(gateway: &mut dyn Gateway) {
    for of_protocol in [SCTP, GRE, ESP, 41, 255] {
        let plain = |from, to| plain(of_protocol, from, to);
        gateway.pod_sends(&plain(POD, REMOTE), &plain(EGRESS_IP, REMOTE));
        gateway.remote_sends(&plain(REMOTE, EGRESS_IP), &plain(REMOTE, POD));
    }
    let flow = Mapping {
        vnid: TENANT,
        protocol: 41,
        pod: (POD, 0),
        remote: (REMOTE, 0),
        egress: (EGRESS_IP, 0),
    };
    assert_eq!(gateway.mappings().len(), 5);
    assert_eq!(gateway.mappings()[0], flow);
}

fn udp_lite_and_dccp_have_their_checksum_corrected(gateway: &mut dyn Gateway) {
    for of_protocol in [UDP_LITE, DCCP] {
        let packet = |from, to| udp_like(of_protocol, 0, (from, 7), (to, 9), b"some data");
        gateway.pod_sends(&packet(POD, REMOTE), &packet(EGRESS_IP, REMOTE));
        let packet = |from, to| udp_like(of_protocol, 0, (from, 9), (to, 7), b"an answer");
        gateway.remote_sends(&packet(REMOTE, EGRESS_IP), &packet(REMOTE, POD));
    }
}

fn a_second_pod_with_the_same_protocol_and_remote_is_refused(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&plain(GRE, POD, REMOTE), &plain(GRE, EGRESS_IP, REMOTE));
    let second = plain(GRE, SECOND_POD, REMOTE);
    gateway.pod_is_prohibited(&second, Reason::ProtocolTaken);
    gateway.remote_sends(&plain(GRE, REMOTE, EGRESS_IP), &plain(GRE, REMOTE, POD));
    assert_eq!(gateway.mappings().len(), 1);
}

fn the_protocol_is_free_towards_another_remote_and_for_another_tenant(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&plain(GRE, POD, REMOTE), &plain(GRE, EGRESS_IP, REMOTE));
    gateway.pod_sends(&plain(GRE, SECOND_POD, OTHER_REMOTE), &plain(GRE, EGRESS_IP, OTHER_REMOTE));
    let found = gateway.leave_pod(OTHER_TENANT, &plain(GRE, POD, REMOTE).bytes());
    same(found, Outcome::Sent(plain(GRE, OTHER_EGRESS_IP, REMOTE).ttl(63).bytes()));
}

fn an_expired_holder_makes_way(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&plain(GRE, POD, REMOTE), &plain(GRE, EGRESS_IP, REMOTE));
    gateway.rest(UDP);
    gateway.pod_sends(&plain(GRE, SECOND_POD, REMOTE), &plain(GRE, EGRESS_IP, REMOTE));
    gateway.remote_sends(&plain(GRE, REMOTE, EGRESS_IP), &plain(GRE, REMOTE, SECOND_POD));
    assert_eq!(gateway.mappings().len(), 1);
}

fn an_error_about_a_packet_without_ports_is_corrected(gateway: &mut dyn Gateway) {
    let summed = |from, to| udp_like(DCCP, 0, (from, 7), (to, 9), b"some data");
    gateway.pod_sends(&plain(SCTP, POD, REMOTE), &plain(SCTP, EGRESS_IP, REMOTE));
    gateway.pod_sends(&summed(POD, REMOTE), &summed(EGRESS_IP, REMOTE));
    let error = |to, about: Datagram| {
        let mut quoted = about.bytes();
        quoted.truncate(28);
        icmp((3, 2), OTHER_REMOTE, to, [0; 4], &quoted)
    };
    gateway.remote_sends(
        &error(EGRESS_IP, plain(SCTP, EGRESS_IP, REMOTE)),
        &error(POD, plain(SCTP, POD, REMOTE)),
    );
    gateway.remote_sends(
        &error(EGRESS_IP, summed(EGRESS_IP, REMOTE)),
        &error(POD, summed(POD, REMOTE)),
    );
}

fn what_was_not_asked_for_is_answered_by_protocol_unreachable(gateway: &mut dyn Gateway) {
    let packet = plain(SCTP, REMOTE, EGRESS_IP);
    let mut quoted = packet.bytes();
    quoted.truncate(28);
    let error = icmp((3, 2), EGRESS_IP, REMOTE, [0; 4], &quoted);
    let error = Datagram { id: 0, fragment: 0x4000, ..error };
    same(gateway.arrive(&packet.bytes()), Outcome::Answered(Reason::Refused, error.bytes()));
}

fn a_protocol_header_cut_short_is_dropped(gateway: &mut dyn Gateway) {
    let mut packet = udp_like(UDP_LITE, 0, (POD, 7), (REMOTE, 9), b"");
    packet.payload.truncate(7);
    gateway.pod_is_refused(&packet, Reason::Malformed);
}
