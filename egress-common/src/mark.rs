//! The packet mark: a function of the VNID alone, as OpenShift SDN computes it.
//!
//! A mark must carry the 24 bits of the VNID, be different for every VNID, never be 0 (the mark of
//! unmarked packets) and never have a bit set that others give a meaning: kube-proxy's masquerade
//! bit in both layouts, and the kubelet's drop bit (15) in the new one. A bit in the way is moved
//! up into the eight bits that a VNID leaves free, bit 15 to bit 28 and the masquerade bit to bit
//! 24. So the two layouts give different marks to every VNID with bit 15 set.
//!
//! Surprising: VNID 0 becomes 0xff000000 *before* bits are moved, so that with a masquerade bit of
//! 24 to 31 its mark is 0xff000000 without that bit. Every mark has exactly one VNID, for every
//! masquerade bit and both layouts: the inverse has no gaps.

/// The highest VNID: 24 bits on the wire.
pub const MAX_VNID: u32 = 0x00ff_ffff;

/// What the kubelet marks for dropping.
const KUBELET_DROP: u32 = 1 << 15;
/// Where the new layout keeps a VNID's bit 15.
const MOVED_DROP: u32 = 1 << 28;
/// Where a VNID's bit in the masquerade bit's place is kept.
const MOVED_MASQUERADE: u32 = 1 << 24;
/// The mark of VNID 0, before the masquerade bit is avoided.
const VNID_ZERO: u32 = 0xff00_0000;

/// Which of OpenShift SDN's rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 3.11 to 4.7: OVS table 100; the mark avoids the masquerade bit only.
    Old,
    /// 4.8 and later: OVS table 101 with groups; the mark also avoids the kubelet's drop bit.
    New,
}

/// The mark of a VNID (24 bits; more are ignored). `masquerade_bit` is 0 to 31, of which the low
/// five bits count.
#[inline(always)]
pub const fn mark(vnid: u32, masquerade_bit: u8, layout: Layout) -> u32 {
    let vnid = vnid & MAX_VNID;
    let masquerade = masquerade(masquerade_bit);
    let mut mark = if vnid == 0 { VNID_ZERO } else { vnid };
    if matches!(layout, Layout::New) && mark & KUBELET_DROP != 0 {
        mark = (mark | MOVED_DROP) ^ KUBELET_DROP;
    }
    if mark & masquerade != 0 {
        mark = (mark | MOVED_MASQUERADE) ^ masquerade;
    }
    mark
}

/// The VNID of a mark; `None` when no VNID has this mark.
#[inline(always)]
pub const fn vnid_of_mark(value: u32, masquerade_bit: u8, layout: Layout) -> Option<u32> {
    let mut vnid = value;
    if value == mark(0, masquerade_bit, layout) {
        return Some(0);
    }
    if vnid & MOVED_MASQUERADE != 0 {
        vnid = (vnid ^ MOVED_MASQUERADE) | masquerade(masquerade_bit);
    }
    if matches!(layout, Layout::New) && vnid & MOVED_DROP != 0 {
        vnid = (vnid ^ MOVED_DROP) | KUBELET_DROP;
    }
    // What has no VNID (0, a foreign bit, the masquerade bit itself) does not come back.
    if vnid <= MAX_VNID && mark(vnid, masquerade_bit, layout) == value { Some(vnid) } else { None }
}

#[inline(always)]
const fn masquerade(bit: u8) -> u32 {
    1 << (bit & 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Layout::*, *};

    #[test]
    fn vectors_of_the_original() {
        for (vnid, old, new) in [
            (0xdf6553, 0x01df_6552, 0x01df_6552),
            (0x6f7936, 0x006f_7936, 0x006f_7936),
            (0x2ec40e, 0x002e_c40e, 0x102e_440e),
            (0, 0xff00_0000, 0xff00_0000),
            (0xffffff, 0x01ff_fffe, 0x11ff_7ffe),
        ] {
            assert_eq!(mark(vnid, 0, Old), old, "{vnid:#x} old");
            assert_eq!(mark(vnid, 0, New), new, "{vnid:#x} new");
        }
    }

    #[test]
    fn a_masquerade_bit_on_the_drop_bit_moves_with_it() {
        assert_eq!(mark(0x2ec40e, 15, Old), 0x012e_440e);
        assert_eq!(mark(0x2ec40e, 15, New), 0x102e_440e);
    }

    #[test]
    fn vnid_zero_avoids_a_high_masquerade_bit_too() {
        assert_eq!(mark(0, 24, New), 0xfe00_0000);
        assert_eq!(mark(0, 31, New), 0x7f00_0000);
    }

    #[test]
    fn what_is_no_mark_has_no_vnid() {
        for layout in [Old, New] {
            assert_eq!(vnid_of_mark(0, 0, layout), None, "an unmarked packet");
            assert_eq!(vnid_of_mark(0x6f7937, 0, layout), None, "the masquerade bit set");
            assert_eq!(vnid_of_mark(0x4000_0002, 0, layout), None, "a foreign bit");
        }
        assert_eq!(vnid_of_mark(0x002e_c40e, 0, New), None, "the drop bit set");
        assert_eq!(vnid_of_mark(0x102e_440e, 0, Old), None, "a mark of the other layout");
    }

    #[test]
    fn every_vnid_comes_back_with_the_default_bits() {
        for (bit, layout) in [(0, Old), (0, New), (14, New)] {
            for vnid in 0..=MAX_VNID {
                let mark = mark(vnid, bit, layout);
                assert_eq!(vnid_of_mark(mark, bit, layout), Some(vnid), "{vnid:#x} bit {bit}");
            }
        }
    }

    proptest! {
        #[test]
        fn every_vnid_comes_back(
            vnid in 0..=MAX_VNID,
            bit in 0u8..32,
            layout in prop_oneof![Just(Old), Just(New)],
        ) {
            let mark = mark(vnid, bit, layout);
            prop_assert_eq!(vnid_of_mark(mark, bit, layout), Some(vnid));
            prop_assert_ne!(mark, 0);
            prop_assert_eq!(mark & (1 << bit), 0, "the masquerade bit is free");
            if layout == New {
                prop_assert_eq!(mark & KUBELET_DROP, 0, "the drop bit is free");
            }
        }

        #[test]
        fn a_mark_that_has_a_vnid_is_that_vnids(
            value: u32,
            bit in 0u8..32,
            layout in prop_oneof![Just(Old), Just(New)],
        ) {
            if let Some(vnid) = vnid_of_mark(value, bit, layout) {
                prop_assert_eq!(mark(vnid, bit, layout), value);
            }
        }
    }
}
