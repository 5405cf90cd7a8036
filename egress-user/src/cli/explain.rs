//! `egress explain`: the chain of reasons from what was asked to what a node does.
use std::{fmt::Write, net::Ipv4Addr};

use anyhow::{Result, bail};
use serde::Serialize;

use super::{
    Exit, Output,
    input::{InputArgs, Question},
    print,
    vnid::parse_vnid,
};
use crate::{
    condition::Reason,
    model::{Mapping, Objects},
    plan::{self, Action, Plan, Previous, Tenant},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A namespace, a VNID (decimal or hex), or an egress IP
    #[arg(value_name = "NAMESPACE|VNID|IP")]
    subject: String,
    #[command(flatten)]
    input: InputArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub fn run(args: Args) -> Result<Exit> {
    let question = Question::read(&args.input)?;
    let explanation = explain(&args.subject, &question)?;
    print(&match args.output {
        Output::Json => serde_json::to_string_pretty(&explanation)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&explanation)?,
        Output::Table => text(&explanation),
    })?;
    Ok(question.exit())
}

/// All that is to be said about a subject.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    subject: String,
    /// Whose view `here` is.
    node: String,
    /// Of an egress IP: the nodes that list it.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed_by: Option<Vec<Node>>,
    vnids: Vec<Tenancy>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    name: String,
    #[serde(rename = "hostIP")]
    host_ip: Ipv4Addr,
}

/// A VNID, what it asks for and what it gets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Tenancy {
    vnid: u32,
    namespaces: Vec<String>,
    asks: Vec<Wish>,
    dropped_whole: Option<Finding>,
    /// `normal`: it asks for nothing.
    action: &'static str,
    #[serde(rename = "egressIPs")]
    egress_ips: Vec<Ipv4Addr>,
    mark: Option<String>,
    mapping: Option<Mapping>,
    here: Here,
}

#[derive(Debug, Serialize)]
struct Wish {
    #[serde(rename = "egressIP")]
    ip: Ipv4Addr,
    node: Option<Node>,
    usable: bool,
    findings: Vec<Finding>,
}

#[derive(Debug, Clone, Serialize)]
struct Finding {
    reason: Reason,
    message: String,
}

/// What the node that was asked does for it.
#[derive(Debug, Default, Serialize)]
struct Here {
    addresses: Vec<Ipv4Addr>,
    flows: Vec<String>,
    groups: Vec<String>,
}

fn explain(subject: &str, question: &Question) -> Result<Explanation> {
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
    let vnids = vnids(subject, objects)?.into_iter().map(|vnid| {
        tenancy(vnid, objects, tenants.iter().find(|tenant| tenant.vnid == vnid), &plan)
    });
    Ok(Explanation {
        subject: subject.to_owned(),
        node: plan.node.clone(),
        listed_by: subject.parse().ok().map(|ip| listing(ip, objects)),
        vnids: vnids.collect(),
    })
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

fn listing(ip: Ipv4Addr, objects: &Objects) -> Vec<Node> {
    let nodes = objects.host_subnets.values().filter(|node| node.egress_ips.contains(&ip));
    nodes.map(|node| Node { name: node.name.clone(), host_ip: node.host_ip }).collect()
}

fn tenancy(vnid: u32, objects: &Objects, tenant: Option<&Tenant<'_>>, plan: &Plan) -> Tenancy {
    let namespaces = objects.net_namespaces.values().filter(|n| n.vnid == vnid);
    let policy = plan.policies.iter().find(|policy| policy.vnid == vnid);
    let finding = |finding: &plan::Finding| Finding {
        reason: finding.reason,
        message: finding.message.clone(),
    };
    let wishes = tenant.iter().flat_map(|tenant| &tenant.wishes).map(|wish| Wish {
        ip: wish.ip,
        node: wish.node.map(|node| Node { name: node.name.clone(), host_ip: node.host_ip }),
        usable: wish.is_usable(),
        findings: wish.findings.iter().map(finding).collect(),
    });
    Tenancy {
        vnid,
        namespaces: namespaces.map(|n| n.name.clone()).collect(),
        asks: wishes.collect(),
        dropped_whole: tenant.and_then(Tenant::dropped_whole).map(finding),
        action: match policy.map(|policy| policy.action) {
            Some(Action::Snat) => "snat",
            Some(Action::Drop) => "drop",
            None => "normal",
        },
        egress_ips: policy.map(|policy| policy.egress_ips.clone()).unwrap_or_default(),
        mark: policy.map(|policy| format!("{:#010x}", policy.mark)),
        mapping: policy.map(|policy| policy.mapping),
        here: tenant.map(|tenant| here(tenant, plan)).unwrap_or_default(),
    }
}

fn here(tenant: &Tenant<'_>, plan: &Plan) -> Here {
    let register = format!("reg0={} ", plan::register(tenant.vnid));
    let group = [tenant.vnid, plan::group_of_new(tenant.vnid)].map(|id| format!("group_id={id},"));
    let of_tenant = |ip: &Ipv4Addr| tenant.wishes.iter().any(|wish| wish.ip == *ip);
    let flows = plan.flows.iter().filter(|flow| flow.contains(&register));
    let groups = plan.groups.iter().filter(|text| group.iter().any(|id| text.starts_with(id)));
    Here {
        addresses: plan.addresses.iter().map(|a| a.ip).filter(of_tenant).collect(),
        flows: flows.cloned().collect(),
        groups: groups.cloned().collect(),
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation { subject, node, listed_by, vnids } = explanation;
    let mut text = String::new();
    if let Some(nodes) = listed_by {
        let names: Vec<String> = nodes.iter().map(Node::to_string).collect();
        text += &match names.as_slice() {
            [] => format!("{subject}: no node lists it\n"),
            names => format!("{subject}: listed by {}\n", names.join(", ")),
        };
    }
    if vnids.is_empty() {
        text += "no namespace asks for it: nothing leaves with it\n";
    }
    for tenancy in vnids {
        // Writing to a string cannot fail.
        let _ = write_tenancy(&mut text, tenancy, node);
    }
    text
}

fn write_tenancy(text: &mut String, tenancy: &Tenancy, node: &str) -> std::fmt::Result {
    let Tenancy { vnid, namespaces, asks, dropped_whole, action, egress_ips, mark, mapping, here } =
        tenancy;
    writeln!(text, "{}: VNID {vnid} ({vnid:#x})", namespaces.join(", "))?;
    let Some(mark) = mark else {
        return writeln!(text, "  asks for no egress IP: leaves as the node does");
    };
    for Wish { ip, node, usable, findings } in asks {
        let place = node.as_ref().map_or("on no node".to_owned(), |node| format!("on node {node}"));
        writeln!(text, "  asks for {ip}, {place}")?;
        for Finding { reason, message } in findings {
            writeln!(text, "    {reason:?}: {message}")?;
        }
        if *usable {
            writeln!(text, "    usable")?;
        }
    }
    if let Some(Finding { reason, message }) = dropped_whole {
        writeln!(text, "  dropped whole: {reason:?}: {message}")?;
    }
    let ips: Vec<String> = egress_ips.iter().map(ToString::to_string).collect();
    let gets = match *action {
        "snat" => format!("leaves with {}", ips.join(", ")),
        _ => "is dropped".into(),
    };
    writeln!(text, "  so it {gets}; mark {mark}")?;
    if *mapping == Some(Mapping::EndpointIndependent) {
        writeln!(text, "  each port of a pod leaves from one port, whatever the remote")?;
    }
    writeln!(text, "  on node {node}:")?;
    let Here { addresses, flows, groups } = here;
    addresses.iter().try_for_each(|ip| writeln!(text, "    address {ip}"))?;
    flows.iter().chain(groups).try_for_each(|line| writeln!(text, "    {line}"))
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.host_ip)
    }
}
