//! `egress explain`: the chain of reasons from what was asked to what a node does.
use std::{fmt::Write, net::Ipv4Addr};

use anyhow::{Result, bail};

use super::{
    Exit,
    input::{InputArgs, Question},
    print,
    vnid::parse_vnid,
};
use crate::{
    model::Objects,
    plan::{self, Action, Plan, Previous, Tenant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A namespace, a VNID (decimal or hex), or an egress IP
    #[arg(value_name = "NAMESPACE|VNID|IP")]
    subject: String,
    #[command(flatten)]
    input: InputArgs,
}

pub fn run(args: Args) -> Result<Exit> {
    let question = Question::read(&args.input)?;
    print(&explain(&args.subject, &question)?)?;
    Ok(question.exit())
}

fn explain(subject: &str, question: &Question) -> Result<String> {
    let Question { objects, facts, health, mode } = question;
    let previous = Previous::default();
    let assigned;
    let objects = if mode.assign {
        assigned = plan::allocate(objects, health, &previous);
        &assigned
    } else {
        objects
    };
    let plan =
        plan::plan(objects, facts, health, &previous, &plan::Mode { assign: false, ..*mode });
    let tenants = plan::tenants(objects, facts, health);
    let vnids = vnids(subject, objects)?;
    let mut text = String::new();
    if let Ok(ip) = subject.parse() {
        text += &listing(ip, objects);
    }
    if vnids.is_empty() {
        text += "no namespace asks for it: nothing leaves with it\n";
    }
    for vnid in vnids {
        text += &names(vnid, objects);
        match tenants.iter().find(|tenant| tenant.vnid == vnid) {
            Some(tenant) => text += &reasons(tenant, &plan),
            None => text += "  asks for no egress IP: leaves as the node does\n",
        }
    }
    Ok(text)
}

/// The VNIDs that the subject is about.
fn vnids(subject: &str, objects: &Objects) -> Result<Vec<u32>> {
    let namespaces = objects.net_namespaces.values();
    if let Ok(ip) = subject.parse::<Ipv4Addr>() {
        let listed = objects.host_subnets.values().any(|node| node.egress_ips.contains(&ip));
        let mut vnids: Vec<u32> =
            namespaces.filter(|n| n.egress_ips.contains(&ip)).map(|n| n.vnid).collect();
        vnids.sort();
        vnids.dedup();
        if vnids.is_empty() && !listed {
            bail!("{ip}: no namespace asks for it and no node lists it");
        }
        return Ok(vnids);
    }
    if let Some(namespace) = objects.net_namespaces.get(subject) {
        return Ok(vec![namespace.vnid]);
    }
    match parse_vnid(subject) {
        Ok(vnid) if namespaces.into_iter().any(|n| n.vnid == vnid) => Ok(vec![vnid]),
        Ok(vnid) => bail!("VNID {vnid}: no NetNamespace has it"),
        Err(_) => bail!("{subject}: there is no such namespace, and it is neither VNID nor IP"),
    }
}

fn listing(ip: Ipv4Addr, objects: &Objects) -> String {
    let nodes = objects.host_subnets.values().filter(|node| node.egress_ips.contains(&ip));
    let nodes: Vec<String> =
        nodes.map(|node| format!("{} ({})", node.name, node.host_ip)).collect();
    match nodes.as_slice() {
        [] => format!("{ip}: no node lists it\n"),
        nodes => format!("{ip}: listed by {}\n", nodes.join(", ")),
    }
}

fn names(vnid: u32, objects: &Objects) -> String {
    let namespaces = objects.net_namespaces.values().filter(|n| n.vnid == vnid);
    let namespaces: Vec<&str> = namespaces.map(|n| n.name.as_str()).collect();
    format!("{}: VNID {vnid} ({vnid:#x})\n", namespaces.join(", "))
}

fn reasons(tenant: &Tenant<'_>, plan: &Plan) -> String {
    let mut text = String::new();
    for wish in &tenant.wishes {
        let place = match wish.node {
            Some(node) => format!("on node {} ({})", node.name, node.host_ip),
            None => "on no node".into(),
        };
        let _ = writeln!(text, "  asks for {}, {place}", wish.ip);
        for finding in &wish.findings {
            let _ = writeln!(text, "    {:?}: {}", finding.reason, finding.message);
        }
        if wish.is_usable() {
            text += "    usable\n";
        }
    }
    if let Some(finding) = tenant.dropped_whole() {
        let _ = writeln!(text, "  dropped whole: {:?}: {}", finding.reason, finding.message);
    }
    let policy = plan.policies.iter().find(|policy| policy.vnid == tenant.vnid);
    if let Some(policy) = policy {
        let ips: Vec<String> = policy.egress_ips.iter().map(ToString::to_string).collect();
        let gets = match policy.action {
            Action::Snat => format!("leaves with {}", ips.join(", ")),
            Action::Drop => "is dropped".into(),
        };
        let _ = writeln!(text, "  so it {gets}; mark {:#010x}", policy.mark);
    }
    let _ = writeln!(text, "  on node {}:", plan.node);
    for address in &plan.addresses {
        if tenant.wishes.iter().any(|wish| wish.ip == address.ip) {
            let _ = writeln!(text, "    address {}", address.ip);
        }
    }
    let register = format!("reg0={} ", plan::register(tenant.vnid));
    let group = format!("group_id={},", tenant.vnid);
    let texts = plan.flows.iter().filter(|flow| flow.contains(&register));
    for line in texts.chain(plan.groups.iter().filter(|text| text.starts_with(&group))) {
        let _ = writeln!(text, "    {line}");
    }
    text
}
