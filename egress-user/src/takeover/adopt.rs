//! A connection as the kernel tracks it, and as our two entries of a flow: from one to the other. Pure.
//!
//! What the kernel does not know is where a pod is, which our replies need: its node follows from the
//! subnets of the HostSubnets, its MAC from its address, as the original makes it (`0a:58` and the
//! address).
use std::net::{Ipv4Addr, SocketAddrV4};

use egress_common::{
    abi::{Config, MacWords, OriginalKey, OriginalRecord, ReplyKey, ReplyRecord, TICK_SHIFT},
    state::{Moment, age, timeout},
    wire::{protocol, tcp},
};

use crate::conntrack::{Ends, Entry, tcp_state};

/// Where a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// Its node; all zero: this one.
    pub node: Ipv4Addr,
    /// The device that its packets come by.
    pub ifindex: u32,
    /// Of the gateway device, in the order of the wire.
    pub gateway_mac: [u8; 6],
}

/// A tenant's own in a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    pub vnid: u32,
    pub slot: u32,
}

/// Both entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    pub original: (OriginalKey, OriginalRecord),
    pub reply: (ReplyKey, ReplyRecord),
}

/// Whether a connection can be one of our flows: not translated at its destination too.
pub fn is_plain(entry: &Entry) -> bool {
    let Entry { original, remote, .. } = entry;
    original.destination.ip() == remote.ip() && original.destination.port() == remote.port()
}

/// The flow of a plain connection, seen last at `now` (ticks).
pub fn flow(entry: &Entry, tenant: Tenant, home: Home, tag: u32, now: u32) -> Flow {
    let protocol = entry.original.protocol;
    let (flags, reply_flags) = flags(entry);
    let life = |flags: u8| u64::from(now) << 32 | u64::from(flags);
    let Tenant { vnid, slot } = tenant;
    let Home { node, ifindex, gateway_mac } = home;
    let key = key(entry, vnid);
    let original = OriginalRecord {
        egress_ip: entry.seen_as.ip().octets(),
        egress_port: port_of(protocol, entry.seen_as),
        shares: 0,
        // Of no generation: it is looked up with the first packet.
        hop: [0, 0],
        slot,
        node: node.octets(),
        ifindex,
        tag,
        life: life(flags),
        packets: 0,
        bytes: 0,
    };
    let reply_key = ReplyKey {
        remote: key.remote,
        egress_ip: original.egress_ip,
        remote_port: key.remote_port,
        egress_port: original.egress_port,
        protocol: protocol.into(),
    };
    let reply = ReplyRecord {
        pod: key.pod,
        pod_port: key.pod_port,
        shares: 0,
        vnid,
        slot,
        node: node.octets(),
        ifindex,
        macs: mac_words(pod_mac(key.pod), gateway_mac),
        tag,
        life: life(reply_flags),
        packets: 0,
        bytes: 0,
    };
    Flow { original: (key, original), reply: (reply_key, reply) }
}

/// By what a plain connection of this VNID is found.
pub fn key(entry: &Entry, vnid: u32) -> OriginalKey {
    let Ends { protocol, source, destination } = entry.original;
    OriginalKey {
        pod: source.ip().octets(),
        remote: destination.ip().octets(),
        pod_port: port_of(protocol, source),
        remote_port: port_of(protocol, destination),
        vnid_protocol: vnid << 8 | u32::from(protocol),
    }
}

fn port_of(of_protocol: u8, end: SocketAddrV4) -> [u8; 2] {
    match protocol::has_ports(of_protocol) {
        true => end.port().to_be_bytes(),
        false => [0, 0],
    }
}

fn pod_mac([a, b, c, d]: [u8; 4]) -> [u8; 6] {
    [0x0a, 0x58, a, b, c, d]
}

/// Destination and source as they stand in a link-layer header.
fn mac_words(d: [u8; 6], s: [u8; 6]) -> MacWords {
    [
        u32::from_ne_bytes([d[0], d[1], d[2], d[3]]),
        u32::from_ne_bytes([d[4], d[5], s[0], s[1]]),
        u32::from_ne_bytes([s[2], s[3], s[4], s[5]]),
    ]
}

/// The TCP flags that the original and the reply's direction must have carried.
fn flags(entry: &Entry) -> (u8, u8) {
    let open = tcp::SYN | tcp::ACK;
    match entry.tcp_state {
        0 => (0, 0),
        tcp_state::SYN_SENT => (tcp::SYN, 0),
        tcp_state::SYN_SENT2 => (tcp::SYN, tcp::SYN),
        tcp_state::SYN_RECV => (tcp::SYN, open),
        tcp_state::FIN_WAIT | tcp_state::CLOSE_WAIT => (open | tcp::FIN, open),
        tcp_state::LAST_ACK | tcp_state::TIME_WAIT => (open | tcp::FIN, open | tcp::FIN),
        tcp_state::CLOSE => (open, open | tcp::RST),
        _ => (open, open),
    }
}

/// The connection of a flow, as the kernel is to go on with it; `None`: the flow has expired.
pub fn entry(
    key: &OriginalKey,
    original: &OriginalRecord,
    reply: &ReplyRecord,
    config: &Config,
    now: u32,
) -> Option<Entry> {
    let (there, back) = (Moment::of(original.life), Moment::of(reply.life));
    let rested = age(now, there.last_seen).min(age(now, back.last_seen));
    let left = timeout(config, key.protocol(), there.flags, back.flags).checked_sub(rested)?;
    let end = |ip: [u8; 4], port: [u8; 2]| SocketAddrV4::new(ip.into(), u16::from_be_bytes(port));
    let remote = end(key.remote, key.remote_port);
    Some(Entry {
        original: Ends {
            protocol: key.protocol(),
            source: end(key.pod, key.pod_port),
            destination: remote,
        },
        remote,
        seen_as: end(original.egress_ip, original.egress_port),
        tcp_state: if key.protocol() == protocol::TCP { state(there.flags, back.flags) } else { 0 },
        seen_reply: reply.packets > 0 || back.flags != 0,
        // Rounded up, and long enough for the next packet to come.
        timeout: ((u64::from(left) << TICK_SHIFT) / 1_000_000_000 + 1).max(10) as u32,
        helped: false,
    })
}

fn state(there: u32, back: u32) -> u8 {
    let has = |flags: u32, flag: u8| flags & u32::from(flag) != 0;
    match () {
        () if has(there | back, tcp::RST) => tcp_state::CLOSE,
        () if has(there, tcp::FIN) && has(back, tcp::FIN) => tcp_state::TIME_WAIT,
        () if has(there | back, tcp::FIN) => tcp_state::FIN_WAIT,
        () if has(there, tcp::ACK) && has(back, tcp::ACK) => tcp_state::ESTABLISHED,
        () if has(back, tcp::SYN) => tcp_state::SYN_RECV,
        // Picked up in its middle: the kernel does so too.
        () if has(there, tcp::ACK) => tcp_state::ESTABLISHED,
        () => tcp_state::SYN_SENT,
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;
    use crate::conntrack::ends_of;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 11);
    const REMOTE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
    const EGRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    const NOW: u32 = 5000;

    fn config() -> Config {
        Config {
            tcp_established: 900,
            tcp_transitory: 300,
            udp: 200,
            icmp: 100,
            ..Config::zeroed()
        }
    }

    fn connection(of_protocol: u8, tcp_state: u8) -> Entry {
        let original = ends_of(of_protocol, (POD, 40001), (REMOTE, 443));
        let seen_as = SocketAddrV4::new(EGRESS, 1024);
        let remote = original.destination;
        Entry { original, remote, seen_as, tcp_state, seen_reply: true, timeout: 0, helped: false }
    }

    fn adopted(entry: &Entry) -> Flow {
        let home =
            Home { node: Ipv4Addr::new(10, 0, 0, 3), ifindex: 5, gateway_mac: [2, 0, 0, 0, 0, 9] };
        flow(entry, Tenant { vnid: 7, slot: 3 }, home, 0x11, NOW)
    }

    #[test]
    fn both_entries_tell_the_mapping_and_the_way_home() {
        let Flow { original: (key, original), reply: (reply_key, reply) } =
            adopted(&connection(protocol::TCP, tcp_state::ESTABLISHED));
        assert_eq!((key.vnid(), key.protocol(), key.pod), (7, protocol::TCP, POD.octets()));
        assert_eq!(original.egress_port, 1024_u16.to_be_bytes(), "the kernel's choice of port");
        assert_eq!(
            (reply_key.egress_ip, reply_key.remote_port),
            (EGRESS.octets(), 443_u16.to_be_bytes())
        );
        assert_eq!((reply.pod, reply.pod_port), (key.pod, key.pod_port));
        assert_eq!((reply.node, reply.ifindex), ([10, 0, 0, 3], 5));
        assert_eq!((original.tag, original.slot, reply.tag, reply.slot), (0x11, 3, 0x11, 3));
        let macs: Vec<u8> = reply.macs.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(macs, [0x0a, 0x58, 10, 128, 0, 11, 2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn a_connection_comes_back_as_it_was_in_every_state() {
        let states = [
            (tcp_state::SYN_SENT, tcp_state::SYN_SENT),
            (tcp_state::SYN_RECV, tcp_state::SYN_RECV),
            (tcp_state::ESTABLISHED, tcp_state::ESTABLISHED),
            (tcp_state::FIN_WAIT, tcp_state::FIN_WAIT),
            (tcp_state::CLOSE_WAIT, tcp_state::FIN_WAIT),
            (tcp_state::LAST_ACK, tcp_state::TIME_WAIT),
            (tcp_state::TIME_WAIT, tcp_state::TIME_WAIT),
            (tcp_state::CLOSE, tcp_state::CLOSE),
        ];
        for (there, back) in states {
            let before = connection(protocol::TCP, there);
            let Flow { original: (key, original), reply: (_, reply) } = adopted(&before);
            let after = entry(&key, &original, &reply, &config(), NOW).expect("it is young");
            assert_eq!(after.tcp_state, back, "{there}");
            assert_eq!((after.original, after.seen_as), (before.original, before.seen_as));
        }
    }

    #[test]
    fn what_has_rested_too_long_does_not_come_back() {
        let Flow { original: (key, original), reply: (_, reply) } =
            adopted(&connection(protocol::UDP, 0));
        assert!(entry(&key, &original, &reply, &config(), NOW + 200).is_some());
        assert_eq!(entry(&key, &original, &reply, &config(), NOW + 201), None);
    }

    #[test]
    fn a_protocol_without_ports_has_none_in_its_keys() {
        let Flow { original: (key, original), .. } = adopted(&connection(50, 0));
        assert_eq!((key.pod_port, key.remote_port, original.egress_port), ([0; 2], [0; 2], [0; 2]));
    }

    #[test]
    fn what_is_translated_at_its_destination_too_is_not_plain() {
        let mut service = connection(protocol::TCP, tcp_state::ESTABLISHED);
        assert!(is_plain(&service));
        service.original.destination = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 9), 443);
        assert!(!is_plain(&service));
    }
}
