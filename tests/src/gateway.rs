//! The agent on an egress node: started, killed, stopped, asked.
//!
//! All it leaves behind, pins included, is in mounts of its own that end with this value, unless the
//! agent is left running: then they end with the agent. Its files are below `/run` in those mounts.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Seek as _},
    os::unix::{net::UnixDatagram, process::CommandExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    netns::{Mounts, Netns, wait_until},
    rig::{Rig, objects},
};

/// Time for the agent to load its programs and claim its addresses, or to take it all back.
/// What the rig has to wait for comes well before.
pub const DEADLINE: Duration = Duration::from_secs(30);
const CONFIG: &str = "/run/agent.yaml";
/// The objects' file, in the agent's mounts.
pub const OBJECTS: &str = "/run/objects.yaml";
const NOTIFY: &str = "/run/notify";
const LOG: &str = "/run/agent.log";

/// The agent's place on a node, and the agent when it runs.
#[derive(Debug)]
pub struct Gateway<'a> {
    netns: &'a Netns,
    binary: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    mounts: Mounts,
    notify: UnixDatagram,
    log: File,
    agent: Option<Child>,
}

impl<'a> Gateway<'a> {
    /// Prepares the place: nothing runs yet. `config` and `objects` are the texts of the files.
    pub fn new(netns: &'a Netns, config: &str, objects: &str) -> Result<Self> {
        let binary = binary()?;
        let mounts = netns.private_mounts()?;
        let (notify, log) = netns.run_in(&mounts, || -> Result<_> {
            fs::write(CONFIG, config).with_context(|| format!("write {CONFIG}"))?;
            fs::write(OBJECTS, objects).with_context(|| format!("write {OBJECTS}"))?;
            let notify = UnixDatagram::bind(NOTIFY).with_context(|| format!("bind {NOTIFY}"))?;
            let log = File::options().create(true).append(true).read(true).open(LOG);
            Ok((notify, log.with_context(|| format!("open {LOG}"))?))
        })??;
        notify.set_nonblocking(true)?;
        Ok(Self { netns, binary, environment: Vec::new(), mounts, notify, log, agent: None })
    }

    /// Every `egress` started from here on has this in its environment.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// The agent on a node, ready, with these settings and objects.
    pub fn running(netns: &'a Netns, config: &str, objects: &str) -> Result<Self> {
        let mut gateway = Self::new(netns, config, objects)?;
        gateway.run_agent()?;
        Ok(gateway)
    }

    /// The agent on the rig's egress node, ready, with the examples' settings and objects.
    pub fn start(rig: &'a Rig) -> Result<Self> {
        let netns = rig.netns(&rig.egress.name);
        Self::running(netns, objects::AGENT_CONFIG, objects::CLUSTER_OBJECTS)
    }

    /// As [`Gateway::start`], with this `dataPath` (`xdp-generic`: `xdp`); it is in force, or that
    /// is an error.
    pub fn start_on(rig: &'a Rig, data_path: &str) -> Result<Self> {
        let netns = rig.netns(&rig.egress.name);
        let config = config_with(data_path.trim_end_matches("-generic"));
        let gateway = Self::running(netns, &config, objects::CLUSTER_OBJECTS)?;
        let in_force = &gateway.status()?["dataPath"];
        ensure!(in_force["path"] == data_path, "in force is {in_force}");
        Ok(gateway)
    }

    /// Gives the next agent another `dataPath`.
    pub fn set_data_path(&self, data_path: &str) -> Result<()> {
        self.beside(|| fs::write(CONFIG, config_with(data_path)))?
            .with_context(|| format!("write {CONFIG}"))
    }

    /// Starts `egress run` and waits until it says that it is ready.
    pub fn run_agent(&mut self) -> Result<()> {
        self.run_agent_with(&[])
    }

    /// As [`Gateway::run_agent`], with more arguments.
    pub fn run_agent_with(&mut self, arguments: &[&str]) -> Result<()> {
        ensure!(self.agent.is_none(), "the agent runs already");
        let mut agent = self.start_agent(arguments)?;
        if let Some(status) = self.ready_or_ended(&mut agent)? {
            bail!("the agent ended before it was ready ({status}); its log:\n{}", self.log());
        }
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts `egress run`, with more arguments, which must not become ready: its exit code, and
    /// what it wrote.
    pub fn refused(&self, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let before = self.log().len();
        let mut agent = self.start_agent(arguments)?;
        match self.ready_or_ended(&mut agent)? {
            Some(status) => Ok((status.code(), self.log().split_off(before))),
            None => {
                agent.kill().context("kill the agent")?;
                agent.wait().context("wait for the killed agent")?;
                bail!("the agent started; its log:\n{}", self.log())
            }
        }
    }

    fn start_agent(&self, arguments: &[&str]) -> Result<Child> {
        self.heard_ready();
        let mut command = Command::new(&self.binary);
        command
            .args(["run", "--config", CONFIG, "-f", OBJECTS])
            .args(arguments)
            .envs(self.environment.iter().cloned())
            .env("NOTIFY_SOCKET", NOTIFY)
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?);
        self.netns.spawn_in(&self.mounts, &mut command)
    }

    /// Waits until the agent says that it is ready, `None`, or ends.
    fn ready_or_ended(&self, agent: &mut Child) -> Result<Option<ExitStatus>> {
        let mut ended = None;
        let mut ready = false;
        wait_until(DEADLINE, || {
            ended = agent.try_wait().ok().flatten();
            ready = self.heard_ready();
            ready || ended.is_some()
        });
        if ready {
            return Ok(None);
        }
        if ended.is_none() {
            agent.kill().context("kill the agent")?;
            agent.wait().context("wait for the killed agent")?;
            bail!("the agent is not ready after {DEADLINE:?}; its log:\n{}", self.log());
        }
        Ok(ended)
    }

    /// Whether the agent has sent `READY=1` since the last call.
    fn heard_ready(&self) -> bool {
        let mut ready = false;
        let mut buffer = [0; 4096];
        while let Ok(length) = self.notify.recv(&mut buffer) {
            ready |= buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1");
        }
        ready
    }

    /// Replaces the objects, as a whole, under a running agent.
    pub fn write_objects(&self, objects: &str) -> Result<()> {
        self.replace(OBJECTS, objects)
    }

    /// Replaces the AgentConfig, as a whole, under a running agent.
    pub fn write_config(&self, config: &str) -> Result<()> {
        self.replace(CONFIG, config)
    }

    fn replace(&self, path: &str, text: &str) -> Result<()> {
        self.beside(|| {
            let new = format!("{path}.new");
            fs::write(&new, text).and_then(|()| fs::rename(&new, path))
        })?
        .with_context(|| format!("replace {path}"))
    }

    /// Runs a closure where the agent is: in its network namespace and its mounts.
    pub fn beside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.run_in(&self.mounts, work)
    }

    /// `kill -9`: the agent has no chance to leave anything in order.
    pub fn kill(&mut self) -> Result<()> {
        let mut agent = self.agent.take().context("no agent runs")?;
        agent.kill().context("kill the agent")?;
        agent.wait().context("wait for the killed agent")?;
        Ok(())
    }

    /// SIGTERM, and how the agent ended. Past the deadline it is killed, which is an error.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut agent = self.agent.take().context("no agent runs")?;
        kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM)
            .context("send SIGTERM to the agent")?;
        let mut status = None;
        wait_until(DEADLINE, || {
            status = agent.try_wait().ok().flatten();
            status.is_some()
        });
        let Some(status) = status else {
            agent.kill().context("kill the agent")?;
            agent.wait().context("wait for the killed agent")?;
            bail!("the agent still ran {DEADLINE:?} after SIGTERM; its log:\n{}", self.log());
        };
        Ok(status)
    }

    /// Waits for the agent to end by itself, and tells how it did.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let mut agent = self.agent.take().context("no agent runs")?;
        let mut status = None;
        wait_until(DEADLINE, || {
            status = agent.try_wait().ok().flatten();
            status.is_some()
        });
        status.with_context(|| format!("the agent did not end; its log:\n{}", self.log()))
    }

    /// Starts another verb of `egress` where the agent is, silent.
    pub fn start_egress(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.binary);
        command.envs(self.environment.iter().cloned()).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.netns.spawn_in(&self.mounts, &mut command)
    }

    /// Runs another verb of `egress` where the agent is, and returns what it printed and said.
    pub fn egress(&self, arguments: &[&str]) -> Result<Output> {
        let child = self.begin(arguments)?;
        child.wait_with_output().with_context(|| format!("run egress {}", arguments.join(" ")))
    }

    /// As [`Gateway::egress`], without waiting for its end.
    pub fn begin(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(&self.binary);
        command.envs(self.environment.iter().cloned());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.netns.spawn_in(&self.mounts, &mut command)
    }

    /// As [`Gateway::egress`], by a user without privileges.
    pub fn egress_as_nobody(&self, arguments: &[&str]) -> Result<Output> {
        // Where the binary is may be closed to that user.
        let copy = "/run/egress-for-all";
        self.beside(|| fs::copy(&self.binary, copy))?.with_context(|| format!("make {copy}"))?;
        let nobody = 65534;
        let mut command = Command::new(copy);
        command.args(arguments).uid(nobody).gid(nobody);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.netns.spawn_in(&self.mounts, &mut command)?;
        child.wait_with_output().with_context(|| format!("run egress {}", arguments.join(" ")))
    }

    /// What `egress status -o json` prints.
    pub fn status(&self) -> Result<Value> {
        let output = self.egress(&["status", "-o", "json"])?;
        ensure!(output.status.success(), "egress status: {output:?}");
        serde_json::from_slice(&output.stdout).context("read what egress status printed")
    }

    /// All that agents have written so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        let read = self.log.try_clone().and_then(|mut log| {
            log.rewind()?;
            log.read_to_string(&mut text)
        });
        read.map_or_else(|error| format!("({LOG} cannot be read: {error})"), |_| text)
    }

    /// Leaves the agent running after this value is dropped. Returns its process id.
    pub fn keep(&mut self) -> Option<u32> {
        self.agent.take().map(|agent| agent.id())
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if self.agent.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("{error:#}");
        }
    }
}

/// The examples' settings with another `dataPath`.
fn config_with(data_path: &str) -> String {
    objects::AGENT_CONFIG.replace("dataPath: auto", &format!("dataPath: {data_path}"))
}

/// The `egress` to test: `EGRESS_BIN`, else the release build next to this program's own.
fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRESS_BIN") {
        return fs::canonicalize(&path)
            .with_context(|| format!("find EGRESS_BIN {}", path.display()));
    }
    let own = std::env::current_exe().context("find this program")?;
    own.ancestors()
        .skip(1)
        .map(|folder| folder.join("release/egress"))
        .find(|path| path.exists())
        .with_context(|| {
            format!("no release/egress above {}: run `cargo xtask build`", own.display())
        })
}
