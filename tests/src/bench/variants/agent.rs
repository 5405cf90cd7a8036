//! Ours: the real agent, started on the node by its documented command line and objects.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_common::bench::vnid;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{Variant, mark_packets, netfilter::egress_ip};
use crate::bench::{
    campaign::NEW_FLOWS,
    enclosure::Enclosure,
    rig::{GATEWAY, HOSTED, NODE, NODE_PREFIX, Rig, SOURCE_NODE, Setting, TUNNEL, UPLINK, dotted},
    workload::{Direction, Entry, Flows, Workload},
};

/// The product's default, on every data path alike.
pub const MAX_FLOWS: u32 = 1_048_576;

/// How long the agent may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to start.
const START: Duration = Duration::from_secs(120);
/// VNIDs that the agent has room for by default.
const DEFAULT_POLICIES: u32 = 16_384;

/// Files of the enclosure's own /run: they vanish with it.
const CONFIG: &str = "/run/config.yaml";
const OBJECTS: &str = "/run/objects.yaml";
const NEXT_OBJECTS: &str = "/run/objects.next";
const LOG: &str = "/run/log";

/// The value of the key `dataPath`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    Stack,
    Tunnel,
    Tc,
    Xdp,
}

impl DataPath {
    pub const ALL: [Self; 4] = [Self::Stack, Self::Tunnel, Self::Tc, Self::Xdp];

    fn key(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Tunnel => "tunnel",
            Self::Tc => "tc",
            Self::Xdp => "xdp",
        }
    }
}

/// One build of the agent on one data path.
pub struct Agent {
    binary: PathBuf,
    data_path: DataPath,
    suffix: &'static str,
    running: Option<Running>,
    enclosure: Option<Enclosure>,
    /// The most flows that its table holds by now.
    flows: u32,
    /// Among many nodes and namespaces that do not concern it.
    in_cluster: bool,
}

struct Running {
    child: Child,
    log: File,
}

impl Agent {
    pub fn new(binary: PathBuf, data_path: DataPath, suffix: &'static str) -> Self {
        Self {
            binary,
            data_path,
            suffix,
            running: None,
            enclosure: None,
            flows: 0,
            in_cluster: false,
        }
    }

    /// One node of a large cluster.
    pub fn in_cluster(self) -> Self {
        Self { in_cluster: true, ..self }
    }

    fn start(&mut self, rig: &Rig) -> Result<()> {
        // Every JSON document is a YAML document.
        let Setting { policies, masquerade, .. } = rig.setting;
        let mut config = agent_config(self.data_path, policies, masquerade);
        if self.in_cluster {
            // The other nodes are not there to answer.
            config["health"] = json!({"interval": "0s"});
        }
        let (config, objects) = (config.to_string(), self.objects(policies, masquerade));
        let enclosure = match self.enclosure.take() {
            Some(enclosure) => enclosure,
            None => Enclosure::new(&rig.node)?,
        };
        let enclosure = self.enclosure.insert(enclosure);
        let log = enclosure.inside(move || -> Result<File> {
            fs::write(CONFIG, config).with_context(|| format!("write {CONFIG}"))?;
            fs::write(OBJECTS, objects).with_context(|| format!("write {OBJECTS}"))?;
            let mut options = File::options();
            let log = options.create(true).truncate(true).read(true).write(true).open(LOG);
            log.with_context(|| format!("create {LOG}"))
        })??;
        let output = log.try_clone().context("share the agent's log")?;
        let errors = log.try_clone().context("share the agent's log")?;
        let mut command = Command::new("setpriv");
        // The agent must not outlive the benchmark, however that ends.
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.binary);
        command.args(["run", "--config", CONFIG, "-f", OBJECTS]);
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = enclosure.spawn(command)?;
        self.running = Some(Running { child, log });
        Ok(())
    }

    /// Writes the objects of so many VNIDs beside those in force.
    pub fn write_objects(&self, policies: u32) -> Result<()> {
        let objects = self.objects(policies, false);
        self.inside(move || {
            fs::write(NEXT_OBJECTS, objects).with_context(|| format!("write {NEXT_OBJECTS}"))
        })
    }

    /// Puts what was written last into force, in one move; the agent notices by itself.
    pub fn change_objects(&self) -> Result<()> {
        self.inside(|| {
            fs::rename(NEXT_OBJECTS, OBJECTS).with_context(|| format!("replace {OBJECTS}"))
        })
    }

    fn inside(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.enclosure.as_ref().context("an agent without an enclosure")?.inside(work)?
    }

    fn objects(&self, policies: u32, masquerade: bool) -> String {
        let mut objects = objects(policies, masquerade);
        if self.in_cluster {
            let items = objects["items"].as_array_mut().expect("a list has items");
            items.extend(rest_of_the_cluster());
        }
        objects.to_string()
    }

    /// Bytes of all maps that the agent holds open, as the kernel counts them.
    pub fn map_bytes(&self) -> Result<u64> {
        let running = self.running.as_ref().context("no agent is running")?;
        let directory = format!("/proc/{}/fdinfo", running.child.id());
        let mut maps = BTreeMap::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
            // A descriptor may be closed while we look.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let field = |name: &str| -> Option<u64> {
                text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
            };
            if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
                maps.insert(id, bytes);
            }
        }
        ensure!(!maps.is_empty(), "the agent holds no maps open");
        Ok(maps.values().sum())
    }

    /// Starts anew, with an empty table.
    fn restart(&mut self, rig: &Rig) -> Result<()> {
        self.stop()?;
        self.flows = 0;
        self.start(rig)?;
        self.await_ready()
    }

    /// Ends the agent for good, so that it can be installed on another rig.
    pub fn close(&mut self) -> Result<()> {
        let stopped = self.stop();
        self.enclosure = None;
        stopped
    }

    /// Ends the agent and takes away what it leaves in the kernel.
    fn stop(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.stop()?;
        let mut command = Command::new(&self.binary);
        command.arg("cleanup");
        let enclosure = self.enclosure.as_ref().context("an agent without an enclosure")?;
        let output = enclosure.output(command)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`egress cleanup`: {}: {errors}", output.status);
        Ok(())
    }

    /// Waits until the agent says so: its first round is over then, with all egress IPs claimed.
    fn await_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let running = self.running.as_mut().context("the agent was not started")?;
            if let Some(status) = running.child.try_wait().context("look after the agent")? {
                bail!("the agent ended with {status}: {}", running.last_words());
            }
            if running.log()?.contains("ready: node") {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the agent is not ready in {START:?}: {}",
                running.last_words()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Running {
    /// Asks the agent to end and waits; after a while it is made to.
    fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().try_into().context("a process id")?);
        if self.child.try_wait().context("look after the agent")?.is_none() {
            kill(pid, Signal::SIGTERM).context("stop the agent")?;
        }
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().context("wait for the agent's end")?.is_none() {
            if Instant::now() > deadline {
                return self.end();
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Ends the agent at once.
    fn end(&mut self) -> Result<()> {
        self.child.kill().context("end the agent")?;
        self.child.wait().context("wait for the agent's end").map(drop)
    }

    /// The last 64 KiB that the agent has said.
    fn log(&self) -> Result<String> {
        let said = self.log.metadata().context("look at the agent's log")?.len();
        let mut bytes = vec![0; 1 << 16];
        let from = said.saturating_sub(bytes.len() as u64);
        let len = self.log.read_at(&mut bytes, from).context("read the agent's log")?;
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }

    fn last_words(&self) -> String {
        let log = match self.log() {
            Ok(log) => log,
            Err(error) => return format!("{error:#}"),
        };
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        match lines.is_empty() {
            true => "it said nothing".to_owned(),
            false => lines.into_iter().rev().collect::<Vec<_>>().join(" / "),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // What it would give back vanishes with the namespaces.
        if let Err(error) = self.end() {
            eprintln!("{error:#}");
        }
    }
}

impl Variant for Agent {
    fn name(&self) -> String {
        format!("egress-{}{}", self.data_path.key(), self.suffix)
    }

    fn carries(&self, workload: &Workload) -> bool {
        match (self.data_path, workload.entry, workload.direction) {
            // Only the uplink has a program on XDP; a local pod's packets take the tc program.
            (DataPath::Xdp, Entry::Gateway, Direction::Original) => false,
            // A frame on XDP must be whole: no checksum or segmentation left for later.
            (DataPath::Xdp, ..) if workload.offload => false,
            // Without a tunnel this is the tc path.
            (DataPath::Tunnel, Entry::Gateway, _) => false,
            _ => true,
        }
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let binary = self.binary.display();
        ensure!(self.binary.is_file(), "there is no {binary}: build it first");
        if rig.setting.entry == Entry::Gateway && !rig.setting.masquerade {
            mark_packets(rig)?;
        }
        self.start(rig)?;
        self.await_ready()
    }

    /// As fresh a table as the others have, whose flows are flushed.
    fn prepare(&mut self, rig: &mut Rig, workload: &Workload) -> Result<()> {
        match workload.flows {
            Flows::Established(flows) if flows > MAX_FLOWS => {
                bail!("the flow table holds {MAX_FLOWS} flows")
            }
            _ if self.flows > 0 => self.restart(rig)?,
            _ => {}
        }
        if let Flows::Established(flows) = workload.flows {
            self.flows = flows;
        }
        Ok(())
    }

    /// An empty table would be to our advantage, and takes a start: only when it would run full.
    fn forget(&mut self, rig: &mut Rig) -> Result<()> {
        if self.flows + NEW_FLOWS > MAX_FLOWS {
            self.restart(rig)?;
        }
        self.flows += NEW_FLOWS;
        Ok(())
    }

    fn facts(&self, _rig: &Rig) -> Result<String> {
        Ok(format!("flows.max {MAX_FLOWS}"))
    }
}

fn agent_config(data_path: DataPath, policies: u32, masquerade: bool) -> Value {
    let mut config = json!({
        "apiVersion": "egress/v1alpha1",
        "kind": "AgentConfig",
        "node": {
            "name": "node-b",
            "ip": format!("{}/{NODE_PREFIX}", dotted(NODE)),
            "uplink": UPLINK,
        },
        "tunnel": {"device": TUNNEL, "port": 4789},
        "gateway": GATEWAY,
        "clusterNetworks": ["10.128.0.0/14"],
        "serviceNetworks": ["172.30.0.0/16"],
        "dataPath": data_path.key(),
        "flows": {"max": MAX_FLOWS, "maxPerVnid": MAX_FLOWS},
        "timeouts": {"udp": "3600s"},
        // Nobody else is there to be asked or told.
        "announce": {"burst": 1, "probe": false, "witness": "none"},
        "ovs": {"enabled": false},
    });
    if masquerade {
        config["masquerade"] = true.into();
        // Those of the benchmark's pods: they keep their ports, as they do with iptables.
        config["masqueradePorts"] = json!({"from": 32768, "to": 65535});
    }
    // The product's default otherwise.
    if policies > DEFAULT_POLICIES {
        config["policies"] = json!({"max": policies});
    }
    config
}

/// What `oc get -o yaml` would print: two nodes, and a namespace for each VNID. Pods that are
/// masqueraded are this node's.
fn objects(policies: u32, masquerade: bool) -> Value {
    let (here, there) = ("10.128.0.0/23", "10.130.0.0/15");
    if masquerade {
        let nodes = [
            host_subnet("node-b", NODE, there, Vec::new()),
            host_subnet("node-a", SOURCE_NODE, here, Vec::new()),
        ];
        return json!({"apiVersion": "v1", "kind": "List", "items": nodes});
    }
    let hosted = policies.min(HOSTED);
    let mut items = vec![
        host_subnet("node-b", NODE, here, (0..hosted).map(egress_ip).collect()),
        host_subnet("node-a", SOURCE_NODE, there, (hosted..policies).map(egress_ip).collect()),
    ];
    items.extend((0..policies).map(|number| net_namespace(number, &[egress_ip(number)])));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn host_subnet(name: &str, ip: [u8; 4], subnet: &str, egress_ips: Vec<String>) -> Value {
    json!({
        "apiVersion": "network.openshift.io/v1",
        "kind": "HostSubnet",
        "metadata": {"name": name, "uid": format!("uid-{name}")},
        "host": name,
        "hostIP": dotted(ip),
        "subnet": subnet,
        "egressIPs": egress_ips,
    })
}

fn net_namespace(number: u32, egress_ips: &[String]) -> Value {
    let name = format!("tenant-{number}");
    json!({
        "apiVersion": "network.openshift.io/v1",
        "kind": "NetNamespace",
        "metadata": {"name": name},
        "netname": name,
        "netid": vnid(number),
        "egressIPs": egress_ips,
    })
}

/// 500 other nodes with ten egress IPs each, for every other one of 10,000 namespaces.
fn rest_of_the_cluster() -> Vec<Value> {
    const FIRST: u32 = 100_000;
    const NODES: u32 = 500;
    let node = |number: u32| {
        let egress_ips = (0..10).map(|at| egress_ip(FIRST + (at * NODES + number) * 2)).collect();
        let [_, _, high, low] = number.to_be_bytes();
        let subnet = format!("10.129.{}.{}/25", number / 2, number % 2 * 128);
        host_subnet(&format!("node-{number}"), [100, 64, 1 + high, low], &subnet, egress_ips)
    };
    let namespace = |number: u32| match number % 2 {
        0 => net_namespace(FIRST + number, &[egress_ip(FIRST + number)]),
        _ => net_namespace(FIRST + number, &[]),
    };
    (0..NODES).map(node).chain((0..10_000).map(namespace)).collect()
}
