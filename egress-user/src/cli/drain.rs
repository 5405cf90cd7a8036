//! `egress move`, `drain` and `undrain`: by hand, what a node hosts goes to others. Like `add` they
//! edit the file of objects, and the agents that read it do the rest.
//!
//! `drain` has two acts, and the file says which of them is due: first the node is marked, so that
//! new flows go elsewhere where they can; after the time that existing ones get, its egress IPs move.
//! Killed in between, it leaves a marked node; called again, it goes on.
use std::{collections::BTreeMap, net::Ipv4Addr, thread, time::Duration};

use anyhow::Result;

use super::{
    Exit,
    edit::{Goal, Wanted, Where, find_node, finish, new_conditions, objects, refuse, unknown_node},
};
use crate::{
    config::parse_duration,
    model::Objects,
    plan::{Health, Previous, allocate},
    source::edit::Edit,
};

#[derive(Debug, clap::Args)]
pub struct MoveArgs {
    /// The egress IP
    #[arg(value_name = "IP")]
    egress_ip: Ipv4Addr,
    /// The node that is to host it: its own address, or its name
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The node to empty: its own address, or its name
    #[arg(value_name = "NODE")]
    node: String,
    /// How long existing flows of namespaces that have other egress IPs too stay here
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = time)]
    grace: Duration,
    /// Where the egress IPs go [default: as egressCIDRs say]
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, clap::Args)]
pub struct UndrainArgs {
    /// The node that was drained: its own address, or its name
    #[arg(value_name = "NODE")]
    node: String,
    #[command(flatten)]
    at: Where,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "use a time such as 300ms, 60s or 2m".to_owned())
}

pub fn relocate(args: MoveArgs) -> Result<Exit> {
    let MoveArgs { egress_ip, node, at } = args;
    let mut edit = Edit::open(&at.file)?;
    let before = objects(&edit)?;
    let Some(target) = find_node(&node, &before) else {
        return refuse(&unknown_node(&node, &before, &at.file));
    };
    if !before.host_subnets.values().any(|node| node.egress_ips.contains(&egress_ip)) {
        return refuse(&format!(
            "no node in {} hosts {egress_ip}: `egress add` gives it to a VNID",
            at.file.display()
        ));
    }
    edit.relocate(egress_ip, &target.name);
    if let Some(why) = new_conditions(&before, &objects(&edit)?, &target.name).first() {
        return refuse(&format!("{}: {}", why.object, why.message));
    }
    finish(&edit, &at, &Wanted(vec![(egress_ip, Goal::On(target.name.clone()))]))
}

pub fn drain(args: DrainArgs) -> Result<Exit> {
    let DrainArgs { node, grace, to, at } = args;
    let mut edit = Edit::open(&at.file)?;
    let before = objects(&edit)?;
    let Some(name) = find_node(&node, &before).map(|node| node.name.clone()) else {
        return refuse(&unknown_node(&node, &before, &at.file));
    };
    let to = match to.map(|to| (find_node(&to, &before).map(|node| node.name.clone()), to)) {
        None => None,
        Some((None, to)) => return refuse(&unknown_node(&to, &before, &at.file)),
        Some((Some(to), _)) if to == name => {
            return refuse(&format!("--to {to} is the node that is drained: name another one"));
        }
        Some((to, _)) => to,
    };
    edit.set_draining(&name, true);
    edit.commit()?;
    drop(edit);
    eprintln!("egress: node {name} is drained: its egress IPs move in {grace:?}");
    thread::sleep(grace);

    let mut edit = Edit::open(&at.file)?;
    let now = objects(&edit)?;
    let places = places(&now, &name, to.as_deref());
    let mut stuck = Vec::new();
    let mut wanted = Vec::new();
    for (ip, place) in places {
        match place {
            Ok(node) => {
                edit.relocate(ip, &node);
                wanted.push((ip, Goal::On(node)));
            }
            Err(why) => stuck.push(format!("{ip} stays on node {name}: {why}")),
        }
    }
    for why in &stuck {
        eprintln!("egress: {why}: `egress move` takes it elsewhere");
    }
    match finish(&edit, &at, &Wanted(wanted))? {
        Exit::Done if !stuck.is_empty() => Ok(Exit::Refused),
        exit => Ok(exit),
    }
}

pub fn undrain(args: UndrainArgs) -> Result<Exit> {
    let UndrainArgs { node, at } = args;
    let mut edit = Edit::open(&at.file)?;
    let before = objects(&edit)?;
    let Some(name) = find_node(&node, &before).map(|node| node.name.clone()) else {
        return refuse(&unknown_node(&node, &before, &at.file));
    };
    edit.set_draining(&name, false);
    finish(&edit, &at, &Wanted(Vec::new()))
}

/// Where each egress IP of the node goes, or why nowhere; and what else the allocation moves, whose
/// outcome holds only as a whole. What nobody asks for does not count.
fn places(
    objects: &Objects,
    node: &str,
    to: Option<&str>,
) -> BTreeMap<Ipv4Addr, Result<String, String>> {
    let asked = |ip: &&Ipv4Addr| objects.net_namespaces.values().any(|n| n.egress_ips.contains(ip));
    let Some(drained) = objects.host_subnets.get(node) else { return BTreeMap::new() };
    let listed = drained.egress_ips.iter().filter(asked);
    let Some(to) = to else {
        let mut places: BTreeMap<_, _> = listed
            .map(|&ip| (ip, Err("no other node has egressCIDRs and room for it".to_owned())))
            .collect();
        places.extend(dealt_out(objects, node).into_iter().map(|(ip, node)| (ip, Ok(node))));
        return places;
    };
    let place =
        |ip: Ipv4Addr| match new_conditions(objects, &relocated(objects, ip, to), to).first() {
            Some(why) => Err(format!("on node {to}: {}", why.message)),
            None => Ok(to.to_owned()),
        };
    listed.map(|&ip| (ip, place(ip))).collect()
}

/// The node of each egress IP that the allocation places elsewhere, if `node` had none.
fn dealt_out(objects: &Objects, node: &str) -> BTreeMap<Ipv4Addr, String> {
    let mut without = objects.clone();
    if let Some(node) = without.host_subnets.get_mut(node) {
        node.egress_ips.clear();
    }
    let after = allocate(&without, &Health::default(), &Previous::default());
    let mut moved = BTreeMap::new();
    for node in after.host_subnets.values() {
        let before = without.host_subnets.get(&node.name).map_or(&[][..], |n| &n.egress_ips);
        let new = node.egress_ips.iter().filter(|ip| !before.contains(ip));
        moved.extend(new.map(|&ip| (ip, node.name.clone())));
    }
    moved
}

fn relocated(objects: &Objects, ip: Ipv4Addr, to: &str) -> Objects {
    let mut objects = objects.clone();
    for node in objects.host_subnets.values_mut() {
        node.egress_ips.retain(|listed| *listed != ip);
        if node.name == to {
            node.egress_ips.push(ip);
        }
    }
    objects
}
