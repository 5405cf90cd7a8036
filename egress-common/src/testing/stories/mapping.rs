//! Endpoint-independent mapping: one port for all that leaves from one port of a pod.
use crate::{
    abi::{Config, mapping::ENDPOINT_INDEPENDENT},
    port::step,
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, ESTABLISHED, Gateway, OTHER_REMOTE, Outcome, POD, REMOTE, SECOND_POD,
            TENANT, TRANSITORY, UDP,
        },
        packet::{End, echo, icmp, tcp, udp},
        stories::stories,
    },
    wire::tcp::{ACK, FIN, SYN},
};

stories![
    a_pods_port_leaves_from_one_port_whatever_the_remote,
    a_port_held_for_every_remote_is_no_other_pods,
    a_stranger_finds_no_way_in_at_a_port_held_for_every_remote,
    an_echos_identifier_is_the_same_for_every_remote,
    other_protocols_know_no_port_to_hold,
    a_port_is_held_as_long_as_the_last_of_its_flows_lives,
    a_flow_that_rested_until_its_port_was_anothers_begins_anew,
    an_established_connection_that_rests_keeps_its_port,
    a_closed_connection_gives_its_port_back,
    ports_for_every_remote_run_out_for_all_remotes_at_once,
    a_tenant_at_its_limit_of_ports_is_refused_and_told_so,
    a_changed_egress_ip_takes_the_ports_along,
    connections_outlive_a_change_of_the_mapping,
    a_stream_is_picked_up_with_the_port_that_is_held,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const NEXT: End = (SECOND_POD, 40001);
const SERVERS: [End; 3] = [(REMOTE, 443), (OTHER_REMOTE, 53), (REMOTE, 8080)];
/// Ticks that the kernel's clock may pass meanwhile.
const MARGIN: u32 = 100;

fn independent(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.mapping = ENDPOINT_INDEPENDENT);
}

/// The port from which a datagram of a pod leaves.
#[track_caller]
fn port_of(gateway: &mut dyn Gateway, from: End, to: End) -> u16 {
    match gateway.leave_pod(TENANT, &udp(from, to, b"x").bytes()) {
        Outcome::Sent(bytes) => u16::from_be_bytes([bytes[20], bytes[21]]),
        other => panic!("{other:?}"),
    }
}

fn open(gateway: &mut dyn Gateway, server: End) {
    for flags in [SYN, ACK] {
        gateway.pod_sends(&tcp(CLIENT, server, flags), &tcp(MAPPED, server, flags));
        gateway.remote_sends(&tcp(server, MAPPED, flags | ACK), &tcp(server, CLIENT, flags | ACK));
    }
}

fn a_pods_port_leaves_from_one_port_whatever_the_remote(gateway: &mut dyn Gateway) {
    independent(gateway);
    // Its own port is another pod's: so it gets one that is not its own, for all remotes.
    assert_eq!(port_of(gateway, NEXT, SERVERS[0]), 40001);
    let port = port_of(gateway, CLIENT, SERVERS[0]);
    assert_ne!(port, 40001);
    for server in SERVERS {
        let mapped = (EGRESS_IP, port);
        gateway.pod_sends(&udp(CLIENT, server, b"x"), &udp(mapped, server, b"x"));
        gateway.remote_sends(&udp(server, mapped, b"y"), &udp(server, CLIENT, b"y"));
    }
    // Another port of the pod, and another protocol, are another matter.
    assert_eq!(port_of(gateway, (POD, 40002), SERVERS[1]), 40002);
    gateway.pod_sends(&tcp(CLIENT, SERVERS[1], SYN), &tcp(MAPPED, SERVERS[1], SYN));
}

fn a_port_held_for_every_remote_is_no_other_pods(gateway: &mut dyn Gateway) {
    independent(gateway);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[0]), 40001);
    let theirs = port_of(gateway, NEXT, SERVERS[1]);
    assert_ne!(theirs, 40001, "towards another remote either");
    for server in SERVERS {
        assert_eq!(port_of(gateway, CLIENT, server), 40001);
        assert_eq!(port_of(gateway, NEXT, server), theirs);
    }
}

fn a_stranger_finds_no_way_in_at_a_port_held_for_every_remote(gateway: &mut dyn Gateway) {
    independent(gateway);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[0]), 40001);
    let flows = gateway.mappings();
    // The last is what the port's own entry stands for in place of a remote.
    for stranger in [SERVERS[1], (REMOTE, 444), ([255; 4], 0)] {
        let found = gateway.arrive(&udp(stranger, MAPPED, b"let me in").bytes());
        assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{stranger:?}: {found:?}");
    }
    let quoted = udp(([255; 4], 0), CLIENT, b"x").bytes();
    let error = icmp((3, 3), POD, REMOTE, [0; 4], &quoted[..28]);
    gateway.pod_is_refused(&error, Reason::NoFlow);
    assert_eq!(gateway.mappings(), flows);
}

fn an_echos_identifier_is_the_same_for_every_remote(gateway: &mut dyn Gateway) {
    independent(gateway);
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.leave_pod(TENANT, &echo(8, SECOND_POD, OTHER_REMOTE, 5).bytes());
    let theirs: Vec<u16> = gateway
        .mappings()
        .into_iter()
        .filter(|flow| flow.pod.0 == SECOND_POD)
        .map(|flow| flow.egress.1)
        .collect();
    assert!(theirs.len() == 2 && theirs[0] == theirs[1] && theirs[0] != 5, "{theirs:?}");
    gateway.pod_sends(&echo(8, POD, OTHER_REMOTE, 5), &echo(8, EGRESS_IP, OTHER_REMOTE, 5));
    gateway.remote_sends(&echo(0, OTHER_REMOTE, EGRESS_IP, 5), &echo(0, OTHER_REMOTE, POD, 5));
}

fn other_protocols_know_no_port_to_hold(gateway: &mut dyn Gateway) {
    independent(gateway);
    let esp = |from, to| crate::testing::packet::Datagram::new(50, from, to, &[7; 32]);
    gateway.pod_sends(&esp(POD, REMOTE), &esp(EGRESS_IP, REMOTE));
    gateway.pod_is_prohibited(&esp(SECOND_POD, REMOTE), Reason::ProtocolTaken);
    gateway.pod_sends(&esp(SECOND_POD, OTHER_REMOTE), &esp(EGRESS_IP, OTHER_REMOTE));
    assert_eq!(gateway.mappings().len(), 2);
}

fn a_port_is_held_as_long_as_the_last_of_its_flows_lives(gateway: &mut dyn Gateway) {
    independent(gateway);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[0]), 40001);
    gateway.rest(UDP - MARGIN);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[1]), 40001);
    gateway.rest(UDP - MARGIN);
    // The first flow is over, the second lives, as its answer shows, which keeps it alive.
    gateway.remote_sends(&udp(SERVERS[1], MAPPED, b"y"), &udp(SERVERS[1], CLIENT, b"y"));
    gateway.rest(UDP - MARGIN);
    assert_ne!(port_of(gateway, NEXT, SERVERS[2]), 40001);
    gateway.rest(UDP);
    assert_eq!(port_of(gateway, ([10, 128, 9, 9], 40001), SERVERS[2]), 40001);
}

fn a_flow_that_rested_until_its_port_was_anothers_begins_anew(gateway: &mut dyn Gateway) {
    independent(gateway);
    for server in [SERVERS[0], SERVERS[1]] {
        assert_eq!(port_of(gateway, CLIENT, server), 40001);
    }
    gateway.rest(UDP);
    assert_eq!(port_of(gateway, NEXT, SERVERS[2]), 40001);
    let port = port_of(gateway, CLIENT, SERVERS[0]);
    assert_ne!(port, 40001);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[1]), port);
}

fn an_established_connection_that_rests_keeps_its_port(gateway: &mut dyn Gateway) {
    independent(gateway);
    open(gateway, SERVERS[0]);
    gateway.rest(ESTABLISHED - MARGIN);
    gateway.leave_pod(TENANT, &tcp(NEXT, SERVERS[1], SYN).bytes());
    assert!(gateway.mappings().iter().all(|flow| flow.pod == CLIENT || flow.egress != MAPPED));
    gateway.pod_sends(&tcp(CLIENT, SERVERS[0], ACK), &tcp(MAPPED, SERVERS[0], ACK));
    gateway.pod_sends(&tcp(CLIENT, SERVERS[1], SYN), &tcp(MAPPED, SERVERS[1], SYN));
}

fn a_closed_connection_gives_its_port_back(gateway: &mut dyn Gateway) {
    independent(gateway);
    let server = SERVERS[0];
    open(gateway, server);
    let flags = FIN | ACK;
    gateway.pod_sends(&tcp(CLIENT, server, flags), &tcp(MAPPED, server, flags));
    gateway.remote_sends(&tcp(server, MAPPED, flags), &tcp(server, CLIENT, flags));
    gateway.rest(TRANSITORY);
    gateway.pod_sends(&tcp(NEXT, SERVERS[1], SYN), &tcp(MAPPED, SERVERS[1], SYN));
    assert!(gateway.mappings().iter().all(|flow| flow.pod == NEXT), "{:?}", gateway.mappings());
}

fn ports_for_every_remote_run_out_for_all_remotes_at_once(gateway: &mut dyn Gateway) {
    independent(gateway);
    gateway.configure(&|config: &mut Config| {
        (config.port_from, config.port_count) = (30_000, 2);
        config.port_step = step(2);
    });
    let first = port_of(gateway, CLIENT, SERVERS[0]);
    assert_ne!(port_of(gateway, NEXT, SERVERS[1]), first);
    let third = udp(([10, 128, 9, 9], 40001), SERVERS[2], b"x");
    gateway.pod_is_prohibited(&third, Reason::PortsExhausted);
    // Who has one may go anywhere with it.
    assert_eq!(port_of(gateway, CLIENT, SERVERS[2]), first);
    assert_eq!(gateway.mappings().len(), 5, "two ports, three flows");
}

fn a_tenant_at_its_limit_of_ports_is_refused_and_told_so(gateway: &mut dyn Gateway) {
    independent(gateway);
    gateway.change_slot(TENANT, &|slot| slot.max_ports = 1);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[0]), 40001);
    gateway.pod_is_prohibited(&udp((POD, 40002), SERVERS[0], b"x"), Reason::PortLimit);
    assert_eq!(port_of(gateway, CLIENT, SERVERS[1]), 40001);
}

fn a_changed_egress_ip_takes_the_ports_along(gateway: &mut dyn Gateway) {
    independent(gateway);
    for server in SERVERS {
        assert_eq!(port_of(gateway, CLIENT, server), 40001);
    }
    let changed = [10, 0, 0, 42];
    gateway.set_policy(TENANT, crate::abi::action::SNAT, changed);
    independent(gateway);
    for server in SERVERS {
        let expected = udp((changed, 40001), server, b"x");
        gateway.pod_sends(&udp(CLIENT, server, b"x"), &expected);
    }
    let flows = gateway.mappings();
    assert!(flows.len() == 4 && flows.iter().all(|flow| flow.egress.0 == changed), "{flows:?}");
}

fn connections_outlive_a_change_of_the_mapping(gateway: &mut dyn Gateway) {
    open(gateway, SERVERS[0]);
    independent(gateway);
    gateway.pod_sends(&tcp(CLIENT, SERVERS[0], ACK), &tcp(MAPPED, SERVERS[0], ACK));
    gateway.pod_sends(&tcp(CLIENT, SERVERS[1], SYN), &tcp(MAPPED, SERVERS[1], SYN));
    gateway.change_slot(TENANT, &|slot| slot.mapping = 0);
    for server in [SERVERS[0], SERVERS[1]] {
        gateway.pod_sends(&tcp(CLIENT, server, ACK), &tcp(MAPPED, server, ACK));
        gateway.remote_sends(&tcp(server, MAPPED, ACK), &tcp(server, CLIENT, ACK));
    }
}

fn a_stream_is_picked_up_with_the_port_that_is_held(gateway: &mut dyn Gateway) {
    independent(gateway);
    for server in SERVERS {
        gateway.pod_sends(&tcp(CLIENT, server, ACK), &tcp(MAPPED, server, ACK));
    }
    gateway.pod_is_refused(&tcp(NEXT, SERVERS[0], ACK), Reason::NoFlow);
    // Now it holds another port: what was open before with its own is lost.
    gateway.leave_pod(TENANT, &tcp(NEXT, SERVERS[0], SYN).bytes());
    gateway.pod_is_refused(&tcp(NEXT, SERVERS[1], ACK), Reason::NoFlow);
}
