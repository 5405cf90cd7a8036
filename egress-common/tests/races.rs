//! What another CPU does in the middle of a packet's treatment.
use egress_common::{
    flow::Scratch,
    nat::{Origin, translate_original},
    testing::{
        Bytes, Gateway, Host, MemoryTables, Outcome,
        gateway::{EGRESS_IP, POD, REMOTE, SECOND_POD, TENANT, TRANSITORY},
        packet::{End, tcp},
    },
    wire::tcp::SYN,
};

const SERVER: End = (REMOTE, 443);

/// The other CPU translates a pod's SYN.
fn syn_of(pod: End) -> Box<dyn FnOnce(&MemoryTables)> {
    Box::new(move |tables| {
        let mut scratch =
            Scratch { origin: Origin { vnid: TENANT, ..Origin::default() }, ..Scratch::default() };
        let packet = tcp(pod, SERVER, SYN).bytes();
        translate_original(&Bytes(&packet), tables, &mut scratch).expect("the other CPU's packet");
    })
}

#[track_caller]
fn leaves_from(host: &mut Host, pod: End, port: u16) {
    let expected = tcp((EGRESS_IP, port), SERVER, SYN).ttl(63).bytes();
    assert_eq!(host.leave_pod(TENANT, &tcp(pod, SERVER, SYN).bytes()), Outcome::Sent(expected));
}

#[test]
fn two_first_packets_of_a_flow_at_once_agree_on_one_port() {
    for before in [true, false] {
        let mut host = Host::default();
        let interruption =
            if before { &host.tables.before_reply } else { &host.tables.after_reply };
        *interruption.borrow_mut() = Some(syn_of((POD, 40001)));
        host.leave_pod(TENANT, &tcp((POD, 40001), SERVER, SYN).bytes());
        let flows = host.mappings();
        assert_eq!(flows.len(), 1, "{flows:?}");
        leaves_from(&mut host, (POD, 40001), flows[0].egress.1);
    }
}

#[test]
fn two_flows_that_want_one_port_at_once_get_two() {
    for before in [true, false] {
        let mut host = Host::default();
        let interruption =
            if before { &host.tables.before_reply } else { &host.tables.after_reply };
        *interruption.borrow_mut() = Some(syn_of((SECOND_POD, 40001)));
        host.leave_pod(TENANT, &tcp((POD, 40001), SERVER, SYN).bytes());
        let flows = host.mappings();
        assert_eq!(flows.len(), 2, "{flows:?}");
        assert_ne!(flows[0].egress, flows[1].egress);
    }
}

#[test]
fn of_two_that_take_over_an_expired_port_one_wins() {
    let mut host = Host::default();
    leaves_from(&mut host, (POD, 40001), 40001);
    host.rest(TRANSITORY);
    // The other CPU comes first, after this one has found the port taken.
    *host.tables.after_reply.borrow_mut() = Some(syn_of(([10, 128, 7, 7], 40001)));
    host.leave_pod(TENANT, &tcp((SECOND_POD, 40001), SERVER, SYN).bytes());
    let flows = host.mappings();
    assert_eq!(flows.len(), 2, "{flows:?}");
    assert_ne!(flows[0].egress, flows[1].egress);
    assert!(flows.iter().all(|flow| flow.pod.0 != POD), "the expired flow is gone: {flows:?}");
}
