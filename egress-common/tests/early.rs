//! A hook before the stack: what is due for the neighbour table is left to the hook behind it.
use egress_common::{
    abi::{BEAT, xdp_send},
    nat::{By, Origin},
    rewrite::Hop,
    testing::{
        Gateway, Host, Outcome,
        gateway::{POD, REMOTE, TENANT},
        packet::udp,
    },
};

/// How a packet of the tenant's pod goes on from this hook, and the packets its flow has counted.
fn goes(host: &mut Host, hop: Hop) -> (By, u64) {
    let packet = udp((POD, 40001), (REMOTE, 443), b"who?").bytes();
    let origin = Origin { vnid: TENANT, ifindex: 7, macs: [4, 5, 6], hop, ..Origin::default() };
    let outcome = host.original(origin, &packet);
    assert!(matches!(outcome, Outcome::Sent(_)), "{outcome:?}");
    let flows = host.tables.original.borrow();
    let counted = flows.values().map(|flow| flow.packets.get()).sum();
    (host.scratch.translation.way.by, counted)
}

#[test]
fn a_flow_that_is_due_is_left_as_if_unseen_and_the_hook_behind_asks_for_it() {
    let mut host = Host::default();
    host.tables.macs.set(Some([1, 2, 3]));
    assert_eq!(goes(&mut host, Hop::Early), (By::Link, 1), "made where it began");
    host.rest(BEAT);
    for _ in 0..2 {
        assert_eq!(goes(&mut host, Hop::Early), (By::Neighbour, 1), "left alone");
    }
    assert_eq!(goes(&mut host, Hop::Program), (By::Neighbour, 2), "asked for behind");
    assert_eq!(goes(&mut host, Hop::Early), (By::Link, 3), "and fresh again");
}

#[test]
fn an_unknown_neighbour_is_asked_for_by_the_hook_behind() {
    let mut host = Host::default();
    host.tables.macs.set(None);
    assert_eq!(goes(&mut host, Hop::Early).0, By::Neighbour);
    assert_eq!(goes(&mut host, Hop::Program).0, By::Neighbour);
}

#[test]
fn what_cannot_be_sent_from_this_hook_is_left_as_if_unseen() {
    let mut host = Host::default();
    host.tables.macs.set(Some([1, 2, 3]));
    host.change_slot(TENANT, &|slot| slot.wire.send = xdp_send::NONE);
    let packet = udp((POD, 40001), (REMOTE, 443), b"who?").bytes();
    let origin = |hop| Origin { vnid: TENANT, ifindex: 7, hop, ..Origin::default() };
    assert_eq!(host.original(origin(Hop::Early), &packet), Outcome::Passed);
    assert!(host.tables.original.borrow().is_empty(), "no flow was made");
    assert!(matches!(host.original(origin(Hop::Program), &packet), Outcome::Sent(_)));
}
