//! `egress add` and `egress del`: by hand, without a cluster to ask: they edit a file of objects,
//! and the agents that read it do the rest.
use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{Exit, Place, unfit, vnid::parse_vnid};
use crate::{
    agent::status::Status,
    cidr::Cidr,
    condition::Condition,
    model::{HostSubnet, Objects},
    plan::{self, Facts, Health, Mode, Previous},
    source::{
        edit::{Edit, NewNode},
        files::Input,
    },
};

/// Where objects are kept by hand.
const OBJECTS: &str = "/etc/egress/objects.yaml";
/// Between two looks at what the agent says.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub struct Where {
    /// The file of objects to edit: one that `egress run -f` reads. It is replaced as a whole; of
    /// the objects that change, comments are lost
    #[arg(short, long, value_name = "FILE", default_value = OBJECTS)]
    pub(super) file: PathBuf,
    /// Wait until the agent of this node says that it is in force [10 seconds]; if it does not, say
    /// why and end with 3
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "10")]
    wait: Option<u64>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The tenant, decimal or hex
    #[arg(long, value_parser = parse_vnid)]
    vnid: u32,
    /// The address that it leaves with
    #[arg(long, value_name = "IP")]
    egress_ip: Ipv4Addr,
    /// The node that hosts the address: its own address, or its name
    #[arg(long, value_name = "NODE")]
    egress_node: String,
    /// Make the node known under this name, if it is not yet
    #[arg(long, value_name = "NAME", requires = "node_subnet")]
    node_name: Option<String>,
    /// The addresses of its pods
    #[arg(long, value_name = "CIDR", requires = "node_name")]
    node_subnet: Option<Cidr>,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, clap::Args)]
pub struct DelArgs {
    /// The tenant, decimal or hex
    #[arg(long, value_parser = parse_vnid)]
    vnid: u32,
    /// The address that it is to leave with no longer [default: all that it has]
    #[arg(long, value_name = "IP")]
    egress_ip: Option<Ipv4Addr>,
    /// Only an address of this node: its own address, or its name
    #[arg(long, value_name = "NODE")]
    egress_node: Option<String>,
    #[command(flatten)]
    at: Where,
}

pub fn add(args: AddArgs) -> Result<Exit> {
    let AddArgs { vnid, egress_ip, egress_node, node_name, node_subnet, at } = args;
    let mut edit = Edit::open(&at.file)?;
    let before = objects(&edit)?;
    let node = match (find_node(&egress_node, &before), node_name.zip(node_subnet)) {
        (Some(node), _) => node.name.clone(),
        (None, Some((name, subnet))) => {
            let Ok(address) = egress_node.parse() else {
                return refuse(&format!(
                    "--egress-node {egress_node}: a new node needs its address"
                ));
            };
            if let Some(node) = before.host_subnets.get(&name) {
                return refuse(&format!("node {name} is known already, at {}", node.host_ip));
            }
            edit.add_node(&NewNode { name: name.clone(), address, subnet });
            name
        }
        (None, None) => return refuse(&unknown_node(&egress_node, &before, &at.file)),
    };
    edit.add(vnid, egress_ip, &node);
    let after = objects(&edit)?;
    if let Some(why) = new_conditions(&before, &after, &node).first() {
        return refuse(&format!("{}: {}", why.object, why.message));
    }
    finish(&edit, &at, &Wanted(vec![(egress_ip, Goal::Granted(vnid))]))
}

pub fn del(args: DelArgs) -> Result<Exit> {
    let DelArgs { vnid, egress_ip, egress_node, at } = args;
    let mut edit = Edit::open(&at.file)?;
    let before = objects(&edit)?;
    let node = match egress_node.map(|named| (find_node(&named, &before), named)) {
        Some((None, named)) => return refuse(&unknown_node(&named, &before, &at.file)),
        Some((Some(node), _)) => Some(node),
        None => None,
    };
    let of_vnid = before.net_namespaces.values().filter(|namespace| namespace.vnid == vnid);
    let mut ips: Vec<Ipv4Addr> = of_vnid.flat_map(|n| n.egress_ips.iter().copied()).collect();
    ips.retain(|ip| egress_ip.is_none_or(|wanted| wanted == *ip));
    ips.retain(|ip| node.is_none_or(|node| node.egress_ips.contains(ip)));
    if ips.is_empty() {
        let ip =
            egress_ip.map_or("no egress IP".to_owned(), |ip| format!("not the egress IP {ip}"));
        let at_node = node.map_or(String::new(), |node| format!(" on node {}", node.name));
        return refuse(&format!("VNID {vnid} has {ip}{at_node} in {}", at.file.display()));
    }
    for ip in &ips {
        edit.remove(vnid, *ip);
    }
    finish(&edit, &at, &Wanted(ips.into_iter().map(|ip| (ip, Goal::Gone(vnid))).collect()))
}

/// What was asked contradicts what there is: nothing is changed.
pub(super) fn refuse(why: &str) -> Result<Exit> {
    eprintln!("egress: nothing is changed: {why}");
    Ok(Exit::Refused)
}

pub(super) fn finish(edit: &Edit, at: &Where, wanted: &Wanted) -> Result<Exit> {
    if !edit.commit()? {
        eprintln!("egress: {} says so already", at.file.display());
    }
    match at.wait {
        Some(seconds) => wait(&at.place.run_dir, wanted, Duration::from_secs(seconds)),
        None => Ok(Exit::Done),
    }
}

pub(super) fn objects(edit: &Edit) -> Result<Objects> {
    let mut input = Input::default();
    input.add_text(&edit.text()?, "the file")?;
    Ok(input.objects)
}

pub(super) fn find_node<'a>(named: &str, objects: &'a Objects) -> Option<&'a HostSubnet> {
    let address: Option<Ipv4Addr> = named.parse().ok();
    objects.host_subnets.values().find(|node| node.name == named || Some(node.host_ip) == address)
}

pub(super) fn unknown_node(named: &str, objects: &Objects, file: &Path) -> String {
    let nodes = objects.host_subnets.values();
    let known: Vec<String> =
        nodes.map(|node| format!("{} ({})", node.name, node.host_ip)).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    format!(
        "node {named} is unknown; {} knows {known}: correct --egress-node, or make the node known \
         with --node-name NAME --node-subnet CIDR",
        file.display()
    )
}

/// What the planner, asked for the egress node, finds wrong that was not wrong before.
pub(super) fn new_conditions(before: &Objects, after: &Objects, node: &str) -> Vec<Condition> {
    let conditions = |objects: &Objects| {
        let (facts, mode) = (Facts::of(node), Mode { flows: false, ..Mode::default() });
        plan::plan(objects, &facts, &Health::default(), &Previous::default(), &mode).conditions
    };
    let before = conditions(before);
    conditions(after).into_iter().filter(|condition| !before.contains(condition)).collect()
}

/// What is to be in force.
pub(super) struct Wanted(pub Vec<(Ipv4Addr, Goal)>);

/// What an egress IP is to come to.
pub(super) enum Goal {
    /// The VNID has it.
    Granted(u32),
    /// The VNID has it no longer.
    Gone(u32),
    /// It lives on the node of that name.
    On(String),
}

impl Wanted {
    fn is_in_force(&self, status: &Status) -> bool {
        let has = |vnid: &u32, ip: &Ipv4Addr| {
            status.granted.get(vnid).is_some_and(|granted| granted.contains(ip))
        };
        let failed = status.conditions.iter().any(|told| told.reason == "Failed");
        !failed
            && self.0.iter().all(|(ip, goal)| match goal {
                Goal::Granted(vnid) => has(vnid, ip),
                Goal::Gone(vnid) => !has(vnid, ip),
                Goal::On(node) => {
                    let here = *node == status.node;
                    status.places.get(ip) == Some(node) && here == status.addresses.contains(ip)
                }
            })
    }

    /// What the agent says of it, else that it says nothing.
    fn obstacle(&self, status: &Status) -> String {
        let about = |text: &str| {
            self.0.iter().any(|(ip, goal)| {
                let of_vnid = match goal {
                    Goal::Granted(vnid) | Goal::Gone(vnid) => {
                        text.contains(&format!("VNID/{vnid}"))
                    }
                    Goal::On(_) => false,
                };
                of_vnid || text.contains(&ip.to_string())
            })
        };
        let told: Vec<String> = status
            .conditions
            .iter()
            .filter(|told| {
                about(&told.object) || about(&told.message) || told.object.starts_with("Agent/")
            })
            .map(|told| format!("{} {}: {}", told.object, told.reason, told.message))
            .collect();
        if told.is_empty() {
            "the agent does not see it: does it read this file?".to_owned()
        } else {
            told.join("; ")
        }
    }
}

fn wait(run_dir: &Path, wanted: &Wanted, patience: Duration) -> Result<Exit> {
    let end = Instant::now() + patience;
    loop {
        let status = match Status::read(run_dir) {
            Ok(status) => status,
            Err(error) => return Ok(unfit(&error)),
        };
        // One that has ended says nothing of now.
        let status =
            status.filter(|status| Path::new("/proc").join(status.pid.to_string()).exists());
        if status.as_ref().is_some_and(|status| wanted.is_in_force(status)) {
            return Ok(Exit::Done);
        }
        if Instant::now() >= end {
            let why = match &status {
                Some(status) => wanted.obstacle(status),
                None => format!("no agent that runs has left word in {}", run_dir.display()),
            };
            let error = anyhow::anyhow!("{why}");
            return Ok(unfit(&error.context("written, but not in force")));
        }
        thread::sleep(LOOK);
    }
}
