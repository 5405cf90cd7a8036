//! Which egress ports to try, in which order.
use crate::{
    abi::{Config, NO_VNID, PortRange},
    wire::protocol,
};

/// Walks over the ports a flow may get: its own first, then a full cycle from a random start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Candidates {
    from: u32,
    count: u32,
    step: u32,
    offset: u32,
    kind: u32,
}

/// Of which ranges there are bitmaps to begin with: the number of one.
pub mod kind {
    pub const PORTS: u32 = 0;
    pub const IDENTIFIERS: u32 = 1;
    pub const MASQUERADE: u32 = 2;
    pub const COUNT: u32 = 3;
}

impl Candidates {
    /// For a slot of this VNID; `random` starts the walk. ICMP identifiers use the whole range, but
    /// beside the node's own.
    #[inline(always)]
    pub fn new(config: &Config, vnid: u32, of_protocol: u8, random: u32) -> Self {
        let (from, count, step, kind) = if !protocol::has_ports(of_protocol) {
            // No port is written as port 0, of which there is one.
            (0, 1, 0, kind::PORTS)
        } else if vnid == NO_VNID {
            let PortRange { from, count } = config.masquerade_ports;
            (from, count, config.masquerade_step, kind::MASQUERADE)
        } else if of_protocol == protocol::ICMP {
            (0, 1 << 16, 40503, kind::IDENTIFIERS)
        } else {
            (config.port_from, config.port_count, config.port_step, kind::PORTS)
        };
        // Multiply and shift instead of a division.
        let offset = ((u64::from(random) * u64::from(count)) >> 32) as u32;
        Self { from, count, step, offset, kind }
    }

    /// The first port, and how many there are.
    #[inline(always)]
    pub fn bounds(&self) -> (u32, u32) {
        (self.from, self.count)
    }

    /// Of [`kind`].
    #[inline(always)]
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// The range in one word.
    #[inline(always)]
    pub fn range(&self) -> u64 {
        u64::from(self.from) << 32 | u64::from(self.count)
    }

    /// Whether a flow may keep this port of its own.
    #[inline(always)]
    pub fn contains(&self, port: [u8; 2]) -> bool {
        let port = u32::from(u16::from_be_bytes(port));
        port >= self.from && port - self.from < self.count
    }

    /// The next candidate of the walk.
    #[inline(always)]
    pub fn advance(&mut self) -> [u8; 2] {
        self.offset += self.step;
        if self.offset >= self.count {
            self.offset -= self.count;
        }
        ((self.from + self.offset) as u16).to_be_bytes()
    }
}

/// A step below `count` and coprime with it, near the golden section, so that a walk spreads out
/// and visits every port once. The agent computes it: the programs do not divide.
pub const fn step(count: u32) -> u32 {
    let mut step = (count as u64 * 618 / 1000) as u32;
    while step > 1 && gcd(step, count) != 1 {
        step -= 1;
    }
    // A single port is its own successor.
    if count <= 1 {
        0
    } else if step == 0 {
        1
    } else {
        step
    }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytemuck::Zeroable;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_walk_visits_every_port_of_the_range_once(
            from in 0u32..60000, count in 1u32..5000, random: u32,
        ) {
            let config = Config {
                port_from: from, port_count: count, port_step: step(count), ..Config::zeroed()
            };
            let mut candidates = Candidates::new(&config, 1, protocol::TCP, random);
            let seen: BTreeSet<[u8; 2]> = (0..count).map(|_| candidates.advance()).collect();
            prop_assert_eq!(seen.len(), count as usize);
            prop_assert!(seen.iter().all(|port| candidates.contains(*port)));
        }
    }

    #[test]
    fn icmp_identifiers_use_the_whole_range() {
        let candidates = Candidates::new(&Config::zeroed(), 1, protocol::ICMP, 7);
        assert!(candidates.contains([0, 0]) && candidates.contains([0xff, 0xff]));
        assert_eq!(gcd(40503, 1 << 16), 1);
    }
}
