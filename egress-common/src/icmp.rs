//! ICMP errors: they find their flow by the packet they quote, and are corrected inside and out
//! (RFC 5508, section 4).
use crate::{
    abi::{OriginalKey, ReplyKey, Slot},
    checksum::{delta, update, update_udp},
    flow::way_back,
    nat::{Origin, Translation, Verdict, Way},
    reason::Reason,
    rewrite::{Edit, ErrorEdit, Hop, Rewrite, Side, ip_bytes},
    tables::Tables,
    wire::{Ipv4, Packet, Ports, icmp, protocol},
};

/// The packet inside an ICMP error, as far as a translator looks at it.
struct Inner {
    offset: usize,
    ip: Ipv4,
    transport: usize,
    ports: Ports,
}

/// Reads the quoted packet: its whole header and 8 bytes (RFC 792), with options of its own.
#[inline(always)]
fn inner<P: Packet>(packet: &P, outer: &Ipv4) -> Option<Inner> {
    let offset = outer.header_len + 8;
    let ip = Ipv4::read(packet, offset)?;
    // Only the first fragment carries ports.
    if ip.fragment_offset != 0 {
        return None;
    }
    let transport = offset + ip.header_len;
    let head: [u8; 8] = packet.read(transport)?;
    let ports = match ip.protocol {
        protocol::TCP | protocol::UDP => {
            Ports { source: [head[0], head[1]], destination: [head[2], head[3]] }
        }
        protocol::ICMP if head[0] == icmp::ECHO_REQUEST => {
            Ports { source: [head[4], head[5]], destination: [0, 0] }
        }
        protocol::ICMP if head[0] == icmp::ECHO_REPLY => {
            Ports { source: [0, 0], destination: [head[4], head[5]] }
        }
        _ => return None,
    };
    Some(Inner { offset, ip, transport, ports })
}

/// An ICMP error from outside about a packet that we translated (RFC 5508, REQ-4).
#[inline(always)]
pub fn reply_error<P: Packet, T: Tables>(
    packet: &P,
    ip: &Ipv4,
    tables: &T,
) -> Result<Verdict, Reason> {
    if tables.egress_ip(ip.destination).is_none() {
        return Ok(Verdict::Pass);
    }
    let inner = inner(packet, ip).ok_or(Reason::NoFlow)?;
    let key = ReplyKey {
        remote: inner.ip.destination,
        egress_ip: inner.ip.source,
        remote_port: inner.ports.destination,
        egress_port: inner.ports.source,
        protocol: u32::from(inner.ip.protocol),
    };
    let flow = tables.reply(&key).ok_or(Reason::NoFlow)?;
    if ip.destination != key.egress_ip {
        return Err(Reason::NoFlow);
    }
    if ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let edit = error_edit(packet, ip, &inner, Side::Source, (flow.pod, flow.pod_port))
        .ok_or(Reason::Malformed)?;
    Ok(Verdict::Translate(Translation {
        rewrite: Rewrite {
            ip: ip_bytes(ip, Side::Destination, flow.pod, Hop::Program),
            edit: Edit::Error(edit),
        },
        way: way_back(flow),
        slot: flow.slot,
    }))
}

/// A pod's ICMP error about a reply that it got (RFC 5508, REQ-5).
#[inline(always)]
pub fn original_error<P: Packet, T: Tables>(
    packet: &P,
    ip: &Ipv4,
    origin: &Origin,
    slot: &Slot,
    index: u32,
    hop: Hop,
    tables: &T,
) -> Result<Verdict, Reason> {
    let inner = inner(packet, ip).ok_or(Reason::NoFlow)?;
    let key = OriginalKey {
        pod: inner.ip.destination,
        remote: inner.ip.source,
        pod_port: inner.ports.destination,
        remote_port: inner.ports.source,
        vnid_protocol: origin.vnid << 8 | u32::from(inner.ip.protocol),
    };
    let flow = tables.original(&key).ok_or(Reason::NoFlow)?;
    if flow.egress_ip != slot.egress_ip {
        return Err(Reason::NoFlow);
    }
    let mapping = (flow.egress_ip, flow.egress_port);
    let edit =
        error_edit(packet, ip, &inner, Side::Destination, mapping).ok_or(Reason::Malformed)?;
    Ok(Verdict::Translate(Translation {
        rewrite: Rewrite {
            ip: ip_bytes(ip, Side::Source, slot.egress_ip, hop),
            edit: Edit::Error(edit),
        },
        way: Way::Uplink { ifindex: slot.uplink, macs: None },
        slot: index,
    }))
}

/// The change of a quoted packet, one of whose ends becomes `new`.
#[inline(always)]
fn error_edit<P: Packet>(
    packet: &P,
    outer: &Ipv4,
    inner: &Inner,
    side: Side,
    new: ([u8; 4], [u8; 2]),
) -> Option<ErrorEdit> {
    let (address, port) = new;
    // The quoted TTL is the sender's business: only the address changes.
    let ip = ip_bytes(&inner.ip, side, address, Hop::Stack);
    let old_address = match side {
        Side::Source => inner.ip.source,
        Side::Destination => inner.ip.destination,
    };
    let address_delta = delta(&old_address, &address);
    let is_icmp = inner.ip.protocol == protocol::ICMP;
    let (old_port, port_offset) = match side {
        _ if is_icmp => {
            let id: [u8; 2] = packet.read(inner.transport + 4)?;
            (id, inner.transport + 4)
        }
        Side::Source => (inner.ports.source, inner.transport),
        Side::Destination => (inner.ports.destination, inner.transport + 2),
    };
    let port_delta = delta(&old_port, &port);
    let checksum_offset = inner.transport
        + match inner.ip.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => 2,
        };
    let mut changed = address_delta + delta(&inner.ip.checksum, &[ip[2], ip[3]]) + port_delta;
    let quoted: Option<[u8; 2]> = packet.read(checksum_offset);
    let checksum = match quoted {
        None => None,
        Some(old) => {
            let new = match inner.ip.protocol {
                protocol::TCP => update(old, address_delta + port_delta),
                protocol::UDP => update_udp(old, address_delta + port_delta),
                _ => update(old, port_delta),
            };
            changed += delta(&old, &new);
            Some((checksum_offset, new))
        }
    };
    let icmp_checksum_offset = outer.header_len + 2;
    let icmp_checksum = update(packet.read(icmp_checksum_offset)?, changed);
    Some(ErrorEdit {
        ip_offset: inner.offset,
        ip,
        port_offset,
        port,
        checksum,
        icmp_checksum_offset,
        icmp_checksum,
    })
}
