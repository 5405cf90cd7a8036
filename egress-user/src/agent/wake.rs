//! What wakes the agent: signals, netlink, changed files, Open vSwitch, timers. None of it carries a
//! decision: every round looks at the kernel, and a full round comes periodically whatever happens.
use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use egress_common::abi::phase;
use log::{info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{Agent, Settings, failed, node, retry, takeover};
use crate::{
    netlink::subscription::Subscription,
    ovs::watch::{Counts, Watch},
    reconcile::maps,
    source::{files::Input, watch::Watched},
    sweep::sweep,
    takeover::journal::Journal,
};

/// Between two full rounds that nothing asked for.
const RESYNC: Duration = Duration::from_secs(30);
/// Between two looks at the files: a few `stat` calls, and a change is in force soon after.
const FILES: Duration = Duration::from_millis(10);
/// Between two looks at the attached programs.
const LOOK: Duration = Duration::from_millis(250);
/// Between two sweeps of the flow tables.
const SWEEP: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or SIGINT, then leaves in order; or until SIGUSR1, and leaves nothing: who sent
/// it goes on with what is in force.
///
/// # Errors
/// What makes a start impossible, before anything of the node is changed; everything later is a
/// condition, logged and tried again.
pub async fn run(settings: Settings, watched: Watched, input: Input, shadow: bool) -> Result<()> {
    let mut stop = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut let_go = signal(SignalKind::user_defined1()).context("listen for SIGUSR1")?;
    if let Some(unfinished) = Journal::read(&settings.run_dir)?.and_then(|it| it.unfinished()) {
        bail!(unfinished);
    }
    let mut subscription = Subscription::open()?;
    let Settings { run_dir, bpffs } = settings.clone();
    let mut agent = Agent::start(settings, watched, input).await?;
    if shadow {
        agent.shadow()?;
    } else if maps::settings(&agent.maps)?.phase == phase::SHADOW {
        // A shadow was killed here.
        takeover::forget_flows(&mut agent.maps)?;
    }
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
            _ = let_go.recv() => {
                info!("letting go: programs, addresses and flows stay in force");
                return Ok(());
            }
            changes = subscription.next() => {
                if changes.routes || changes.links || changes.neighbours {
                    agent.renew_next_hops();
                }
                if changes.links {
                    agent.resync().await;
                } else if changes.addresses {
                    agent.refresh().await;
                }
            }
            _ = files.tick() => if agent.reload() {
                agent.round().await;
            },
            _ = look.tick() => agent.look().await,
            _ = resync.tick() => agent.resync().await,
            _ = sweeping.tick() => agent.sweep(&run_dir),
            () = agent.health.changed() => agent.round().await,
            () = sleep_until_some(wake) => {}
            () = sleep_until_some(agent.retry.at()) => agent.resync().await,
            held = ovs_differs(&mut agent.ovs_watch, agent.ovs_held) => {
                agent.ovs_held = held;
                agent.ovs_follower.forget();
                agent.round().await;
            }
        }
    }
    if shadow {
        return agent.vanish(&bpffs);
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

async fn ovs_differs(watch: &mut Option<Watch>, held: Option<Counts>) -> Option<Counts> {
    match watch {
        Some(watch) => watch.differs_from(held).await,
        None => std::future::pending().await,
    }
}

impl Agent {
    /// The cheap look: attached programs, and what the programs logged.
    async fn look(&mut self) {
        self.data_plane.flush_log();
        self.hear_witnesses();
        if self.schedule.unwitnessed() != self.unwitnessed || self.is_fenced() != self.fenced {
            self.round().await;
        }
        let mut missing = false;
        for (hook, interface) in self.places() {
            missing |= !self.data_plane.is_attached(hook, &interface).unwrap_or(false);
        }
        // Mended at once; what cannot be mended is not tried at every look.
        let now = Instant::now();
        let wanted = missing && self.mend.at().is_none_or(|at| at <= now);
        self.mend.note(missing, now, retry::chance());
        if wanted {
            self.refresh().await;
        }
    }

    /// The next round looks at what maps and bridge hold, instead of comparing with what the last one
    /// left there. What others may change (addresses, programs) is looked at in every round.
    fn forget(&mut self) {
        self.maps_held = None;
        self.source_maps.forget();
        self.ovs_follower.forget();
    }

    /// Looks at everything anew: also at what maps and bridge hold.
    async fn resync(&mut self) {
        self.forget();
        self.refresh().await;
    }

    /// Looks at who this node is, what it has, what it should be.
    async fn refresh(&mut self) {
        let mut conditions = Vec::new();
        match node::identify(&self.netlink, &self.config).await {
            Ok(identity) => {
                let returned = identity.uplink.is_back_since(&self.identity.uplink);
                self.identity = identity;
                if returned {
                    self.announce_again(&self.identity.uplink.name.clone());
                }
            }
            Err(error) => conditions.push(failed("Agent/node", &error)),
        }
        if let Err(error) = self.renew_uplinks().await {
            conditions.push(failed("Agent/uplinks", &error));
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

    fn sweep(&mut self, run_dir: &Path) {
        match sweep(&mut self.maps) {
            Ok(swept) => {
                if swept.removed > 0 {
                    info!("removed {} expired flows, {} are left", swept.removed, swept.live);
                }
                if !swept.beyond_range
                    && let Err(error) = release_ports(run_dir)
                {
                    warn!("release the ports of connections taken over: {error:#}");
                }
            }
            Err(error) => warn!("sweep the flow tables: {error:#}"),
        }
    }
}

/// The connections of masqueraded pods that a takeover brought have ended.
fn release_ports(run_dir: &Path) -> Result<()> {
    match Journal::read(run_dir)? {
        Some(mut journal) => journal.release(run_dir),
        None => Ok(()),
    }
}
