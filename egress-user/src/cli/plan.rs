//! `egress plan`: the decision for one node, without root and without the node.
use std::{fmt::Write, net::Ipv4Addr, path::PathBuf};

use anyhow::Result;

use super::{
    Exit, Output, RUN_DIR,
    input::{InputArgs, Question},
    print,
};
use crate::{
    agent::status::Status,
    plan::{self, Action, Plan, Previous},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Where the agent of this node keeps what it knows: the table compares the plan with it
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
}

pub fn run(args: Args) -> Result<Exit> {
    let question = Question::read(&args.input)?;
    let Question { objects, facts, health, mode } = &question;
    let plan = plan::plan(objects, facts, health, &Previous::default(), mode);
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&plan)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&plan)?,
        Output::Table => {
            // What cannot be read cannot be compared with; it is not what was asked for.
            let status = Status::read(&args.run_dir).ok().flatten();
            table(&plan, status.as_ref().filter(|status| status.node == plan.node))
        }
    };
    print(&text)?;
    Ok(question.exit())
}

/// For people: what this node does, what each VNID gets, and why something is not as asked for;
/// beside it what an agent of this node has done already.
fn table(plan: &Plan, status: Option<&Status>) -> String {
    let mut text = format!("node {}\n", plan.node);
    text += match status {
        Some(_) => "compared with what its agent does now: + added, ~ changed, - removed\n",
        None => "all that is wanted: no agent of this node runs here to compare with\n",
    };
    let mut section = |title: &str, lines: Vec<String>| {
        let _ = write!(text, "\n{title}\n");
        let lines = if lines.is_empty() { vec!["none".to_owned()] } else { lines };
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
    };
    let mut addresses: Vec<String> = plan
        .addresses
        .iter()
        .map(|address| {
            let length = address.prefix_len.map_or("?".into(), |length| length.to_string());
            let label = address.label.as_deref().unwrap_or("no label");
            let held = status.map(|status| status.addresses.contains(&address.ip));
            let sign = if held == Some(false) { "+ " } else { "" };
            format!("{sign}{}/{length}  {label}", address.ip)
        })
        .collect();
    let planned = |ip: &Ipv4Addr| plan.addresses.iter().any(|address| address.ip == *ip);
    let held = status.iter().flat_map(|status| &status.addresses);
    addresses.extend(held.filter(|ip| !planned(ip)).map(|ip| format!("- {ip}")));
    section("egress IPs on this node", addresses);
    let mut policies: Vec<String> = plan
        .policies
        .iter()
        .map(|policy| {
            let sign = match status.map(|status| status.granted.get(&policy.vnid)) {
                Some(None) => "+ ",
                Some(Some(ips)) if *ips != policy.egress_ips => "~ ",
                _ => "",
            };
            let gets = match policy.action {
                Action::Drop => "dropped: no egress IP is usable".into(),
                Action::Snat => {
                    let ips: Vec<String> =
                        policy.egress_ips.iter().map(ToString::to_string).collect();
                    format!("leaves with {}", ips.join(", "))
                }
            };
            format!(
                "{sign}{:<8}  {:<8}  mark {:#010x}  {gets}",
                policy.vnid,
                format!("{:#x}", policy.vnid),
                policy.mark
            )
        })
        .collect();
    let planned = |vnid: &u32| plan.policies.iter().any(|policy| policy.vnid == *vnid);
    let granted = status.iter().flat_map(|status| status.granted.keys());
    policies.extend(
        granted.filter(|vnid| !planned(vnid)).map(|vnid| format!("- {vnid:<8}  {vnid:#x}")),
    );
    section("VNIDs with egress IPs; all others leave as the node does", policies);
    let assignments = plan.assignments.iter().map(|assignment| {
        format!("{:<15}  VNID {:<8}  {}", assignment.egress_ip, assignment.vnid, assignment.node)
    });
    section("where egress IPs live", assignments.collect());
    section("OVS groups", plan.groups.clone());
    section("OVS flows", plan.flows.clone());
    let conditions = plan.conditions.iter().map(|condition| {
        format!("{}  {:?}: {}", condition.object, condition.reason, condition.message)
    });
    section("conditions", conditions.collect());
    text
}
