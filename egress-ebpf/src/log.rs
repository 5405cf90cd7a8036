//! Log records of rare events, for those who look for a packet; the counters know all of them.
//!
//! Each in a function of its own: a record takes stack, and no packet that goes its way may pay for
//! it. At most one of a kind is sent in some seconds on each CPU.
use aya_ebpf::{macros::map, maps::PerCpuArray};
use aya_log_ebpf::{info, warn};
use egress_common::abi::{BEAT, TICK_SHIFT};

use crate::maps::coarse_ns;

/// Ticks between two records of a kind: about eight seconds.
const PAUSE: u32 = 8 * BEAT;

/// The kinds, an index into the map.
const UNKNOWN_NODE: u32 = 0;
const STOPPED: u32 = 1;
const TAKEN_BACK: u32 = 2;

/// When the last record of a kind was sent.
#[map(name = "logged")]
static LOGGED: PerCpuArray<u32> = PerCpuArray::with_max_entries(3, 0);

/// A tunnel source that is no node of the cluster.
#[inline(never)]
pub fn unknown_node(source: u32) {
    if is_due(UNKNOWN_NODE) {
        warn!((), "dropped: tunnel source {:i} is no node of the cluster", source);
    }
}

/// The guard stopped a packet.
#[inline(never)]
pub fn stopped(source: u32, vnid: u32) {
    if is_due(STOPPED) {
        info!((), "stopped at the uplink: {:i} of VNID {} is not translated", source, vnid);
    }
}

/// The node itself, or its NAT, uses a port to masquerade with.
#[inline(never)]
pub fn taken_back(port: u32, protocol: u32) {
    if is_due(TAKEN_BACK) {
        warn!(
            (),
            "the node took port {} of protocol {} back from a pod's connection", port, protocol
        );
    }
}

#[inline(always)]
fn is_due(kind: u32) -> bool {
    let now = (coarse_ns() >> TICK_SHIFT) as u32;
    let Some(last) = LOGGED.get_ptr_mut(kind) else { return false };
    // SAFETY: this CPU's own element.
    let last = unsafe { &mut *last };
    if now.wrapping_sub(*last) < PAUSE {
        return false;
    }
    *last = now;
    true
}
