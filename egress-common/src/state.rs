//! What a flow has lived through, and how long it may rest (RFC 5382, RFC 7857, RFC 4787, RFC 5508).
//!
//! Each direction keeps the TCP flags that it has carried, in its own entry. What both together
//! mean is asked only when a flow's age is in question.
use core::cell::Cell;

use crate::{
    abi::{BEAT, Config},
    wire::{protocol, tcp},
};

/// The flags a direction remembers; their bits are TCP's own.
pub const KEPT: u8 = tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST;

/// When a direction last carried a packet and what its segments' flags were, in one word.
#[repr(transparent)]
#[derive(Debug, Default, Clone)]
pub struct Life(Cell<u64>);

/// A moment of a [`Life`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Ticks.
    pub last_seen: u32,
    /// Flags carried so far; 0 unless TCP.
    pub flags: u32,
}

impl Moment {
    /// Whether a beat has passed since.
    #[inline(always)]
    pub fn is_due(self, now: u32) -> bool {
        age(now, self.last_seen) >= BEAT
    }

    #[inline(always)]
    fn word(self) -> u64 {
        u64::from(self.last_seen) << 32 | u64::from(self.flags)
    }

    #[inline(always)]
    pub fn of(word: u64) -> Self {
        Self { last_seen: (word >> 32) as u32, flags: word as u32 }
    }
}

impl Life {
    #[inline(always)]
    pub fn new(last_seen: u32, flags: u8) -> Self {
        Self(Moment { last_seen, flags: u32::from(flags & KEPT) }.word().into())
    }

    #[inline(always)]
    pub fn now(&self) -> Moment {
        Moment::of(self.0.get())
    }

    /// A packet with these flags; the word is written only if it changes anything, and the time at
    /// most once a beat. Whether it was time is the answer.
    #[inline(always)]
    pub fn see(&self, now: u32, flags: u8) -> bool {
        let before = self.now();
        let beat = before.is_due(now);
        let after = Moment {
            last_seen: if beat { now } else { before.last_seen },
            flags: before.flags | u32::from(flags & KEPT),
        };
        if after != before {
            self.0.set(after.word());
        }
        beat
    }

    /// Forgets the flags: the flow begins anew.
    #[inline(always)]
    pub fn restart(&self, now: u32) {
        self.0.set(Moment { last_seen: now, flags: 0 }.word());
    }
}

/// The ticks that a flow of these states may rest.
///
/// TCP is established once both directions have acknowledged (RFC 5382, REQ-5), transitory before,
/// and again after both have finished or one has reset (RFC 7857, section 2).
#[inline(always)]
pub fn timeout(config: &Config, protocol: u8, original: u32, reply: u32) -> u32 {
    match protocol {
        protocol::TCP => {
            let (both, either) = (original & reply, original | reply);
            let closed = either & u32::from(tcp::RST) != 0 || both & u32::from(tcp::FIN) != 0;
            if both & u32::from(tcp::ACK) != 0 && !closed {
                config.tcp_established
            } else {
                config.tcp_transitory
            }
        }
        protocol::ICMP => config.icmp,
        _ => config.udp,
    }
}

/// The ticks that a port may rest which so many flows share. It lives as long as the last of them,
/// whatever state that is in; who shares it keeps it from resting.
#[inline(always)]
pub fn shared_timeout(config: &Config, protocol: u8, flows: u64) -> u32 {
    match protocol {
        protocol::TCP if flows != 0 => config.tcp_established.max(config.tcp_transitory),
        _ => shortest(config, protocol),
    }
}

/// The shortest that any flow of this protocol may rest: younger ones need no look at both halves.
#[inline(always)]
pub fn shortest(config: &Config, protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => config.tcp_transitory.min(config.tcp_established),
        protocol::ICMP => config.icmp,
        _ => config.udp,
    }
}

/// Ticks since `then`; a moment ahead of `now` (another CPU's clock) counts as none.
#[inline(always)]
pub fn age(now: u32, then: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    fn config() -> Config {
        Config { tcp_established: 1000, tcp_transitory: 100, udp: 10, icmp: 1, ..Config::zeroed() }
    }

    const ACK: u32 = tcp::ACK as u32;
    const SYN: u32 = tcp::SYN as u32;
    const FIN: u32 = tcp::FIN as u32;
    const RST: u32 = tcp::RST as u32;

    #[test]
    fn tcp_is_established_only_after_both_sides_acknowledged() {
        let config = config();
        let rest = |original, reply| timeout(&config, protocol::TCP, original, reply);
        assert_eq!(rest(SYN, 0), 100);
        assert_eq!(rest(SYN, SYN | ACK), 100);
        assert_eq!(rest(SYN | ACK, SYN | ACK), 1000);
    }

    #[test]
    fn one_fin_leaves_a_flow_established_two_or_a_reset_do_not() {
        let config = config();
        let rest = |original, reply| timeout(&config, protocol::TCP, original, reply);
        assert_eq!(rest(ACK | FIN, ACK), 1000);
        assert_eq!(rest(ACK | FIN, ACK | FIN), 100);
        assert_eq!(rest(ACK, ACK | RST), 100);
    }

    #[test]
    fn a_clock_that_lags_on_another_cpu_makes_nothing_old() {
        assert_eq!(age(5, 6), 0);
        assert_eq!(age(2, u32::MAX), 3);
    }
}
