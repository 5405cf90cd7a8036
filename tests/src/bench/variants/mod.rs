//! What is compared. A variant makes one egress node do the job; the rig around it is the same.
//!
//! To add one: implement `Variant` and put it into `catalogue` (docs/benchmarking.md shows how).
mod agent;
mod netfilter;
mod references;

use std::path::PathBuf;

use anyhow::Result;

use super::{
    frame::Expect,
    rig::Rig,
    workload::{Entry, Workload},
};

pub use agent::{Agent, DataPath, MAX_FLOWS};
pub use netfilter::{Flowtable, Iptables, NftMap, egress_ip, snat_rule};
pub use references::{Forwarding, RedirectTc, RedirectXdp, XdpDrop};

/// One way of doing the egress node's job.
pub trait Variant {
    /// Unique, lower case: the name in tables, charts and `--only`.
    fn name(&self) -> String;

    /// What becomes of a packet; each captured frame is held against it.
    fn expect(&self) -> Expect {
        Expect::Translated
    }

    /// Whether this workload means anything for the variant.
    fn carries(&self, workload: &Workload) -> bool;

    /// Makes the node of `rig` do it, for all VNIDs of the rig's setting. An error makes all its
    /// rows void and is their reason.
    fn install(&mut self, rig: &mut Rig) -> Result<()>;

    /// Before a workload: an error makes the row void, e.g. because the flow table is too small.
    fn prepare(&mut self, _rig: &mut Rig, _workload: &Workload) -> Result<()> {
        Ok(())
    }

    /// Drops all flows, so that a run of new flows always starts with an empty table.
    fn forget(&mut self, _rig: &mut Rig) -> Result<()> {
        Ok(())
    }

    /// Table sizes and the like, for the report.
    fn facts(&self, _rig: &Rig) -> Result<String> {
        Ok(String::new())
    }
}

/// What the catalogue needs to know.
#[derive(Debug, Clone, Default)]
pub struct Builds {
    /// The agent under test; `None`: no rows of ours.
    pub egress: Option<PathBuf>,
    /// Another build of it, for `--against`.
    pub against: Option<PathBuf>,
}

/// All variants, each ready to be installed on one rig.
pub fn catalogue(builds: &Builds) -> Vec<Box<dyn Variant>> {
    let mut variants: Vec<Box<dyn Variant>> = vec![
        Box::new(XdpDrop),
        Box::new(RedirectXdp),
        Box::new(RedirectTc),
        Box::new(Forwarding),
        Box::new(Iptables::legacy()),
        Box::new(Iptables::nft()),
        Box::new(NftMap),
        Box::new(Flowtable),
    ];
    for (build, suffix) in [(&builds.egress, ""), (&builds.against, "-against")] {
        if let Some(binary) = build {
            variants.extend(DataPath::ALL.map(|data_path| -> Box<dyn Variant> {
                Box::new(Agent::new(binary.clone(), data_path, suffix))
            }));
        }
    }
    variants
}

/// Marks packets where they come out of the tunnel or from local pods, as OVS does.
pub fn mark_packets(rig: &mut Rig) -> Result<()> {
    match rig.setting.entry {
        Entry::Tunnel => rig.attach_tc("mark_tunnel", super::rig::TUNNEL),
        Entry::Gateway => rig.attach_tc("mark_gateway", super::rig::GATEWAY),
    }
}

/// The device at which original packets arrive.
pub fn entry_device(rig: &Rig) -> &'static str {
    match rig.setting.entry {
        Entry::Tunnel => super::rig::UPLINK,
        Entry::Gateway => super::rig::GATEWAY,
    }
}
