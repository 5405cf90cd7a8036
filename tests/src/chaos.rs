//! Disorder, from a seed: what others, crashes and operators do to three nodes, one thing after
//! another, while all pods talk.
//!
//! After each step the planned state has to come back: every tenant is served, each egress IP is on
//! its node and on no other. All the time the switch counts what leaves with a wrong address; one
//! packet is a failure, whoever broke what.

use std::{
    collections::BTreeMap,
    fmt,
    net::{Ipv4Addr, UdpSocket},
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_common::abi::ABI_VERSION;
use egress_user::{ovs::Layout, reconcile::flows::COOKIE};

use crate::{
    gateway::{Gateway, OBJECTS},
    netns::wait_until,
    ovs::instance::Instance,
    rig::{
        topology::UPLINK,
        trio::{EGRESS, SourceSide, TENANTS, Tenant, Trio},
    },
    traffic::UdpServer,
};

/// The planned state is there within seconds; a busy machine gets more, and so does an egress IP
/// that its old node has not let go of when the new one first asks.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two datagrams of a pod.
const BEAT: Duration = Duration::from_millis(2);
/// For the answer to one of them.
const PATIENCE: Duration = Duration::from_millis(300);

/// What is done to the rig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// An egress IP is removed by hand.
    RemoveAddress(Ipv4Addr),
    /// All of ours are removed from a node by hand.
    FlushAddresses(usize),
    /// A program of a node is detached by hand: that of this number among its links.
    DetachProgram(usize, usize),
    /// The agent of a node is killed, and another started. 2 is the source node.
    KillAgent(usize),
    /// Killed, then an egress IP removed, then started.
    KillAgentAndRemove(Ipv4Addr),
    /// A node's cable is out for a moment.
    PullCable(usize),
    /// A node's cable is out until it is given up: who has another egress IP leaves by that.
    LoseNode(usize),
    /// A node's uplink is set down and up: its routes are lost, and put back.
    UplinkDown(usize),
    /// A file that cannot be read, and the good one again.
    SpoilObjects(usize),
    /// An egress IP is moved to another node, agent by agent.
    Move(Ipv4Addr, usize),
    /// The bridge is emptied, and its owner's flows loaded again.
    EmptyBridge,
    /// Our flows are removed from the bridge by hand, so that its owner's way out is open.
    FlushFlows,
}

/// Three nodes with their agents, and where each egress IP is planned.
struct Chaos<'a> {
    rig: &'a Trio,
    layout: Option<Layout>,
    /// Of the egress nodes, then of the source node.
    agents: [Gateway<'a>; 3],
    places: BTreeMap<Ipv4Addr, usize>,
    servers: Vec<UdpServer>,
    next_id: u64,
}

/// Does as many steps as are asked for, with the choices that the seed makes.
///
/// # Errors
/// The state did not come back, or something leaked; with all steps so far.
pub fn run(side: SourceSide, seed: u64, steps: usize) -> Result<()> {
    let rig = Trio::up(side)?;
    let [source, first, second] = rig.agents("")?;
    let servers = TENANTS
        .iter()
        .map(|tenant| UdpServer::start(rig.netns("far"), tenant.far()))
        .collect::<Result<_>>()?;
    let layout = match side {
        SourceSide::Plain => None,
        SourceSide::OpenVSwitch(layout) => Some(layout),
    };
    let places = TENANTS.iter().flat_map(|tenant| tenant.egress_ips.iter().copied()).collect();
    let agents = [first, second, source];
    let mut chaos = Chaos { rig: &rig, layout, agents, places, servers, next_id: 0 };
    chaos.settled().context("before the first step")?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for pod in &rig.pods {
            scope.spawn(|| chatter(&rig, &pod.name, pod.vnid, &stop));
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let mut done = Vec::new();
        let result: Result<()> = (0..steps).try_for_each(|_| {
            let step = chaos.choose(&mut random);
            let since = Instant::now();
            done.push(step.clone());
            chaos.act(&step).and_then(|()| chaos.settled())?;
            println!("{step}: back after {:?}", since.elapsed());
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        result.with_context(|| format!("{side:?}, seed {seed}, after {done:?}"))
    })
}

/// A pod's datagrams, until it is told to stop: nobody waits for an answer.
fn chatter(rig: &Trio, pod: &str, vnid: u32, stop: &AtomicBool) -> Result<()> {
    let tenant = TENANTS.iter().find(|tenant| tenant.vnid == vnid).context("a pod of a tenant")?;
    rig.netns(pod).run(|| {
        let sockets: Vec<UdpSocket> =
            (0..8).map(|_| UdpSocket::bind("0.0.0.0:0")).collect::<Result<_, _>>()?;
        for socket in sockets.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            // While a link is down it cannot be sent, which is no matter.
            let _ = socket.send_to(&u64::MAX.to_be_bytes(), tenant.far());
            thread::sleep(BEAT);
        }
        Ok(())
    })?
}

impl Chaos<'_> {
    fn choose(&self, random: &mut fastrand::Rng) -> Step {
        let ips: Vec<Ipv4Addr> = self.places.keys().copied().collect();
        let ip = ips[random.usize(..ips.len())];
        let node = random.usize(..2);
        match random.u8(..if self.layout.is_some() { 12 } else { 10 }) {
            0 => Step::RemoveAddress(ip),
            1 => Step::FlushAddresses(node),
            2 => Step::DetachProgram(node, random.usize(..)),
            3 => Step::KillAgent(random.usize(..3)),
            4 => Step::KillAgentAndRemove(ip),
            5 => Step::PullCable(node),
            6 => Step::UplinkDown(node),
            7 => Step::SpoilObjects(random.usize(..3)),
            8 => {
                // Those of the tenant with two are on both nodes already.
                let movable = TENANTS[1..].iter().flat_map(|tenant| tenant.egress_ips);
                let movable: Vec<Ipv4Addr> = movable.map(|(ip, _)| *ip).collect();
                let ip = movable[random.usize(..movable.len())];
                Step::Move(ip, 1 - self.places[&ip])
            }
            9 => Step::LoseNode(node),
            10 => Step::EmptyBridge,
            _ => Step::FlushFlows,
        }
    }

    fn act(&mut self, step: &Step) -> Result<()> {
        match *step {
            Step::RemoveAddress(ip) => self.remove(ip),
            Step::FlushAddresses(node) => self.on(node, "addr flush dev ens18 label ens18:eip\n"),
            Step::DetachProgram(node, number) => self.detach(node, number),
            Step::KillAgent(node) => {
                self.agents[node].kill()?;
                self.agents[node].run_agent()
            }
            Step::KillAgentAndRemove(ip) => {
                let node = self.places[&ip];
                self.agents[node].kill()?;
                self.remove(ip)?;
                self.agents[node].run_agent()
            }
            Step::PullCable(node) => {
                self.rig.pull(EGRESS[node])?;
                // Both agents and the kernel have seen it.
                self.rig.netns(EGRESS[node]).exec("ip neigh flush all")?;
                self.rig.plug(EGRESS[node])
            }
            Step::LoseNode(node) => {
                self.rig.pull(EGRESS[node])?;
                self.left(node)?;
                self.rig.plug(EGRESS[node])
            }
            Step::UplinkDown(node) => self.on(
                node,
                &format!(
                    "link set {UPLINK} down\nlink set {UPLINK} up\n\
                     route replace default via {} dev {UPLINK}\n",
                    self.rig.outside[0].ip
                ),
            ),
            Step::SpoilObjects(node) => {
                let good = self.agents[node].beside(|| std::fs::read_to_string(OBJECTS))??;
                self.agents[node].write_objects("kind: [HostSubnet\n")?;
                self.served()?;
                self.agents[node].write_objects(&good)
            }
            Step::Move(ip, node) => {
                self.places.insert(ip, node);
                for agent in &self.agents {
                    let output =
                        agent.egress(&["move", &ip.to_string(), EGRESS[node], "-f", OBJECTS])?;
                    ensure!(output.status.success(), "egress move: {output:?}");
                }
                Ok(())
            }
            Step::EmptyBridge => {
                self.ovs()?.ofctl("del-flows", &[])?;
                self.rig.settle_ovs(self.layout.context("no Open vSwitch")?)
            }
            Step::FlushFlows => {
                let ours = format!("cookie={COOKIE:#x}/-1");
                self.ovs()?.ofctl("del-flows", &[&ours]).map(drop)
            }
        }
    }

    fn ovs(&self) -> Result<&Instance> {
        self.rig.ovs().map(|node| &node.ovs).context("no Open vSwitch")
    }

    fn on(&self, node: usize, batch: &str) -> Result<()> {
        self.rig.netns(EGRESS[node]).ip(batch)
    }

    fn remove(&self, ip: Ipv4Addr) -> Result<()> {
        self.on(self.places[&ip], &format!("addr del {ip}/24 dev {UPLINK}\n"))
    }

    /// Nothing else holds a link: with its pin it is gone, and the program detached.
    fn detach(&self, node: usize, number: usize) -> Result<()> {
        let links = format!("/sys/fs/bpf/egress/v{ABI_VERSION}/links");
        self.agents[node].beside(|| -> Result<()> {
            let entries = std::fs::read_dir(&links)?.map(|entry| entry.map(|entry| entry.path()));
            let mut pins = entries.collect::<Result<Vec<PathBuf>, _>>()?;
            pins.sort();
            std::fs::remove_file(&pins[number % pins.len()])?;
            Ok(())
        })?
    }

    /// The planned state is there, and nothing has leaked.
    fn settled(&mut self) -> Result<()> {
        let mut wrong = Ok(());
        wait_until(DEADLINE, || {
            wrong = self.places_hold().and_then(|()| self.served());
            wrong.is_ok()
        });
        wrong.with_context(|| {
            let logs: Vec<String> = self.agents.iter().map(Gateway::log).collect();
            format!("not as planned after {DEADLINE:?}; the agents' logs:\n{}", logs.join("---\n"))
        })?;
        let leaks = self.rig.leaks()?;
        ensure!(leaks.values().all(|count| *count == 0), "leaked: {leaks:?}");
        Ok(())
    }

    /// Waits until the source node knows that this one is offline, and who has an egress IP on the
    /// other too is served all the same.
    fn left(&mut self, node: usize) -> Result<()> {
        let mut wrong = Ok(());
        wait_until(DEADLINE, || {
            wrong = self.is_offline(node).and_then(|()| self.tenant_served(0));
            wrong.is_ok()
        });
        wrong.with_context(|| {
            let log = self.agents[2].log();
            format!("{} is not left after {DEADLINE:?}; the source's log:\n{log}", EGRESS[node])
        })
    }

    fn is_offline(&self, node: usize) -> Result<()> {
        let status = self.agents[2].status()?;
        let known = status["nodes"].as_array().into_iter().flatten();
        let offline = known.filter(|known| known["state"] == "offline");
        let mut names = offline.map(|known| &known["name"]);
        ensure!(names.any(|name| name == EGRESS[node]), "{} is not offline", EGRESS[node]);
        Ok(())
    }

    fn places_hold(&self) -> Result<()> {
        for (number, node) in EGRESS.iter().enumerate() {
            let mut show = Command::new("ip");
            show.args(["-o", "-4", "addr", "show", "dev", UPLINK]);
            let shown = self.rig.netns(node).output(&mut show)?;
            for (ip, place) in &self.places {
                let there = shown.contains(&format!(" {ip}/"));
                ensure!(there == (*place == number), "{ip} on {node}: {there}");
            }
        }
        Ok(())
    }

    /// One datagram of each pod is answered, and came with an address of its tenant.
    fn served(&mut self) -> Result<()> {
        (0..TENANTS.len()).try_for_each(|place| self.tenant_served(place))
    }

    fn tenant_served(&mut self, place: usize) -> Result<()> {
        let tenant: &Tenant = &TENANTS[place];
        for pod in self.rig.pods.iter().filter(|pod| pod.vnid == tenant.vnid) {
            self.next_id += 1;
            let id = self.next_id.to_be_bytes();
            self.rig
                .netns(&pod.name)
                .run(|| -> Result<()> {
                    let socket = UdpSocket::bind("0.0.0.0:0")?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.send_to(&id, tenant.far())?;
                    let mut answer = [0; 9];
                    let got = socket.recv(&mut answer)?;
                    ensure!(answer[..got] == id, "another answer");
                    Ok(())
                })?
                .with_context(|| format!("{} is not served", pod.name))?;
            let peer = self.servers[place].peer(self.next_id).context("never arrived")?;
            let own = tenant.egress_ips.iter().any(|(ip, _)| ip == peer.ip());
            ensure!(own, "{} came with {peer}", pod.name);
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
