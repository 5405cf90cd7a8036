//! Frames made wrong: a few bytes at a time, the same ones every time.

use egress_common::testing::packet::checksum;

/// Of the header before a packet.
const ETH_LEN: usize = 14;

/// Chance that comes out the same every time. It must not begin with 0.
pub struct Chance(pub u64);

/// Makes the checksum of the IPv4 header at this place right, so that what is behind it is looked at.
pub fn mend(frame: &mut [u8], at: usize) {
    let header = frame.get(at).map_or(0, |first| usize::from(first & 15) * 4);
    if let Some(header) = frame.get_mut(at..at + header)
        && header.len() >= 20
    {
        header[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(header);
        header[10..12].copy_from_slice(&sum);
    }
}

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// Changes a few bytes, mostly of the headers; sometimes cuts the frame or makes it longer.
    pub fn mutate(&mut self, frame: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            let at = self.below(frame.len());
            frame[at] = match self.below(3) {
                0 => self.next() as u8,
                1 => frame[at] ^ 1 << self.below(8),
                _ => [0, 0xff, 1, 0x7f, 0x80][self.below(5)],
            };
        }
        match self.below(8) {
            0 => frame.truncate(ETH_LEN + self.below(frame.len() - ETH_LEN)),
            1 => frame.resize(frame.len() + self.below(64), 0xa5),
            _ => {}
        }
    }
}
