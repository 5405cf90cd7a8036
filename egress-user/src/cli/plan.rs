//! `egress plan`: the decision for one node, without root and without the node.
use std::fmt::Write;

use anyhow::Result;

use super::{
    Exit, Output,
    input::{InputArgs, Question},
    print,
};
use crate::plan::{self, Action, Plan, Previous};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub fn run(args: Args) -> Result<Exit> {
    let question = Question::read(&args.input)?;
    let Question { objects, facts, health, mode } = &question;
    let plan = plan::plan(objects, facts, health, &Previous::default(), mode);
    let text = match args.output {
        Output::Json => serde_json::to_string_pretty(&plan)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&plan)?,
        Output::Table => table(&plan),
    };
    print(&text)?;
    Ok(question.exit())
}

/// For people: what this node does, what each VNID gets, and why something is not as asked for.
fn table(plan: &Plan) -> String {
    let mut text = format!("node {}\n", plan.node);
    let mut section = |title: &str, lines: Vec<String>| {
        let _ = write!(text, "\n{title}\n");
        let lines = if lines.is_empty() { vec!["none".to_owned()] } else { lines };
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
    };
    let addresses = plan.addresses.iter().map(|address| {
        let length = address.prefix_len.map_or("?".into(), |length| length.to_string());
        let label = address.label.as_deref().unwrap_or("no label");
        format!("{}/{length}  {label}", address.ip)
    });
    section("egress IPs on this node", addresses.collect());
    let policies = plan.policies.iter().map(|policy| {
        let gets = match policy.action {
            Action::Drop => "dropped: no egress IP is usable".into(),
            Action::Snat => {
                let ips: Vec<String> = policy.egress_ips.iter().map(ToString::to_string).collect();
                format!("leaves with {}", ips.join(", "))
            }
        };
        format!(
            "{:<8}  {:<8}  mark {:#010x}  {gets}",
            policy.vnid,
            format!("{:#x}", policy.vnid),
            policy.mark
        )
    });
    section("VNIDs with egress IPs; all others leave as the node does", policies.collect());
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
