//! Pods without a policy, with masquerading switched on: they leave with the node's address, and
//! what is the node's stays the node's.
use crate::{
    abi::{MARKED_ONLY, NO_VNID, PortRange, action},
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, ICMP, MASQUERADE, NODE, NORMAL, OTHER_EGRESS_IP, OTHER_REMOTE,
            OTHER_TENANT, Outcome, POD, REMOTE, SECOND_POD, SERVICE, TENANT, THIRD_POD, TRANSITORY,
        },
        packet::{Datagram, End, MORE_FRAGMENTS, echo, icmp, tcp, udp},
        stories::{same, stories},
    },
    wire::tcp::{ACK, FIN, RST, SYN},
};

stories![
    without_masquerading_an_unmarked_packet_passes,
    an_unmarked_connection_leaves_with_the_nodes_address_and_a_port_of_the_range,
    the_nodes_connections_pass_unlooked_at,
    what_comes_to_the_range_and_has_no_flow_is_the_nodes,
    datagrams_begin_behind_the_stack_and_go_on_before_it,
    an_answer_of_a_pod_goes_up_the_stack,
    stray_segments_never_leave_the_uplink,
    a_ping_takes_an_identifier_of_the_range,
    a_routers_error_about_a_masqueraded_flow_finds_its_pod,
    an_error_about_the_nodes_own_is_the_nodes,
    a_pods_error_about_a_masqueraded_flow_leaves_with_the_nodes_address,
    fragments_go_up_the_stack_and_are_translated_behind_it,
    fragments_to_the_node_are_the_nodes_unless_their_first_was_ours,
    cluster_destinations_and_the_node_are_left_untouched,
    an_unmarked_packet_of_a_tenants_pod_is_dropped,
    an_unmarked_packet_of_another_nodes_pod_is_dropped,
    a_vnid_that_gets_a_policy_leaves_the_nodes_address_at_once,
    tenants_keep_their_addresses_beside_it,
    ports_of_the_range_are_given_out_once_and_never_another,
    the_node_takes_its_port_back,
    a_flow_adopted_outside_the_range_is_found_once_that_is_asked_for,
    an_expired_flow_gives_its_port_back_to_the_node,
    switched_off_nothing_is_looked_for,
];

const CLIENT: End = (POD, 40_001);
const SERVER: End = (REMOTE, 443);

impl dyn Gateway + '_ {
    /// An unmarked packet of a pod goes out, by the stack or past it, with one hop less. Its node's
    /// port or identifier.
    #[track_caller]
    fn masquerades(&mut self, packet: &Datagram, expected: impl Fn(u16) -> Datagram) -> u16 {
        let before = self.leave_pod(NO_VNID, &packet.bytes());
        let found = match before {
            Outcome::Passed => {
                self.leave_stack(NO_VNID, &packet.clone().ttl(packet.ttl - 1).bytes())
            }
            other => other,
        };
        let flows = self.mappings();
        let is_its = |flow: &&crate::testing::Mapping| {
            flow.pod.0 == packet.source
                && flow.remote.0 == packet.destination
                && flow.egress.0 == NODE
                && flow.protocol == packet.protocol
        };
        let port = flows.iter().find(is_its).expect("there is a flow").egress.1;
        same(found, Outcome::Sent(expected(port).ttl(packet.ttl - 1).bytes()));
        assert!(MASQUERADE.contains(port.to_be_bytes()), "{port} is of the range");
        port
    }

    /// A connection of the pod: the node's port.
    #[track_caller]
    fn connects(&mut self, client: End, server: End) -> u16 {
        let port =
            self.masquerades(&tcp(client, server, SYN), |port| tcp((NODE, port), server, SYN));
        self.remote_sends(&tcp(server, (NODE, port), SYN | ACK), &tcp(server, client, SYN | ACK));
        port
    }

    /// An unmarked packet of a pod goes up the stack, and is stopped at the uplink.
    #[track_caller]
    fn is_stopped_behind_the_stack(&mut self, packet: &Datagram, reason: Reason) {
        same(self.leave_pod(NO_VNID, &packet.bytes()), Outcome::Passed);
        same(self.leave_stack(NO_VNID, &packet.bytes()), Outcome::Dropped(reason));
    }
}

fn without_masquerading_an_unmarked_packet_passes(gateway: &mut dyn Gateway) {
    for packet in [tcp(CLIENT, SERVER, SYN), udp(CLIENT, SERVER, b"x"), echo(8, POD, REMOTE, 5)] {
        same(gateway.leave_pod(NO_VNID, &packet.bytes()), Outcome::Passed);
        same(gateway.leave_stack(NO_VNID, &packet.bytes()), Outcome::Passed);
    }
    same(gateway.arrive(&tcp(SERVER, (NODE, 61_000), ACK).bytes()), Outcome::Passed);
    assert_eq!(gateway.mappings(), []);
}

fn an_unmarked_connection_leaves_with_the_nodes_address_and_a_port_of_the_range(
    gateway: &mut dyn Gateway,
) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    for flags in [ACK, ACK | FIN] {
        let found = gateway
            .masquerades(&tcp(CLIENT, SERVER, flags), |port| tcp((NODE, port), SERVER, flags));
        assert_eq!(found, port);
        gateway.remote_sends(&tcp(SERVER, (NODE, port), flags), &tcp(SERVER, CLIENT, flags));
    }
    assert_eq!(gateway.mappings().len(), 1);
}

fn the_nodes_connections_pass_unlooked_at(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    gateway.connects(CLIENT, SERVER);
    for port in [22, 32_768, 60_999] {
        for packet in [
            tcp((NODE, port), SERVER, SYN),
            udp((NODE, port), SERVER, b"x"),
            echo(8, NODE, REMOTE, port),
        ] {
            same(gateway.leave_stack(NO_VNID, &packet.bytes()), Outcome::Passed);
        }
        for packet in [
            tcp(SERVER, (NODE, port), SYN | ACK),
            tcp(SERVER, (NODE, port), SYN),
            udp(SERVER, (NODE, port), b"x"),
            echo(0, REMOTE, NODE, port),
            echo(8, REMOTE, NODE, port),
        ] {
            same(gateway.arrive(&packet.bytes()), Outcome::Passed);
        }
    }
}

fn what_comes_to_the_range_and_has_no_flow_is_the_nodes(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    for packet in [
        tcp((OTHER_REMOTE, 443), (NODE, port), SYN),
        tcp((REMOTE, 444), (NODE, port), ACK),
        tcp(SERVER, (NODE, port ^ 1), RST),
        udp(SERVER, (NODE, port), b"x"),
        echo(0, REMOTE, NODE, port),
        Datagram::new(47, REMOTE, NODE, &[0; 20]),
        tcp(SERVER, (NODE, port ^ 1), ACK).ttl(1),
    ] {
        same(gateway.arrive(&packet.bytes()), Outcome::Passed);
    }
}

fn datagrams_begin_behind_the_stack_and_go_on_before_it(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let packet = udp(CLIENT, SERVER, b"who?");
    same(gateway.leave_pod(NO_VNID, &packet.bytes()), Outcome::Passed);
    let mapped = |port| udp((NODE, port), SERVER, b"who?");
    let port = gateway.masquerades(&packet, mapped);
    same(gateway.leave_pod(NO_VNID, &packet.bytes()), Outcome::Sent(mapped(port).ttl(63).bytes()));
    gateway.remote_sends(&udp(SERVER, (NODE, port), b"me"), &udp(SERVER, CLIENT, b"me"));
}

/// The node's NAT has let a connection in to the pod: only the stack knows of it.
fn an_answer_of_a_pod_goes_up_the_stack(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    for packet in [
        tcp((POD, 8080), (REMOTE, 51_000), SYN | ACK),
        tcp((POD, 8080), (REMOTE, 51_000), ACK),
        tcp((POD, 8080), (REMOTE, 51_000), ACK | FIN),
        udp((POD, 53), (REMOTE, 51_000), b"answer"),
        echo(0, POD, REMOTE, 5),
    ] {
        same(gateway.leave_pod(NO_VNID, &packet.bytes()), Outcome::Passed);
        // What the stack makes of it.
        let mut answered = packet.clone();
        answered.source = NODE;
        same(gateway.leave_stack(NO_VNID, &answered.bytes()), Outcome::Passed);
    }
    assert_eq!(gateway.mappings(), []);
}

fn stray_segments_never_leave_the_uplink(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    for flags in [FIN | ACK, RST, RST | ACK, FIN, SYN | ACK, ACK, 0] {
        gateway.is_stopped_behind_the_stack(&tcp(CLIENT, SERVER, flags), Reason::NoFlow);
    }
    gateway.is_stopped_behind_the_stack(&echo(0, POD, REMOTE, 5), Reason::NoFlow);
    let quoted = tcp(SERVER, CLIENT, ACK).bytes();
    gateway
        .is_stopped_behind_the_stack(&icmp((3, 3), POD, REMOTE, [0; 4], &quoted), Reason::NoFlow);
    gateway.is_stopped_behind_the_stack(
        &icmp((13, 0), POD, REMOTE, [0; 4], &[0; 12]),
        Reason::Protocol,
    );
    assert_eq!(gateway.mappings(), []);
}

fn a_ping_takes_an_identifier_of_the_range(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let id = gateway.masquerades(&echo(8, POD, REMOTE, 5), |id| echo(8, NODE, REMOTE, id));
    gateway.remote_sends(&echo(0, REMOTE, NODE, id), &echo(0, REMOTE, POD, 5));
    gateway.rest(ICMP);
    same(gateway.arrive(&echo(0, REMOTE, NODE, id).bytes()), Outcome::Passed);
}

fn a_routers_error_about_a_masqueraded_flow_finds_its_pod(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    let quoted = |from| tcp(from, SERVER, ACK).ttl(3).bytes();
    gateway.remote_sends(
        &icmp((3, 1), OTHER_REMOTE, NODE, [0; 4], &quoted((NODE, port))),
        &icmp((3, 1), OTHER_REMOTE, POD, [0; 4], &quoted(CLIENT)),
    );
}

fn an_error_about_the_nodes_own_is_the_nodes(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    for own in [
        tcp((NODE, 40_000), SERVER, ACK),
        tcp((NODE, port), (REMOTE, 444), ACK),
        udp((NODE, port), SERVER, b"x"),
        echo(8, NODE, REMOTE, port),
    ] {
        let error = icmp((3, 1), OTHER_REMOTE, NODE, [0; 4], &own.bytes());
        same(gateway.arrive(&error.bytes()), Outcome::Passed);
    }
}

fn a_pods_error_about_a_masqueraded_flow_leaves_with_the_nodes_address(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    let about = |to| tcp(SERVER, to, ACK).ttl(3).bytes();
    let (error, expected) = (
        icmp((3, 3), POD, REMOTE, [0; 4], &about(CLIENT)),
        icmp((3, 3), NODE, REMOTE, [0; 4], &about((NODE, port))),
    );
    same(gateway.leave_pod(NO_VNID, &error.bytes()), Outcome::Sent(expected.ttl(63).bytes()));
}

fn fragments_go_up_the_stack_and_are_translated_behind_it(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway
        .masquerades(&udp(CLIENT, SERVER, &[7; 40]), |port| udp((NODE, port), SERVER, &[7; 40]));
    let whole = udp(CLIENT, SERVER, &[7; 40]).fragments(24);
    let mapped = udp((NODE, port), SERVER, &[7; 40]).fragments(24);
    for (piece, expected) in whole.iter().zip(&mapped) {
        same(gateway.leave_pod(NO_VNID, &piece.bytes()), Outcome::Passed);
        same(gateway.leave_stack(NO_VNID, &piece.bytes()), Outcome::Sent(expected.bytes()));
    }
}

fn fragments_to_the_node_are_the_nodes_unless_their_first_was_ours(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port =
        gateway.masquerades(&udp(CLIENT, SERVER, b"x"), |port| udp((NODE, port), SERVER, b"x"));
    let own = udp(SERVER, (NODE, 53), &[7; 40]).id(1).fragments(24);
    for piece in &own {
        same(gateway.arrive(&piece.bytes()), Outcome::Passed);
    }
    // Behind no first one; and lengths that cannot be.
    same(gateway.arrive(&own[1].clone().id(2).bytes()), Outcome::Passed);
    same(gateway.arrive(&own[1].clone().fragment(1 | MORE_FRAGMENTS).bytes()), Outcome::Passed);
    let pieces = udp(SERVER, (NODE, port), &[7; 40]).id(3).fragments(24);
    let expected = udp(SERVER, CLIENT, &[7; 40]).id(3).fragments(24);
    for (piece, expected) in pieces.iter().zip(&expected) {
        let found = gateway.arrive(&piece.bytes());
        let Outcome::Sent(found) = found else { panic!("{found:?}") };
        // The stack takes its own hop off where the flow is still its.
        let hops = found[8];
        same(Outcome::Sent(found), Outcome::Sent(expected.clone().ttl(hops).bytes()));
    }
}

fn cluster_destinations_and_the_node_are_left_untouched(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    for to in [SECOND_POD, THIRD_POD, SERVICE, NODE, [224, 0, 0, 9]] {
        for from in [POD, SECOND_POD] {
            let packet = tcp((from, 40_001), (to, 443), SYN).bytes();
            same(gateway.leave_pod(NO_VNID, &packet), Outcome::Passed);
            same(gateway.leave_stack(NO_VNID, &packet), Outcome::Passed);
        }
    }
    assert_eq!(gateway.mappings(), []);
}

fn an_unmarked_packet_of_a_tenants_pod_is_dropped(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    gateway.set_pod(THIRD_POD, TENANT | MARKED_ONLY);
    for packet in [tcp((THIRD_POD, 40_001), SERVER, SYN), udp((THIRD_POD, 40_001), SERVER, b"x")] {
        same(gateway.leave_pod(NO_VNID, &packet.bytes()), Outcome::Dropped(Reason::Unmarked));
        same(gateway.leave_stack(NO_VNID, &packet.bytes()), Outcome::Dropped(Reason::Unmarked));
    }
    // With its mark it leaves as ever, and without one it reaches the cluster.
    let (packet, expected) =
        (tcp((THIRD_POD, 40_001), SERVER, SYN), tcp((EGRESS_IP, 40_001), SERVER, SYN));
    gateway.pod_sends(&packet, &expected);
    let inside = tcp((THIRD_POD, 40_001), (SERVICE, 443), SYN);
    same(gateway.leave_pod(NO_VNID, &inside.bytes()), Outcome::Passed);
}

fn an_unmarked_packet_of_another_nodes_pod_is_dropped(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let packet = tcp((SECOND_POD, 40_001), SERVER, SYN).bytes();
    same(gateway.leave_pod(NO_VNID, &packet), Outcome::Dropped(Reason::Unmarked));
    same(gateway.leave_stack(NO_VNID, &packet), Outcome::Dropped(Reason::Unmarked));
}

fn a_vnid_that_gets_a_policy_leaves_the_nodes_address_at_once(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let packet = tcp(CLIENT, SERVER, SYN).bytes();
    let found = gateway.leave_pod(NORMAL, &packet);
    assert!(matches!(&found, Outcome::Sent(bytes) if bytes[12..16] == NODE), "{found:?}");
    gateway.set_policy(NORMAL, action::DROP, [0; 4]);
    for packet in [packet, tcp(CLIENT, SERVER, ACK).bytes()] {
        same(gateway.leave_pod(NORMAL, &packet), Outcome::Dropped(Reason::PolicyDrop));
        same(gateway.leave_stack(NORMAL, &packet), Outcome::Dropped(Reason::PolicyDrop));
    }
    gateway.set_policy(NORMAL, action::SNAT, [10, 0, 0, 42]);
    let expected = tcp(([10, 0, 0, 42], CLIENT.1), SERVER, ACK).ttl(63);
    let found = gateway.leave_pod(NORMAL, &tcp(CLIENT, SERVER, ACK).bytes());
    same(found, Outcome::Sent(expected.bytes()));
    assert_eq!(gateway.mappings().len(), 1, "the masqueraded flow has ended");
}

fn tenants_keep_their_addresses_beside_it(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    gateway.connects((THIRD_POD, 40_001), SERVER);
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp((EGRESS_IP, CLIENT.1), SERVER, SYN));
    let found = gateway.leave_pod(OTHER_TENANT, &tcp((SECOND_POD, 1024), SERVER, SYN).bytes());
    let expected = tcp((OTHER_EGRESS_IP, 1024), SERVER, SYN).ttl(63);
    same(found, Outcome::Sent(expected.bytes()));
    same(
        gateway.leave_stack(TENANT, &tcp((NODE, 61_001), SERVER, SYN).bytes()),
        Outcome::Dropped(Reason::Untranslated),
    );
}

fn ports_of_the_range_are_given_out_once_and_never_another(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    // So few that a search finds the last one whatever it began with, and knew.
    let range = PortRange { from: 61_000, count: 18 };
    gateway.configure(&|config| {
        config.masquerade_ports = range;
        config.masqueraded_ports = range;
        config.masquerade_step = crate::port::step(range.count);
    });
    for port in 0..18 {
        let found = gateway.leave_pod(NO_VNID, &tcp((POD, 2000 + port), SERVER, SYN).bytes());
        assert!(matches!(found, Outcome::Sent(_)), "{port}: {found:?}");
    }
    let mut ports: Vec<u16> = gateway.mappings().iter().map(|flow| flow.egress.1).collect();
    ports.sort_unstable();
    assert_eq!(ports, (61_000..61_018).collect::<Vec<_>>());
    let found = gateway.leave_pod(NO_VNID, &tcp((POD, 3000), SERVER, SYN).bytes());
    assert!(matches!(found, Outcome::Answered(Reason::PortsExhausted, _)), "{found:?}");
    // The tenants' range is another, also towards a crowded destination.
    for pod in [POD, SECOND_POD, THIRD_POD] {
        gateway.leave_pod(TENANT, &tcp((pod, 5000), SERVER, SYN).bytes());
    }
    let tenants = gateway.mappings().into_iter().filter(|flow| flow.egress.0 == EGRESS_IP);
    assert_eq!(tenants.filter(|flow| flow.egress.1 >= 1024).count(), 3);
}

fn the_node_takes_its_port_back(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    let id = gateway.masquerades(&echo(8, POD, REMOTE, 5), |id| echo(8, NODE, REMOTE, id));
    assert_eq!(gateway.mappings().len(), 2);
    // Towards another remote it may have the same.
    let elsewhere = tcp((NODE, port), (REMOTE, 444), SYN).bytes();
    same(gateway.leave_stack(NO_VNID, &elsewhere), Outcome::Passed);
    assert_eq!(gateway.mappings().len(), 2);
    same(gateway.leave_stack(NO_VNID, &tcp((NODE, port), SERVER, SYN).bytes()), Outcome::Passed);
    same(gateway.leave_stack(NO_VNID, &echo(8, NODE, REMOTE, id).bytes()), Outcome::Passed);
    assert_eq!(gateway.mappings(), []);
    same(gateway.arrive(&tcp(SERVER, (NODE, port), SYN | ACK).bytes()), Outcome::Passed);
    same(gateway.arrive(&echo(0, REMOTE, NODE, id).bytes()), Outcome::Passed);
}

fn a_flow_adopted_outside_the_range_is_found_once_that_is_asked_for(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    let elsewhere = PortRange { from: 10_000, count: 10 };
    gateway.configure(&|config| {
        (config.masquerade_ports, config.masqueraded_ports) = (elsewhere, elsewhere);
    });
    let reply = tcp(SERVER, (NODE, port), ACK);
    same(gateway.arrive(&reply.bytes()), Outcome::Passed);
    gateway.configure(&|config| config.masqueraded_ports = PortRange { from: 1024, count: 64_512 });
    gateway.remote_sends(&reply, &tcp(SERVER, CLIENT, ACK));
    let found = gateway.leave_pod(NO_VNID, &tcp(CLIENT, SERVER, ACK).bytes());
    let expected = tcp((NODE, port), SERVER, ACK).ttl(63);
    same(found, Outcome::Sent(expected.bytes()));
}

fn an_expired_flow_gives_its_port_back_to_the_node(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port =
        gateway.masquerades(&tcp(CLIENT, SERVER, SYN), |port| tcp((NODE, port), SERVER, SYN));
    gateway.rest(TRANSITORY);
    same(gateway.arrive(&tcp(SERVER, (NODE, port), SYN | ACK).bytes()), Outcome::Passed);
    assert_eq!(gateway.mappings(), []);
}

fn switched_off_nothing_is_looked_for(gateway: &mut dyn Gateway) {
    gateway.masquerade();
    let port = gateway.connects(CLIENT, SERVER);
    gateway.configure(&|config| config.masquerade_slot = 0);
    same(gateway.arrive(&tcp(SERVER, (NODE, port), ACK).bytes()), Outcome::Passed);
    same(gateway.leave_pod(NO_VNID, &tcp(CLIENT, SERVER, ACK).bytes()), Outcome::Passed);
}
