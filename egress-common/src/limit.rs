//! How many flows a tenant may have, and how fast it may begin them: so that one cannot take
//! another's room.
use crate::{
    abi::{Slot, WINDOW_SHIFT},
    reason::Reason,
    tables::Tables,
};

/// Whether the tenant in slot `index` may begin a flow now; counts that it does.
#[inline(always)]
pub fn admit<T: Tables>(tables: &T, index: u32, slot: &Slot, now: u32) -> Result<(), Reason> {
    let Some(usage) = tables.usage(index) else { return Ok(()) };
    if slot.max_flows != 0 && usage.flows.get() >= slot.max_flows {
        return Err(Reason::FlowLimit);
    }
    let window = now >> WINDOW_SHIFT;
    if usage.window.get() != window {
        usage.window.set(window);
        usage.new_flows.set(0);
    }
    let new_flows = usage.new_flows.get();
    if slot.max_new_flows != 0 && new_flows >= slot.max_new_flows {
        return Err(Reason::NewFlowLimit);
    }
    usage.new_flows.set(new_flows.wrapping_add(1));
    Ok(())
}

/// The tenant has a flow more.
#[inline(always)]
pub fn began<T: Tables>(tables: &T, index: u32) {
    if let Some(usage) = tables.usage(index) {
        usage.flows.set(usage.flows.get().wrapping_add(1));
    }
}

/// A flow of `vnid` that was in slot `index` has ended; the slot may be another tenant's by now.
#[inline(always)]
pub fn ended<T: Tables>(tables: &T, index: u32, vnid: u32) {
    let (Some(usage), Some(slot)) = (tables.usage(index), tables.slot(index)) else { return };
    if slot.vnid == vnid {
        usage.flows.set(usage.flows.get().saturating_sub(1));
    }
}
