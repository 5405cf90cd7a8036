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
    bpf::{DataPlane, Maps, Sizes, fit},
    condition::{Condition, Reason},
    config::{AgentConfig, DataPath},
    identity::Identity,
    model::Objects,
    netlink::{Netlink, subscription::Subscription},
    ovs::{Ovs, watch::Watch},
    plan::{Facts, Health, Mode, OvsPorts, Plan, Previous, plan},
    reconcile::{
        addresses::{self, Outcome},
        announce::Schedule,
        attachments, flows,
        maps::{self, Dropped},
        masquerade, sources as source_maps,
        xdp::{self, InForce},
    },
    source::{files::Input, watch::Watched},
    sweep::sweep,
};

mod bridge;
mod claim;
pub mod lock;
mod node;
mod reload;
mod retry;
mod sources;
pub mod status;
mod tables;

use lock::Lock;
use node::Devices;
use retry::Retry;
use status::{Status, StatusFile};

/// Between two full rounds that nothing asked for.
const RESYNC: Duration = Duration::from_secs(30);
/// Between two looks at the files: a few `stat` calls, and a change is in force soon after.
const FILES: Duration = Duration::from_millis(10);
/// Between two looks at the attached programs.
const LOOK: Duration = Duration::from_millis(250);
/// Between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(30);

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
    /// Why the files as they are now cannot be taken over.
    unread: Option<Condition>,
    /// Changed settings that only a restart takes over.
    waiting: Option<Condition>,
    identity: Identity,
    devices: Devices,
    netlink: Netlink,
    data_plane: DataPlane,
    /// Every program runs where it belongs.
    attached: bool,
    in_force: Option<InForce>,
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
    /// Whether marked packets may be exempted from the node's NAT here: a predecessor's word counts.
    exempts: bool,
    retry: Retry,
    /// Of programs that are not attached.
    mend: Retry,
    status: StatusFile,
    /// Held as long as the agent runs.
    _lock: Lock,
}

/// Runs until SIGTERM or SIGINT, then leaves in order.
///
/// # Errors
/// What makes a start impossible, before anything of the node is changed; everything later is a
/// condition, logged and tried again.
pub async fn run(settings: Settings, watched: Watched, input: Input) -> Result<()> {
    let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut subscription = Subscription::open()?;
    let mut agent = Agent::start(settings, watched, input).await?;
    agent.round().await;
    let mut ready = false;
    let mut files = ticker(FILES);
    let mut look = ticker(LOOK);
    let mut resync = ticker(RESYNC);
    let mut sweeping = ticker(SWEEP);
    loop {
        if agent.attached && !ready {
            ready = true;
            agent.tell_ready();
        }
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
            _ = files.tick() => if agent.reload() {
                agent.round().await;
            },
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
    /// Everything that can fail without a trace comes before the programs and maps.
    async fn start(settings: Settings, watched: Watched, input: Input) -> Result<Self> {
        let config = input.config.unwrap_or_default();
        reload::warn_of(&config);
        fit::check_privileges()?;
        let netlink = Netlink::open()?;
        let identity = node::identify(&netlink, &config).await?;
        let devices = node::devices(&netlink, &config).await?;
        tables::networks(&config, &input.objects)?;
        let lock = Lock::take(&settings.run_dir)?;
        let sizes = Sizes { flows: config.flows.max, policies: config.policies.max };
        let data_plane = DataPlane::load(&settings.bpffs, sizes)?;
        let maps = data_plane.maps()?;
        let source_maps = source_maps::Maps::open(&crate::bpf::pins(&settings.bpffs))?;
        let ovs = node::ovs(&config);
        let status = StatusFile::new(&settings.run_dir);
        Ok(Self {
            owned: status.owned(),
            status,
            ovs_watch: ovs.as_ref().map(|ovs| ovs.watch(flows::COOKIE)),
            ovs,
            ovs_facts: None,
            ovs_held: None,
            arp: None,
            schedule: Schedule::new(node::announcing(&config)),
            held: BTreeSet::new(),
            conflicts: BTreeSet::new(),
            exempts: true,
            retry: Retry::default(),
            mend: Retry::default(),
            watched,
            config,
            objects: input.objects,
            identity,
            devices,
            netlink,
            data_plane,
            in_force: None,
            maps,
            unread: None,
            waiting: None,
            attached: false,
            _lock: lock,
            source_maps,
        })
    }

    fn tell_ready(&self) {
        info!("ready: node {} on {}", self.identity.name, self.identity.uplink.name);
        // Without a supervisor nobody listens, and that is all right.
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            warn!("tell the supervisor that the agent is ready: {error}");
        }
    }

    /// One whole round. What fails is a condition; the rest goes on.
    async fn round(&mut self) {
        self.round_with(Vec::new()).await;
    }

    async fn round_with(&mut self, mut conditions: Vec<Condition>) {
        self.observe_ovs(&mut conditions).await;
        self.exempt(&mut conditions).await;
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
            self.attach(&mut conditions).await;
        }
        if let Err(error) = self.probe(&unclaimed).await {
            conditions.push(failed("Agent/probe", &error));
        }
        let plan = self.plan_without(&self.conflicts);
        self.claim_addresses(&plan, &mut conditions).await;
        self.program_flows(&plan, &mut conditions).await;
        match self.fill_maps(&plan) {
            Ok(dropped) => conditions.extend(tables::dropped(&dropped, &self.config)),
            Err(error) => conditions.push(failed("Agent/maps", &error)),
        }
        conditions.extend(plan.conditions.iter().chain(&self.unread).chain(&self.waiting).cloned());
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

    /// In stack mode the node's own NAT is kept away from what the uplink's egress translates.
    async fn exempt(&mut self, conditions: &mut Vec<Condition>) {
        let wanted = self.config.data_path == DataPath::Stack;
        if !wanted && !self.exempts {
            return;
        }
        let marks = wanted.then(|| tables::marks(&self.plan_without(&self.conflicts)));
        match masquerade::reconcile(marks.as_ref()).await {
            Ok(_) => self.exempts = marks.is_some(),
            Err(error) => conditions.push(failed("Agent/masquerade", &error)),
        }
    }

    /// Settings that cannot be written stay as they were; who gets what is written all the same.
    fn fill_maps(&mut self, plan: &Plan) -> Result<Dropped> {
        let configured = self.configure();
        let desired = tables::desired(plan, &self.objects, &self.identity, &self.config);
        let dropped = maps::reconcile(&mut self.maps, &desired)?;
        configured.map(|()| dropped)
    }

    fn configure(&mut self) -> Result<()> {
        let held = maps::settings(&self.maps)?;
        let config = tables::config(&tables::Node {
            config: &self.config,
            objects: &self.objects,
            identity: &self.identity,
            devices: &self.devices,
            ovs: self.ovs_facts.as_ref(),
            generation: held.next_hop_generation,
            stamp: node::stamp(held.stamp)?,
        })?;
        maps::configure(&mut self.maps, &config)?;
        Ok(())
    }

    async fn attach(&mut self, conditions: &mut Vec<Condition>) {
        let places = self.places();
        self.attached = true;
        for ((hook, interface), outcome) in attachments::reconcile(&mut self.data_plane, &places) {
            match outcome {
                attachments::Outcome::Attached => info!("attached {hook} to {interface}"),
                attachments::Outcome::Present => {}
                attachments::Outcome::Failed(error) => {
                    self.attached = false;
                    conditions.push(failed(&format!("Device/{interface}"), &error));
                }
            }
        }
        match self.data_plane.detach_all_but(&places) {
            Ok(gone) => gone.iter().for_each(|link| info!("detached {link}")),
            Err(error) => conditions.push(failed("Agent/links", &error)),
        }
        let Self { data_plane, netlink, identity, config, .. } = self;
        let (in_force, condition) =
            xdp::reconcile(data_plane, netlink, &identity.uplink, config.data_path).await;
        conditions.extend(condition);
        if self.in_force.as_ref() != Some(&in_force) {
            info!("the data path is {}: {}", in_force.path, in_force.why);
            self.in_force = Some(in_force);
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

    fn tell(&mut self, plan: &Plan, conditions: Vec<Condition>) {
        let places = self.places();
        let in_force = self.in_force.as_ref();
        let Self { identity, objects, .. } = self;
        let status = Status::new(identity, objects, plan, conditions, &places, in_force);
        for condition in self.status.news(&status) {
            warn!("{} {}: {}", condition.object, condition.reason, condition.message);
        }
        if let Err(error) = self.status.write(&status) {
            error!("{error:#}");
        }
    }

    /// The cheap look: attached programs, and what the programs logged.
    async fn look(&mut self) {
        self.data_plane.flush_log();
        let mut missing = false;
        for (hook, interface) in self.places() {
            missing |= !self.data_plane.is_attached(hook, &interface).unwrap_or(false);
        }
        // Mended at once; what cannot be mended is not tried at every look.
        let now = Instant::now();
        let wanted = missing && self.mend.at().is_none_or(|at| at <= now);
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
        let renewed = maps::settings(&self.maps).and_then(|mut config| {
            // 0 stands for no generation.
            config.next_hop_generation = config.next_hop_generation.wrapping_add(1).max(1);
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
        if self.exempts
            && let Err(error) = masquerade::reconcile(None).await
        {
            error!("{error:#}");
        }
        let told = self.status.stop();
        for (ip, outcome) in released? {
            if let Outcome::Failed(error) = outcome {
                error!("release {ip}: {error:#}");
            }
        }
        closed.and(told)
    }
}

fn failed(object: &str, error: &anyhow::Error) -> Condition {
    Condition::new(object, Reason::Failed, format!("{error:#}"))
}
