//! Fragments from outside that come before the first of their packet.
//!
//! A program cannot hold a packet back, so its bytes are copied into a map; a few for each packet,
//! [`ALL_PLACES`](egress_common::fragment::ALL_PLACES) in all. When the first fragment comes, it
//! lends its packet: filled with a kept frame, a copy of it arrives at the uplink anew, and finds the
//! note that the first has left. Then the packet becomes the first fragment again.
//!
//! Of two CPUs that see a kept frame, the one that removes it from the map sends it.
use egress_common::{
    flow::Scratch,
    fragment::{PLACES, has_waited, is_kept_in_time, shelf, young},
    reason::Reason,
    tables::Tables,
};

use crate::{
    maps::{Maps, count_dropped, count_reason, keep, kept, kept_room, let_go},
    tc::{Skb, act},
};

/// Keeps the fragment of `scratch.fragment`; the packet ends here. A function of its own for the sake
/// of the stack, as the other.
#[inline(never)]
pub fn hold(skb: &Skb, scratch: &Scratch) -> i32 {
    let place = find_place(skb, scratch);
    if place == NO_PLACE {
        count_reason(Reason::FragmentEarly);
        count_dropped(scratch.translation.slot);
        return act::DROP;
    }
    // The first one may have come meanwhile, on another CPU, and found nothing.
    let maps = Maps { context: skb.context() };
    if young(&maps, &scratch.fragment).is_some() && let_go(place) {
        skb.arrive_again();
    }
    act::DROP
}

const NO_PLACE: u32 = u32::MAX;

#[inline(always)]
fn find_place(skb: &Skb, scratch: &Scratch) -> u32 {
    let now = Maps { context: skb.context() }.now();
    let Some(room) = kept_room() else { return NO_PLACE };
    let Some(length) = skb.copy(&mut room.frame) else { return NO_PLACE };
    (room.key, room.seen, room.length) = (scratch.fragment, now, length);
    let first = shelf(&scratch.fragment);
    let mut turn = 0;
    while turn < PLACES {
        let place = first + turn;
        if keep(place, room) {
            return place;
        }
        // Who has waited in vain makes room.
        if kept(place).is_some_and(|old| has_waited(now, old.seen)) && let_go(place) {
            count_reason(Reason::FragmentEarly);
            if keep(place, room) {
                return place;
            }
        }
        turn += 1;
    }
    NO_PLACE
}

/// Lets those arrive that were kept of the packet whose first fragment this is. What the packet was,
/// it is again afterwards, or else the answer is 0.
#[inline(never)]
pub fn release(skb: &Skb, scratch: &Scratch) -> u32 {
    let now = Maps { context: skb.context() }.now();
    let Some(room) = kept_room() else { return 1 };
    let first = shelf(&scratch.fragment);
    // Bytes of the packet itself, once they have been put away.
    let mut own = 0;
    let mut turn = 0;
    while turn < PLACES {
        let place = first + turn;
        turn += 1;
        let Some(old) = kept(place) else { continue };
        if old.key != scratch.fragment {
            continue;
        }
        if !is_kept_in_time(now, old.seen) {
            if let_go(place) {
                count_reason(Reason::FragmentEarly);
            }
            continue;
        }
        if own == 0 {
            let Some(length) = skb.copy(&mut room.frame) else { return 1 };
            own = length;
        }
        if skb.become_frame(&old.frame, old.length).is_ok() && let_go(place) {
            skb.arrive_again();
        }
    }
    u32::from(own == 0 || skb.become_frame(&room.frame, own).is_ok())
}
