//! `egress status`: what the agent said last, and what the maps count now.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
};

use anyhow::{Context, Result, bail};
use aya::programs::{SchedClassifier, TcAttachType};
use bytemuck::Zeroable;
use egress_common::{
    abi::{Path as Way, Slot, SlotCounters, UsageRecord, action, mapping},
    reason::Reason,
};
use serde::Serialize;

use super::{Exit, Output, Place, print, unfit};
use crate::{
    agent::{
        health::NodeHealth,
        lock,
        status::{Status, Told, Uplink},
    },
    bpf::{self, Maps},
    model::Mapping,
    reconcile::wiring::InForce,
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
    let exit = if report.agent.running { Exit::Done } else { Exit::Unfit };
    print(&match args.output {
        Output::Json => serde_json::to_string_pretty(&report)? + "\n",
        Output::Yaml => serde_saphyr::to_string(&report)?,
        Output::Table => table(&report),
    })?;
    Ok(exit)
}

/// All that there is to know, from outside the agent.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    node: String,
    uplink: String,
    agent: Agent,
    /// The egress IPs that live here.
    addresses: Vec<Ipv4Addr>,
    /// Those of them that are not on the uplink.
    missing: Vec<Ipv4Addr>,
    attached: Vec<Attached>,
    /// What the hot path of `uplink` runs on.
    data_path: Option<InForce>,
    /// All of them, `uplink` first.
    uplinks: Vec<Uplink>,
    policies: Vec<Policy>,
    flows: Flows,
    /// Translated packets by the path they took.
    paths: BTreeMap<&'static str, u64>,
    /// Packets neither translated nor passed, by reason.
    drops: BTreeMap<&'static str, u64>,
    /// The other nodes that are watched.
    nodes: Vec<NodeHealth>,
    conditions: Vec<Told>,
}

#[derive(Debug, Serialize)]
struct Agent {
    pid: u32,
    running: bool,
    /// It has left in order; its programs drop whoever has a policy.
    stopped: bool,
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
    namespaces: Vec<String>,
    /// What happens here to packets of the VNID.
    action: &'static str,
    #[serde(rename = "egressIP")]
    egress_ip: Option<Ipv4Addr>,
    /// What it gets on other nodes.
    elsewhere: Vec<Ipv4Addr>,
    mapping: Mapping,
    original_packets: u64,
    original_bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    /// Packets, either way.
    dropped: u64,
    /// That live now; ports held for every remote are among them.
    flows: u32,
    /// Those ports.
    ports: u32,
}

#[derive(Debug, Serialize)]
struct Flows {
    count: usize,
    max: u32,
}

fn report(place: &Place) -> Result<Report> {
    let Some(status) = Status::read(&place.run_dir)? else {
        bail!("no agent has left word in {}: `egress run` starts one", place.run_dir.display());
    };
    let pins = bpf::pins(&place.bpffs);
    let maps = Maps::open(&pins)?;
    Ok(Report {
        agent: Agent {
            pid: status.pid,
            running: lock::holder(&place.run_dir).is_some(),
            stopped: status.stopped,
        },
        missing: missing(&status)?,
        attached: attached(&status),
        policies: policies(&maps, &status)?,
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
        data_path: status.uplinks.first().and_then(|uplink| uplink.data_path.clone()),
        uplinks: status.uplinks,
        nodes: status.nodes,
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

/// The hosted addresses that their uplink does not carry.
fn missing(status: &Status) -> Result<Vec<Ipv4Addr>> {
    let mut missing: BTreeSet<Ipv4Addr> = status.addresses.iter().copied().collect();
    for interface in nix::ifaddrs::getifaddrs().context("ask for the addresses")? {
        // A label is no interface of its own.
        let name = interface.interface_name.split(':').next().unwrap_or_default();
        let address = interface.address.as_ref().and_then(|address| address.as_sockaddr_in());
        let Some(ip) = address.map(|address| address.ip()) else { continue };
        let mut uplinks = status.uplinks.iter().filter(|uplink| uplink.name == name);
        if uplinks.any(|uplink| uplink.addresses.contains(&ip)) {
            missing.remove(&ip);
        }
    }
    Ok(missing.into_iter().collect())
}

fn policies(maps: &Maps, status: &Status) -> Result<Vec<Policy>> {
    let mut policies = Vec::new();
    for entry in maps.policy.iter() {
        let (vnid, index) = entry.context("read the map policy")?;
        // A VNID that found no room has no slot, and is dropped.
        let (slot, counted, usage) = if index < maps.slots.len() {
            let slot = maps.slots.get(&index, 0).context("read the map slots")?.0;
            let counted =
                maps.slot_counters.get(&index, 0).context("read the map slot_counters")?;
            let usage = maps.usage.get(&index, 0).context("read the map usage")?.0;
            (slot, counted.to_vec(), usage)
        } else {
            (Slot::zeroed(), Vec::new(), UsageRecord::default())
        };
        let translated = slot.action == action::SNAT;
        let sum = |field: fn(&SlotCounters) -> u64| counted.iter().map(|cpu| field(&cpu.0)).sum();
        let tenant = status.tenants.iter().find(|tenant| tenant.vnid == vnid);
        let here = |ip: &Ipv4Addr| status.addresses.contains(ip);
        policies.push(Policy {
            vnid,
            namespaces: tenant.map(|tenant| tenant.namespaces.clone()).unwrap_or_default(),
            elsewhere: tenant
                .map(|tenant| tenant.egress_ips.iter().copied().filter(|ip| !here(ip)).collect())
                .filter(|_| !status.stopped)
                .unwrap_or_default(),
            action: if translated { "snat" } else { "drop" },
            egress_ip: translated.then(|| slot.egress_ip.into()),
            mapping: match slot.mapping {
                mapping::ENDPOINT_INDEPENDENT => Mapping::EndpointIndependent,
                _ => Mapping::EndpointDependent,
            },
            original_packets: sum(|counters| counters.original_packets),
            original_bytes: sum(|counters| counters.original_bytes),
            reply_packets: sum(|counters| counters.reply_packets),
            reply_bytes: sum(|counters| counters.reply_bytes),
            dropped: sum(|counters| counters.dropped),
            flows: usage.flows,
            ports: usage.ports,
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
    let Report { node, uplink, agent, addresses, missing, attached, flows, .. } = report;
    writeln!(out, "node:   {node}, uplink {uplink}")?;
    let pid = agent.pid;
    match (agent.running, agent.stopped) {
        (true, _) => writeln!(out, "agent:  running (pid {pid})")?,
        (false, true) => writeln!(
            out,
            "agent:  stopped; its programs drop every VNID below, until `egress run` or `egress \
             cleanup`"
        )?,
        (false, false) => writeln!(
            out,
            "agent:  NOT running (it was pid {pid}); its programs go on, but nobody looks after \
             changes"
        )?,
    }
    let hosted: Vec<String> = addresses
        .iter()
        .map(|ip| {
            let uplink = report.uplinks.iter().skip(1).find(|at| at.addresses.contains(ip));
            let on = uplink.map_or(String::new(), |uplink| format!(" on {}", uplink.name));
            format!("{ip}{on}{}", if missing.contains(ip) { " (MISSING)" } else { "" })
        })
        .collect();
    writeln!(
        out,
        "hosted: {}",
        if hosted.is_empty() { "nothing".into() } else { hosted.join(", ") }
    )?;
    writeln!(out, "flows:  {} of at most {}", flows.count, flows.max)?;
    for uplink in &report.uplinks {
        let subnets: Vec<String> = uplink.subnets.iter().map(ToString::to_string).collect();
        write!(out, "path:   {} ({})", uplink.name, subnets.join(", "))?;
        match &uplink.data_path {
            Some(InForce { path, why }) => writeln!(out, ": {path} ({why})")?,
            None => writeln!(out)?,
        }
    }
    writeln!(out, "\n{:<16} {:<16} STATE", "PROGRAM", "INTERFACE")?;
    for place in attached {
        let state = if place.attached { "attached" } else { "MISSING" };
        writeln!(out, "{:<16} {:<16} {state}", place.hook, place.interface)?;
    }
    write_policies(out, &report.policies)?;
    write_nodes(out, &report.nodes)?;
    for (title, counters) in
        [("TRANSLATED BY WAY OF", &report.paths), ("DROPPED BECAUSE OF", &report.drops)]
    {
        let mut counted = counters.iter().filter(|(_, count)| **count > 0).peekable();
        if counted.peek().is_some() {
            writeln!(out, "\n{title:<20} {:>14} {:>6}", "PACKETS", "SHARE")?;
        }
        let all = counters.values().sum::<u64>().max(1) as f64;
        for (name, count) in counted {
            writeln!(out, "{name:<20} {count:>14} {:>5.1}%", *count as f64 * 100. / all)?;
        }
    }
    if !report.conditions.is_empty() {
        writeln!(out, "\nNOT AS ASKED FOR")?;
    }
    for told in &report.conditions {
        writeln!(out, "{} {}: {}", told.object, told.reason, told.message)?;
    }
    Ok(())
}

fn write_nodes(out: &mut String, nodes: &[NodeHealth]) -> std::fmt::Result {
    if nodes.is_empty() {
        return Ok(());
    }
    let width = nodes.iter().map(|node| node.name.len()).max().unwrap_or_default().max(4);
    writeln!(
        out,
        "\n{:<width$} {:<15} {:<9} {:<20} {:<10} GATEWAY",
        "NODE", "ADDRESS", "STATE", "SINCE", "PROBE"
    )?;
    for NodeHealth { name, ip, state, since, probe, gateway, left: _ } in nodes {
        let ip = ip.to_string();
        writeln!(out, "{name:<width$} {ip:<15} {state:<9} {since:<20} {probe:<10} {gateway}")?;
    }
    Ok(())
}

fn write_policies(out: &mut String, policies: &[Policy]) -> std::fmt::Result {
    if policies.is_empty() {
        return writeln!(out, "\nno VNID asks for an egress IP");
    }
    let width = policies.iter().map(|policy| policy.namespaces.join(",").len()).max();
    let width = width.unwrap_or_default().max("NAMESPACE".len());
    writeln!(
        out,
        "\n{:<10} {:<width$} {:<6} {:<28} {:>8} {:>12} {:>12} {:>10}",
        "VNID", "NAMESPACE", "HERE", "EGRESS IP", "FLOWS", "PACKETS OUT", "AND BACK", "DROPPED"
    )?;
    for policy in policies {
        let Policy { vnid, action, flows, original_packets, reply_packets, dropped, .. } = policy;
        let namespaces = policy.namespaces.join(",");
        let ip = match (policy.egress_ip, policy.elsewhere.first()) {
            (Some(ip), _) if policy.mapping == Mapping::EndpointIndependent => {
                format!("{ip} independent")
            }
            (Some(ip), _) => ip.to_string(),
            (None, Some(ip)) => format!("{ip} elsewhere"),
            (None, None) => "-".to_owned(),
        };
        writeln!(
            out,
            "{vnid:<10} {namespaces:<width$} {action:<6} {ip:<28} {flows:>8} \
             {original_packets:>12} {reply_packets:>12} {dropped:>10}"
        )?;
    }
    Ok(())
}
