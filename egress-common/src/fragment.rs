//! Fragments, and packets too big for their way.
//!
//! Only the first fragment names its flow. Towards the outside that does not matter: the others
//! need no more than their tenant's one address. From outside, the first one leaves a note about
//! its flow, by which the others find their pod; one that comes before it finds none and is
//! dropped, since a program cannot keep a packet. What overlaps a header is dropped
//! ([`crate::wire::Ipv4::is_sane_fragment`]); other overlaps are the receiver's to judge, as ever.
use crate::{
    abi::{FragmentKey, FragmentOwner, Slot},
    flow::{Scratch, still_allowed, way_back},
    nat::{By, Translation, Way},
    reason::Reason,
    rewrite::{Hop, Side, rewrite},
    state::age,
    tables::Tables,
    wire::Packet,
};

/// How long the fragments of a packet may take: 30 s in ticks, as in the kernel's reassembly.
pub const REASSEMBLY: u32 = 224;

/// A fragment towards the outside that is not the first: its address is all that there is.
#[inline(always)]
pub fn later_original(slot: &Slot, scratch: &mut Scratch) {
    let (ip, hop) = (&scratch.ip, scratch.origin.hop);
    scratch.translation.rewrite =
        rewrite(ip, &scratch.transport, Side::Source, (slot.egress_ip, [0, 0]), hop);
    scratch.translation.way = Way { by: By::Neighbour, ifindex: slot.uplink, ..Way::default() };
}

/// A fragment from outside that is not the first, for an egress IP.
#[inline(never)]
pub fn later_reply<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), Reason> {
    set_key(scratch);
    let owner = tables.fragment(&scratch.fragment).ok_or(Reason::Fragment)?;
    if age(tables.now(), owner.seen) > REASSEMBLY {
        return Err(Reason::Fragment);
    }
    let flow = tables.reply(&owner.flow).ok_or(Reason::Fragment)?;
    still_allowed(tables, flow, scratch.ip.destination)?;
    if scratch.ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    let (ip, pod) = (&scratch.ip, (flow.pod, [0, 0]));
    scratch.translation = Translation {
        rewrite: rewrite(ip, &scratch.transport, Side::Destination, pod, Hop::Program),
        way: way_back(flow),
        slot: flow.slot.get(),
    };
    Ok(())
}

/// Of a first fragment, notes whose those behind it are: the flow's that `scratch.lease` names.
#[inline(always)]
pub fn remember_owner<T: Tables>(tables: &T, scratch: &mut Scratch) {
    if !scratch.ip.more_fragments {
        return;
    }
    set_key(scratch);
    scratch.fragment_owner = FragmentOwner { flow: scratch.lease, seen: tables.now() };
    tables.remember_fragment(&scratch.fragment, &scratch.fragment_owner);
}

#[inline(always)]
fn set_key(scratch: &mut Scratch) {
    let ip = &scratch.ip;
    scratch.fragment = FragmentKey {
        remote: ip.source,
        egress_ip: ip.destination,
        id: ip.id,
        protocol: ip.protocol,
        pad: 0,
    };
}

/// Whether a packet, or one of those that it stands for, is bigger than `mtu`; 0: nothing is.
#[inline(always)]
pub fn is_too_big<P: Packet>(packet: &P, scratch: &Scratch, mtu: u32) -> bool {
    let Scratch { ip, transport, .. } = scratch;
    if mtu == 0 || u32::from(ip.total_len) <= mtu {
        return false;
    }
    match packet.segment() {
        0 => true,
        payload => ip.header_len() as u32 + u32::from(transport.header_len) + payload > mtu,
    }
}
