//! Ports and places when there are few left.
use bytemuck::Zeroable;
use egress_common::{
    abi::{Config, Place},
    lease::TRIES,
    port::step,
    reason::Reason,
    testing::{
        Gateway, Host, Outcome,
        gateway::{POD, REMOTE, SECOND_POD, TENANT, TRANSITORY, UDP},
        packet::{End, tcp, udp},
    },
    wire::tcp::{ACK, SYN},
};

const SERVER: End = (REMOTE, 443);

fn xorshift(state: &mut u32) -> u32 {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    *state
}

/// A pod and a port at random, as clients choose them.
fn client(state: &mut u32) -> End {
    let number = xorshift(state);
    let [_, _, a, b] = (number >> 12).to_be_bytes();
    ([10, 129, a, b], 32_768 + (xorshift(state) % 28_232) as u16)
}

/// Begins a flow; whether it got a port.
fn begin(host: &mut Host, client: End) -> bool {
    match host.leave_pod(TENANT, &udp(client, SERVER, b"x").bytes()) {
        Outcome::Sent(_) => true,
        Outcome::Answered(Reason::PortsExhausted, _) => false,
        other => panic!("{other:?}"),
    }
}

#[test]
fn up_to_the_last_thousandth_every_new_flow_finds_a_port_in_a_bounded_number_of_tries() {
    let mut host = Host::default();
    let mut state = 0x2545_f491;
    let wanted = 64_512 * 999 / 1000;
    while host.tables.reply.borrow().len() < wanted {
        let client = client(&mut state);
        let held = host.tables.reply.borrow().len();
        assert!(begin(&mut host, client), "refused with {held} ports of 64512 held");
    }
    // Flows come and go at that height.
    for _ in 0..20_000 {
        let reply = host.tables.reply.borrow();
        let ending = *reply.keys().next().expect("there are flows");
        let pod = reply[&ending].pod;
        drop(reply);
        end_flow(&mut host, ending, pod);
        let client = client(&mut state);
        assert!(begin(&mut host, client), "refused at 99.9 per cent");
    }
    let tries = host.tables.tries.borrow();
    println!("flows by the number of ports they tried: {tries:?}");
    assert!(*tries.keys().last().expect("flows were made") <= TRIES);
    assert_eq!(TRIES, 25);
}

/// The flow ends as if it had expired and somebody had sent to its port.
fn end_flow(host: &mut Host, key: egress_common::abi::ReplyKey, _: [u8; 4]) {
    let now = host.tables.now.get();
    host.tables.reply.borrow()[&key].life.restart(now.wrapping_sub(UDP));
    let original = {
        let reply = host.tables.reply.borrow();
        egress_common::flow::original_key(&key, reply[&key])
    };
    host.tables.original.borrow()[&original].life.restart(now.wrapping_sub(UDP));
    let to = (key.egress_ip, u16::from_be_bytes(key.egress_port));
    host.arrive(&udp(SERVER, to, b"x").bytes());
}

#[test]
fn the_very_last_port_is_found_and_then_the_flow_is_refused() {
    let mut host = Host::default();
    let mut state = 0x2545_f491;
    let mut refused = 0;
    while host.tables.reply.borrow().len() < 64_512 {
        let client = client(&mut state);
        refused += u32::from(!begin(&mut host, client));
        assert!(refused < 2_000, "{} held", host.tables.reply.borrow().len());
    }
    assert!(!begin(&mut host, (SECOND_POD, 7)));
    let live = host.mappings();
    assert_eq!(live.len(), 64_512, "no live flow was killed for a new one");
}

#[test]
fn a_narrow_range_is_used_up_to_its_last_port() {
    let mut host = Host::default();
    host.configure(&|config: &mut Config| {
        (config.port_from, config.port_count) = (20_000, 100);
        config.port_step = step(100);
    });
    for port in 0..100 {
        assert!(begin(&mut host, (POD, 1000 + port)), "{port} ports held");
    }
    assert!(!begin(&mut host, (POD, 2000)));
    assert!(host.mappings().iter().all(|flow| (20_000..20_100).contains(&flow.egress.1)));
}

/// A gateway with room for so many flows and twice as many places.
fn small(flows: usize) -> Host {
    let mut host = Host::default();
    host.tables.original_capacity.set(flows);
    host.tables.reply_capacity.set(flows);
    host.tables.places.resize_with(2 * flows, Place::default);
    host.configure(&|config: &mut Config| config.places = 2 * flows as u32);
    host
}

fn syn(host: &mut Host, port: u16) -> Outcome {
    host.leave_pod(TENANT, &tcp((POD, port), SERVER, SYN).bytes())
}

#[test]
fn expired_flows_go_while_new_ones_come_with_nobody_sweeping() {
    let mut host = small(1000);
    for round in 0..10 {
        for port in 0..800 {
            let found = syn(&mut host, 2000 + round * 1000 + port);
            assert!(matches!(found, Outcome::Sent(_)), "round {round}, {port}: {found:?}");
        }
        host.rest(TRANSITORY);
    }
    assert!(host.mappings().len() <= 1000);
}

#[test]
fn a_table_full_of_expired_flows_has_room_for_a_new_one() {
    let mut host = small(1000);
    let made =
        (0..1200).filter(|port| matches!(syn(&mut host, 2000 + port), Outcome::Sent(_))).count();
    assert_eq!(made, 1000, "the table is full, and no live flow gave way");
    let refused = syn(&mut host, 9000);
    assert!(matches!(refused, Outcome::Answered(Reason::FlowTableFull, _)), "{refused:?}");
    host.rest(TRANSITORY);
    for port in 0..500 {
        let found = syn(&mut host, 10_000 + port);
        assert!(matches!(found, Outcome::Sent(_)), "{port}: {found:?}");
    }
}

#[test]
fn the_hand_leaves_live_flows_alone() {
    let mut host = small(1000);
    for flags in [SYN, ACK] {
        host.leave_pod(TENANT, &tcp((POD, 1999), SERVER, flags).bytes());
        let to = (egress_common::testing::gateway::EGRESS_IP, 1999);
        host.arrive(&tcp(SERVER, to, flags | ACK).bytes());
    }
    for round in 0..10 {
        for port in 0..400 {
            syn(&mut host, 2000 + round * 400 + port);
        }
        host.rest(TRANSITORY);
    }
    let alive = host.mappings().iter().any(|flow| flow.pod == (POD, 1999));
    assert!(alive, "an established connection outlives ten generations of others");
    assert_eq!(Config::zeroed().places, 0, "by default nothing is swept");
}
