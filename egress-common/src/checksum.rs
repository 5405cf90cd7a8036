//! The Internet checksum, computed and updated (RFC 1071, RFC 1624).
//!
//! Sums are one's-complement sums of words as they lie in memory: the order of their bytes does not
//! matter to the outcome (RFC 1071, section 2 (B)), so none is swapped. They are kept unfolded.

/// An unfolded sum: four bytes are added at a time, since 2^16 counts as 1.
pub type Sum = u64;

/// Folds a sum into 16 bits.
#[inline(always)]
pub const fn fold(sum: Sum) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// The sum of an even number of bytes.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> Sum {
    let mut total = 0;
    let mut index = 0;
    while index + 3 < N {
        let word = [bytes[index], bytes[index + 1], bytes[index + 2], bytes[index + 3]];
        total += Sum::from(u32::from_ne_bytes(word));
        index += 4;
    }
    if index + 1 < N {
        total += Sum::from(u16::from_ne_bytes([bytes[index], bytes[index + 1]]));
    }
    total
}

/// What replacing `old` by `new` adds to a sum: `~m + m'` of RFC 1624, equation 3.
#[inline(always)]
pub fn delta<const N: usize>(old: &[u8; N], new: &[u8; N]) -> Sum {
    // The complement of each word: all ones less what is there.
    let words = N as Sum / 4;
    let half = N as Sum % 4 / 2;
    words * 0xffff_ffff + half * 0xffff - sum(old) + sum(new)
}

/// The checksum field after its data changed by `delta` (RFC 1624, equation 3).
#[inline(always)]
pub fn update(field: [u8; 2], delta: Sum) -> [u8; 2] {
    let complement = !u16::from_ne_bytes(field);
    (!fold(Sum::from(complement) + delta)).to_ne_bytes()
}

/// The same for a UDP checksum, where zero means none (RFC 768).
#[inline(always)]
pub fn update_udp(field: [u8; 2], delta: Sum) -> [u8; 2] {
    if field == [0, 0] {
        return field;
    }
    match update(field, delta) {
        [0, 0] => [0xff, 0xff],
        updated => updated,
    }
}

/// The checksum field of data whose sum, the field itself being zero, is `sum`.
#[inline(always)]
pub fn finish(sum: Sum) -> [u8; 2] {
    (!fold(sum)).to_ne_bytes()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1624, section 4: the example whose older formula gives the wrong zero.
    #[test]
    fn the_example_of_rfc_1624_comes_out_as_zero() {
        let updated = update([0xdd, 0x2f], delta(&[0x55, 0x55], &[0x32, 0x85]));
        assert_eq!(updated, [0x00, 0x00]);
    }

    #[test]
    fn a_udp_checksum_of_none_stays_none_and_a_sum_of_zero_is_sent_as_ones() {
        assert_eq!(update_udp([0, 0], 1234), [0, 0]);
        assert_eq!(update_udp([0xdd, 0x2f], delta(&[0x55, 0x55], &[0x32, 0x85])), [0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn updating_equals_computing_anew(mut data: [u8; 12], new: [u8; 4]) {
            let field = finish(sum(&data));
            let old = [data[4], data[5], data[6], data[7]];
            data[4..8].copy_from_slice(&new);
            // Two representations of zero: equal as sums.
            let updated = update(field, delta(&old, &new));
            prop_assert_eq!(fold(sum(&data) + sum(&updated)), 0xffff);
        }
    }
}
