//! The agent: wakes up, asks the planner, lets the reconcilers do it, says what it found.
//!
//! Owns the order of things: a claim goes map entry, conflict probe, address, announcement, flows;
//! a release goes flows, address, map entry. What it starts and what it leaves behind is here; what
//! wakes it is in `wake`, one whole round in `round`, what it hands to the planner in `facts`, and
//! the hands are one file each.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};
use egress_common::abi::phase;
use log::{error, info, warn};

use crate::{
    arp::socket::ArpSocket,
    bpf::{DataPlane, Maps, Sizes, fit},
    condition::{Condition, Reason},
    config::AgentConfig,
    health::watch as health_watch,
    identity::Identity,
    model::Objects,
    netlink::Netlink,
    ovs::{
        Ovs,
        watch::{Counts, Watch},
    },
    reconcile::{
        announce::Schedule,
        flows::{self, follow::Follower},
        maps, masquerade, sources as source_maps,
        wiring::Wiring,
    },
    source::{files::Input, watch::Watched},
};

mod allocator;
mod bridge;
mod claim;
pub mod doctor;
mod facts;
pub mod health;
pub mod lock;
mod node;
mod node_ports;
mod programs;
mod reload;
mod retry;
mod round;
mod sources;
pub mod status;
mod tables;
pub mod takeover;
mod uplinks;
mod wake;
mod witness;

pub use wake::run;

use facts::Plans;
use lock::Lock;
use node::Devices;
use retry::Retry;
use status::{Owned, StatusFile};
use uplinks::Uplinks;

/// Where the agent works.
#[derive(Debug, Clone)]
pub struct Settings {
    pub bpffs: PathBuf,
    /// Where the agent writes what it knows, and what is its own: gone with the next boot.
    pub run_dir: PathBuf,
}

/// The running agent.
struct Agent {
    watched: Watched,
    config: AgentConfig,
    objects: Objects,
    plans: Plans,
    /// As the allocator: which nodes were offline when the objects as they are were dealt out.
    dealt_out: Option<BTreeSet<Ipv4Addr>>,
    /// Why the files as they are now cannot be taken over.
    unread: Option<Condition>,
    /// Changed settings that only a restart takes over.
    waiting: Option<Condition>,
    identity: Identity,
    uplinks: Uplinks,
    devices: Devices,
    netlink: Netlink,
    data_plane: DataPlane,
    /// Every program runs where it belongs.
    attached: bool,
    wiring: Wiring,
    /// Whose what has no flow is (`abi::phase`), and the tick when a hold is over.
    phase: (u8, u32),
    maps: Maps,
    /// `None`: they are to be read.
    maps_held: Option<maps::Held>,
    source_maps: source_maps::Maps,
    ovs: Option<Ovs>,
    ovs_facts: Option<crate::ovs::Facts>,
    ovs_watch: Option<Watch>,
    ovs_follower: Follower,
    /// What the bridge is to hold.
    ovs_held: Option<Counts>,
    /// The pods that the bridge knows, and their VNIDs.
    bridged: BTreeMap<Ipv4Addr, u32>,
    /// By the name of the uplink.
    arp: BTreeMap<String, ArpSocket>,
    schedule: Schedule,
    /// By uplink, who has to answer to a claimed address.
    witnesses: BTreeMap<String, Ipv4Addr>,
    /// Unlabelled addresses of ours.
    owned: Owned,
    /// Egress IPs, ours or found there, and the uplinks they are on.
    held: BTreeMap<Ipv4Addr, String>,
    /// The uplinks of a predecessor.
    former: Vec<String>,
    conflicts: BTreeSet<Ipv4Addr>,
    /// Whether marked packets may be exempted from the node's NAT here: a predecessor's word counts.
    exempts: bool,
    retry: Retry,
    /// Of programs that are not attached.
    mend: Retry,
    /// This node is ready to carry tenants' packets, and says so to others.
    carries: bool,
    /// The programs keep silent about the egress IPs here, as was last told.
    fenced: bool,
    /// Egress IPs without a witness, as was last told.
    unwitnessed: Vec<Ipv4Addr>,
    health: health_watch::Watch,
    status: StatusFile,
    /// Held as long as the agent runs.
    lock: Lock,
}

impl Agent {
    /// Everything that can fail without a trace comes before the programs and maps.
    async fn start(settings: Settings, watched: Watched, input: Input) -> Result<Self> {
        let config = input.config.unwrap_or_default();
        reload::warn_of(&config);
        fit::check_privileges()?;
        let netlink = Netlink::open()?;
        let identity = node::identify(&netlink, &config).await?;
        let devices = node::devices(&netlink, &config).await?;
        let status = StatusFile::new(&settings.run_dir);
        let owned = status.owned();
        let uplinks = Uplinks::find(&netlink, &config, &identity, &owned).await?;
        tables::networks(&config, &input.objects, &uplinks)?;
        let lock = Lock::take(&settings.run_dir)?;
        let sizes = Sizes { flows: config.flows.max, policies: config.policies.max };
        let data_plane = DataPlane::load(&settings.bpffs, sizes)?;
        let maps = data_plane.maps()?;
        let source_maps = source_maps::Maps::open(&crate::bpf::pins(&settings.bpffs))?;
        let ovs = node::ovs(&config);
        let health = health_watch::Watch::start(
            health::targets(&config, &input.objects, &identity),
            health::before(&status.nodes()),
        )?;
        Ok(Self {
            // A killed predecessor's programs have gone on.
            carries: maps::settings(&maps)?.carries == 1,
            health,
            fenced: false,
            unwitnessed: Vec::new(),
            former: status.uplinks(),
            owned,
            uplinks,
            status,
            ovs_watch: ovs.as_ref().map(|ovs| ovs.watch(flows::COOKIE)),
            ovs,
            ovs_facts: None,
            ovs_follower: Follower::default(),
            ovs_held: None,
            bridged: BTreeMap::new(),
            arp: BTreeMap::new(),
            witnesses: BTreeMap::new(),
            schedule: Schedule::new(node::announcing(&config)),
            held: BTreeMap::new(),
            conflicts: BTreeSet::new(),
            exempts: true,
            retry: Retry::default(),
            mend: Retry::default(),
            watched,
            config,
            objects: input.objects,
            plans: Plans::default(),
            dealt_out: None,
            identity,
            devices,
            netlink,
            data_plane,
            wiring: Wiring::default(),
            phase: (phase::OWN, 0),
            maps,
            maps_held: None,
            unread: None,
            waiting: None,
            attached: false,
            lock,
            source_maps,
        })
    }

    /// Only looks on: the programs decide and count, and all packets are the node's.
    ///
    /// # Errors
    /// Programs are in force here, which would stop treating their tenants' packets.
    fn shadow(&mut self) -> Result<()> {
        let held = maps::settings(&self.maps)?;
        ensure!(
            held.node == [0; 4] || held.phase == phase::SHADOW,
            "programs of egress are in force here: hand the node back first (`egress handback`)"
        );
        self.phase = (phase::SHADOW, 0);
        self.ovs_watch = None;
        Ok(())
    }

    fn is_shadow(&self) -> bool {
        self.phase.0 == phase::SHADOW
    }

    /// Leaves nothing: who only looked on has changed nothing else.
    fn vanish(self, bpffs: &Path) -> Result<()> {
        crate::bpf::remove_pins(bpffs)?;
        self.status.remove();
        self.lock.remove()
    }

    /// Ends without leaving: what is in force goes on.
    fn into_lock(self) -> Lock {
        self.lock
    }

    fn tell_ready(&self) {
        info!("ready: node {} on {}", self.identity.name, self.identity.uplink.name);
        // Without a supervisor nobody listens, and that is all right.
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            warn!("tell the supervisor that the agent is ready: {error}");
        }
    }

    /// Gives back what was claimed. The programs stay attached with every policy a drop: who is
    /// gone must not let tenants out with the node's address. `egress cleanup` removes them too.
    pub(super) async fn leave(mut self) -> Result<()> {
        // What leaves by other nodes goes on; what would have left here is dropped at the bridge too.
        let here = self.plan_without(&BTreeSet::new());
        let closed = self.plan_without(&here.addresses.iter().map(|address| address.ip).collect());
        let mut conditions = Vec::new();
        self.program_flows(&closed, &mut conditions).await;
        for condition in conditions {
            error!("{}: {}", condition.object, condition.message);
        }
        let released = self.release_addresses().await;
        let closed = maps::close(&mut self.maps);
        if self.exempts
            && let Err(error) = masquerade::reconcile(None).await
        {
            error!("{error:#}");
        }
        let told = self.status.stop();
        released.and(closed).and(told)
    }
}

fn failed(object: &str, error: &anyhow::Error) -> Condition {
    Condition::new(object, Reason::Failed, format!("{error:#}"))
}
