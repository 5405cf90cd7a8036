//! The types of the maps: what the programs and the agent agree on, byte by byte.
//!
//! Addresses and ports are bytes as on the wire; numbers are in host byte order. Times are ticks of
//! 2^27 ns (0.134 s) of the coarse monotonic clock, 32 bits, compared by wrapping subtraction.
//! A changed layout raises [`ABI_VERSION`]: maps are pinned below a path that carries it.
//!
//! A flow is two entries, one in each table, each 64 bytes: with the 16-byte key and the kernel's
//! 48-byte header an element fills two cache lines. Each direction writes only its own entry.
mod config;
mod flow;
mod fragment;
mod path;
mod slot;

pub use config::*;
pub use flow::*;
pub use fragment::*;
pub use path::*;
pub use slot::*;

/// Raised with every change of a layout in this module.
pub const ABI_VERSION: u32 = 9;

/// A tick is 2^27 ns: a shift turns the clock into ticks, no division needed.
pub const TICK_SHIFT: u32 = 27;
/// Ticks between two writes of `last_seen` and two looks at the neighbour table: about a second.
pub const BEAT: u32 = 7;

/// New flows are counted in windows of 2^3 ticks: 1.07 s.
pub const WINDOW_SHIFT: u32 = 3;

/// Above every VNID: that of a pod whose VNID is not known, and of the slot of all pods that have no
/// policy.
///
/// A flow's [`OriginalKey`] has no room for it; such a flow is kept as one of VNID 0. That mixes up
/// nothing: a pod's address is its own in the whole cluster, and whoever finds a flow compares its
/// egress address with that of the slot that he came by.
pub const NO_VNID: u32 = 1 << 24;

/// Beside the VNID in the `pods` map: the pod's packets bear its tenant's mark, or do not leave.
pub const MARKED_ONLY: u32 = 1 << 31;

const _: () = {
    assert!(size_of::<OriginalKey>() == 16);
    assert!(size_of::<ReplyKey>() == 16);
    assert!(size_of::<OriginalFlow>() == 64);
    assert!(size_of::<ReplyFlow>() == 64);
    assert!(size_of::<OriginalRecord>() == 64);
    assert!(size_of::<ReplyRecord>() == 64);
    assert!(size_of::<Slot>() == 64);
    assert!(size_of::<Usage>() == size_of::<UsageRecord>());
};
