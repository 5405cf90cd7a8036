//! Which ports of a crowded destination are taken, so that the last one is found too.
//!
//! A hint, not the truth, which is the table of flows: several CPUs change it without a lock, and
//! what began before it was made is not in it. A bit that is wrong is found out by a try.
use core::cell::Cell;

use crate::{
    abi::ReplyKey,
    flow::Scratch,
    port::Candidates,
    tables::{Step, Tables},
};

/// Words of 64 ports.
const WORDS: usize = 1024;

/// A bit for each port, and one for each word of them that is full. Ports outside the range that
/// it was made for are taken for ever.
#[repr(C)]
#[derive(Debug, Clone)]
pub struct Crowd {
    /// [`Candidates::range`]; 0: not made yet.
    range: Cell<u64>,
    full: [Cell<u64>; WORDS / 64],
    taken: [Cell<u64>; WORDS],
}

/// Of a [`Crowd`] as it is copied out of the map. Who removes a flow otherwise than by the engine
/// removes its destination's bitmap too, in which the port would stay taken.
pub const CROWD_WORDS: usize = size_of::<Crowd>() / 8;

impl Default for Crowd {
    fn default() -> Self {
        Self {
            range: Cell::default(),
            full: core::array::from_fn(|_| Cell::default()),
            taken: core::array::from_fn(|_| Cell::default()),
        }
    }
}

/// What [`Crowd::pick`] says when all are taken.
pub const NO_PORT: u32 = 1 << 16;

impl Crowd {
    #[inline(always)]
    fn set_word(&self, word: usize, taken: u64) {
        self.taken[word % WORDS].set(taken);
        let (full, bit) = (&self.full[word % WORDS / 64], 1 << (word & 63));
        full.set(if taken == u64::MAX { full.get() | bit } else { full.get() & !bit });
    }

    #[inline(always)]
    pub fn take(&self, port: [u8; 2]) {
        let port = usize::from(u16::from_be_bytes(port));
        let taken = self.taken[port / 64 % WORDS].get();
        self.set_word(port / 64, taken | 1 << (port & 63));
    }

    #[inline(always)]
    pub fn release(&self, port: [u8; 2]) {
        let port = usize::from(u16::from_be_bytes(port));
        let taken = self.taken[port / 64 % WORDS].get();
        self.set_word(port / 64, taken & !(1 << (port & 63)));
    }

    /// A port that is not known to be taken, from `start` on, or [`NO_PORT`]. Reads 34 words at
    /// most.
    #[inline(always)]
    pub fn pick(&self, start: u32) -> u32 {
        let start = start as usize % WORDS;
        let mut turn = 0;
        while turn <= WORDS / 64 {
            let index = (start / 64 + turn) % (WORDS / 64);
            let mut free = !self.full[index].get();
            if turn == 0 {
                free &= u64::MAX << (start & 63);
            }
            if free != 0 {
                let word = (index * 64 + free.trailing_zeros() as usize) % WORDS;
                let bits = !self.taken[word].get();
                if bits != 0 {
                    return (word * 64) as u32 + (bits.trailing_zeros() & 63);
                }
                self.set_word(word, u64::MAX);
            }
            turn += 1;
        }
        NO_PORT
    }
}

/// Makes a bitmap for a destination (its key has port 0).
#[inline(never)]
pub fn add<T: Tables>(tables: &T, scratch: &mut Scratch) {
    let Some(empty) = tables.empty_crowd(scratch.search.candidates.kind()) else { return };
    if empty.range.get() != scratch.search.candidates.range() {
        scratch.search.word = 0;
        tables.repeat::<Fill>(WORDS as u32, scratch);
        empty.range.set(scratch.search.candidates.range());
    }
    scratch.claim.key = ReplyKey { egress_port: [0, 0], ..scratch.lease };
    tables.add_crowd(&scratch.claim.key, empty);
}

/// Enters into one word of an empty bitmap what is outside the range.
struct Fill;

impl<T: Tables> Step<T> for Fill {
    #[inline(always)]
    fn step(tables: &T, scratch: &mut Scratch) -> bool {
        let kind = scratch.search.candidates.kind();
        let Some(empty) = tables.empty_crowd(kind) else { return false };
        let word = scratch.search.word;
        empty.set_word(word as usize, outside(word, &scratch.search.candidates));
        scratch.search.word = word + 1;
        true
    }
}

/// The ports of a word that are outside the range.
#[inline(always)]
fn outside(word: u32, candidates: &Candidates) -> u64 {
    let (first, count) = candidates.bounds();
    below(first, word * 64) | !below(first + count, word * 64)
}

/// The bits of the 64 numbers from `base` on that are below `limit`.
#[inline(always)]
fn below(limit: u32, base: u32) -> u64 {
    match limit.saturating_sub(base) {
        0 => 0,
        many @ 1..64 => !(u64::MAX << many),
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;
    use proptest::prelude::*;

    use super::*;
    use crate::{abi::Config, wire::protocol};

    fn crowd(from: u32, count: u32) -> (Crowd, Candidates) {
        let config = Config { port_from: from, port_count: count, ..Config::zeroed() };
        let candidates = Candidates::new(&config, 1, protocol::TCP, 0);
        let crowd = Crowd::default();
        for word in 0..WORDS {
            crowd.set_word(word, outside(word as u32, &candidates));
        }
        (crowd, candidates)
    }

    proptest! {
        #[test]
        fn every_port_of_the_range_is_picked_once_and_no_other(
            from in 0u32..60000, count in 1u32..5000, start: u32,
        ) {
            let (crowd, candidates) = crowd(from, count);
            for _ in 0..count {
                let port = crowd.pick(start);
                prop_assert_ne!(port, NO_PORT);
                let port = (port as u16).to_be_bytes();
                prop_assert!(candidates.contains(port));
                crowd.take(port);
            }
            prop_assert_eq!(crowd.pick(start), NO_PORT);
            let last = ((from + count - 1) as u16).to_be_bytes();
            crowd.release(last);
            prop_assert_eq!(crowd.pick(start), from + count - 1);
        }
    }
}
