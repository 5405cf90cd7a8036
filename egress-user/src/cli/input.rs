//! What `plan` and `explain` are asked: objects, settings, and a node to look from.
use std::{collections::BTreeSet, net::Ipv4Addr, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use egress_common::mark::Layout;

use super::Exit;
use crate::{
    cidr::Cidr,
    config::{AgentConfig, Device, Enabled},
    model::{HostSubnet, Objects},
    plan::{Facts, Health, Mode, Uplink},
    source::files::Input,
};

#[derive(Debug, clap::Args)]
pub struct InputArgs {
    /// Objects as `oc get -o yaml` (or json) prints them: a file, a directory of files, or - for
    /// standard input
    #[arg(short, long = "file", value_name = "FILE", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// A file with the AgentConfig, if it is not among the objects
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node to look from: the name of a HostSubnet [default: node.name of the AgentConfig]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The address of a node that is taken to be offline
    #[arg(long, value_name = "NODEIP")]
    offline: Vec<Ipv4Addr>,
    /// old: OpenShift 4.2 to 4.7, new: 4.8 and later [default: compat of the AgentConfig, else new]
    #[arg(long)]
    compat: Option<CompatArg>,
    /// Deal out egressCIDRs first
    #[arg(long)]
    assign: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompatArg {
    Old,
    New,
}

impl CompatArg {
    pub fn layout(self) -> Layout {
        match self {
            Self::Old => Layout::Old,
            Self::New => Layout::New,
        }
    }
}

/// All that the planner wants to know.
#[derive(Debug)]
pub struct Question {
    pub objects: Objects,
    pub facts: Facts,
    pub health: Health,
    pub mode: Mode,
}

impl Question {
    /// Reads the files; names what was refused, and what is unwise, on standard error.
    pub fn read(args: &InputArgs) -> Result<Self> {
        let mut paths = args.files.clone();
        paths.extend(args.config.clone());
        let Input { objects, config } = Input::read(&paths)?;
        if args.config.is_some() && config.is_none() {
            bail!("--config: there is no AgentConfig in it");
        }
        let config = config.unwrap_or_default();
        for condition in objects.refused() {
            eprintln!("egress: {} refused: {}", condition.object, condition.message);
        }
        for warning in config.warnings() {
            eprintln!("egress: warning: {warning}");
        }
        let node = node(args, &config, &objects)?;
        Ok(Self {
            facts: facts(node, &config),
            health: Health { offline: offline(args, &objects)?, ..Health::default() },
            mode: Mode {
                layout: args
                    .compat
                    .map(CompatArg::layout)
                    .or(config.compat.layout())
                    .unwrap_or(Layout::New),
                masquerade_bit: config.masquerade_bit,
                assign: args.assign,
                flows: config.ovs.enabled != Enabled::No,
            },
            objects,
        })
    }

    pub fn exit(&self) -> Exit {
        if self.objects.refused().next().is_some() { Exit::Refused } else { Exit::Done }
    }
}

fn node<'a>(
    args: &InputArgs,
    config: &AgentConfig,
    objects: &'a Objects,
) -> Result<&'a HostSubnet> {
    let name = args
        .node
        .as_ref()
        .or(config.node.name.as_ref())
        .context("no node: give --node NAME, or node.name in the AgentConfig")?;
    objects.host_subnets.get(name).with_context(|| {
        let names: Vec<&str> = objects.host_subnets.keys().map(String::as_str).collect();
        format!("--node {name}: no such HostSubnet; there are: {}", names.join(", "))
    })
}

fn offline(args: &InputArgs, objects: &Objects) -> Result<BTreeSet<Ipv4Addr>> {
    for address in &args.offline {
        if !objects.host_subnets.values().any(|node| node.host_ip == *address) {
            bail!("--offline {address}: no HostSubnet has this hostIP");
        }
    }
    Ok(args.offline.iter().copied().collect())
}

/// What the settings tell of the node, which is not asked itself. The settings may be another
/// node's: their prefix length holds for all nodes of that subnet.
fn facts(node: &HostSubnet, config: &AgentConfig) -> Facts {
    let prefix_len = config.node.ip.and_then(|ip| {
        let subnet = Cidr::around(ip.address, ip.prefix_len?)?;
        subnet.contains(node.host_ip).then_some(subnet.prefix_len())
    });
    let link = match &config.node.uplink {
        Device::Named(name) => Some(name.clone()),
        Device::Auto => None,
    };
    Facts {
        node_ip: Some(node.host_ip),
        prefix_len,
        link,
        // Their addresses are the node's affair: nobody here knows them.
        uplinks: config
            .node
            .uplinks
            .iter()
            .map(|link| Uplink { link: link.clone(), subnets: None })
            .collect(),
        gateway_mac: config.gateway_mac.unwrap_or_default(),
        ..Facts::of(&node.name)
    }
}
