//! What the agent found, for `egress status`: a file in the run directory, written whole.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{health::NodeHealth, uplinks::Uplinks};
use crate::{
    cidr::Cidr,
    condition::Condition,
    identity::Identity,
    model::Objects,
    plan::{self, Plan, Policy},
    reconcile::{attachments::Place, wiring::InForce},
};

/// The agent's own word. Counters are not in it: they are read from the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub pid: u32,
    /// It has left in order. What it said is what it left behind.
    pub stopped: bool,
    pub node: String,
    pub node_ip: Option<Ipv4Addr>,
    pub uplink: String,
    pub addresses: Vec<Ipv4Addr>,
    /// The egress IPs that each VNID leaves with, wherever they live; none: it is dropped.
    pub granted: BTreeMap<u32, Vec<Ipv4Addr>>,
    /// The node that each egress IP lives on, by name.
    #[serde(default)]
    pub places: BTreeMap<Ipv4Addr, String>,
    pub attached: Vec<Attached>,
    pub tenants: Vec<Tenant>,
    /// The one with the node's address first.
    #[serde(default)]
    pub uplinks: Vec<Uplink>,
    /// The other nodes that are watched.
    #[serde(default)]
    pub nodes: Vec<NodeHealth>,
    pub conditions: Vec<Told>,
}

/// A program and the interface it is wanted on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    pub hook: String,
    pub interface: String,
}

/// An interface towards the outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uplink {
    pub name: String,
    /// Whose egress IPs it carries.
    pub subnets: Vec<Cidr>,
    /// The egress IPs that live on it.
    pub addresses: Vec<Ipv4Addr>,
    /// What its hot path runs on.
    pub data_path: Option<InForce>,
}

/// A VNID that asks for egress IPs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    pub vnid: u32,
    pub namespaces: Vec<String>,
    /// Those that it gets, here or on other nodes.
    #[serde(rename = "egressIPs")]
    pub egress_ips: Vec<Ipv4Addr>,
}

/// A condition as text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Told {
    pub object: String,
    pub reason: String,
    pub message: String,
}

impl Status {
    pub fn new(
        identity: &Identity,
        uplinks: &Uplinks,
        objects: &Objects,
        plan: &Plan,
        conditions: Vec<Condition>,
        places: &[Place],
        in_force: &BTreeMap<String, InForce>,
    ) -> Self {
        Self {
            pid: process::id(),
            stopped: false,
            node: identity.name.clone(),
            node_ip: Some(identity.ip),
            uplink: identity.uplink.name.clone(),
            addresses: plan.addresses.iter().map(|address| address.ip).collect(),
            granted: plan
                .policies
                .iter()
                .map(|policy| (policy.vnid, policy.egress_ips.clone()))
                .collect(),
            places: plan
                .assignments
                .iter()
                .map(|assignment| (assignment.egress_ip, assignment.node.clone()))
                .collect(),
            attached: places
                .iter()
                .map(|(hook, interface)| Attached {
                    hook: hook.name().to_owned(),
                    interface: interface.clone(),
                })
                .collect(),
            tenants: tenants(plan, objects),
            uplinks: self::uplinks(identity, uplinks, plan, in_force),
            nodes: Vec::new(),
            conditions: conditions
                .into_iter()
                .map(|Condition { object, reason, message }| Told {
                    object,
                    reason: format!("{reason:?}"),
                    message,
                })
                .collect(),
        }
    }

    /// What the agent of this run directory last said; `None`: none has run since the last boot,
    /// or it has left in order.
    pub fn read(run_dir: &Path) -> Result<Option<Self>> {
        let path = run_dir.join(STATUS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        };
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display())).map(Some)
    }
}

fn uplinks(
    identity: &Identity,
    uplinks: &Uplinks,
    plan: &Plan,
    in_force: &BTreeMap<String, InForce>,
) -> Vec<Uplink> {
    let own = Cidr::around(identity.ip, identity.prefix_len).into_iter().collect();
    let further = uplinks
        .further
        .iter()
        .map(|uplink| (&uplink.link.name, uplink.subnets.iter().copied().collect::<Vec<Cidr>>()));
    let uplink = |(name, subnets): (&String, Vec<Cidr>)| {
        let lives_here = |address: &&plan::Address| address.link.as_ref() == Some(name);
        let addresses = plan.addresses.iter().filter(lives_here).map(|address| address.ip);
        let data_path = in_force.get(name).cloned();
        Uplink { name: name.clone(), subnets, addresses: addresses.collect(), data_path }
    };
    [(&identity.uplink.name, own)].into_iter().chain(further).map(uplink).collect()
}

fn tenants(plan: &Plan, objects: &Objects) -> Vec<Tenant> {
    let mut names: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for namespace in objects.net_namespaces.values() {
        names.entry(namespace.vnid).or_default().push(namespace.name.clone());
    }
    let tenant = |policy: &Policy| Tenant {
        vnid: policy.vnid,
        namespaces: names.remove(&policy.vnid).unwrap_or_default(),
        egress_ips: policy.egress_ips.clone(),
    };
    plan.policies.iter().map(tenant).collect()
}

const STATUS: &str = "status.json";
const OWNED: &str = "owned.json";

/// Unlabelled addresses of ours, by the name of their link.
pub type Owned = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// The run directory and what was last written there.
#[derive(Debug)]
pub struct StatusFile {
    run_dir: PathBuf,
    last: Status,
}

impl StatusFile {
    /// In a run directory that is there.
    pub fn new(run_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned(), last: Status::default() }
    }

    /// The unlabelled addresses that a predecessor added.
    pub fn owned(&self) -> Owned {
        fs::read_to_string(self.run_dir.join(OWNED))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default()
    }

    /// The uplinks of a predecessor.
    pub fn uplinks(&self) -> Vec<String> {
        self.former().uplinks.into_iter().map(|uplink| uplink.name).collect()
    }

    /// What a predecessor found of other nodes.
    pub fn nodes(&self) -> Vec<NodeHealth> {
        self.former().nodes
    }

    fn former(&self) -> Status {
        Status::read(&self.run_dir).ok().flatten().unwrap_or_default()
    }

    pub fn own(&self, owned: &Owned) {
        if *owned == self.owned() {
            return;
        }
        if let Err(error) = self.put(OWNED, owned) {
            log::error!("{error:#}");
        }
    }

    /// The conditions that are new since the last status.
    pub fn news<'a>(&self, status: &'a Status) -> Vec<&'a Told> {
        let known: BTreeSet<&Told> = self.last.conditions.iter().collect();
        status.conditions.iter().filter(|told| !known.contains(told)).collect()
    }

    pub fn write(&mut self, status: &Status) -> Result<()> {
        if self.last == *status {
            return Ok(());
        }
        self.put(STATUS, status)?;
        self.last = status.clone();
        Ok(())
    }

    fn put<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.run_dir.join(name);
        let new = self.run_dir.join(format!("{name}.new"));
        let text = serde_json::to_string(value)?;
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// The agent leaves in order: it holds no address any more, and its programs stay.
    pub fn stop(&mut self) -> Result<()> {
        let last = Status {
            stopped: true,
            addresses: Vec::new(),
            conditions: Vec::new(),
            ..self.last.clone()
        };
        self.own(&Owned::new());
        self.write(&last)
    }

    /// Nothing is left that could be told of.
    pub fn remove(&self) {
        for name in [STATUS, OWNED] {
            // What was never written need not be removed.
            let _ = fs::remove_file(self.run_dir.join(name));
        }
    }
}
