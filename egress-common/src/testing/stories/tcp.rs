//! TCP connections, from both sides.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            DROPPED, EGRESS_IP, Gateway, NORMAL, OTHER_EGRESS_IP, OTHER_TENANT, Outcome, POD,
            REMOTE, SERVICE, TENANT, tcp_mapping,
        },
        packet::{DONT_FRAGMENT, Datagram, End, Segment, segment, tcp},
        stories::{same, stories},
    },
    wire::{
        protocol,
        tcp::{ACK, FIN, RST, SYN},
    },
};

stories![
    a_syn_leaves_with_the_egress_ip_and_the_pods_own_port,
    its_answer_goes_back_to_the_pod,
    data_and_urgent_flags_and_dscp_pass_unchanged,
    ip_options_stay_and_the_ports_behind_them_are_translated,
    a_whole_connection_keeps_one_flow,
    a_syn_sent_again_is_the_same_flow,
    a_simultaneous_open_is_one_flow,
    two_tenants_with_the_same_pod_address_get_their_own_addresses,
    a_tenant_without_a_policy_passes,
    a_tenant_whose_egress_ip_is_unusable_is_dropped,
    cluster_service_node_and_multicast_destinations_pass,
    a_source_outside_the_cluster_networks_is_dropped,
    a_stray_ack_is_picked_up_with_its_own_port,
    a_stray_ack_whose_port_is_taken_is_dropped,
    a_stray_ack_below_the_port_range_is_dropped,
    stray_fin_reset_and_syn_ack_are_dropped,
    a_connection_from_outside_is_reset,
    a_segment_from_outside_without_a_flow_is_reset_by_its_own_numbers,
    the_reset_acknowledges_data_syn_and_fin,
    a_segment_with_all_options_from_outside_is_reset,
    a_stray_reset_from_outside_is_not_answered,
    a_reply_from_another_port_or_host_is_not_delivered,
    a_reply_to_another_tenants_address_is_not_delivered,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);

fn a_syn_leaves_with_the_egress_ip_and_the_pods_own_port(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn its_answer_goes_back_to_the_pod(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.remote_sends(&tcp(SERVER, MAPPED, SYN | ACK), &tcp(SERVER, CLIENT, SYN | ACK));
}

fn data_and_urgent_flags_and_dscp_pass_unchanged(gateway: &mut dyn Gateway) {
    let marked = |from, to, flags| Datagram {
        tos: 0xb9,
        fragment: DONT_FRAGMENT,
        ..segment(from, to, Segment { flags, data: b"odd length!", ..Segment::default() })
    };
    gateway.pod_sends(&marked(CLIENT, SERVER, SYN), &marked(MAPPED, SERVER, SYN));
    let odd = ACK | 0x20 | 0x08 | 0xc0;
    gateway.remote_sends(&marked(SERVER, MAPPED, odd), &marked(SERVER, CLIENT, odd));
}

fn ip_options_stay_and_the_ports_behind_them_are_translated(gateway: &mut dyn Gateway) {
    let options = [7, 7, 4, 0, 0, 0, 0, 0];
    let with = |packet: Datagram| packet.options(&options);
    gateway.pod_sends(&with(tcp(CLIENT, SERVER, SYN)), &with(tcp(MAPPED, SERVER, SYN)));
    gateway.remote_sends(&with(tcp(SERVER, MAPPED, ACK)), &with(tcp(SERVER, CLIENT, ACK)));
    let most = [1; 40];
    let with = |packet: Datagram| packet.options(&most);
    gateway.pod_sends(&with(tcp(CLIENT, SERVER, ACK)), &with(tcp(MAPPED, SERVER, ACK)));
}

fn a_whole_connection_keeps_one_flow(gateway: &mut dyn Gateway) {
    for flags in [SYN, ACK, ACK, FIN | ACK, ACK] {
        gateway.pod_sends(&tcp(CLIENT, SERVER, flags), &tcp(MAPPED, SERVER, flags));
        gateway.remote_sends(&tcp(SERVER, MAPPED, flags | ACK), &tcp(SERVER, CLIENT, flags | ACK));
    }
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn a_syn_sent_again_is_the_same_flow(gateway: &mut dyn Gateway) {
    for _ in 0..3 {
        gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    }
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn a_simultaneous_open_is_one_flow(gateway: &mut dyn Gateway) {
    for flags in [SYN, SYN | ACK, ACK] {
        gateway.pod_sends(&tcp(CLIENT, SERVER, flags), &tcp(MAPPED, SERVER, flags));
        gateway.remote_sends(&tcp(SERVER, MAPPED, flags), &tcp(SERVER, CLIENT, flags));
    }
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn two_tenants_with_the_same_pod_address_get_their_own_addresses(gateway: &mut dyn Gateway) {
    let theirs = (OTHER_EGRESS_IP, CLIENT.1);
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    let packet = tcp(CLIENT, SERVER, SYN).bytes();
    let expected = tcp(theirs, SERVER, SYN).ttl(63).bytes();
    same(gateway.leave_pod(OTHER_TENANT, &packet), Outcome::Sent(expected));
    assert_eq!(
        gateway.mappings(),
        [
            tcp_mapping(TENANT, CLIENT, SERVER, MAPPED),
            tcp_mapping(OTHER_TENANT, CLIENT, SERVER, theirs)
        ]
    );
}

fn a_tenant_without_a_policy_passes(gateway: &mut dyn Gateway) {
    let packet = tcp(CLIENT, SERVER, SYN).bytes();
    same(gateway.leave_pod(NORMAL, &packet), Outcome::Passed);
    assert_eq!(gateway.mappings(), []);
}

fn a_tenant_whose_egress_ip_is_unusable_is_dropped(gateway: &mut dyn Gateway) {
    let packet = tcp(CLIENT, SERVER, SYN).bytes();
    same(gateway.leave_pod(DROPPED, &packet), Outcome::Dropped(Reason::PolicyDrop));
    same(gateway.leave_stack(DROPPED, &packet), Outcome::Dropped(Reason::PolicyDrop));
    assert_eq!(gateway.mappings(), []);
}

fn cluster_service_node_and_multicast_destinations_pass(gateway: &mut dyn Gateway) {
    for destination in [[10, 131, 255, 1], SERVICE, [10, 0, 0, 2], [224, 0, 0, 1], [255; 4]] {
        let packet = tcp(CLIENT, (destination, 443), SYN).bytes();
        same(gateway.leave_pod(TENANT, &packet), Outcome::Passed);
        same(gateway.leave_pod(DROPPED, &packet), Outcome::Passed);
    }
    assert_eq!(gateway.mappings(), []);
}

fn a_source_outside_the_cluster_networks_is_dropped(gateway: &mut dyn Gateway) {
    for source in [[10, 127, 255, 255], [10, 132, 0, 0], EGRESS_IP, [0; 4], [127, 0, 0, 1]] {
        gateway.pod_is_refused(&tcp((source, 40001), SERVER, SYN), Reason::ForeignSource);
    }
}

fn a_stray_ack_is_picked_up_with_its_own_port(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, ACK), &tcp(MAPPED, SERVER, ACK));
    gateway.remote_sends(&tcp(SERVER, MAPPED, ACK), &tcp(SERVER, CLIENT, ACK));
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn a_stray_ack_whose_port_is_taken_is_dropped(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    let stray = tcp(([10, 130, 2, 9], CLIENT.1), SERVER, ACK);
    gateway.pod_is_refused(&stray, Reason::NoFlow);
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn a_stray_ack_below_the_port_range_is_dropped(gateway: &mut dyn Gateway) {
    gateway.pod_is_refused(&tcp((POD, 1023), SERVER, ACK), Reason::NoFlow);
}

fn stray_fin_reset_and_syn_ack_are_dropped(gateway: &mut dyn Gateway) {
    for flags in [FIN, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | FIN, 0, 0xff] {
        gateway.pod_is_refused(&tcp(CLIENT, SERVER, flags), Reason::NoFlow);
    }
    assert_eq!(gateway.mappings(), []);
}

/// A reset as RFC 9293, section 3.5.2 wants it, from the egress IP.
fn reset(sequence: u32, acknowledgement: Option<u32>) -> Vec<u8> {
    let flags = if acknowledgement.is_some() { RST | ACK } else { RST };
    let acknowledgement = acknowledgement.unwrap_or(0);
    let numbers = Segment { flags, sequence, acknowledgement, ..Segment::default() };
    let packet = segment(MAPPED, SERVER, numbers);
    Datagram { id: 0, fragment: DONT_FRAGMENT, ..packet }.bytes()
}

fn a_connection_from_outside_is_reset(gateway: &mut dyn Gateway) {
    let numbers = Segment { flags: SYN, sequence: 0xffff_ffff, ..Segment::default() };
    let syn = segment(SERVER, MAPPED, numbers);
    same(gateway.arrive(&syn.bytes()), Outcome::Answered(Reason::Refused, reset(0, Some(0))));
    assert_eq!(gateway.mappings(), []);
}

fn a_segment_from_outside_without_a_flow_is_reset_by_its_own_numbers(gateway: &mut dyn Gateway) {
    let numbers = Segment { flags: ACK, sequence: 7, acknowledgement: 99, ..Segment::default() };
    let stray = segment(SERVER, MAPPED, Segment { data: b"data", ..numbers });
    same(gateway.arrive(&stray.bytes()), Outcome::Answered(Reason::Refused, reset(99, None)));
}

fn the_reset_acknowledges_data_syn_and_fin(gateway: &mut dyn Gateway) {
    let numbers = Segment { flags: SYN | FIN, sequence: 1000, ..Segment::default() };
    let odd = segment(SERVER, MAPPED, Segment { data: b"12345", ..numbers });
    let expected = Outcome::Answered(Reason::Refused, reset(0, Some(1007)));
    same(gateway.arrive(&odd.bytes()), expected);
    // Options of IP are no data.
    let odd = odd.options(&[1; 8]);
    let expected = Outcome::Answered(Reason::Refused, reset(0, Some(1007)));
    same(gateway.arrive(&odd.bytes()), expected);
}

fn a_segment_with_all_options_from_outside_is_reset(gateway: &mut dyn Gateway) {
    let numbers = Segment { flags: ACK, acknowledgement: 5, ..Segment::default() };
    let stray = segment(SERVER, MAPPED, numbers).options(&[1; 40]);
    same(gateway.arrive(&stray.bytes()), Outcome::Answered(Reason::Refused, reset(5, None)));
}

fn a_stray_reset_from_outside_is_not_answered(gateway: &mut dyn Gateway) {
    gateway.remote_is_refused(&tcp(SERVER, MAPPED, RST), Reason::NoFlow);
    gateway.remote_is_refused(&tcp(SERVER, MAPPED, RST | ACK), Reason::NoFlow);
}

fn a_reply_from_another_port_or_host_is_not_delivered(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    for stranger in [(REMOTE, 444), ([203, 0, 113, 8], 443)] {
        let packet = tcp(stranger, MAPPED, SYN | ACK).bytes();
        let found = gateway.arrive(&packet);
        assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    }
}

fn a_reply_to_another_tenants_address_is_not_delivered(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    let packet = tcp(SERVER, (OTHER_EGRESS_IP, MAPPED.1), SYN | ACK);
    let found = gateway.arrive(&packet.bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    assert_eq!(packet.protocol, protocol::TCP);
}
