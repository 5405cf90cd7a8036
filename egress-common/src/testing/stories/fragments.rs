//! Fragments, and packets too big for their way.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, NODE, OTHER_EGRESS_IP, OTHER_REMOTE, OTHER_TENANT, Outcome, POD,
            REMOTE, SECOND_POD, TENANT,
        },
        packet::{
            DONT_FRAGMENT, Datagram, End, MORE_FRAGMENTS, Segment, echo, icmp, segment, tcp, udp,
        },
        stories::{same, stories},
    },
    wire::tcp::{ACK, SYN},
};

stories![
    a_pods_fragments_leave_with_the_egress_ip_in_any_order,
    a_pods_fragments_with_an_exchanged_port_are_one_datagram_still,
    a_replys_fragments_reach_the_pod,
    an_echos_fragments_reach_the_pod,
    the_same_id_for_two_tenants_is_kept_apart,
    fragments_from_outside_may_come_before_the_first,
    of_one_packet_four_fragments_are_kept_before_the_first,
    a_later_fragment_without_a_first_is_of_no_other_packet,
    fragments_from_outside_that_overlap_are_not_let_through,
    a_whole_packets_identification_may_be_used_again,
    a_replys_fragments_are_forgotten,
    fragments_of_a_refused_packet_go_nowhere,
    fragments_that_overlap_a_header_are_dropped,
    fragments_of_lengths_that_cannot_be_are_dropped,
    a_first_fragment_without_the_whole_header_is_dropped,
    later_fragments_out_of_hops_are_not_answered,
    an_error_out_of_hops_is_not_answered,
    a_policys_drop_holds_for_fragments,
    a_packet_too_big_for_the_uplink_is_answered_with_its_mtu,
];

const CLIENT: End = (POD, 5353);
const MAPPED: End = (EGRESS_IP, 5353);
const SERVER: End = (REMOTE, 53);
const DATA: [u8; 100] = [0x5a; 100];

fn datagram(from: End, to: End) -> Datagram {
    udp(from, to, &DATA)
}

fn a_pods_fragments_leave_with_the_egress_ip_in_any_order(gateway: &mut dyn Gateway) {
    let (packet, expected) = (datagram(CLIENT, SERVER), datagram(MAPPED, SERVER));
    let (packet, expected) = (packet.fragments(40), expected.fragments(40));
    for index in [2, 0, 1] {
        gateway.pod_sends(&packet[index], &expected[index]);
    }
    assert_eq!(gateway.mappings().len(), 1);
}

fn a_pods_fragments_with_an_exchanged_port_are_one_datagram_still(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let second = (SECOND_POD, CLIENT.1);
    let packet = datagram(second, SERVER).fragments(48);
    gateway.leave_pod(TENANT, &packet[0].bytes());
    let mapped = (EGRESS_IP, gateway.egress_port(second));
    let expected = datagram(mapped, SERVER).fragments(48);
    for (packet, expected) in packet.iter().zip(&expected) {
        gateway.pod_sends(packet, expected);
    }
}

fn a_replys_fragments_reach_the_pod(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let (packet, expected) = (datagram(SERVER, MAPPED), datagram(SERVER, CLIENT));
    let (packet, expected) = (packet.fragments(40), expected.fragments(40));
    for index in [0, 2, 1] {
        gateway.remote_sends(&packet[index], &expected[index]);
    }
}

fn an_echos_fragments_reach_the_pod(gateway: &mut dyn Gateway) {
    for (packet, expected) in
        echo(8, POD, REMOTE, 5).fragments(8).iter().zip(&echo(8, EGRESS_IP, REMOTE, 5).fragments(8))
    {
        gateway.pod_sends(packet, expected);
    }
    for (packet, expected) in
        echo(0, REMOTE, EGRESS_IP, 5).fragments(8).iter().zip(&echo(0, REMOTE, POD, 5).fragments(8))
    {
        gateway.remote_sends(packet, expected);
    }
}

fn the_same_id_for_two_tenants_is_kept_apart(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let theirs = (SECOND_POD, CLIENT.1);
    gateway.leave_pod(OTHER_TENANT, &datagram(theirs, SERVER).bytes());
    let first = datagram(SERVER, MAPPED).fragments(56);
    let second = datagram(SERVER, (OTHER_EGRESS_IP, CLIENT.1)).fragments(56);
    let (to_first, to_second) =
        (datagram(SERVER, CLIENT).fragments(56), datagram(SERVER, theirs).fragments(56));
    for index in [0, 1] {
        gateway.remote_sends(&first[index], &to_first[index]);
        gateway.remote_sends(&second[index], &to_second[index]);
    }
}

fn fragments_from_outside_may_come_before_the_first(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    let packets =
        [datagram(SERVER, MAPPED).fragments(40), echo(0, REMOTE, EGRESS_IP, 5).fragments(8)];
    let expected = [datagram(SERVER, CLIENT).fragments(40), echo(0, REMOTE, POD, 5).fragments(8)];
    for (packet, expected) in packets.iter().zip(&expected) {
        for later in packet[1..].iter().rev() {
            gateway.remote_is_kept(later);
        }
        assert_eq!(gateway.kept(), packet.len() - 1);
        gateway.remote_sends(&packet[0], &expected[0]);
        assert_eq!(gateway.kept(), 0, "they arrive anew");
    }
}

fn of_one_packet_four_fragments_are_kept_before_the_first(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let packet = datagram(SERVER, MAPPED).fragments(16);
    for later in &packet[1..5] {
        gateway.remote_is_kept(later);
    }
    gateway.remote_is_refused(&packet[5], Reason::FragmentEarly);
    assert_eq!(gateway.kept(), 4);
}

fn fragments_from_outside_that_overlap_are_not_let_through(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let (packet, expected) = (datagram(SERVER, MAPPED), datagram(SERVER, CLIENT));
    let (packet, expected) = (packet.fragments(24), expected.fragments(24));
    gateway.remote_sends(&packet[0], &expected[0]);
    gateway.remote_sends(&packet[2], &expected[2]);
    // Again, another first one, one byte into what has passed on either side, and around it.
    gateway.remote_is_refused(&packet[2], Reason::Fragment);
    gateway.remote_is_refused(&packet[0], Reason::Fragment);
    for offset in [2, 4, 7] {
        let overlapping = packet[1].clone().fragment(offset | MORE_FRAGMENTS);
        gateway.remote_is_refused(&overlapping, Reason::Fragment);
    }
    let around = Datagram { payload: vec![0; 48], ..packet[1].clone() };
    gateway.remote_is_refused(&around.fragment(4 | MORE_FRAGMENTS), Reason::Fragment);
    // What does not overlap goes on; the end is where the last one said.
    gateway.remote_sends(&packet[4], &expected[4]);
    gateway.remote_is_refused(&packet[4].clone().fragment(15), Reason::Fragment);
    gateway.remote_is_refused(&packet[1].clone().fragment(14 | MORE_FRAGMENTS), Reason::Fragment);
    for index in [1, 3] {
        gateway.remote_sends(&packet[index], &expected[index]);
    }
}

fn a_whole_packets_identification_may_be_used_again(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let (packet, expected) = (datagram(SERVER, MAPPED), datagram(SERVER, CLIENT));
    let (packet, expected) = (packet.fragments(24), expected.fragments(24));
    for _ in 0..3 {
        for index in [0, 4, 2, 1, 3] {
            gateway.remote_sends(&packet[index], &expected[index]);
        }
    }
}

fn a_later_fragment_without_a_first_is_of_no_other_packet(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let packet = datagram(SERVER, MAPPED).fragments(56);
    gateway.remote_sends(&packet[0], &datagram(SERVER, CLIENT).fragments(56)[0]);
    for stranger in [
        packet[1].clone().id(7),
        Datagram { source: OTHER_REMOTE, ..packet[1].clone() },
        Datagram { protocol: 6, ..packet[1].clone() },
        Datagram { destination: OTHER_EGRESS_IP, ..packet[1].clone() },
    ] {
        gateway.remote_is_kept(&stranger);
    }
}

fn a_replys_fragments_are_forgotten(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let packet = datagram(SERVER, MAPPED).fragments(56);
    gateway.remote_sends(&packet[0], &datagram(SERVER, CLIENT).fragments(56)[0]);
    gateway.rest(crate::fragment::REASSEMBLY + 1);
    gateway.remote_is_kept(&packet[1]);
}

fn fragments_of_a_refused_packet_go_nowhere(gateway: &mut dyn Gateway) {
    let packet = datagram(SERVER, MAPPED).id(99).fragments(56);
    let found = gateway.arrive(&packet[0].bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    gateway.remote_is_kept(&packet[1]);
}

fn fragments_that_overlap_a_header_are_dropped(gateway: &mut dyn Gateway) {
    let (client, mapped) = ((POD, 40001), (EGRESS_IP, 40001));
    let data = |from, to| segment(from, to, Segment { flags: SYN, data: &DATA, ..zero() });
    gateway
        .pod_sends(&data(client, SERVER).fragments(40)[0], &data(mapped, SERVER).fragments(40)[0]);
    for offset in [1, 2] {
        let overlapping = data(client, SERVER).fragments(40)[1].clone().fragment(offset);
        gateway.pod_is_refused(&overlapping, Reason::Fragment);
        let overlapping = data(SERVER, mapped).fragments(40)[1].clone().fragment(offset);
        gateway.remote_is_refused(&overlapping, Reason::Fragment);
    }
}

fn zero() -> Segment<'static> {
    Segment::default()
}

fn fragments_of_lengths_that_cannot_be_are_dropped(gateway: &mut dyn Gateway) {
    let fragment = datagram(CLIENT, SERVER).fragments(40)[1].clone();
    let odd = Datagram { payload: vec![0; 39], ..fragment.clone() };
    let empty = Datagram { payload: Vec::new(), ..fragment.clone() };
    let beyond = fragment.fragment(0x1fff);
    for packet in [odd, empty, beyond] {
        gateway.pod_is_refused(&packet, Reason::Fragment);
        let inwards = Datagram { source: REMOTE, destination: EGRESS_IP, ..packet };
        gateway.remote_is_refused(&inwards, Reason::Fragment);
    }
}

fn a_first_fragment_without_the_whole_header_is_dropped(gateway: &mut dyn Gateway) {
    let whole = segment((POD, 40001), SERVER, Segment { flags: SYN, data: &DATA, ..zero() });
    gateway.pod_is_refused(&whole.fragments(16)[0], Reason::Malformed);
    assert_eq!(gateway.mappings(), []);
}

fn later_fragments_out_of_hops_are_not_answered(gateway: &mut dyn Gateway) {
    let outwards = datagram(CLIENT, SERVER).fragments(56);
    gateway.pod_sends(&outwards[0], &datagram(MAPPED, SERVER).fragments(56)[0]);
    gateway.pod_is_refused(&outwards[1].clone().ttl(1), Reason::TtlExceeded);
    let inwards = datagram(SERVER, MAPPED).fragments(56);
    gateway.remote_sends(&inwards[0], &datagram(SERVER, CLIENT).fragments(56)[0]);
    gateway.remote_is_refused(&inwards[1].clone().ttl(1), Reason::TtlExceeded);
}

fn an_error_out_of_hops_is_not_answered(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let quoted = |packet: Datagram| packet.bytes()[..28].to_vec();
    let outwards = icmp((3, 3), POD, REMOTE, [0; 4], &quoted(datagram(SERVER, CLIENT)));
    gateway.pod_is_refused(&outwards.ttl(1), Reason::TtlExceeded);
    let inwards = icmp((3, 3), REMOTE, EGRESS_IP, [0; 4], &quoted(datagram(MAPPED, SERVER)));
    gateway.remote_is_refused(&inwards.ttl(1), Reason::TtlExceeded);
}

fn a_policys_drop_holds_for_fragments(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&datagram(CLIENT, SERVER), &datagram(MAPPED, SERVER));
    let inwards = datagram(SERVER, MAPPED).fragments(56);
    gateway.remote_sends(&inwards[0], &datagram(SERVER, CLIENT).fragments(56)[0]);
    gateway.set_policy(TENANT, crate::abi::action::DROP, [0; 4]);
    gateway.pod_is_refused(&datagram(CLIENT, SERVER).fragments(56)[1], Reason::PolicyDrop);
    let found = gateway.arrive(&inwards[1].bytes());
    // Nobody's address any more: the stack's affair.
    same(found, Outcome::Passed);
    let marked = tcp(CLIENT, SERVER, ACK).fragment(MORE_FRAGMENTS);
    let found = gateway.leave_stack(TENANT, &marked.bytes());
    same(found, Outcome::Dropped(Reason::PolicyDrop));
}

fn a_packet_too_big_for_the_uplink_is_answered_with_its_mtu(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.mtu = 120);
    let fits = Datagram { fragment: DONT_FRAGMENT, ..udp(CLIENT, SERVER, &[0; 92]) };
    let expected = Datagram { fragment: DONT_FRAGMENT, ..udp(MAPPED, SERVER, &[0; 92]) };
    gateway.pod_sends(&fits, &expected);
    let big = Datagram { fragment: DONT_FRAGMENT, ..udp(CLIENT, SERVER, &[0; 93]) };
    let error = icmp((3, 4), NODE, POD, [0, 0, 0, 120], &big.bytes()[..28]);
    let error = Datagram { id: 0, fragment: DONT_FRAGMENT, ..error };
    let found = gateway.leave_pod(TENANT, &big.bytes());
    same(found, Outcome::Answered(Reason::TooBig, error.bytes()));
    gateway.pod_is_refused(&udp(CLIENT, SERVER, &[0; 93]), Reason::TooBig);
}
