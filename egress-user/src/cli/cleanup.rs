//! `egress cleanup`: every trace of an agent that does not run any more.
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Exit, Place, print, unfit};
use crate::{
    agent::{
        lock::Lock,
        status::{Status, StatusFile},
    },
    bpf,
    netlink::Netlink,
    ovs::{Ovs, Presence},
    reconcile::{addresses, flows, masquerade, strays},
    takeover::journal::Journal,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// The Open vSwitch bridge to remove our flows from
    #[arg(long, value_name = "NAME", default_value = "br0")]
    bridge: String,
}

pub fn run(args: Args) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    match runtime.block_on(clean(&args)) {
        Ok(()) => Ok(Exit::Done),
        Err(error) => Ok(unfit(&error)),
    }
}

/// Addresses and flows first: with the programs gone, nothing would stop what they let in.
async fn clean(args: &Args) -> Result<()> {
    let Place { bpffs, run_dir } = &args.place;
    bpf::fit::check_privileges()?;
    let lock = Lock::take(run_dir)?;
    let mut done = match Status::read(run_dir)? {
        Some(status) => release(&status, run_dir).await?,
        None => Vec::new(),
    };
    let ovs = Ovs::from_env(&args.bridge, "tun0");
    if let Presence::Present(_) = ovs.presence().await? {
        let change = flows::cleanup(&ovs).await?;
        if !change.is_empty() {
            done.push(format!("removed {} flows from {}", change.remove_flows.len(), args.bridge));
        }
    }
    if masquerade::reconcile(None).await? {
        done.push("removed the nftables table ip egress".to_owned());
    }
    if strays::reconcile(None).await? {
        done.push("removed the nftables table ip egress_strays".to_owned());
    }
    done.extend(told(&bpf::remove_pins(bpffs)?));
    StatusFile::new(run_dir).remove();
    lock.remove()?;
    if Journal::read(run_dir)?.is_some() {
        done.push(
            "the tenants' rules that a takeover removed are still gone: `egress handback` puts them \
             back"
                .to_owned(),
        );
    }
    for line in &done {
        print(&format!("{line}\n"))?;
    }
    print(match done.is_empty() {
        true => "nothing of egress was here\n",
        false => "nothing is left: tenants' packets now leave as the node itself lets them\n",
    })
}

/// What became of the pins, in words: links by their hook and interface, maps by their number.
fn told(pins: &[PathBuf]) -> Vec<String> {
    let (links, maps): (Vec<_>, Vec<_>) =
        pins.iter().partition(|pin| pin.parent().is_some_and(|kind| kind.ends_with("links")));
    let link = |pin: &PathBuf| {
        let name = pin.file_name()?.to_str()?;
        let (hook, interface) = name.split_once('-')?;
        Some(format!("detached {hook} from {}", interface.replace(':', ".")))
    };
    let mut lines: Vec<String> = links.into_iter().filter_map(link).collect();
    if let Some(directory) = maps.first().and_then(|map| map.parent()) {
        lines.push(format!(
            "removed the maps in {} ({}), and the flows with them",
            directory.display(),
            maps.len()
        ));
    }
    lines
}

/// The addresses that a killed agent left behind; those that were there before it stay.
async fn release(status: &Status, run_dir: &Path) -> Result<Vec<String>> {
    let netlink = Netlink::open()?;
    let Some(node_ip) = status.node_ip else { return Ok(Vec::new()) };
    let mut owned = StatusFile::new(run_dir).owned();
    let mut done = Vec::new();
    for name in status.uplinks.iter().map(|uplink| &uplink.name) {
        let Some(uplink) = netlink.link_by_name(name).await? else { continue };
        let owned = owned.entry(name.clone()).or_default();
        let outcomes =
            addresses::reconcile(&netlink, &uplink, node_ip, &BTreeSet::new(), owned).await?;
        for (ip, outcome) in outcomes {
            match outcome {
                addresses::Outcome::Removed => done.push(format!("released {ip} on {name}")),
                addresses::Outcome::Failed(error) => {
                    return Err(error).with_context(|| format!("release {ip}"));
                }
                _ => {}
            }
        }
    }
    Ok(done)
}
