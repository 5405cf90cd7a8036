//! `egress status`: what the agent said last, and what the maps count now.
use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr};

use anyhow::{Context, Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};
use egress_common::{
    abi::{Path as Way, SlotCounters, action},
    reason::Reason,
};
use serde::Serialize;

use super::{Exit, Output, Place, cleanup::is_agent, print, unfit};
use crate::{
    agent::status::{Status, Told},
    bpf::{self, Maps},
    reconcile::xdp::InForce,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Place,
}

pub fn run(args: Args) -> Result<Exit> {
    let report = match report(&args.place) {
        Ok(report) => report,
        Err(error) => return Ok(unfit(&error)),
    };
    print(&match args.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&report)?,
        Output::Table => table(&report),
    })?;
    Ok(Exit::Done)
}

/// All that there is to know, from outside the agent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    node: String,
    uplink: String,
    agent: Agent,
    addresses: Vec<Ipv4Addr>,
    attached: Vec<Attached>,
    data_path: Option<InForce>,
    policies: Vec<Policy>,
    flows: Flows,
    /// Translated packets by the path they took.
    paths: BTreeMap<&'static str, u64>,
    /// Packets neither translated nor passed, by reason.
    drops: BTreeMap<&'static str, u64>,
    conditions: Vec<Told>,
}

#[derive(Debug, Serialize)]
struct Agent {
    pid: u32,
    running: bool,
}

#[derive(Debug, Serialize)]
struct Attached {
    hook: String,
    interface: String,
    attached: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    vnid: u32,
    action: &'static str,
    #[serde(rename = "egressIP")]
    egress_ip: Option<Ipv4Addr>,
    original_packets: u64,
    original_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Flows {
    count: usize,
    max: u32,
}

fn report(place: &Place) -> Result<Report> {
    let Some(status) = Status::read(&place.run_dir)? else {
        bail!(
            "no agent has left word in {}: is `egress run` running here?",
            place.run_dir.display()
        );
    };
    let pins = bpf::pins(&place.bpffs);
    let maps = Maps::open(&pins)?;
    Ok(Report {
        agent: Agent { pid: status.pid, running: is_agent(status.pid) },
        attached: attached(&status),
        policies: policies(&maps)?,
        flows: Flows {
            count: maps.flows_original.keys().filter(Result::is_ok).count(),
            max: bpf::flow_capacity(&pins)?,
        },
        paths: counters(&maps.paths, Way::ALL.map(|(way, name)| (way as u32, name)))?,
        drops: counters(
            &maps.reasons,
            Reason::ALL.iter().map(|(reason, name)| (*reason as u32, *name)),
        )?,
        node: status.node,
        uplink: status.uplink,
        addresses: status.addresses,
        data_path: status.data_path,
        conditions: status.conditions,
    })
}

/// What of that runs: asked of the kernel by the programs' names.
fn attached(status: &Status) -> Vec<Attached> {
    let runs = |hook: &str, interface: &str| {
        let direction =
            if hook == "uplink_egress" { TcAttachType::Egress } else { TcAttachType::Ingress };
        SchedClassifier::query_tcx(interface, direction).is_ok_and(|(_, programs)| {
            // The kernel keeps 15 bytes of a name.
            programs.iter().any(|info| {
                info.name_as_str().is_some_and(|name| !name.is_empty() && hook.starts_with(name))
            })
        })
    };
    status
        .attached
        .iter()
        .map(|place| Attached {
            attached: runs(&place.hook, &place.interface),
            hook: place.hook.clone(),
            interface: place.interface.clone(),
        })
        .collect()
}

fn policies(maps: &Maps) -> Result<Vec<Policy>> {
    let mut policies = Vec::new();
    for entry in maps.policy.iter() {
        let (vnid, index) = entry.context("read the map policy")?;
        let slot = maps.slots.get(&index, 0).context("read the map slots")?.0;
        let counted = maps.slot_counters.get(&index, 0).context("read the map slot_counters")?;
        let sum = |field: fn(&SlotCounters) -> u64| counted.iter().map(|cpu| field(&cpu.0)).sum();
        let translated = slot.action == action::SNAT;
        policies.push(Policy {
            vnid,
            action: if translated { "snat" } else { "drop" },
            egress_ip: translated.then(|| slot.egress_ip.into()),
            original_packets: sum(|counters| counters.original_packets),
            original_bytes: sum(|counters| counters.original_bytes),
            reply_packets: sum(|counters| counters.reply_packets),
            reply_bytes: sum(|counters| counters.reply_bytes),
        });
    }
    policies.sort_by_key(|policy| policy.vnid);
    Ok(policies)
}

fn counters(
    map: &aya::maps::PerCpuArray<aya::maps::MapData, u64>,
    names: impl IntoIterator<Item = (u32, &'static str)>,
) -> Result<BTreeMap<&'static str, u64>> {
    names
        .into_iter()
        .map(|(index, name)| {
            let cpus = map.get(&index, 0).with_context(|| format!("read the counter {name}"))?;
            Ok((name, cpus.iter().sum()))
        })
        .collect()
}

fn table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_table(&mut text, report);
    text
}

fn write_table(out: &mut String, report: &Report) -> std::fmt::Result {
    let Report { node, uplink, agent, addresses, attached, policies, flows, .. } = report;
    let running = if agent.running { "running" } else { "NOT running; its programs go on" };
    writeln!(out, "node {node}, uplink {uplink}, agent {} {running}", agent.pid)?;
    let hosted: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    writeln!(out, "hosted: {}", if hosted.is_empty() { "none".into() } else { hosted.join(", ") })?;
    writeln!(out, "flows: {} of {}", flows.count, flows.max)?;
    if let Some(InForce { path, why }) = &report.data_path {
        writeln!(out, "data path: {path} ({why})")?;
    }
    writeln!(out, "\n{:<16} {:<16} STATE", "PROGRAM", "INTERFACE")?;
    for place in attached {
        let state = if place.attached { "attached" } else { "MISSING" };
        writeln!(out, "{:<16} {:<16} {state}", place.hook, place.interface)?;
    }
    writeln!(
        out,
        "\n{:<10} {:<6} {:<16} {:>14} {:>14}",
        "VNID", "ACTION", "EGRESS IP", "PACKETS OUT", "PACKETS BACK"
    )?;
    for policy in policies {
        let ip = policy.egress_ip.map_or_else(|| "-".to_owned(), |ip| ip.to_string());
        let Policy { vnid, action, original_packets, reply_packets, .. } = policy;
        writeln!(
            out,
            "{vnid:<10} {action:<6} {ip:<16} {original_packets:>14} {reply_packets:>14}"
        )?;
    }
    for (title, counters) in [("PATH", &report.paths), ("DROPPED BECAUSE", &report.drops)] {
        let all = counters.values().sum::<u64>().max(1);
        writeln!(out, "\n{title:<16} {:>14} {:>6}", "PACKETS", "SHARE")?;
        for (name, count) in counters.iter().filter(|(_, count)| **count > 0) {
            writeln!(out, "{name:<16} {count:>14} {:>5.1}%", *count as f64 * 100. / all as f64)?;
        }
    }
    for told in &report.conditions {
        writeln!(out, "\n{} {}: {}", told.object, told.reason, told.message)?;
    }
    Ok(())
}
