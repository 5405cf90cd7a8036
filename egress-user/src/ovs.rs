//! Talks to Open vSwitch: facts from OVSDB, dumps, and bundles that are applied whole or not at all.
//!
//! Owns the calls of `ovs-vsctl` and `ovs-ofctl`, their deadline and their errors. Must not decide
//! what flows there should be (`plan`) nor whose they are (`reconcile::flows`).
//!
//! Surprising: the bridge is addressed by its management socket, not by its name, so that the
//! tools never start a second lookup and a test can have its own instance; and ports are always
//! numbers (`--no-names`), because newer tools print names that older ones do not read.
pub mod text;
pub mod watch;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use self::text::{Group, Held};

/// A tool that has not ended by then is killed. A bundle of 10,000 flows takes about a second.
const DEADLINE: Duration = Duration::from_secs(10);
/// The VXLAN port of OpenShift's bridge.
const TUNNEL: &str = "vxlan0";
/// The table whose only flow carries OpenShift's rule version in a note.
const NOTE_TABLE: u8 = 253;
/// The table in which a pod's packets get their VNID.
pub const POD_TABLE: u8 = 20;

/// One bridge of one Open vSwitch instance.
#[derive(Debug, Clone)]
pub struct Ovs {
    bridge: String,
    gateway: String,
    rundir: PathBuf,
}

/// What the planner has to know of the bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// OpenFlow port number of `vxlan0`.
    pub tunnel_port: u32,
    /// OpenFlow port number of the gateway device (`tun0`).
    pub gateway_port: u32,
    /// The gateway device's MAC in use, bytes as on the wire.
    pub gateway_mac: [u8; 6],
    /// OpenShift's rule version, the note's second byte; none where the note is absent.
    pub rule_version: Option<u8>,
}

/// Which of OpenShift SDN's two layouts the bridge is filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// 4.7 and before: egress IPs in table 100, before the tenant's network policy.
    Old,
    /// 4.8 and later: egress IPs in table 101, with select groups.
    New,
}

/// Whether there is an Open vSwitch with our bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// None, and why that is thought.
    Absent(String),
    Present(Facts),
}

impl Facts {
    /// The layout that the rule version stands for; none for a version that nobody has published.
    pub fn layout(&self) -> Option<Layout> {
        self.rule_version.and_then(layout_of)
    }
}

/// The layout of a rule version.
pub fn layout_of(rule_version: u8) -> Option<Layout> {
    match rule_version {
        7..=9 => Some(Layout::Old),
        12 | 13 => Some(Layout::New),
        _ => None,
    }
}

impl Ovs {
    /// The bridge as the environment says (`OVS_RUNDIR`, else the tools' default).
    pub fn from_env(bridge: &str, gateway: &str) -> Self {
        let rundir = env::var_os("OVS_RUNDIR").unwrap_or_else(|| "/var/run/openvswitch".into());
        Self::at(rundir, bridge, gateway)
    }

    /// The bridge of the instance whose sockets lie in `rundir`.
    pub fn at(rundir: impl Into<PathBuf>, bridge: &str, gateway: &str) -> Self {
        Self { bridge: bridge.to_owned(), gateway: gateway.to_owned(), rundir: rundir.into() }
    }

    /// The bridge's management socket, on which OpenFlow is spoken.
    pub fn management_socket(&self) -> PathBuf {
        self.rundir.join(format!("{}.mgmt", self.bridge))
    }

    /// Asks OVSDB and the bridge.
    ///
    /// # Errors
    /// Open vSwitch is here, but does not answer, or has not given the ports their numbers yet.
    pub async fn presence(&self) -> Result<Presence> {
        let socket = self.rundir.join("db.sock");
        if !socket.exists() {
            let why = format!("there is no Open vSwitch database socket at {}", socket.display());
            return Ok(Presence::Absent(why));
        }
        let database = format!("--db=unix:{}", socket.display());
        let limit = format!("--timeout={}", DEADLINE.as_secs());
        #[rustfmt::skip]
        let output = self.run("ovs-vsctl", &[
            &database, &limit, "--format=json",
            "--", "--if-exists", "--columns=name,ofport,mac_in_use", "list", "Interface", TUNNEL, &self.gateway,
            "--", "--if-exists", "--columns=name", "list", "Bridge", &self.bridge,
        ], "").await?;
        let Some(ports) = ports_of(&output).context("read what ovs-vsctl printed")? else {
            return Ok(Presence::Absent(format!("Open vSwitch has no bridge {}", self.bridge)));
        };
        let note = self.ofctl(&["dump-flows"], &[&format!("table={NOTE_TABLE}")], "").await?;
        let tunnel = port_named(&ports, TUNNEL, &self.bridge)?;
        let gateway = port_named(&ports, &self.gateway, &self.bridge)?;
        Ok(Presence::Present(Facts {
            tunnel_port: tunnel.number,
            gateway_port: gateway.number,
            gateway_mac: gateway.mac,
            rule_version: text::rule_version(&note),
        }))
    }

    /// What the bridge holds, in `ovs-ofctl`'s words: its flows, and its groups.
    ///
    /// # Errors
    /// The bridge does not answer.
    pub async fn dumps(&self) -> Result<(String, String)> {
        let flows = self.ofctl(&["dump-flows"], &[], "").await?;
        Ok((flows, self.ofctl(&["dump-groups"], &[], "").await?))
    }

    /// Every flow of the bridge, with its cookie.
    ///
    /// # Errors
    /// The bridge does not answer, or prints what we cannot read.
    pub async fn flows(&self) -> Result<Vec<Held>> {
        text::parse_flow_dump(&self.ofctl(&["dump-flows"], &[], "").await?)
    }

    /// The pods of this node and their VNIDs, as the network plugin has told the bridge.
    ///
    /// # Errors
    /// As [`Ovs::flows`].
    pub async fn pods(&self) -> Result<BTreeMap<Ipv4Addr, u32>> {
        let dump = self.ofctl(&["dump-flows"], &[&format!("table={POD_TABLE}")], "").await?;
        Ok(text::parse_flow_dump(&dump)?.iter().filter_map(|held| held.flow.pod()).collect())
    }

    /// Every flow of one table that is for this VNID.
    ///
    /// # Errors
    /// As [`Ovs::flows`].
    pub async fn flows_of(&self, table: u8, vnid: u32) -> Result<Vec<Held>> {
        let which = format!("table={table},reg0={vnid:#x}");
        text::parse_flow_dump(&self.ofctl(&["dump-flows"], &[&which], "").await?)
    }

    /// Every group of the bridge.
    ///
    /// # Errors
    /// As [`Ovs::flows`].
    pub async fn groups(&self) -> Result<Vec<Group>> {
        text::parse_group_dump(&self.ofctl(&["dump-groups"], &[], "").await?)
    }

    /// Applies the lines (`flow add …`, `group modify …`) as one bundle, in order, all or none.
    ///
    /// # Errors
    /// The bridge refused a line, with its reason; nothing was changed then.
    pub async fn commit(&self, bundle: &str) -> Result<()> {
        self.ofctl(&["bundle"], &["-"], bundle).await.map(drop)
    }

    /// The wake-up by flows with the cookie, and by pods: see [`watch::Watch`].
    pub fn watch(&self, cookie: u64) -> watch::Watch {
        watch::Watch::new(self.management_socket(), cookie)
    }

    async fn ofctl(&self, verb: &[&str], arguments: &[&str], input: &str) -> Result<String> {
        let target = format!("unix:{}", self.management_socket().display());
        let mut all = vec!["-O", "OpenFlow13", "--no-names"];
        all.extend(verb);
        all.push(&target);
        all.extend(arguments);
        self.run("ovs-ofctl", &all, input)
            .await
            .with_context(|| format!("ask the bridge {} ({})", self.bridge, verb.join(" ")))
    }

    /// Runs one tool with its deadline; what it printed, or an error with what it complained.
    async fn run(
        &self,
        tool: &str,
        arguments: &[impl AsRef<OsStr>],
        input: &str,
    ) -> Result<String> {
        let child = Command::new(tool)
            .args(arguments)
            .env("OVS_RUNDIR", &self.rundir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "{tool} is not installed, but {} exists: install Open vSwitch's tools, \
                 or set ovs.enabled to false",
                self.rundir.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("start {tool}")),
        };
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let feed = async {
            // A tool that ends early closes its stdin; its exit code and words tell more than that.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
        };
        let ended = timeout(DEADLINE, async { tokio::join!(feed, child.wait_with_output()).1 });
        let output = ended
            .await
            .with_context(|| {
                format!("{tool} did not end within {} s: is Open vSwitch hung?", DEADLINE.as_secs())
            })?
            .with_context(|| format!("run {tool}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{tool} failed: {}", complaint.trim());
        String::from_utf8(output.stdout).with_context(|| format!("{tool} printed no text"))
    }
}

/// One interface of OVSDB, as far as it has been realised.
#[derive(Debug, PartialEq, Eq)]
struct Port {
    name: String,
    number: Option<u32>,
    mac: Option<[u8; 6]>,
}

/// A realised interface.
struct Realised {
    number: u32,
    mac: [u8; 6],
}

/// One table as `ovs-vsctl --format=json` prints it.
#[derive(Deserialize)]
struct Listing {
    data: Vec<Vec<Value>>,
}

/// The interfaces of the first listing; none when the second listing, the bridge, is empty.
fn ports_of(output: &str) -> Result<Option<Vec<Port>>> {
    let listings = serde_json::Deserializer::from_str(output)
        .into_iter::<Listing>()
        .collect::<Result<Vec<_>, _>>()?;
    let [interfaces, bridges] = listings.as_slice() else {
        bail!("ovs-vsctl printed {} listings instead of two", listings.len());
    };
    if bridges.data.is_empty() {
        return Ok(None);
    }
    interfaces.data.iter().map(|row| port_of(row)).collect::<Result<Vec<_>>>().map(Some)
}

/// An unset column is `["set",[]]`; a port that could not be made has the number -1.
fn port_of(row: &[Value]) -> Result<Port> {
    let [name, number, mac] = row else { bail!("an interface of {} columns", row.len()) };
    Ok(Port {
        name: name.as_str().context("an interface without a name")?.to_owned(),
        number: number.as_u64().and_then(|number| u32::try_from(number).ok()),
        mac: mac.as_str().and_then(text::parse_mac),
    })
}

fn port_named(ports: &[Port], name: &str, bridge: &str) -> Result<Realised> {
    let port = ports.iter().find(|port| port.name == name).with_context(|| {
        format!("{bridge} has no interface {name}: has the network plugin set it up?")
    })?;
    let number = port.number.with_context(|| {
        format!("interface {name} of {bridge} has no OpenFlow port: is ovs-vswitchd running?")
    })?;
    let mac = port.mac.with_context(|| {
        format!("interface {name} of {bridge} has no MAC in use: is ovs-vswitchd running?")
    })?;
    Ok(Realised { number, mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ovs-vsctl 3.1 prints them.
    const INTERFACES: &str = r#"{"data":[["vxlan0",1,"2e:44:ea:1f:b9:5c"],["tun0",2,"22:3b:a9:a4:8e:0c"]],"headings":["name","ofport","mac_in_use"]}"#;
    const BRIDGE: &str = r#"{"data":[["br0"]],"headings":["name"]}"#;
    const NO_BRIDGE: &str = r#"{"data":[],"headings":["name"]}"#;

    #[test]
    fn ports_and_mac_are_read_from_the_listing() {
        let ports = ports_of(&format!("{INTERFACES}\n{BRIDGE}\n")).unwrap().unwrap();
        assert_eq!(ports[0].number, Some(1));
        let tun0 = port_named(&ports, "tun0", "br0").unwrap();
        assert_eq!((tun0.number, tun0.mac), (2, [0x22, 0x3b, 0xa9, 0xa4, 0x8e, 0x0c]));
    }

    #[test]
    fn a_database_without_the_bridge_is_no_error() {
        assert_eq!(ports_of(&format!("{INTERFACES}\n{NO_BRIDGE}\n")).unwrap(), None);
    }

    #[test]
    fn an_interface_that_is_not_realised_is_named_with_its_cure() {
        let row = r#"{"data":[["tun0",["set",[]],["set",[]]]],"headings":[]}"#;
        let ports = ports_of(&format!("{row}\n{BRIDGE}")).unwrap().unwrap();
        let error = port_named(&ports, "tun0", "br0").err().unwrap().to_string();
        assert!(error.contains("tun0 of br0") && error.contains("ovs-vswitchd"), "{error}");
        assert!(port_named(&ports, "vxlan0", "br0").is_err());
    }

    #[test]
    fn a_failed_port_has_no_number() {
        let row = r#"{"data":[["tun0",-1,"22:3b:a9:a4:8e:0c"]],"headings":[]}"#;
        let ports = ports_of(&format!("{row}{BRIDGE}")).unwrap().unwrap();
        assert_eq!(ports[0].number, None);
    }

    #[test]
    fn the_rule_version_gives_the_layout() {
        let facts = |rule_version| Facts {
            tunnel_port: 1,
            gateway_port: 2,
            gateway_mac: [0; 6],
            rule_version,
        };
        for (version, layout) in [
            (Some(6), None),
            (Some(7), Some(Layout::Old)),
            (Some(9), Some(Layout::Old)),
            (Some(10), None),
            (Some(12), Some(Layout::New)),
            (Some(13), Some(Layout::New)),
            (Some(14), None),
            (None, None),
        ] {
            assert_eq!(facts(version).layout(), layout, "{version:?}");
        }
    }

    /// The clock is paused: it jumps to the deadline as soon as all wait.
    #[tokio::test(start_paused = true)]
    async fn a_tool_that_hangs_is_an_error_that_names_it() {
        let ovs = Ovs::at("/nonexistent/run", "br0", "tun0");
        let error = ovs.run("sleep", &["1000"], "").await.unwrap_err().to_string();
        assert!(error.contains("sleep did not end within 10 s"), "{error}");
    }

    #[tokio::test]
    async fn what_a_tool_complains_is_in_the_error() {
        let ovs = Ovs::at("/nonexistent/run", "br0", "tun0");
        let error = ovs.run("cat", &["/nonexistent/file"], "").await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/file"), "{error}");
        let error = ovs.run("no-such-tool", &[""], "").await.unwrap_err().to_string();
        assert!(error.contains("no-such-tool is not installed"), "{error}");
        assert_eq!(ovs.run("cat", &["-"], "in").await.unwrap(), "in");
    }

    #[tokio::test]
    async fn no_socket_is_absence_and_not_an_error() {
        let ovs = Ovs::at("/nonexistent/run", "br0", "tun0");
        let Presence::Absent(why) = ovs.presence().await.unwrap() else { panic!("present") };
        assert!(why.contains("/nonexistent/run/db.sock"), "{why}");
    }
}
