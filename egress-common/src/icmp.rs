//! ICMP errors: they find their flow by the packet they quote, and are corrected inside and out
//! (RFC 5508, section 4).
use crate::{
    abi::{OriginalKey, ReplyKey},
    checksum::{delta, update, update_udp},
    flow::{Scratch, still_allowed, way_back},
    nat::{By, Origin, Way},
    reason::Reason,
    rewrite::{Edit, ErrorEdit, Hop, Side, ip_words},
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
    let offset = outer.header_len() + 8;
    let ip = Ipv4::read(packet, offset)?;
    // Only the first fragment carries ports.
    if ip.fragment_offset != 0 {
        return None;
    }
    let transport = offset + ip.header_len();
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
        protocol::ICMP => return None,
        _ => Ports { source: [0, 0], destination: [0, 0] },
    };
    Some(Inner { offset, ip, transport, ports })
}

/// An ICMP error from outside about a packet that we translated (RFC 5508, REQ-4).
#[inline(never)]
pub fn reply_error<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let ip = &{ scratch.ip };
    let inner = inner(packet, ip).ok_or(Reason::NoFlow)?;
    scratch.lease = ReplyKey {
        remote: inner.ip.destination,
        egress_ip: inner.ip.source,
        remote_port: inner.ports.destination,
        egress_port: inner.ports.source,
        protocol: u32::from(inner.ip.protocol),
    };
    if ip.destination != scratch.lease.egress_ip {
        return Err(Reason::NoFlow);
    }
    let flow = tables.reply(&scratch.lease).ok_or(Reason::NoFlow)?;
    still_allowed(tables, flow, ip.destination)?;
    if ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let edit = error_edit(packet, ip, &inner, Side::Source, (flow.pod, flow.pod_port))
        .ok_or(Reason::Malformed)?;
    // Piece by piece: the frame has no room for all of it.
    let translation = &mut scratch.translation;
    translation.rewrite.edit = Edit::Error(edit);
    translation.rewrite.ip = ip_words(ip, Side::Destination, flow.pod, Hop::Program);
    translation.way = way_back(flow);
    translation.slot = flow.slot.get();
    Ok(())
}

/// A pod's ICMP error about a reply that it got (RFC 5508, REQ-5). `scratch.translation.slot` is the
/// tenant's.
#[inline(never)]
pub fn original_error<P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    let ip = &{ scratch.ip };
    let inner = inner(packet, ip).ok_or(Reason::NoFlow)?;
    let Origin { vnid, hop, .. } = scratch.origin;
    scratch.key = OriginalKey {
        pod: inner.ip.destination,
        remote: inner.ip.source,
        pod_port: inner.ports.destination,
        remote_port: inner.ports.source,
        vnid_protocol: vnid << 8 | u32::from(inner.ip.protocol),
    };
    let slot = tables.slot(scratch.translation.slot).ok_or(Reason::PolicyDrop)?;
    let flow = tables.original(&scratch.key).ok_or(Reason::NoFlow)?;
    if scratch.key.is_for_any_remote() || flow.egress_ip != slot.egress_ip {
        return Err(Reason::NoFlow);
    }
    let mapping = (flow.egress_ip, flow.egress_port);
    let edit =
        error_edit(packet, ip, &inner, Side::Destination, mapping).ok_or(Reason::Malformed)?;
    let translation = &mut scratch.translation;
    translation.rewrite.edit = Edit::Error(edit);
    translation.rewrite.ip = ip_words(ip, Side::Source, slot.egress_ip, hop);
    translation.way = Way { by: By::Neighbour, ifindex: slot.uplink, ..Way::default() };
    Ok(())
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
    let ip = ip_words(&inner.ip, side, address, Hop::Stack);
    let old_address = match side {
        Side::Source => inner.ip.source,
        Side::Destination => inner.ip.destination,
    };
    let address_delta = delta(&old_address, &address);
    let of_protocol = inner.ip.protocol;
    let (old_port, port_offset) = match side {
        _ if !protocol::has_ports(of_protocol) => (port, 0),
        _ if of_protocol == protocol::ICMP => {
            let id: [u8; 2] = packet.read(inner.transport + 4)?;
            (id, inner.transport + 4)
        }
        Side::Source => (inner.ports.source, inner.transport),
        Side::Destination => (inner.ports.destination, inner.transport + 2),
    };
    let port_delta = delta(&old_port, &port);
    let field = match of_protocol {
        protocol::TCP => 16,
        protocol::UDP | protocol::UDP_LITE | protocol::DCCP => 6,
        protocol::ICMP => 2,
        _ => 0,
    };
    let [_, _, c0, c1] = ip[0].to_ne_bytes();
    let mut changed = address_delta + delta(&inner.ip.checksum, &[c0, c1]) + port_delta;
    let quoted = if field == 0 { None } else { packet.read::<2>(inner.transport + field) };
    let (checksum_offset, checksum) = match quoted {
        None => (0, [0, 0]),
        Some(old) => {
            let new = match of_protocol {
                protocol::ICMP => update(old, port_delta),
                protocol::UDP | protocol::UDP_LITE => update_udp(old, address_delta + port_delta),
                _ => update(old, address_delta + port_delta),
            };
            changed += delta(&old, &new);
            (inner.transport + field, new)
        }
    };
    let icmp_checksum_offset = outer.header_len() + 2;
    let icmp_checksum = update(packet.read(icmp_checksum_offset)?, changed);
    Some(ErrorEdit {
        ip_offset: inner.offset,
        ip,
        port_offset,
        port,
        checksum_offset,
        checksum,
        icmp_checksum_offset,
        icmp_checksum,
    })
}
