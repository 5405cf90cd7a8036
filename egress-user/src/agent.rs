//! The agent: wakes up, asks the planner, lets the reconcilers do it, says what it found.
//!
//! Owns the order of things. A claim goes: map entry, conflict probe, address, announcement, flows.
//! A release goes: flows, address, map entry. What wakes the loop carries no decision: every round
//! looks at the kernel, and a full round comes periodically whatever happens.
use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use log::{error, info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use crate::{
    arp::socket::ArpSocket,
    bpf::{DataPlane, Maps, Sizes},
    condition::{Condition, Reason},
    config::AgentConfig,
    identity::Identity,
    model::Objects,
    netlink::{Netlink, subscription::Subscription},
    ovs::{Ovs, Presence, watch::Watch},
    plan::{Facts, Health, Mode, OvsPorts, Plan, Previous, plan},
    reconcile::{
        addresses::{self, Outcome},
        announce::{AnnounceSettings, Schedule},
        attachments, flows, maps, sources as source_maps,
    },
    source::watch::Watched,
    sweep::sweep,
};

mod claim;
mod node;
mod retry;
mod sources;
pub mod status;
mod tables;

use node::Devices;
use retry::Retry;
use status::{Status, StatusFile};

/// Between two full rounds that nothing asked for.
const RESYNC: Duration = Duration::from_secs(30);
/// Between two looks at the attached programs and the files.
const LOOK: Duration = Duration::from_millis(250);
/// Between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(30);

/// How the agent was called.
#[derive(Debug, Clone)]
pub struct Settings {
    pub files: Vec<PathBuf>,
    pub config: Option<PathBuf>,
    pub bpffs: PathBuf,
    /// Where the agent writes what it knows, and what is its own: gone with the next boot.
    pub run_dir: PathBuf,
}

/// The running agent.
struct Agent {
    watched: Watched,
    config: AgentConfig,
    objects: Objects,
    identity: Identity,
    devices: Devices,
    netlink: Netlink,
    data_plane: DataPlane,
    maps: Maps,
    source_maps: source_maps::Maps,
    ovs: Option<Ovs>,
    ovs_facts: Option<crate::ovs::Facts>,
    ovs_watch: Option<Watch>,
    /// Flows of ours that the bridge is to hold.
    ovs_held: Option<u32>,
    arp: Option<ArpSocket>,
    schedule: Schedule,
    /// Unlabelled addresses of ours.
    owned: BTreeSet<Ipv4Addr>,
    /// Egress IPs on the uplink, ours or found there.
    held: BTreeSet<Ipv4Addr>,
    conflicts: BTreeSet<Ipv4Addr>,
    retry: Retry,
    /// Of programs that are not attached.
    mend: Retry,
    status: StatusFile,
}

/// Runs until SIGTERM or SIGINT, then leaves in order.
///
/// # Errors
/// What makes a start impossible; everything later is a condition, logged and tried again.
pub async fn run(settings: Settings) -> Result<()> {
    let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut subscription = Subscription::open()?;
    let mut agent = Agent::start(settings).await?;
    agent.round().await;
    info!("ready: node {} on {}", agent.identity.name, agent.identity.uplink.name);
    // Without a supervisor nobody listens, and that is all right.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        warn!("tell the supervisor that the agent is ready: {error}");
    }
    let mut look = ticker(LOOK);
    let mut resync = ticker(RESYNC);
    let mut sweeping = ticker(SWEEP);
    loop {
        let wake = agent.announce_due().await;
        tokio::select! {
            _ = stop.recv() => break,
            _ = interrupt.recv() => break,
            changes = subscription.next() => {
                if changes.routes || changes.links || changes.neighbours {
                    agent.renew_next_hops();
                }
                if changes.addresses || changes.links {
                    agent.resync().await;
                }
            }
            _ = look.tick() => agent.look().await,
            _ = resync.tick() => agent.resync().await,
            _ = sweeping.tick() => agent.sweep(),
            () = sleep_until_some(wake) => {}
            () = sleep_until_some(agent.retry.at()) => agent.resync().await,
            held = ovs_differs(&mut agent.ovs_watch, agent.ovs_held) => {
                agent.ovs_held = held;
                agent.round().await;
            }
        }
    }
    info!("stopping: giving back the addresses; the programs stay and let no tenant out");
    agent.leave().await
}

fn ticker(period: Duration) -> tokio::time::Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

async fn sleep_until_some(wake: Option<Instant>) {
    match wake {
        Some(wake) => sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

async fn ovs_differs(watch: &mut Option<Watch>, held: Option<u32>) -> Option<u32> {
    match watch {
        Some(watch) => watch.differs_from(held).await,
        None => std::future::pending().await,
    }
}

impl Agent {
    async fn start(settings: Settings) -> Result<Self> {
        let mut watched = Watched::new(&settings.files, settings.config.as_deref());
        let input = watched.read()?;
        let config = input.config.unwrap_or_default();
        for warning in config.warnings() {
            warn!("{warning}");
        }
        let netlink = Netlink::open()?;
        let identity = node::identify(&netlink, &config).await?;
        let devices = node::devices(&netlink, &config).await?;
        let sizes = Sizes { flows: config.flows.max, policies: config.policies.max };
        let data_plane = DataPlane::load(&settings.bpffs, sizes)?;
        let maps = data_plane.maps()?;
        let source_maps = source_maps::Maps::open(&crate::bpf::pins(&settings.bpffs))?;
        let ovs = node::ovs(&config);
        let status = StatusFile::open(&settings.run_dir)?;
        let announce = AnnounceSettings {
            burst: config.announce.burst,
            interval: config.announce.interval,
            refresh: config.announce.refresh,
        };
        Ok(Self {
            owned: status.owned(),
            status,
            ovs_watch: ovs.as_ref().map(|ovs| ovs.watch(flows::COOKIE)),
            ovs,
            ovs_facts: None,
            ovs_held: None,
            arp: None,
            schedule: Schedule::new(announce),
            held: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            retry: Retry::default(),
            mend: Retry::default(),
            watched,
            config,
            objects: input.objects,
            identity,
            devices,
            netlink,
            data_plane,
            maps,
            source_maps,
        })
    }

    /// One whole round. What fails is a condition; the rest goes on.
    async fn round(&mut self) {
        self.round_with(Vec::new()).await;
    }

    async fn round_with(&mut self, mut conditions: Vec<Condition>) {
        self.observe_ovs(&mut conditions).await;
        let unclaimed = self.unclaimed().await.unwrap_or_else(|error| {
            conditions.push(failed("Agent/addresses", &error));
            BTreeSet::new()
        });
        let unsure = unclaimed.difference(&self.held).chain(&self.conflicts).copied().collect();
        let unsure = self.plan_without(&unsure);
        let sources = sources::desired(&self.config, &self.devices, &unsure, &self.objects);
        if let Err(error) = source_maps::reconcile(&mut self.source_maps, &sources) {
            conditions.push(failed("Agent/sources", &error));
        }
        if let Err(error) = self.fill_maps(&unsure) {
            // Without its maps a program would let out what it does not know: attach nothing new.
            conditions.push(failed("Agent/maps", &error));
        } else {
            self.attach(&mut conditions);
        }
        if let Err(error) = self.probe(&unclaimed).await {
            conditions.push(failed("Agent/probe", &error));
        }
        let plan = self.plan_without(&self.conflicts);
        self.claim_addresses(&plan, &mut conditions).await;
        self.program_flows(&plan, &mut conditions).await;
        if let Err(error) = self.fill_maps(&plan) {
            conditions.push(failed("Agent/maps", &error));
        }
        conditions.extend(plan.conditions.iter().cloned());
        conditions.sort();
        conditions.dedup();
        let again = |condition: &Condition| condition.reason == Reason::Failed;
        let failed = !self.conflicts.is_empty() || conditions.iter().any(again);
        self.retry.note(failed, Instant::now(), retry::chance());
        self.tell(&plan, conditions);
    }

    /// The plan, with these egress IPs in conflict.
    fn plan_without(&self, conflicts: &BTreeSet<Ipv4Addr>) -> Plan {
        let facts = Facts {
            node_ip: Some(self.identity.ip),
            prefix_len: Some(self.identity.prefix_len),
            link: Some(self.identity.uplink.name.clone()),
            gateway_mac: self.config.gateway_mac.unwrap_or_else(|| {
                crate::config::Mac(
                    self.ovs_facts.as_ref().map(|facts| facts.gateway_mac).unwrap_or_default(),
                )
            }),
            ovs_ports: self
                .ovs_facts
                .as_ref()
                .map(|facts| OvsPorts { vxlan: facts.tunnel_port, gateway: facts.gateway_port }),
            conflicts: conflicts.clone(),
            ..Facts::of(&self.identity.name)
        };
        let mode = Mode {
            layout: tables::layout(&self.config, self.ovs_facts.as_ref()),
            masquerade_bit: self.config.masquerade_bit,
            assign: false,
            flows: self.ovs_facts.is_some(),
        };
        plan(&self.objects, &facts, &Health::default(), &Previous::default(), &mode)
    }

    async fn observe_ovs(&mut self, conditions: &mut Vec<Condition>) {
        let Some(ovs) = &self.ovs else { return };
        match ovs.presence().await {
            Ok(Presence::Present(facts)) => self.ovs_facts = Some(facts),
            Ok(Presence::Absent(why)) => {
                self.ovs_facts = None;
                if self.config.ovs.enabled == crate::config::Enabled::Yes {
                    conditions.push(Condition::new("Agent/ovs", Reason::NoOpenVSwitch, why));
                }
            }
            Err(error) => conditions.push(failed("Agent/ovs", &error)),
        }
    }

    fn fill_maps(&mut self, plan: &Plan) -> Result<()> {
        let generation = maps::next_hop_generation(&self.maps)?.max(1);
        let config = tables::config(&tables::Node {
            config: &self.config,
            objects: &self.objects,
            identity: &self.identity,
            devices: &self.devices,
            ovs: self.ovs_facts.as_ref(),
            generation,
        })?;
        maps::configure(&mut self.maps, &config)?;
        let desired = tables::desired(plan, &self.objects, &self.identity);
        maps::reconcile(&mut self.maps, &desired)?;
        Ok(())
    }

    fn attach(&mut self, conditions: &mut Vec<Condition>) {
        let places = self.places();
        for ((hook, interface), outcome) in attachments::reconcile(&mut self.data_plane, &places) {
            match outcome {
                attachments::Outcome::Attached => info!("attached {hook} to {interface}"),
                attachments::Outcome::Present => {}
                attachments::Outcome::Failed(error) => {
                    conditions.push(failed(&format!("Device/{interface}"), &error));
                }
            }
        }
        match self.data_plane.detach_all_but(&places) {
            Ok(gone) => gone.iter().for_each(|link| info!("detached {link}")),
            Err(error) => conditions.push(failed("Agent/links", &error)),
        }
        for missing in &self.devices.missing {
            conditions.push(Condition::new(
                format!("Device/{missing}"),
                Reason::NoDevice,
                format!("the configured device {missing} does not exist: what comes by it is not treated"),
            ));
        }
    }

    fn places(&self) -> Vec<attachments::Place> {
        self.devices.places(&self.identity)
    }

    async fn program_flows(&mut self, plan: &Plan, conditions: &mut Vec<Condition>) {
        let Some(ovs) = self.ovs.as_ref().filter(|_| self.ovs_facts.is_some()) else {
            self.ovs_held = None;
            return;
        };
        let done = async {
            let desired = flows::Desired::parse(&plan.flows, &plan.groups)?;
            flows::reconcile(ovs, &desired).await
        };
        match done.await {
            Ok(outcome) => {
                self.ovs_held = Some(outcome.held);
                for conflict in outcome.conflicts {
                    let object = conflict
                        .vnid
                        .map_or_else(|| "Agent/ovs".to_owned(), |vnid| format!("VNID/{vnid}"));
                    let message = format!(
                        "the bridge holds a flow of another owner, {}: ours is {} ({:?})",
                        conflict.foreign, conflict.wanted, conflict.kind
                    );
                    conditions.push(Condition::new(object, Reason::Conflict, message));
                }
            }
            Err(error) => {
                self.ovs_held = None;
                conditions.push(failed("Agent/ovs", &error));
            }
        }
    }

    fn tell(&mut self, plan: &Plan, conditions: Vec<Condition>) {
        let status = Status::new(&self.identity, plan, conditions, &self.places());
        for condition in self.status.news(&status) {
            warn!("{} {:?}: {}", condition.object, condition.reason, condition.message);
        }
        if let Err(error) = self.status.write(&status) {
            error!("{error:#}");
        }
    }

    /// The cheap look: files, attached programs, devices that came or went.
    async fn look(&mut self) {
        let mut wanted = false;
        match self.watched.changed() {
            Ok(None) => {}
            Ok(Some(input)) => {
                info!("objects changed");
                self.objects = input.objects;
                wanted = true;
            }
            // The old objects hold until the files can be read again.
            Err(error) => warn!("keep the objects as they were: {error:#}"),
        }
        let mut missing = false;
        for (hook, interface) in self.places() {
            missing |= !self.data_plane.is_attached(hook, &interface).unwrap_or(false);
        }
        // Mended at once; what cannot be mended is not tried at every look.
        let now = Instant::now();
        wanted |= missing && self.mend.at().is_none_or(|at| at <= now);
        self.mend.note(missing, now, retry::chance());
        if wanted {
            self.resync().await;
        }
    }

    /// Looks at everything anew: who this node is, what it has, what it should be.
    async fn resync(&mut self) {
        let mut conditions = Vec::new();
        match node::identify(&self.netlink, &self.config).await {
            Ok(identity) => {
                let returned = identity.uplink.is_back_since(&self.identity.uplink);
                self.identity = identity;
                if returned {
                    info!("{} is back: announcing again", self.identity.uplink.name);
                    self.announce_again();
                }
            }
            Err(error) => conditions.push(failed("Agent/node", &error)),
        }
        match node::devices(&self.netlink, &self.config).await {
            Ok(devices) => self.devices = devices,
            Err(error) => conditions.push(failed("Agent/devices", &error)),
        }
        self.round_with(conditions).await;
    }

    /// Cached next hops lapse: a route, a neighbour or a link changed.
    fn renew_next_hops(&mut self) {
        let renewed = maps::next_hop_generation(&self.maps).and_then(|generation| {
            let mut config = self.maps.config.get(&0, 0).context("read the map config")?.0;
            // 0 stands for no generation.
            config.next_hop_generation = generation.wrapping_add(1).max(1);
            maps::configure(&mut self.maps, &config)
        });
        if let Err(error) = renewed {
            warn!("renew the next hops: {error:#}");
        }
    }

    fn sweep(&mut self) {
        match sweep(&mut self.maps) {
            Ok(swept) if swept.removed > 0 => {
                info!("removed {} expired flows, {} are left", swept.removed, swept.live);
            }
            Ok(_) => {}
            Err(error) => warn!("sweep the flow tables: {error:#}"),
        }
    }

    /// Gives back what was claimed. The programs stay attached with every policy a drop: who is
    /// gone must not let tenants out with the node's address. `egress cleanup` removes them too.
    async fn leave(mut self) -> Result<()> {
        // What leaves by other nodes goes on; what would have left here is dropped at the bridge too.
        let here = self.plan_without(&BTreeSet::new()).addresses;
        let closed = self.plan_without(&here.iter().map(|address| address.ip).collect());
        let mut conditions = Vec::new();
        self.program_flows(&closed, &mut conditions).await;
        for condition in conditions {
            error!("{}: {}", condition.object, condition.message);
        }
        let Self { netlink, identity, owned, .. } = &mut self;
        let released =
            addresses::reconcile(netlink, &identity.uplink, identity.ip, &BTreeSet::new(), owned)
                .await;
        let closed = maps::close(&mut self.maps);
        self.status.remove();
        for (ip, outcome) in released? {
            if let Outcome::Failed(error) = outcome {
                error!("release {ip}: {error:#}");
            }
        }
        closed
    }
}

fn failed(object: &str, error: &anyhow::Error) -> Condition {
    Condition::new(object, Reason::Failed, format!("{error:#}"))
}
