//! What holds for any traffic: flows are pairs, no address leaks, checksums are right.
use egress_common::{
    abi::{NO_VNID, PortRange, action},
    port::step,
    testing::{
        Gateway, Host, Outcome, checks,
        gateway::{
            DROPPED, EGRESS_IP, NODE, NORMAL, OTHER_EGRESS_IP, OTHER_REMOTE, OTHER_TENANT, POD,
            REMOTE, SECOND_POD, TENANT,
        },
        packet::{Datagram, checksum, echo, icmp, tcp, udp, udp_like},
    },
    wire::protocol,
};
use proptest::prelude::*;

/// Something that happens to a gateway.
#[derive(Debug, Clone)]
enum Event {
    FromPod(u32, Vec<u8>),
    FromStack(u32, Vec<u8>),
    FromOutside(Vec<u8>),
    Rest(u32),
    Policy(u32, u8, [u8; 4]),
    /// Of the original's table, then the reply's.
    Capacity(usize, usize),
}

const EGRESS_IPS: [[u8; 4]; 3] = [EGRESS_IP, OTHER_EGRESS_IP, [10, 0, 0, 42]];

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

/// Makes the header's checksum right, so that what is behind it is looked at.
fn mend(bytes: &mut [u8]) {
    let header = usize::from(bytes.first().map_or(0, |first| first & 15)) * 4;
    if header >= 20 && bytes.len() >= header {
        bytes[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&bytes[..header]);
        bytes[10..12].copy_from_slice(&sum);
    }
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

fn address(packet: &[u8], at: usize) -> [u8; 4] {
    packet[at..at + 4].try_into().expect("four bytes")
}

fn masquerades(host: &Host) -> bool {
    host.tables.config.as_ref().expect("configured").masquerade_slot != 0
}

/// The tenant's egress IP, if it has one now; without a policy, the node's address at most.
fn address_of(host: &Host, vnid: u32) -> Option<[u8; 4]> {
    let Some(&index) = host.tables.policy.get(&vnid) else {
        return masquerades(host).then_some(NODE);
    };
    let slot = &host.tables.slots[index as usize];
    (slot.action == action::SNAT).then_some(slot.egress_ip)
}

/// No two tenants have the same address: the planner sees to that.
fn is_free(host: &Host, vnid: u32, address: [u8; 4]) -> bool {
    host.tables
        .egress_ips
        .get(&address)
        .is_none_or(|&index| host.tables.slots[index as usize].vnid == vnid)
}

fn check_sent_outside(host: &Host, vnid: u32, before: &[u8], after: &[u8]) {
    assert_eq!(Some(address(after, 12)), address_of(host, vnid), "the tenant's own address");
    assert_eq!(address(after, 16), address(before, 16), "to where it was sent");
    check_sums(before, after);
    let is_first = u16::from_be_bytes([after[6], after[7]]) & 0x1fff == 0;
    if is_first
        && after[9] == protocol::ICMP
        && [3, 11, 12].contains(&after[usize::from(after[0] & 15) * 4])
    {
        let inner = usize::from(after[0] & 15) * 4 + 8;
        let quoted = address(after, inner + 16);
        assert_eq!(Some(quoted), address_of(host, vnid), "quoted as it was received");
    }
}

fn check_sums(before: &[u8], after: &[u8]) {
    assert_eq!(before.len(), after.len(), "a translation keeps the length");
    if checks::checksums(before).is_ok() {
        assert_eq!(checks::checksums(after), Ok(()), "\n{before:02x?}\n{after:02x?}");
    }
}

/// The answer to a packet that has just been sent reaches its pod.
fn check_inverse(host: &mut Host, before: &[u8], after: &[u8], ttl: u8) {
    let at = usize::from(after[0] & 15) * 4;
    let is_fragment = u16::from_be_bytes([after[6], after[7]]) & 0x3fff != 0;
    if !is_fragment && [protocol::TCP, protocol::UDP].contains(&after[9]) {
        let port = |packet: &[u8], at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
        let remote = (address(after, 16), port(after, at + 2));
        let egress = (address(after, 12), port(after, at));
        let pod = (address(before, 12), port(before, at));
        let (answer, expected) = if after[9] == protocol::TCP {
            (tcp(remote, egress, 0x10), tcp(remote, pod, 0x10))
        } else {
            (udp(remote, egress, b"yes"), udp(remote, pod, b"yes"))
        };
        let expected = expected.ttl(ttl).bytes();
        assert_eq!(host.arrive(&answer.bytes()), Outcome::Sent(expected), "the answer comes back");
    }
}

fn happen(host: &mut Host, event: &Event) {
    match event {
        Event::FromPod(vnid, packet) => {
            if let Outcome::Sent(after) = host.leave_pod(*vnid, packet) {
                check_sent_outside(host, *vnid, packet, &after);
                check_inverse(host, packet, &after, 63);
            }
        }
        Event::FromStack(vnid, packet) => match host.leave_stack(*vnid, packet) {
            Outcome::Sent(after) => {
                check_sent_outside(host, *vnid, packet, &after);
                // The stack takes its own one off.
                check_inverse(host, packet, &after, 64);
            }
            Outcome::Passed => {
                let to_cluster = |packet: &[u8]| {
                    let config = host.tables.config.as_ref().expect("configured");
                    config.is_untouched(address(packet, 16))
                };
                let is_pod = || {
                    let config = host.tables.config.as_ref().expect("configured");
                    config.is_pod(address(packet, 12))
                };
                let without_policy = !host.tables.policy.contains_key(vnid);
                let may_pass = without_policy && !(masquerades(host) && is_pod());
                let own = || Some(address(packet, 12)) == address_of(host, *vnid);
                assert!(may_pass || to_cluster(packet) || own(), "{packet:02x?}");
            }
            Outcome::Dropped(_) => {}
            Outcome::Answered(..) => panic!("behind the stack nothing is answered"),
        },
        Event::FromOutside(packet) => {
            if let Outcome::Sent(after) = host.arrive(packet) {
                check_sums(packet, &after);
                assert_eq!(address(&after, 12), address(packet, 12), "from where it came");
                let config = host.tables.config.as_ref().expect("configured");
                assert!(config.is_pod(address(&after, 16)), "to a pod");
                let slot = &host.tables.slots[host.scratch.translation.slot as usize];
                assert_eq!(slot.action, action::SNAT, "of a tenant that may");
                assert_eq!(slot.egress_ip, address(packet, 16), "whose address it is now");
            }
        }
        Event::Rest(ticks) => host.rest(*ticks),
        Event::Policy(vnid, action, address) => {
            if ![NORMAL, NO_VNID].contains(vnid) && is_free(host, *vnid, *address) {
                let address = if *action == action::SNAT { *address } else { [0; 4] };
                host.set_policy(*vnid, *action, address);
            }
        }
        Event::Capacity(original, reply) => {
            host.tables.original_capacity.set(*original);
            host.tables.reply_capacity.set(*reply);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, max_shrink_iters: 4096, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_flows_are_pairs_and_nothing_leaks(
        events in prop::collection::vec(event(), 1..200), narrow: bool, masquerade: bool,
    ) {
        let mut host = Host::default();
        if masquerade {
            host.masquerade();
            host.configure(&|config| {
                let range = PortRange { from: 1024, count: 5 };
                (config.masquerade_ports, config.masqueraded_ports) = (range, range);
                config.masquerade_step = step(range.count);
            });
        }
        if narrow {
            host.configure(&|config| {
                (config.port_from, config.port_count) = (1024, 8);
                config.port_step = step(8);
            });
        }
        for event in &events {
            happen(&mut host, event);
            // Panics where an entry has no partner or says another thing than its partner.
            let flows = host.mappings();
            for (vnid, index) in &host.tables.policy {
                let held = flows.iter().filter(|flow| flow.vnid == *vnid).count();
                let counted = host.tables.usage[*index as usize].flows.get();
                prop_assert_eq!(held, counted as usize, "what a tenant holds is counted");
            }
            if masquerade {
                let held = flows.iter().filter(|flow| flow.egress.0 == NODE).count();
                let slot = host.tables.config.as_ref().expect("configured").masquerade_slot;
                let counted = host.tables.usage[slot as usize].flows.get();
                prop_assert_eq!(held, counted as usize, "what is masqueraded is counted");
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
