//! Fragments, and packets too big for their way.
//!
//! Only the first fragment names its flow. Towards the outside that does not matter: the others
//! need no more than their tenant's one address. From outside, the first one leaves a note about
//! its flow, by which the others find their pod; one that comes before it is kept for a moment
//! ([`crate::nat::Verdict::Keep`]). The note also says what has passed: from outside nothing passes
//! twice, so that no fragment overlaps another (RFC 1858; the kernel's receiver drops such a packet
//! whole). A note ends with its packet, whose identification may then be used anew.
use crate::{
    abi::{FragmentKey, FragmentOwner, RUNS, Slot},
    flow::{Scratch, still_allowed, way_back},
    nat::{By, Translation, Way},
    reason::Reason,
    rewrite::{Hop, Side, rewrite},
    state::age,
    tables::{Step, Tables},
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

/// Whether the first fragment of the packet at hand has left a note, which is then in
/// `scratch.fragment_owner`.
#[inline(always)]
pub fn is_noted<T: Tables>(tables: &T, scratch: &mut Scratch) -> bool {
    set_key(scratch);
    let Some(owner) = young(tables, &scratch.fragment) else { return false };
    scratch.fragment_owner = *owner;
    true
}

/// A noted fragment from outside that is not the first, for an egress IP.
#[inline(never)]
pub fn later_reply<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), Reason> {
    let flow = tables.reply(&scratch.fragment_owner.flow).ok_or(Reason::Fragment)?;
    still_allowed(tables, flow, scratch.ip.destination)?;
    if scratch.ip.ttl <= 1 {
        return Err(Reason::TtlExceeded);
    }
    pass(tables, scratch)?;
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
pub fn remember_owner<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), Reason> {
    if !scratch.ip.more_fragments {
        return Ok(());
    }
    set_key(scratch);
    // Another first one, and the packet is not yet whole.
    if young(tables, &scratch.fragment).is_some() {
        return Err(Reason::Fragment);
    }
    scratch.fragment_owner =
        FragmentOwner { flow: scratch.lease, seen: tables.now(), ..FragmentOwner::default() };
    pass(tables, scratch)
}

/// The note of a packet whose fragments may still come.
#[inline(always)]
pub fn young<'a, T: Tables>(tables: &'a T, key: &FragmentKey) -> Option<&'a FragmentOwner> {
    tables.fragment(key).filter(|owner| age(tables.now(), owner.seen) <= REASSEMBLY)
}

/// Which part of its packet a fragment is, in units of 8 bytes, while it is entered into the note.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Piece {
    from: u16,
    to: u16,
    /// The run to be looked at next.
    run: u32,
    /// A run that is free; [`RUNS`]: none.
    free: u32,
    /// 1: it overlaps what has passed, or the packet's end.
    overlaps: u32,
}

/// Enters the fragment at hand into its packet's note, unless it overlaps what has passed, or is one
/// piece too many.
#[inline(never)]
fn pass<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch { ip, fragment_owner: owner, .. } = scratch;
    let from = ip.fragment_offset;
    let to = from.wrapping_add(ip.payload_len().div_ceil(8) as u16);
    let is_last = !ip.more_fragments;
    if owner.end != 0 && (is_last || to > owner.end) {
        return Err(Reason::Fragment);
    }
    if is_last {
        owner.end = to;
    }
    scratch.piece = Piece { from, to, run: 0, free: RUNS as u32, overlaps: 0 };
    tables.repeat::<Merge>(RUNS as u32, scratch);
    let Scratch { fragment, fragment_owner: owner, piece, .. } = scratch;
    if piece.overlaps == 1 {
        return Err(Reason::Fragment);
    }
    if piece.from == 0 && piece.to == owner.end {
        tables.forget_fragment(fragment);
        return Ok(());
    }
    *owner.runs.get_mut(piece.free as usize).ok_or(Reason::Fragment)? = [piece.from, piece.to];
    tables.remember_fragment(fragment, owner);
    Ok(())
}

/// Compares the piece with one run of what has passed. Neighbours become one.
struct Merge;

impl<T: Tables> Step<T> for Merge {
    #[inline(always)]
    fn step(_: &T, scratch: &mut Scratch) -> bool {
        let Scratch { fragment_owner: owner, piece, .. } = scratch;
        let index = piece.run;
        piece.run += 1;
        let end = owner.end;
        let Some(run) = owner.runs.get_mut(index as usize) else { return false };
        let [start, stop] = *run;
        if start != stop {
            if (start < piece.to && piece.from < stop) || (end != 0 && stop > end) {
                piece.overlaps = 1;
                return false;
            }
            if stop != piece.from && start != piece.to {
                return true;
            }
            (piece.from, piece.to) = (piece.from.min(start), piece.to.max(stop));
            *run = [0; 2];
        }
        piece.free = index;
        true
    }
}

/// Fragments that are kept of one packet, and of all those that share its places.
pub const PLACES: u32 = 4;
/// Packets' worth of places.
const SHELVES_SHIFT: u32 = 6;
/// All places where a fragment is kept.
pub const ALL_PLACES: u32 = PLACES << SHELVES_SHIFT;
/// Ticks, about two seconds, after which a kept fragment makes room for another.
pub const PATIENCE: u32 = 15;

/// The first of the places where fragments of this packet are kept.
#[inline(always)]
pub fn shelf(key: &FragmentKey) -> u32 {
    let mixed = u32::from_ne_bytes(key.remote)
        ^ u32::from_ne_bytes(key.egress_ip).rotate_left(11)
        ^ u32::from_ne_bytes([key.id[0], key.id[1], key.protocol, 0]).rotate_left(21);
    (mixed.wrapping_mul(0x9e37_79b1) >> (32 - SHELVES_SHIFT)) * PLACES
}

/// Whether what was kept then may still belong to a packet that comes now.
#[inline(always)]
pub fn is_kept_in_time(now: u32, seen: u32) -> bool {
    age(now, seen) <= REASSEMBLY
}

/// Whether what was kept then has waited long enough to make room.
#[inline(always)]
pub fn has_waited(now: u32, seen: u32) -> bool {
    age(now, seen) > PATIENCE
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
