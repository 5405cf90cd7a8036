//! Which port a flow gets.
use crate::{
    reason::Reason,
    testing::{
        gateway::{EGRESS_IP, Gateway, OTHER_REMOTE, POD, REMOTE, SECOND_POD, TENANT, tcp_mapping},
        packet::{echo, tcp, udp},
        stories::stories,
    },
    wire::tcp::{ACK, SYN},
};

stories![
    a_port_in_use_towards_the_same_remote_makes_way_for_another,
    the_same_port_serves_another_remote,
    the_same_port_serves_another_protocol,
    an_identifier_in_use_is_exchanged_both_ways,
    a_port_below_the_range_is_exchanged_for_one_inside,
    a_port_above_the_range_is_exchanged_for_one_inside,
    identifiers_know_no_range,
];

fn a_port_in_use_towards_the_same_remote_makes_way_for_another(gateway: &mut dyn Gateway) {
    let server = (REMOTE, 443);
    let (first, second) = ((POD, 40001), (SECOND_POD, 40001));
    gateway.pod_sends(&tcp(first, server, SYN), &tcp((EGRESS_IP, 40001), server, SYN));
    gateway.leave_pod(TENANT, &tcp(second, server, SYN).bytes());
    let port = gateway.egress_port(second);
    assert!(port != 40001 && port >= 1024, "{port}");
    let mapped = (EGRESS_IP, port);
    gateway.pod_sends(&tcp(second, server, ACK), &tcp(mapped, server, ACK));
    gateway.remote_sends(&tcp(server, mapped, ACK), &tcp(server, second, ACK));
    gateway.remote_sends(&tcp(server, (EGRESS_IP, 40001), ACK), &tcp(server, first, ACK));
    assert_eq!(
        gateway.mappings(),
        [
            tcp_mapping(TENANT, first, server, (EGRESS_IP, 40001)),
            tcp_mapping(TENANT, second, server, mapped)
        ]
    );
}

fn the_same_port_serves_another_remote(gateway: &mut dyn Gateway) {
    for (pod, remote) in
        [(POD, (REMOTE, 443)), (SECOND_POD, (REMOTE, 444)), (SECOND_POD, (OTHER_REMOTE, 443))]
    {
        let packet = tcp((pod, 40001), remote, SYN);
        gateway.pod_sends(&packet, &tcp((EGRESS_IP, 40001), remote, SYN));
    }
    assert_eq!(gateway.mappings().len(), 3);
}

fn the_same_port_serves_another_protocol(gateway: &mut dyn Gateway) {
    let server = (REMOTE, 443);
    gateway.pod_sends(&tcp((POD, 4000), server, SYN), &tcp((EGRESS_IP, 4000), server, SYN));
    let (first, mapped) = ((SECOND_POD, 4000), (EGRESS_IP, 4000));
    gateway.pod_sends(&udp(first, server, b"x"), &udp(mapped, server, b"x"));
}

fn an_identifier_in_use_is_exchanged_both_ways(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.leave_pod(TENANT, &echo(8, SECOND_POD, REMOTE, 5).bytes());
    let id = gateway.egress_port((SECOND_POD, 5));
    assert_ne!(id, 5);
    gateway.pod_sends(&echo(8, SECOND_POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, id));
    gateway.remote_sends(&echo(0, REMOTE, EGRESS_IP, id), &echo(0, REMOTE, SECOND_POD, 5));
    gateway.remote_sends(&echo(0, REMOTE, EGRESS_IP, 5), &echo(0, REMOTE, POD, 5));
}

fn a_port_below_the_range_is_exchanged_for_one_inside(gateway: &mut dyn Gateway) {
    exchanged_for_one_inside(gateway, 53, 1024, 64512);
}

fn a_port_above_the_range_is_exchanged_for_one_inside(gateway: &mut dyn Gateway) {
    gateway.configure(&|config| {
        (config.port_from, config.port_count) = (20_000, 100);
        config.port_step = crate::port::step(100);
    });
    exchanged_for_one_inside(gateway, 20_100, 20_000, 100);
}

fn exchanged_for_one_inside(gateway: &mut dyn Gateway, port: u16, from: u16, count: u32) {
    let (pod, server) = ((POD, port), (REMOTE, 53));
    gateway.leave_pod(TENANT, &udp(pod, server, b"x").bytes());
    let mapped = gateway.egress_port(pod);
    assert!(mapped >= from && u32::from(mapped - from) < count, "{mapped}");
    gateway.remote_sends(&udp(server, (EGRESS_IP, mapped), b"y"), &udp(server, pod, b"y"));
    // An established stream cannot be given another port.
    gateway.pod_is_refused(&tcp(pod, server, ACK), Reason::NoFlow);
}

fn identifiers_know_no_range(gateway: &mut dyn Gateway) {
    for id in [0, 1, 1023, 0xffff] {
        gateway.pod_sends(&echo(8, POD, REMOTE, id), &echo(8, EGRESS_IP, REMOTE, id));
    }
}
