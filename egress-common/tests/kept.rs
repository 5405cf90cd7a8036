//! Fragments that came before the first of their packet: where they go, and when they give up.
use egress_common::{
    fragment::{ALL_PLACES, PATIENCE, REASSEMBLY},
    reason::Reason,
    testing::{
        Gateway, Host, Outcome,
        gateway::{EGRESS_IP, POD, REMOTE, TENANT},
        packet::{Datagram, End, udp},
    },
};

const CLIENT: End = (POD, 5353);
const MAPPED: End = (EGRESS_IP, 5353);
const SERVER: End = (REMOTE, 53);
const DATA: [u8; 100] = [0x5a; 100];

/// A gateway with a flow.
fn gateway() -> Host {
    let mut host = Host::default();
    let found = host.leave_pod(TENANT, &udp(CLIENT, SERVER, &DATA).bytes());
    assert!(matches!(found, Outcome::Sent(_)), "{found:?}");
    host
}

fn reply() -> Vec<Datagram> {
    udp(SERVER, MAPPED, &DATA).fragments(40)
}

fn at_the_pod(index: usize) -> Outcome {
    let expected = udp(SERVER, CLIENT, &DATA).fragments(40)[index].clone();
    Outcome::Sent(expected.ttl(63).bytes())
}

#[test]
fn behind_the_first_those_that_were_kept_reach_the_pod() {
    let mut host = gateway();
    let packet = reply();
    for later in [2, 1] {
        assert_eq!(host.arrive(&packet[later].bytes()), Outcome::Kept);
    }
    assert_eq!(host.arrive(&packet[0].bytes()), at_the_pod(0));
    host.released.sort_by_key(|outcome| format!("{outcome:?}"));
    let mut expected = [at_the_pod(1), at_the_pod(2)];
    expected.sort_by_key(|outcome| format!("{outcome:?}"));
    assert_eq!(host.released, expected);
}

#[test]
fn of_two_that_overlap_and_were_kept_one_passes() {
    let mut host = gateway();
    let packet = reply();
    let overlapping = Datagram { payload: vec![0xee; 40], ..packet[1].clone() };
    for early in [&packet[1], &overlapping] {
        assert_eq!(host.arrive(&early.bytes()), Outcome::Kept);
    }
    host.arrive(&packet[0].bytes());
    assert_eq!(host.released, [at_the_pod(1), Outcome::Dropped(Reason::Fragment)]);
}

#[test]
fn what_was_kept_too_long_goes_nowhere() {
    let mut host = gateway();
    let packet = reply();
    assert_eq!(host.arrive(&packet[1].bytes()), Outcome::Kept);
    host.rest(REASSEMBLY + 1);
    assert_eq!(host.arrive(&packet[0].bytes()), at_the_pod(0));
    assert_eq!(host.released, [Outcome::Dropped(Reason::FragmentEarly)]);
}

#[test]
fn who_waited_makes_room_and_a_flood_takes_bounded_memory() {
    let mut host = gateway();
    let later = &reply()[1];
    let flood = |host: &mut Host| {
        (0..=u16::MAX)
            .filter(|id| host.arrive(&later.clone().id(*id).bytes()) == Outcome::Kept)
            .count()
    };
    assert_eq!(flood(&mut host), ALL_PLACES as usize, "every place is used, and no more");
    assert_eq!(flood(&mut host), 0);
    host.rest(PATIENCE + 1);
    assert_eq!(flood(&mut host), ALL_PLACES as usize);
    assert_eq!(host.kept.len(), ALL_PLACES as usize);
}
