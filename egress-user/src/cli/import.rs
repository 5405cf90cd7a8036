//! `egress import`: what a live node holds, as objects and settings.
use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use super::{Exit, live::Live, print, unfit};
use crate::{
    identity::host_name,
    import::{Words, import, write},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    dumps: Dumps,
    /// What `oc get netnamespace` prints: names of VNIDs, and what they ask for
    #[arg(long, value_name = "FILE")]
    namespaces: Option<PathBuf>,
    /// The name of the node's HostSubnet [default: this machine's name]
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// The Open vSwitch bridge
    #[arg(long, value_name = "NAME", default_value = "br0")]
    bridge: String,
}

/// Dumps of a node. With none of them this node is asked itself.
#[derive(Debug, clap::Args)]
pub struct Dumps {
    /// `iptables-save`, or `iptables -t nat -L -n`, of nat and filter
    #[arg(long, value_name = "FILE", num_args = 1..)]
    iptables: Vec<PathBuf>,
    /// `ovs-ofctl dump-flows`, of all tables or of 100 and 101
    #[arg(long, value_name = "FILE", num_args = 1..)]
    flows: Vec<PathBuf>,
    /// `ovs-ofctl dump-groups`
    #[arg(long, value_name = "FILE", num_args = 1..)]
    groups: Vec<PathBuf>,
    /// `ip addr`
    #[arg(long, value_name = "FILE", num_args = 1..)]
    addresses: Vec<PathBuf>,
}

impl Dumps {
    pub fn are_none(&self) -> bool {
        self.all().iter().all(|files| files.is_empty())
    }

    fn all(&self) -> [&Vec<PathBuf>; 4] {
        [&self.iptables, &self.flows, &self.groups, &self.addresses]
    }

    /// The node's words: of the files, or of this node.
    ///
    /// # Errors
    /// A file that cannot be read; or why this node cannot be asked.
    pub fn words(&self, bridge: &str) -> Result<Live> {
        if self.are_none() {
            return Live::ask(bridge);
        }
        let [iptables, flows, groups, addresses] = self.all().map(|files| read(files));
        let (iptables, flows, groups, addresses) = (iptables?, flows?, groups?, addresses?);
        Ok(Live::Told(Words { iptables, flows, groups, addresses, ..Words::default() }))
    }
}

fn read(files: &[PathBuf]) -> Result<String> {
    let text = |file: &PathBuf| {
        fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
    };
    files.iter().map(text).collect()
}

pub fn run(args: Args) -> Result<Exit> {
    let mut words = match args.dumps.words(&args.bridge)? {
        Live::Told(words) => words,
        Live::Silent(why) => return Ok(unfit(&why)),
    };
    words.namespaces = read(args.namespaces.as_slice())?;
    words.node = match args.node {
        Some(node) => node,
        None => host_name()?,
    };
    let imported = import(&words);
    for sentence in &imported.told {
        eprintln!("egress: {sentence}");
    }
    print(&write::yaml(&imported)?)?;
    Ok(if imported.told.is_empty() { Exit::Done } else { Exit::Refused })
}
