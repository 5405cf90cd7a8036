//! What one tenant does is not felt by another.
use egress_common::{
    abi::{Config, Place},
    limit::may_answer,
    reason::Reason,
    testing::{
        Gateway, Host, Outcome,
        gateway::{
            EGRESS_IP, OTHER_EGRESS_IP, OTHER_TENANT, POD, REMOTE, SECOND_POD, TENANT, TRANSITORY,
        },
        packet::{End, tcp},
    },
    wire::tcp::{ACK, SYN},
};

const SERVER: End = (REMOTE, 443);
const FLOWS: usize = 1000;
const SHARE: u32 = 750;

/// A gateway whose flow tables one tenant cannot fill alone, as the agent sets the slots.
fn shared() -> Host {
    let mut host = Host::default();
    host.tables.original_capacity.set(FLOWS);
    host.tables.reply_capacity.set(FLOWS);
    host.tables.places.resize_with(2 * FLOWS, Place::default);
    host.configure(&|config: &mut Config| config.places = 2 * FLOWS as u32);
    for vnid in [TENANT, OTHER_TENANT] {
        host.change_slot(vnid, &|slot| slot.max_flows = SHARE);
    }
    host
}

/// So many SYNs of the tenant, each from a port of its own.
fn flood(host: &mut Host, many: u16) -> usize {
    (0..many)
        .filter(|port| {
            let syn = tcp((POD, 2000 + port), SERVER, SYN).bytes();
            matches!(host.leave_pod(TENANT, &syn), Outcome::Sent(_))
        })
        .count()
}

#[test]
fn a_tenant_that_floods_leaves_the_others_room() {
    let mut host = shared();
    let client = |port| (SECOND_POD, port);
    let theirs = |flags, from: End| tcp(from, SERVER, flags);
    for round in 0..3 {
        let begun = flood(&mut host, 5000);
        assert!(begun <= SHARE as usize, "round {round}: {begun}");
        for port in 0..80 {
            let port = 40_000 + round * 80 + port;
            let sent = host.leave_pod(OTHER_TENANT, &theirs(SYN, client(port)).bytes());
            let expected = theirs(SYN, (OTHER_EGRESS_IP, port)).ttl(63).bytes();
            assert_eq!(sent, Outcome::Sent(expected), "round {round}, {port}");
            let answer = tcp(SERVER, (OTHER_EGRESS_IP, port), SYN | ACK).bytes();
            let expected = tcp(SERVER, client(port), SYN | ACK).ttl(63).bytes();
            assert_eq!(host.arrive(&answer), Outcome::Sent(expected), "round {round}, {port}");
        }
        host.rest(TRANSITORY / 4);
    }
    let refused = host.leave_pod(TENANT, &tcp((POD, 9999), SERVER, SYN).bytes());
    assert!(matches!(refused, Outcome::Answered(Reason::FlowLimit, _)), "{refused:?}");
}

#[test]
fn answers_to_one_tenants_packets_do_not_use_up_anothers() {
    let host = Host::default();
    let index = |vnid: u32| host.tables.policy[&vnid];
    let answered = (0..1000).filter(|_| may_answer(&host.tables, index(TENANT))).count();
    assert_eq!(answered, 100, "in a tick");
    assert!(may_answer(&host.tables, index(OTHER_TENANT)));
    host.tables.now.set(host.tables.now.get() + 1);
    assert!(may_answer(&host.tables, index(TENANT)), "in the next");
}

#[test]
fn a_few_collisions_push_no_bitmap_out() {
    let mut host = Host::default();
    for last in 0..=255 {
        for pod in [POD, SECOND_POD] {
            let syn = tcp((pod, 40_001), ([203, 0, 113, last], 443), SYN);
            let found = host.leave_pod(TENANT, &syn.bytes());
            assert!(matches!(found, Outcome::Sent(_)), "{found:?}");
        }
    }
    assert_eq!(host.tables.crowds.borrow().len(), 0);
    assert!(host.mappings().iter().all(|flow| flow.egress.0 == EGRESS_IP));
}
