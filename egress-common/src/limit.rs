//! How many flows a tenant may have, how fast it may begin them, and how much is answered on its
//! behalf: so that one cannot take another's room.
use crate::{
    abi::{OriginalKey, Slot, WINDOW_SHIFT},
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

/// Answers to packets of a tenant, or to its egress IP, in a tick: some 750 a second.
const ANSWERS: u32 = 100;

/// Whether one more answer may be sent on behalf of the tenant in slot `index`. Counted for each
/// tenant, or one whose packets are refused by the million would keep another from learning its
/// path's MTU.
#[inline(always)]
pub fn may_answer<T: Tables>(tables: &T, index: u32) -> bool {
    let Some(usage) = tables.usage(index) else { return false };
    let tick = tables.now() << 8;
    let held = usage.answers.get();
    let sent = if held & !0xff == tick { held & 0xff } else { 0 };
    if sent == ANSWERS {
        return false;
    }
    usage.answers.set(tick | (sent + 1));
    true
}

/// Whether the tenant in slot `index` may hold one more port for every remote.
#[inline(always)]
pub fn admit_port<T: Tables>(tables: &T, index: u32, slot: &Slot) -> Result<(), Reason> {
    match tables.usage(index) {
        Some(usage) if slot.max_ports != 0 && usage.ports.get() >= slot.max_ports => {
            Err(Reason::PortLimit)
        }
        _ => Ok(()),
    }
}

/// The tenant in slot `index` has a flow more, or a port for every remote.
#[inline(always)]
pub fn began<T: Tables>(tables: &T, index: u32, key: &OriginalKey) {
    let Some(usage) = tables.usage(index) else { return };
    usage.flows.set(usage.flows.get().wrapping_add(1));
    if key.is_for_any_remote() {
        usage.ports.set(usage.ports.get().wrapping_add(1));
    }
}

/// What [`began`] in slot `index` has ended; the slot may be another tenant's by now.
#[inline(always)]
pub fn ended<T: Tables>(tables: &T, index: u32, key: &OriginalKey) {
    let (Some(usage), Some(slot)) = (tables.usage(index), tables.slot(index)) else { return };
    if !slot.serves(key.vnid()) {
        return;
    }
    usage.flows.set(usage.flows.get().saturating_sub(1));
    if key.is_for_any_remote() {
        usage.ports.set(usage.ports.get().saturating_sub(1));
    }
}
