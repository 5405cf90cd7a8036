//! What must never leave, and packets that are none.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, NODE, NORMAL, OTHER_EGRESS_IP, Outcome, POD, REMOTE, TENANT,
        },
        packet::{Datagram, End, echo, tcp, udp},
        stories::{same, stories},
    },
    wire::tcp::{ACK, SYN},
};

stories![
    a_marked_packet_behind_the_stack_is_translated_without_another_hop,
    a_packet_that_carries_its_tenants_address_already_passes,
    the_nodes_and_another_tenants_address_are_stopped,
    a_tenant_without_a_policy_leaves_as_it_is,
    a_marked_packet_to_the_cluster_passes,
    headers_cut_short_are_dropped,
    lengths_that_contradict_are_dropped,
    a_header_whose_checksum_is_wrong_is_not_translated,
    headers_from_outside_cut_short_are_not_answered,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);

fn a_marked_packet_behind_the_stack_is_translated_without_another_hop(gateway: &mut dyn Gateway) {
    let (packet, expected) = (tcp(CLIENT, SERVER, SYN), tcp(MAPPED, SERVER, SYN));
    same(gateway.leave_stack(TENANT, &packet.bytes()), Outcome::Sent(expected.bytes()));
    let (packet, expected) = (packet.ttl(1), expected.ttl(1));
    same(gateway.leave_stack(TENANT, &packet.bytes()), Outcome::Sent(expected.bytes()));
    assert_eq!(gateway.mappings().len(), 1);
}

fn a_packet_that_carries_its_tenants_address_already_passes(gateway: &mut dyn Gateway) {
    let packet = tcp(MAPPED, SERVER, SYN).bytes();
    same(gateway.leave_stack(TENANT, &packet), Outcome::Passed);
}

fn the_nodes_and_another_tenants_address_are_stopped(gateway: &mut dyn Gateway) {
    for source in [NODE, OTHER_EGRESS_IP, [192, 0, 2, 1]] {
        let packet = tcp((source, 40001), SERVER, SYN).bytes();
        same(gateway.leave_stack(TENANT, &packet), Outcome::Dropped(Reason::Untranslated));
    }
}

fn a_tenant_without_a_policy_leaves_as_it_is(gateway: &mut dyn Gateway) {
    let packet = tcp(CLIENT, SERVER, SYN).bytes();
    same(gateway.leave_stack(NORMAL, &packet), Outcome::Passed);
}

fn a_marked_packet_to_the_cluster_passes(gateway: &mut dyn Gateway) {
    let packet = tcp(CLIENT, ([10, 130, 0, 1], 443), SYN).bytes();
    same(gateway.leave_stack(TENANT, &packet), Outcome::Passed);
}

fn headers_cut_short_are_dropped(gateway: &mut dyn Gateway) {
    for (packet, needed) in [
        (tcp(CLIENT, SERVER, SYN), 40),
        (udp(CLIENT, SERVER, b""), 28),
        (echo(8, POD, REMOTE, 5), 28),
        (tcp(CLIENT, SERVER, SYN).options(&[1; 12]), 52),
    ] {
        for length in 20..needed {
            let mut bytes = packet.bytes();
            bytes.truncate(length);
            let found = gateway.leave_pod(TENANT, &bytes);
            assert_eq!(found, Outcome::Dropped(Reason::Malformed), "{length} bytes of {packet:?}");
        }
    }
    assert_eq!(gateway.mappings(), []);
}

fn lengths_that_contradict_are_dropped(gateway: &mut dyn Gateway) {
    let malformed = [
        (0, 0x44, "a header of 16 bytes"),
        (0, 0x55, "version 5"),
        (2, 0xff, "longer than the packet"),
        (3, 19, "shorter than its header"),
        (3, 27, "shorter than the transport's header"),
        (32, 0x40, "a TCP header of 16 bytes"),
        (32, 0xf0, "a TCP header longer than the packet"),
    ];
    for (at, value, what) in malformed {
        let mut bytes = tcp(CLIENT, SERVER, SYN).bytes();
        bytes[at] = value;
        let found = gateway.leave_pod(TENANT, &bytes);
        assert_eq!(found, Outcome::Dropped(Reason::Malformed), "{what}");
    }
    assert_eq!(gateway.mappings(), []);
}

fn a_header_whose_checksum_is_wrong_is_not_translated(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    for options in [0, 4, 40] {
        let with = |packet: Datagram| packet.options(&[1; 40][..options]);
        let (out, back) = (with(tcp(CLIENT, SERVER, ACK)), with(tcp(SERVER, MAPPED, ACK)));
        for at in [1, 4, 10, 12, 19 + options] {
            let mut bytes = out.bytes();
            bytes[at] ^= 2;
            same(gateway.leave_pod(TENANT, &bytes), Outcome::Dropped(Reason::Malformed));
            let mut bytes = back.bytes();
            bytes[at] ^= 2;
            // To the stack, which drops it.
            same(gateway.arrive(&bytes), Outcome::Passed);
        }
    }
}

fn headers_from_outside_cut_short_are_not_answered(gateway: &mut dyn Gateway) {
    let packet = tcp(SERVER, MAPPED, ACK).bytes();
    for length in 20..40 {
        let found = gateway.arrive(&packet[..length]);
        assert_eq!(found, Outcome::Dropped(Reason::Malformed), "{length} bytes");
    }
}
