//! A node that hears no other is silent about its egress IPs after its lease, and only then.
use egress_common::{
    reason::Reason,
    testing::{
        Host,
        gateway::{EGRESS_IP, Gateway as _, Outcome, POD, REMOTE, TENANT},
        packet::{End, tcp},
    },
    wire::tcp::{ACK, SYN},
};

const SERVER: End = (REMOTE, 443);
const LEASE: u32 = 20;

/// What becomes of a packet of a pod, of one of an established flow, of its reply, and of a stranger's.
fn outcomes(host: &mut Host) -> [Outcome; 4] {
    [
        host.leave_pod(TENANT, &tcp((POD, 2002), SERVER, SYN).bytes()),
        host.leave_pod(TENANT, &tcp((POD, 2001), SERVER, ACK).bytes()),
        host.arrive(&tcp(SERVER, (EGRESS_IP, 2001), ACK).bytes()),
        host.arrive(&tcp(SERVER, (EGRESS_IP, 7777), SYN).bytes()),
    ]
}

fn host(lease: u32, heard: u32) -> Host {
    let mut host = Host::default();
    host.tables.now.set(100);
    if let Some(config) = &mut host.tables.config {
        config.lease = lease;
    }
    host.tables.heard.set(heard);
    let sent = host.leave_pod(TENANT, &tcp((POD, 2001), SERVER, SYN).bytes());
    assert!(matches!(sent, Outcome::Sent(_)), "{sent:?}");
    host
}

#[test]
fn when_the_lease_has_run_out_nothing_leaves_nothing_comes_and_nothing_is_answered() {
    let mut host = host(LEASE, 100);
    host.tables.now.set(100 + LEASE);
    assert!(!outcomes(&mut host).contains(&Outcome::Dropped(Reason::Fenced)));
    host.tables.now.set(100 + LEASE + 1);
    assert_eq!(outcomes(&mut host), [const { Outcome::Dropped(Reason::Fenced) }; 4]);
    // Whoever is heard again goes on where it was.
    host.tables.heard.set(100 + LEASE + 1);
    assert!(!outcomes(&mut host).contains(&Outcome::Dropped(Reason::Fenced)));
}

#[test]
fn what_is_not_the_tenants_goes_on_all_the_same() {
    let mut host = host(LEASE, 100);
    host.tables.now.set(100 + LEASE + 1);
    let unknown = 0x12_3456;
    assert_eq!(host.leave_pod(unknown, &tcp((POD, 1), SERVER, SYN).bytes()), Outcome::Passed);
    let elsewhere = ([10, 0, 0, 99], 2001);
    assert_eq!(host.arrive(&tcp(SERVER, elsewhere, ACK).bytes()), Outcome::Passed);
}

#[test]
fn without_a_lease_and_before_anybody_was_heard_no_node_is_silent() {
    for (lease, heard) in [(0, 100), (LEASE, 0)] {
        let mut host = host(lease, heard);
        host.tables.now.set(100 + 10 * LEASE);
        assert!(!outcomes(&mut host).contains(&Outcome::Dropped(Reason::Fenced)));
    }
}
