//! What a flow has lived through, and how long it may rest (RFC 5382, RFC 7857, RFC 4787, RFC 5508).
//!
//! Each direction keeps the TCP flags that it has carried, in its own entry. What both together
//! mean is asked only when a flow's age is in question.
use crate::{
    abi::Config,
    wire::{protocol, tcp},
};

/// The flags a direction remembers; their bits are TCP's own.
pub const KEPT: u8 = tcp::SYN | tcp::ACK | tcp::FIN | tcp::RST;

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
