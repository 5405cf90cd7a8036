//! `egress diff`: where a live node and the plan differ.
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use egress_common::abi::phase;
use serde::Serialize;

use super::{
    Exit, Output,
    import::Dumps,
    input::{InputArgs, Question},
    live::Live,
    print, unfit,
};
use crate::{
    bpf::{self, Maps},
    compare::{self, Difference, Seen},
    config::Mac,
    conntrack::Conntrack,
    ovs::{Ovs, Presence},
    plan::{self, OvsPorts, Previous},
    reconcile::maps,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    dumps: Dumps,
    /// The Open vSwitch bridge
    #[arg(long, value_name = "NAME", default_value = "br0")]
    bridge: String,
    /// The mounted bpffs: an agent that runs with --shadow tells there what it would have done
    #[arg(long, value_name = "DIR", default_value = bpf::BPFFS)]
    bpffs: PathBuf,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Told {
    /// Rules, addresses, flows and groups that are not as planned.
    differences: Vec<Difference>,
    /// Connections of the node, and the source that each would have got; `null`: no shadow runs.
    traffic: Option<Vec<Seen>>,
}

pub fn run(args: Args) -> Result<Exit> {
    let mut question = Question::read(&args.input)?;
    let live = args.dumps.are_none();
    let words = match args.dumps.words(&args.bridge)? {
        Live::Told(words) => words,
        Live::Silent(why) => return Ok(unfit(&why)),
    };
    let mut traffic = None;
    if live {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        match runtime.block_on(ask(&mut question, &args.bridge, &args.bpffs)) {
            Ok(seen) => traffic = seen,
            Err(error) => return Ok(unfit(&error)),
        }
    }
    let Question { objects, facts, health, mode } = &question;
    let plan = plan::plan(objects, facts, health, &Previous::default(), mode);
    let told = Told { differences: compare::node(&words, &plan, mode.layout), traffic };
    print(&match args.output {
        Output::Json => serde_json::to_string_pretty(&told)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&told)?,
        Output::Table => table(&told),
    })?;
    let differs = told.traffic.iter().flatten().any(Seen::differs);
    Ok(if differs || !told.differences.is_empty() { Exit::Refused } else { question.exit() })
}

/// What only this node itself can tell: its bridge's ports, and what a shadow decided here.
async fn ask(question: &mut Question, bridge: &str, bpffs: &Path) -> Result<Option<Vec<Seen>>> {
    let Question { facts, mode, .. } = question;
    match Ovs::from_env(bridge, "tun0").presence().await? {
        Presence::Present(bridge) => {
            facts.ovs_ports =
                Some(OvsPorts { vxlan: bridge.tunnel_port, gateway: bridge.gateway_port });
            facts.gateway_mac = Mac(bridge.gateway_mac);
        }
        // As the agent: where there is no bridge, no flow is wanted.
        Presence::Absent(_) => mode.flows = false,
    }
    let pins = bpf::pins(bpffs);
    if !pins.exists() {
        return Ok(None);
    }
    let maps = Maps::open(&pins)?;
    if maps::settings(&maps)?.phase != phase::SHADOW {
        return Ok(None);
    }
    let decided: Vec<_> =
        maps.flows_original.iter().flatten().map(|(key, flow)| (key.0, flow.0)).collect();
    Ok(Some(compare::traffic(&decided, &Conntrack::open()?.entries().await?)))
}

fn table(told: &Told) -> String {
    let mut lines: Vec<String> = told.differences.iter().map(ToString::to_string).collect();
    if lines.is_empty() {
        lines.push("rules, addresses, flows and groups are as planned".to_owned());
    }
    match &told.traffic {
        None => lines.push("traffic: not compared, no `egress run --shadow` runs here".to_owned()),
        Some(seen) => {
            let differing: Vec<&Seen> = seen.iter().filter(|seen| seen.differs()).collect();
            lines.push(format!(
                "traffic: of {} connections seen, {} got another source than planned",
                seen.len(),
                differing.len()
            ));
            lines.extend(differing.into_iter().map(|seen| {
                let Seen { vnid, protocol, pod, remote, got, planned } = seen;
                format!(
                    "  VNID {vnid} protocol {protocol} {pod} to {remote}: got {got}, planned {planned}"
                )
            }));
        }
    }
    lines.join("\n") + "\n"
}
