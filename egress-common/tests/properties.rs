//! What holds for any traffic: flows are pairs, no address leaks, checksums are right.
use egress_common::{
    abi::{NO_VNID, action},
    testing::{
        Gateway, Host, Outcome,
        events::{self, EGRESS_IPS, Event, address, happen, look, mend},
        gateway::{
            DROPPED, EGRESS_IP, NODE, NORMAL, OTHER_EGRESS_IP, OTHER_REMOTE, OTHER_TENANT, POD,
            REMOTE, SECOND_POD, TENANT,
        },
        packet::{Datagram, echo, icmp, tcp, udp, udp_like},
    },
};
use proptest::prelude::*;

fn one_of<T: Copy + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(values.to_vec())
}

fn vnid() -> impl Strategy<Value = u32> {
    prop_oneof![
        5 => Just(TENANT), 3 => Just(OTHER_TENANT), 1 => Just(DROPPED), 2 => Just(NORMAL),
        3 => Just(NO_VNID),
    ]
}

fn inside() -> impl Strategy<Value = [u8; 4]> {
    one_of(&[POD, POD, POD, SECOND_POD, SECOND_POD, [10, 128, 0, 1], NODE, [192, 0, 2, 1]])
}

fn outside() -> impl Strategy<Value = [u8; 4]> {
    one_of(&[REMOTE, REMOTE, REMOTE, OTHER_REMOTE, [10, 0, 0, 77], [10, 131, 0, 1]])
}

fn egress_ip() -> impl Strategy<Value = [u8; 4]> {
    one_of(&[EGRESS_IP, OTHER_EGRESS_IP, EGRESS_IP, [10, 0, 0, 42], NODE])
}

/// A packet between two ends, of any kind; few ports, so that they meet.
fn packet(
    from: impl Strategy<Value = [u8; 4]> + Clone + 'static,
    to: impl Strategy<Value = [u8; 4]> + Clone + 'static,
) -> impl Strategy<Value = Datagram> {
    let ends = (from, 1022_u16..1028, to, one_of(&[80_u16, 80, 443]), any::<bool>());
    let data = prop::collection::vec(any::<u8>(), 0..40);
    let kind = 0..10_u8;
    let flags = prop_oneof![4 => one_of(&[0x02_u8, 0x12, 0x10]), 1 => any::<u8>()];
    let simple = (ends, data, kind, flags, any::<u8>()).prop_map(
        |((from, inner, to, outer, swapped), data, kind, flags, which)| {
            let (from_port, to_port) = if swapped { (outer, inner) } else { (inner, outer) };
            let (from, to) = ((from, from_port), (to, to_port));
            match kind {
                0..4 => tcp(from, to, flags & 0x17),
                4..7 => udp(from, to, &data),
                7 => echo(which & 8, from.0, to.0, inner % 4),
                8 => udp_like(136, 8, from, to, &data),
                _ => Datagram::new(which, from.0, to.0, &[&[0; 20], data.as_slice()].concat()),
            }
        },
    );
    let options = prop_oneof![5 => Just(0_usize), 1 => 1..11_usize];
    let fragment = prop_oneof![8 => Just(0_u16), 1 => Just(0x4000), 1 => any::<u16>()];
    let ttl = prop_oneof![9 => 2..=255_u8, 1 => 0..2_u8];
    (simple, options, fragment, ttl).prop_map(|(packet, options, fragment, ttl)| {
        packet.options(&vec![1; options * 4]).fragment(fragment).ttl(ttl)
    })
}

/// A packet, or an error about one that went the other way.
fn anything(
    from: impl Strategy<Value = [u8; 4]> + Clone + 'static,
    to: impl Strategy<Value = [u8; 4]> + Clone + 'static,
) -> impl Strategy<Value = Vec<u8>> {
    let quoted = packet(to.clone(), from.clone());
    let error = (quoted, from.clone(), to.clone(), one_of(&[3_u8, 11, 12, 5]), 20..90_usize)
        .prop_map(|(quoted, from, to, kind, length)| {
            let mut bytes = quoted.bytes();
            bytes.truncate(length);
            let destination = if length % 5 == 0 { to } else { quoted.source };
            icmp((kind, 1), from, destination, [0, 0, 5, 0], &bytes).bytes()
        });
    let whole = prop_oneof![4 => packet(from, to).prop_map(|packet| packet.bytes()), 1 => error];
    let spoiled = (any::<prop::sample::Index>(), any::<u8>(), any::<prop::sample::Index>());
    (whole, prop::option::weighted(0.1, spoiled)).prop_map(|(mut bytes, spoiled)| {
        if let Some((at, value, length)) = spoiled {
            let at = at.index(bytes.len());
            bytes[at] = value;
            if value % 3 == 0 {
                bytes.truncate(length.index(bytes.len()));
            }
            if value % 2 == 0 {
                mend(&mut bytes);
            }
        }
        bytes
    })
}

fn capacity() -> impl Strategy<Value = usize> {
    prop_oneof![3 => Just(usize::MAX), 1 => 0..20_usize]
}

fn event() -> impl Strategy<Value = Event> {
    let (inside, outside, egress_ip) = (inside().boxed(), outside().boxed(), egress_ip().boxed());
    let from_pod = (vnid(), anything(inside.clone(), outside.clone()));
    let from_stack = (vnid(), anything(inside, outside.clone()));
    prop_oneof![
        20 => from_pod.prop_map(|(vnid, packet)| Event::FromPod(vnid, packet)),
        4 => from_stack.prop_map(|(vnid, packet)| Event::FromStack(vnid, packet)),
        20 => anything(outside, egress_ip).prop_map(Event::FromOutside),
        2 => prop_oneof![0..3000_u32, 0..60_000_u32].prop_map(Event::Rest),
        3 => (vnid(), one_of(&[action::SNAT, action::SNAT, action::DROP]), one_of(&EGRESS_IPS))
            .prop_map(|(vnid, action, address)| Event::Policy(vnid, action, address)),
        1 => (capacity(), capacity()).prop_map(|(original, reply)| Event::Capacity(original, reply)),
    ]
}

/// A flow in use that shares a port has the port that its pod's port holds, which is no other's.
fn check_shared_ports(host: &Host) {
    let now = host.tables.now.get();
    let flows = host.tables.original.borrow();
    for (key, flow) in flows.iter().filter(|(_, flow)| flow.shares == 1) {
        let held = flows.get(&key.for_any_remote());
        let holds = held.is_some_and(|held| {
            (held.egress_ip, held.egress_port) == (flow.egress_ip, flow.egress_port)
        });
        assert!(holds || flow.life.now().is_due(now), "{key:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 4096, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_flows_are_pairs_and_nothing_leaks(
        events in prop::collection::vec(event(), 1..200), narrow: bool,
        masquerade: bool, independent: bool,
    ) {
        let mut host = Host::default();
        if masquerade {
            events::masquerade(&mut host);
        }
        if independent {
            events::independent(&mut host);
        }
        if narrow {
            events::narrow(&mut host);
        }
        let mut changed = false;
        for event in &events {
            happen(&mut host, event);
            look(&host);
            changed |= matches!(event, Event::Policy(TENANT, ..));
            // An address that changes, and back within a second, leaves ports behind.
            if !changed {
                check_shared_ports(&host);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_leave_with_a_pods_address(
        bytes in prop::collection::vec(any::<u8>(), 0..120), from: [u8; 4], pod: bool,
    ) {
        let mut host = Host::default();
        let mut bytes = bytes;
        if bytes.len() >= 20 {
            bytes[0] = 0x40 | (bytes[0] & 15).max(5);
            bytes[12..16].copy_from_slice(if pod { &POD } else { &from });
            bytes[2] = 0;
            mend(&mut bytes);
        }
        if let Outcome::Sent(after) = host.leave_pod(TENANT, &bytes) {
            prop_assert_eq!(address(&after, 12), EGRESS_IP);
        }
        if let Outcome::Sent(after) = host.leave_stack(TENANT, &bytes) {
            prop_assert_eq!(address(&after, 12), EGRESS_IP);
        }
        prop_assert!(!matches!(host.arrive(&bytes), Outcome::Sent(_)) || bytes[16..20] == EGRESS_IP);
    }
}
