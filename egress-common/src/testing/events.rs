//! Things that happen to a gateway, and what must hold after each: for random tests of every kind.
//!
//! A proptest makes [`Event`]s; a fuzzer makes bytes, which [`replay`] reads as events. What either
//! has found is kept as bytes and replayed.
use crate::{
    abi::{NO_VNID, PortRange, action, mapping::ENDPOINT_INDEPENDENT},
    port::step,
    testing::{
        Gateway, Host, Outcome, checks,
        gateway::{
            DROPPED, EGRESS_IP, NODE, NORMAL, OTHER_EGRESS_IP, OTHER_REMOTE, OTHER_TENANT, POD,
            REMOTE, SECOND_POD, TENANT,
        },
        packet::{checksum, tcp, udp},
    },
    wire::protocol,
};

/// Something that happens to a gateway. Packets begin with their IPv4 header.
#[derive(Debug, Clone)]
pub enum Event {
    FromPod(u32, Vec<u8>),
    FromStack(u32, Vec<u8>),
    FromOutside(Vec<u8>),
    Rest(u32),
    Policy(u32, u8, [u8; 4]),
    /// Of the original's table, then the reply's.
    Capacity(usize, usize),
}

/// The egress IPs that tenants may get.
pub const EGRESS_IPS: [[u8; 4]; 3] = [EGRESS_IP, OTHER_EGRESS_IP, [10, 0, 0, 42]];
const VNIDS: [u32; 5] = [TENANT, OTHER_TENANT, DROPPED, NORMAL, NO_VNID];
const INSIDE: [[u8; 4]; 4] = [POD, SECOND_POD, [10, 128, 0, 1], NODE];
const OUTSIDE: [[u8; 4]; 4] = [REMOTE, OTHER_REMOTE, [10, 0, 0, 77], [10, 131, 0, 1]];
/// Events that a replay takes from its bytes at most.
const MOST_EVENTS: usize = 64;

/// Makes a header's checksum right, so that what is behind it is looked at.
pub fn mend(packet: &mut [u8]) {
    let header = usize::from(packet.first().map_or(0, |first| first & 15)) * 4;
    if header >= 20 && packet.len() >= header {
        packet[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&packet[..header]);
        packet[10..12].copy_from_slice(&sum);
    }
}

/// Reads bytes as events, lets them happen to a new gateway, and looks at it after each.
///
/// # Panics
/// If something does not hold.
pub fn replay(bytes: &[u8]) {
    let mut bytes = bytes;
    let mut host = Host::default();
    let how = take(&mut bytes).unwrap_or(0);
    if how & 1 == 1 {
        narrow(&mut host);
    }
    if how & 2 == 2 {
        masquerade(&mut host);
    }
    if how & 4 == 4 {
        independent(&mut host);
    }
    for _ in 0..MOST_EVENTS {
        let Some(event) = Event::read(&mut bytes) else { return };
        happen(&mut host, &event);
        look(&host);
    }
}

/// Leaves the gateway eight ports.
pub fn narrow(host: &mut Host) {
    host.configure(&|config| {
        (config.port_from, config.port_count) = (1024, 8);
        config.port_step = step(8);
    });
}

/// Gives pods without a policy the node's address, with five ports.
pub fn masquerade(host: &mut Host) {
    host.masquerade();
    host.configure(&|config| {
        let range = PortRange { from: 1024, count: 5 };
        (config.masquerade_ports, config.masqueraded_ports) = (range, range);
        config.masquerade_step = step(range.count);
    });
}

/// Gives one tenant endpoint-independent mapping.
pub fn independent(host: &mut Host) {
    host.change_slot(TENANT, &|slot| slot.mapping = ENDPOINT_INDEPENDENT);
}

fn take(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn pick<T: Copy>(of: &[T], by: u8) -> T {
    of[usize::from(by) % of.len()]
}

impl Event {
    /// The first event in these bytes, which go on behind it.
    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (kind, which) = (take(bytes)?, take(bytes)?);
        let vnid = pick(&VNIDS, which);
        Some(match kind % 16 {
            0..6 => Self::FromPod(vnid, packet(bytes, &INSIDE, &OUTSIDE)?),
            6 => Self::FromStack(vnid, packet(bytes, &INSIDE, &OUTSIDE)?),
            7..13 => Self::FromOutside(packet(bytes, &OUTSIDE, &EGRESS_IPS)?),
            13 => Self::Rest(u32::from(which) << (kind >> 4)),
            14 => {
                let action = if kind & 16 == 0 { action::SNAT } else { action::DROP };
                Self::Policy(vnid, action, pick(&EGRESS_IPS, which >> 2))
            }
            _ => {
                let capacity = |by| if by < 20 { usize::from(by) } else { usize::MAX };
                Self::Capacity(capacity(which), capacity(take(bytes)?))
            }
        })
    }
}

/// A packet: mostly between addresses of these, with a right header checksum.
fn packet(bytes: &mut &[u8], from: &[[u8; 4]], to: &[[u8; 4]]) -> Option<Vec<u8>> {
    let (length, how) = (usize::from(take(bytes)?), take(bytes)?);
    let (taken, rest) = bytes.split_at(length.min(bytes.len()));
    *bytes = rest;
    let mut packet = taken.to_vec();
    if how & 0xc0 != 0 && packet.len() >= 20 {
        packet[0] = 0x40 | (packet[0] & 15).max(5);
        if how & 0x40 != 0 {
            let length = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&length);
        }
        packet[12..16].copy_from_slice(&pick(from, how & 3));
        packet[16..20].copy_from_slice(&pick(to, how >> 2 & 3));
        mend(&mut packet);
    }
    Some(packet)
}

/// What must hold at any time.
///
/// # Panics
/// If an entry has no partner or says another thing than its partner, or the count of what a tenant
/// holds is wrong.
pub fn look(host: &Host) {
    let flows = host.mappings();
    for (vnid, index) in &host.tables.policy {
        let held = flows.iter().filter(|flow| flow.vnid == *vnid).count();
        let counted = host.tables.usage[*index as usize].flows.get();
        assert_eq!(held, counted as usize, "what a tenant holds is counted");
    }
    if masquerades(host) {
        let held = flows.iter().filter(|flow| flow.egress.0 == NODE).count();
        let slot = host.tables.config.as_ref().expect("configured").masquerade_slot;
        let counted = host.tables.usage[slot as usize].flows.get();
        assert_eq!(held, counted as usize, "what is masqueraded is counted");
    }
}

/// The address at this place of a packet.
pub fn address(packet: &[u8], at: usize) -> [u8; 4] {
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

/// Lets an event happen, and looks at what has come of it.
///
/// # Panics
/// If a packet leaves or arrives that must not, or not like this.
pub fn happen(host: &mut Host, event: &Event) {
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
            Outcome::Answered(..) | Outcome::Kept => {
                panic!("behind the stack nothing is answered or kept")
            }
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
