//! One Open vSwitch of the rig: its two daemons in one namespace, its sockets in a folder of its own.
//!
//! The daemons are our children, not detached, so that they are stopped by what we know of them.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::netns::{Netns, run, wait_for};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A running `ovsdb-server` and `ovs-vswitchd`; stopped, and the folder removed, on drop.
#[derive(Debug)]
pub struct Instance {
    rundir: PathBuf,
    database: Option<Child>,
    switch: Option<Child>,
}

impl Instance {
    /// Starts both daemons inside `netns`, with sockets, database and logs in `rundir`.
    ///
    /// # Errors
    /// Open vSwitch is not installed, or a daemon does not come up.
    pub fn start(netns: &Netns, rundir: PathBuf) -> Result<Self> {
        ensure!(
            Path::new(SCHEMA).exists(),
            "Open vSwitch is not installed: `cargo xtask setup` does it (package openvswitch-switch)"
        );
        fs::create_dir(&rundir).with_context(|| format!("make {}", rundir.display()))?;
        let mut instance = Self { rundir, database: None, switch: None };
        let file = instance.rundir.join("conf.db");
        instance.tool("ovsdb-tool", |tool| tool.arg("create").arg(&file).arg(SCHEMA))?;
        let socket = instance.database_socket();
        instance.database = Some(instance.daemon(netns, "ovsdb-server", |daemon| {
            daemon.arg(&file).arg(format!("--remote=p{socket}"))
        })?);
        wait_for("the database's socket", || Ok(instance.rundir.join("db.sock").exists()))?;
        instance.vsctl(&["--no-wait", "init"])?;
        instance.start_switch(netns)?;
        Ok(instance)
    }

    /// Where the sockets are: what `OVS_RUNDIR` has to say for the tools and the agent.
    pub fn rundir(&self) -> &Path {
        &self.rundir
    }

    /// Starts `ovs-vswitchd`, which makes the bridges again that the database has.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_switch(&mut self, netns: &Netns) -> Result<()> {
        let socket = self.database_socket();
        self.switch = Some(self.daemon(netns, "ovs-vswitchd", |daemon| daemon.arg(&socket))?);
        let control = self.control_socket()?;
        wait_for("ovs-vswitchd", || Ok(control.exists()))
    }

    /// Kills `ovs-vswitchd` as a crash would; its flows, groups and devices are gone.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill_switch(&mut self) -> Result<()> {
        let Some(mut switch) = self.switch.take() else { return Ok(()) };
        switch.kill().context("kill ovs-vswitchd")?;
        switch.wait().context("wait for ovs-vswitchd")?;
        Ok(())
    }

    /// Runs `ovs-vsctl`, which waits until the switch has done what is asked.
    ///
    /// # Errors
    /// What it complained.
    pub fn vsctl(&self, arguments: &[&str]) -> Result<String> {
        let database = format!("--db={}", self.database_socket());
        self.tool("ovs-vsctl", |tool| tool.args([&database, "--timeout=20"]).args(arguments))
    }

    /// Runs `ovs-ofctl VERB br0 ARGUMENTS` as a foreign owner would.
    ///
    /// # Errors
    /// What it complained.
    pub fn ofctl(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        let bridge = self.management_socket("br0");
        self.tool("ovs-ofctl", |tool| {
            tool.args(["-O", "OpenFlow13", "--no-names", verb, &bridge]).args(arguments)
        })
    }

    /// Loads the flows into a bridge, with cookie 0, in one bundle.
    ///
    /// # Errors
    /// The bridge refused one.
    pub fn load(&self, bridge: &str, flows: &[String]) -> Result<()> {
        let lines: String = flows.iter().map(|flow| format!("flow add {flow}\n")).collect();
        let bridge = self.management_socket(bridge);
        let mut tool = Command::new("ovs-ofctl");
        self.environment(&mut tool).args(["-O", "OpenFlow13", "bundle", &bridge, "-"]);
        run(&mut tool, &lines).map(drop).with_context(|| format!("load flows into {bridge}"))
    }

    /// Runs `ovs-appctl` on the switch.
    ///
    /// # Errors
    /// What it complained.
    pub fn appctl(&self, arguments: &[&str]) -> Result<String> {
        let control = self.control_socket()?;
        self.tool("ovs-appctl", |tool| tool.arg("-t").arg(control).args(arguments))
    }

    /// Waits until packets really meet the flows of now: the datapath's cache follows a change of
    /// the tables only after a while, half a second at most.
    ///
    /// # Errors
    /// The switch does not run.
    pub fn wait_for_datapath(&self) -> Result<()> {
        // The first may be the end of a round that began before the change.
        for _ in 0..2 {
            self.appctl(&["revalidator/wait"])?;
        }
        Ok(())
    }

    /// The process of the switch.
    ///
    /// # Errors
    /// It does not run.
    pub fn switch_pid(&self) -> Result<u32> {
        self.switch.as_ref().map(Child::id).context("ovs-vswitchd is not running")
    }

    fn management_socket(&self, bridge: &str) -> String {
        format!("unix:{}/{bridge}.mgmt", self.rundir.display())
    }

    fn database_socket(&self) -> String {
        format!("unix:{}/db.sock", self.rundir.display())
    }

    fn control_socket(&self) -> Result<PathBuf> {
        Ok(self.rundir.join(format!("ovs-vswitchd.{}.ctl", self.switch_pid()?)))
    }

    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        ["OVS_RUNDIR", "OVS_LOGDIR", "OVS_DBDIR", "OVS_SYSCONFDIR"]
            .iter()
            .fold(command, |command, name| command.env(name, &self.rundir))
    }

    fn tool(&self, name: &str, with: impl FnOnce(&mut Command) -> &mut Command) -> Result<String> {
        let mut command = Command::new(name);
        run(with(self.environment(&mut command)), "")
    }

    fn daemon(
        &self,
        netns: &Netns,
        name: &str,
        with: impl FnOnce(&mut Command) -> &mut Command,
    ) -> Result<Child> {
        let mut command = Command::new(name);
        with(self.environment(&mut command))
            .args(["--log-file", "-vconsole:off"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        netns.spawn(&mut command)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        for daemon in [self.switch.take(), self.database.take()].iter_mut().flatten() {
            // One that has ended already cannot be killed, and that is fine.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if let Err(error) = fs::remove_dir_all(&self.rundir) {
            eprintln!("remove {}: {error}", self.rundir.display());
        }
    }
}
