//! References that translate nothing: what the road costs without the work.
use anyhow::Result;

use super::{Variant, entry_device};
use crate::bench::{
    frame::Expect,
    rig::Rig,
    workload::{Direction, Entry, Flows, Workload},
};

/// They know no flows, so one workload of small original packets says it all.
fn plain_road(workload: &Workload) -> bool {
    workload.direction == Direction::Original
        && workload.flows != Flows::New
        && workload.talk.is_none()
}

/// Dropped at the entry: the generator's own cost.
#[derive(Debug, Clone, Copy)]
pub struct XdpDrop;

impl Variant for XdpDrop {
    fn name(&self) -> String {
        "xdp-drop".to_owned()
    }

    fn expect(&self) -> Expect {
        Expect::Dropped
    }

    fn carries(&self, workload: &Workload) -> bool {
        plain_road(workload)
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        rig.attach_xdp("sink", entry_device(rig))
    }
}

/// New MACs and out of the uplink, on XDP.
#[derive(Debug, Clone, Copy)]
pub struct RedirectXdp;

impl Variant for RedirectXdp {
    fn name(&self) -> String {
        "xdp-redirect".to_owned()
    }

    fn expect(&self) -> Expect {
        Expect::Untouched
    }

    fn carries(&self, workload: &Workload) -> bool {
        plain_road(workload)
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        rig.redirect_to_uplink()?;
        rig.attach_xdp("redirect_xdp", entry_device(rig))
    }
}

/// New MACs and out of the uplink, on tc.
#[derive(Debug, Clone, Copy)]
pub struct RedirectTc;

impl Variant for RedirectTc {
    fn name(&self) -> String {
        "tc-redirect".to_owned()
    }

    fn expect(&self) -> Expect {
        Expect::Untouched
    }

    fn carries(&self, workload: &Workload) -> bool {
        plain_road(workload)
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        rig.redirect_to_uplink()?;
        rig.attach_tc("redirect_tc", entry_device(rig))
    }
}

/// Routed by the kernel with the pod's address; from the tunnel, out of the kernel's VXLAN device.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding;

impl Variant for Forwarding {
    fn name(&self) -> String {
        "forwarding".to_owned()
    }

    fn expect(&self) -> Expect {
        Expect::Forwarded
    }

    fn carries(&self, workload: &Workload) -> bool {
        plain_road(workload) && (workload.entry == Entry::Gateway || workload.policies == 1)
    }

    fn install(&mut self, _rig: &mut Rig) -> Result<()> {
        Ok(())
    }
}
