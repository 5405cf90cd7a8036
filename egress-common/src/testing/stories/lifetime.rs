//! How long flows live, and what follows them.
use crate::{
    abi::action,
    reason::Reason,
    testing::{
        gateway::{
            DROPPED, EGRESS_IP, ESTABLISHED, Gateway, ICMP, OTHER_EGRESS_IP, OTHER_TENANT, Outcome,
            POD, REMOTE, SECOND_POD, TENANT, TRANSITORY, UDP, tcp_mapping,
        },
        packet::{End, echo, tcp, udp},
        stories::stories,
    },
    wire::tcp::{ACK, FIN, RST, SYN},
};

stories![
    an_unanswered_syn_is_forgotten_after_the_transitory_time,
    an_established_connection_outlives_the_transitory_time,
    an_established_connection_is_forgotten_after_its_own_time,
    each_direction_refreshes_the_flow,
    a_connection_closed_by_both_is_soon_forgotten,
    a_connection_reset_is_soon_forgotten,
    a_datagrams_flow_is_forgotten_after_the_udp_time,
    an_echos_flow_is_forgotten_after_the_icmp_time,
    an_expired_flows_port_goes_to_the_next_that_wants_it,
    a_live_flows_port_is_not_taken_over,
    a_syn_reopens_a_closed_connection,
    a_syn_does_not_disturb_an_open_connection,
    a_changed_egress_ip_holds_from_the_next_packet,
    a_reply_after_the_address_changed_is_refused,
    a_dropped_policy_stops_both_directions,
    an_established_flow_survives_anothers_change,
    an_egress_ip_handed_to_another_tenant_does_not_deliver_old_replies,
];

const CLIENT: End = (POD, 40001);
const MAPPED: End = (EGRESS_IP, 40001);
const SERVER: End = (REMOTE, 443);
/// Ticks that the kernel's clock may pass meanwhile.
const MARGIN: u32 = 100;

fn open(gateway: &mut dyn Gateway) {
    for flags in [SYN, ACK] {
        gateway.pod_sends(&tcp(CLIENT, SERVER, flags), &tcp(MAPPED, SERVER, flags));
        gateway.remote_sends(&tcp(SERVER, MAPPED, flags | ACK), &tcp(SERVER, CLIENT, flags | ACK));
    }
}

#[track_caller]
fn alive(gateway: &mut dyn Gateway) {
    gateway.remote_sends(&tcp(SERVER, MAPPED, ACK), &tcp(SERVER, CLIENT, ACK));
}

#[track_caller]
fn forgotten(gateway: &mut dyn Gateway) {
    let found = gateway.arrive(&tcp(SERVER, MAPPED, ACK).bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    assert_eq!(gateway.mappings(), []);
}

fn an_unanswered_syn_is_forgotten_after_the_transitory_time(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.rest(TRANSITORY - MARGIN);
    gateway.remote_sends(&tcp(SERVER, MAPPED, SYN | ACK), &tcp(SERVER, CLIENT, SYN | ACK));
    gateway.rest(TRANSITORY);
    forgotten(gateway);
}

fn an_established_connection_outlives_the_transitory_time(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.rest(ESTABLISHED - MARGIN);
    alive(gateway);
}

fn an_established_connection_is_forgotten_after_its_own_time(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.rest(ESTABLISHED);
    forgotten(gateway);
}

fn each_direction_refreshes_the_flow(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.rest(ESTABLISHED - MARGIN);
    gateway.pod_sends(&tcp(CLIENT, SERVER, ACK), &tcp(MAPPED, SERVER, ACK));
    gateway.rest(ESTABLISHED - MARGIN);
    alive(gateway);
    gateway.rest(ESTABLISHED - MARGIN);
    alive(gateway);
}

fn a_connection_closed_by_both_is_soon_forgotten(gateway: &mut dyn Gateway) {
    open(gateway);
    let flags = FIN | ACK;
    gateway.pod_sends(&tcp(CLIENT, SERVER, flags), &tcp(MAPPED, SERVER, flags));
    gateway.rest(TRANSITORY);
    gateway.remote_sends(&tcp(SERVER, MAPPED, flags), &tcp(SERVER, CLIENT, flags));
    gateway.rest(TRANSITORY - MARGIN);
    alive(gateway);
    gateway.rest(TRANSITORY);
    forgotten(gateway);
}

fn a_connection_reset_is_soon_forgotten(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.remote_sends(&tcp(SERVER, MAPPED, RST), &tcp(SERVER, CLIENT, RST));
    gateway.rest(TRANSITORY);
    forgotten(gateway);
}

fn a_datagrams_flow_is_forgotten_after_the_udp_time(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&udp(CLIENT, SERVER, b"x"), &udp(MAPPED, SERVER, b"x"));
    gateway.rest(UDP - MARGIN);
    gateway.remote_sends(&udp(SERVER, MAPPED, b"y"), &udp(SERVER, CLIENT, b"y"));
    gateway.rest(UDP);
    let found = gateway.arrive(&udp(SERVER, MAPPED, b"y").bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    assert_eq!(gateway.mappings(), []);
}

fn an_echos_flow_is_forgotten_after_the_icmp_time(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&echo(8, POD, REMOTE, 5), &echo(8, EGRESS_IP, REMOTE, 5));
    gateway.rest(ICMP - MARGIN);
    gateway.remote_sends(&echo(0, REMOTE, EGRESS_IP, 5), &echo(0, REMOTE, POD, 5));
    gateway.rest(ICMP);
    gateway.remote_is_refused(&echo(0, REMOTE, EGRESS_IP, 5), Reason::NoFlow);
    assert_eq!(gateway.mappings(), []);
}

fn an_expired_flows_port_goes_to_the_next_that_wants_it(gateway: &mut dyn Gateway) {
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.rest(TRANSITORY);
    let next = (SECOND_POD, CLIENT.1);
    gateway.pod_sends(&tcp(next, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, next, SERVER, MAPPED)]);
    gateway.remote_sends(&tcp(SERVER, MAPPED, SYN | ACK), &tcp(SERVER, next, SYN | ACK));
}

fn a_live_flows_port_is_not_taken_over(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.rest(ESTABLISHED - MARGIN);
    let next = (SECOND_POD, CLIENT.1);
    gateway.leave_pod(TENANT, &tcp(next, SERVER, SYN).bytes());
    assert_ne!(gateway.egress_port(next), CLIENT.1);
    alive(gateway);
}

fn a_syn_reopens_a_closed_connection(gateway: &mut dyn Gateway) {
    open(gateway);
    let flags = FIN | ACK;
    gateway.pod_sends(&tcp(CLIENT, SERVER, flags), &tcp(MAPPED, SERVER, flags));
    gateway.remote_sends(&tcp(SERVER, MAPPED, flags), &tcp(SERVER, CLIENT, flags));
    open(gateway);
    gateway.rest(ESTABLISHED - MARGIN);
    alive(gateway);
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, MAPPED)]);
}

fn a_syn_does_not_disturb_an_open_connection(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.pod_sends(&tcp(CLIENT, SERVER, SYN), &tcp(MAPPED, SERVER, SYN));
    gateway.rest(ESTABLISHED - MARGIN);
    alive(gateway);
}

fn a_changed_egress_ip_holds_from_the_next_packet(gateway: &mut dyn Gateway) {
    open(gateway);
    let address = [10, 0, 0, 42];
    gateway.set_policy(TENANT, action::SNAT, address);
    let moved = (address, CLIENT.1);
    gateway.pod_sends(&tcp(CLIENT, SERVER, ACK), &tcp(moved, SERVER, ACK));
    assert_eq!(gateway.mappings(), [tcp_mapping(TENANT, CLIENT, SERVER, moved)]);
    gateway.remote_sends(&tcp(SERVER, moved, ACK), &tcp(SERVER, CLIENT, ACK));
}

fn a_reply_after_the_address_changed_is_refused(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.set_policy(TENANT, action::SNAT, [10, 0, 0, 42]);
    gateway.remote_is_refused(&tcp(SERVER, MAPPED, ACK), Reason::PolicyGone);
}

fn a_dropped_policy_stops_both_directions(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.set_policy(TENANT, action::DROP, [0; 4]);
    gateway.pod_is_refused(&tcp(CLIENT, SERVER, ACK), Reason::PolicyDrop);
    gateway.remote_is_refused(&tcp(SERVER, MAPPED, ACK), Reason::PolicyGone);
    gateway.set_policy(TENANT, action::SNAT, EGRESS_IP);
    alive(gateway);
}

fn an_established_flow_survives_anothers_change(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.set_policy(OTHER_TENANT, action::SNAT, [10, 0, 0, 42]);
    gateway.set_policy(DROPPED, action::SNAT, OTHER_EGRESS_IP);
    alive(gateway);
    gateway.pod_sends(&tcp(CLIENT, SERVER, ACK), &tcp(MAPPED, SERVER, ACK));
}

fn an_egress_ip_handed_to_another_tenant_does_not_deliver_old_replies(gateway: &mut dyn Gateway) {
    open(gateway);
    gateway.set_policy(TENANT, action::DROP, [0; 4]);
    gateway.set_policy(OTHER_TENANT, action::SNAT, EGRESS_IP);
    gateway.remote_is_refused(&tcp(SERVER, MAPPED, ACK), Reason::PolicyGone);
    // The new tenant's stream of the very same ports is no way into the old one.
    gateway.leave_pod(OTHER_TENANT, &tcp(CLIENT, SERVER, SYN).bytes());
    let theirs: Vec<_> =
        gateway.mappings().into_iter().filter(|flow| flow.vnid == OTHER_TENANT).collect();
    assert_eq!(theirs.len(), 1);
    let mapped = theirs[0].egress;
    gateway.remote_sends(&tcp(SERVER, mapped, SYN | ACK), &tcp(SERVER, CLIENT, SYN | ACK));
}
