//! When what failed is tried again: soon, then ever more rarely. Told the time, sleeps not.
use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

/// After the first failure; doubled by each further one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The turn of the next try.
#[derive(Debug, Default)]
pub struct Retry {
    failures: u32,
    at: Option<Instant>,
}

impl Retry {
    /// Notes how a round ended. `chance` is 0 to 255: up to a quarter is taken off, so that nodes
    /// with the same trouble do not all come at once.
    pub fn note(&mut self, failed: bool, now: Instant, chance: u8) {
        if !failed {
            *self = Self::default();
            return;
        }
        // Rounds that others asked for do not put off the try that is due.
        if self.at.is_some_and(|at| at > now) {
            return;
        }
        let wait = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures += 1;
        self.at = Some(now + wait - wait / 4 * u32::from(chance) / 255);
    }

    /// When to try again; `None`: nothing has failed.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }
}

/// Another number each time.
pub fn chance() -> u8 {
    RandomState::new().build_hasher().finish() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_ever_more_rarely_up_to_thirty_seconds() {
        let mut now = Instant::now();
        let mut retry = Retry::default();
        let waits: Vec<u64> = (0..7)
            .map(|_| {
                retry.note(true, now, 0);
                let wait = retry.at().unwrap() - now;
                now = retry.at().unwrap();
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn success_forgets_and_a_round_in_between_puts_nothing_off() {
        let now = Instant::now();
        let mut retry = Retry::default();
        retry.note(true, now, 0);
        let due = retry.at();
        retry.note(true, now + FIRST / 2, 0);
        assert_eq!(retry.at(), due, "put off");
        retry.note(false, now + FIRST, 0);
        assert_eq!(retry.at(), None);
        retry.note(true, now, 0);
        assert_eq!(retry.at(), Some(now + FIRST));
    }

    #[test]
    fn chance_takes_a_quarter_off_at_most() {
        let now = Instant::now();
        let mut retry = Retry::default();
        retry.note(true, now, 255);
        assert_eq!(retry.at(), Some(now + FIRST - FIRST / 4));
    }
}
