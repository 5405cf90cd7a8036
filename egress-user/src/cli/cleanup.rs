//! `egress cleanup`: every trace of an agent that does not run any more.
use std::{collections::BTreeSet, path::Path};

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
    reconcile::{addresses, flows, masquerade},
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
    let lock = Lock::take(run_dir)?;
    let status = Status::read(run_dir)?;
    if let Some(status) = &status {
        release(status, run_dir).await?;
    }
    let ovs = Ovs::from_env(&args.bridge, "tun0");
    if let Presence::Present(_) = ovs.presence().await? {
        let change = flows::cleanup(&ovs).await?;
        if !change.is_empty() {
            print(&format!("removed {} flows from {}\n", change.remove_flows.len(), args.bridge))?;
        }
    }
    if masquerade::reconcile(None).await? {
        print("removed the nftables table ip egress\n")?;
    }
    for pin in bpf::remove_pins(bpffs)? {
        print(&format!("removed {}\n", pin.display()))?;
    }
    StatusFile::new(run_dir).remove();
    lock.remove()
}

/// The addresses that a killed agent left behind; those that were there before it stay.
async fn release(status: &Status, run_dir: &Path) -> Result<()> {
    let netlink = Netlink::open()?;
    let Some(uplink) = netlink.link_by_name(&status.uplink).await? else { return Ok(()) };
    let Some(node_ip) = status.node_ip else { return Ok(()) };
    let mut owned = StatusFile::new(run_dir).owned();
    let outcomes =
        addresses::reconcile(&netlink, &uplink, node_ip, &BTreeSet::new(), &mut owned).await?;
    for (ip, outcome) in outcomes {
        match outcome {
            addresses::Outcome::Removed => print(&format!("released {ip}\n"))?,
            addresses::Outcome::Failed(error) => {
                return Err(error).with_context(|| format!("release {ip}"));
            }
            _ => {}
        }
    }
    Ok(())
}
