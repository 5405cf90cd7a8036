//! Sessions, interleaved by chance: the same trace for the same seed.

use super::{Step, sessions};
use crate::mutation::Chance;

/// Sessions under way at a time.
const ABREAST: usize = 32;

/// A trace without an end.
pub struct Trace {
    seed: u64,
    chance: Chance,
    next: u32,
    last: u32,
    /// Steps to come, the next one last.
    under_way: Vec<Vec<Step>>,
}

/// The chance of one session of a seed, or of the order of all.
fn chance(seed: u64, session: u32) -> Chance {
    // The finaliser of MurmurHash3: sessions of neighbouring numbers have nothing in common.
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(session);
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    Chance((word ^ (word >> 33)) | 1)
}

impl Trace {
    /// All sessions of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let chance = chance(seed, u32::MAX);
        Self { seed, chance, next: 0, last: u32::MAX, under_way: Vec::new() }
    }

    /// One session of a seed, alone.
    #[must_use]
    pub fn only(seed: u64, session: u32) -> Self {
        Self { next: session, last: session + 1, ..Self::of(seed) }
    }
}

impl Iterator for Trace {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        while self.under_way.len() < ABREAST && self.next < self.last {
            let mut steps = sessions::steps(chance(self.seed, self.next), self.next);
            steps.reverse();
            self.under_way.push(steps);
            self.next += 1;
        }
        if self.under_way.is_empty() {
            return None;
        }
        let which = self.chance.below(self.under_way.len());
        let step = self.under_way[which].pop();
        if self.under_way[which].is_empty() {
            self.under_way.swap_remove(which);
        }
        step
    }
}
