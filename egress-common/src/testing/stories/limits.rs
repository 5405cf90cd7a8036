//! A tenant's limits, which are no other tenant's.
use crate::{
    reason::Reason,
    testing::{
        gateway::{
            EGRESS_IP, Gateway, OTHER_EGRESS_IP, OTHER_TENANT, Outcome, POD, REMOTE, TENANT,
            TRANSITORY,
        },
        packet::{End, tcp},
        stories::{same, stories},
    },
    wire::tcp::{ACK, SYN},
};

stories![
    a_tenant_at_its_limit_is_refused_and_told_so,
    flows_that_end_make_room_for_others,
    a_tenant_that_begins_flows_too_fast_is_refused_until_the_next_window,
    one_tenants_limit_is_not_anothers,
];

const SERVER: End = (REMOTE, 443);

#[track_caller]
fn begin(gateway: &mut dyn Gateway, port: u16) {
    let mapped = tcp((EGRESS_IP, port), SERVER, SYN);
    gateway.pod_sends(&tcp((POD, port), SERVER, SYN), &mapped);
}

fn a_tenant_at_its_limit_is_refused_and_told_so(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.max_flows = 2);
    begin(gateway, 2001);
    begin(gateway, 2002);
    gateway.pod_is_prohibited(&tcp((POD, 2003), SERVER, SYN), Reason::FlowLimit);
    // What is established goes on.
    let mapped = tcp((EGRESS_IP, 2001), SERVER, ACK);
    gateway.pod_sends(&tcp((POD, 2001), SERVER, ACK), &mapped);
    assert_eq!(gateway.mappings().len(), 2);
}

fn flows_that_end_make_room_for_others(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.max_flows = 1);
    begin(gateway, 2001);
    gateway.rest(TRANSITORY);
    let found = gateway.arrive(&tcp(SERVER, (EGRESS_IP, 2001), ACK).bytes());
    assert!(matches!(found, Outcome::Answered(Reason::Refused, _)), "{found:?}");
    begin(gateway, 2002);
    assert_eq!(gateway.mappings().len(), 1);
}

fn a_tenant_that_begins_flows_too_fast_is_refused_until_the_next_window(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.max_new_flows = 3);
    // The kernel's clock may open a new window meanwhile, once.
    let refused = (2001..2008)
        .filter(|port| {
            let found = gateway.leave_pod(TENANT, &tcp((POD, *port), SERVER, SYN).bytes());
            matches!(found, Outcome::Answered(Reason::NewFlowLimit, _))
        })
        .count();
    assert!((1..=4).contains(&refused), "{refused}");
    assert_eq!(gateway.mappings().len(), 7 - refused);
}

fn one_tenants_limit_is_not_anothers(gateway: &mut dyn Gateway) {
    gateway.change_slot(TENANT, &|slot| slot.max_flows = 1);
    begin(gateway, 2001);
    gateway.pod_is_prohibited(&tcp((POD, 2002), SERVER, SYN), Reason::FlowLimit);
    let packet = tcp((POD, 2002), SERVER, SYN);
    let expected = tcp((OTHER_EGRESS_IP, 2002), SERVER, SYN).ttl(63);
    same(gateway.leave_pod(OTHER_TENANT, &packet.bytes()), Outcome::Sent(expected.bytes()));
}
