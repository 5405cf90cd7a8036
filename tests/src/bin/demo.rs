//! The demonstration: the real agent on the rig's egress node, real packets of every pod, and the
//! source address the outside saw.

use std::{
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use egress_tests::{
    gateway::Gateway,
    netns::Netns,
    ovs::{self, OvsRig},
    report::{Protocol, Row, Talker, Witness},
    rig::{self, FIXED_PREFIX, Rig, Snat},
};
use egress_user::ovs::Layout;
use tokio::signal::unix::{SignalKind, signal};

/// Shows the gateway at work: what the outside sees of each pod's TCP, UDP and ping.
#[derive(Parser)]
struct Cli {
    /// One JSON object a line instead of the table.
    #[arg(long)]
    json: bool,
    /// The notes' cluster with real Open vSwitch on both nodes, an agent on each.
    #[arg(long, conflicts_with_all = ["keep", "without_agent"])]
    ovs: bool,
    /// With --ovs: the flows as releases before 4.8 have them.
    #[arg(long, requires = "ovs")]
    old: bool,
    /// Leave the rig and the agent standing, and say how to enter.
    #[arg(long)]
    keep: bool,
    /// No agent: the egress node's kernel alone, which translates nothing.
    #[arg(long)]
    without_agent: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match interruptible().and_then(|interrupted| run(&cli, &interrupted)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all that the outside saw was right.
fn run(cli: &Cli, interrupted: &AtomicBool) -> Result<bool> {
    if cli.ovs {
        return run_ovs(cli, interrupted);
    }
    let own_prefix = format!("eg{}-", std::process::id());
    let prefix = if cli.keep { FIXED_PREFIX } else { &own_prefix };
    let mut rig = Rig::up_as(prefix, Snat::Node)?;
    let mut agent = None;
    if !cli.without_agent {
        check(interrupted)?;
        agent = Some(Gateway::start(&rig)?);
    }
    let far = &rig.outside[1];
    let witness = Witness::start(rig.netns(&far.name).name(), far.ip)?;
    let rows = observe(witness, &rig.talkers(), interrupted)?;
    print(&rows, cli.json)?;
    let right = rows.iter().all(|row| row.ok);
    if !right && let Some(agent) = &agent {
        eprintln!("the agent's log:\n{}", agent.log());
    }
    if cli.keep {
        let pid = agent.as_mut().and_then(Gateway::keep);
        drop(agent);
        rig.keep();
        explain(&rig, pid);
    } else if let Some(mut agent) = agent {
        let status = agent.stop()?;
        ensure!(status.success(), "the agent left with {status}; its log:\n{}", agent.log());
    }
    Ok(right)
}

/// The same with an agent on each of two nodes with Open vSwitch.
fn run_ovs(cli: &Cli, interrupted: &AtomicBool) -> Result<bool> {
    let rig = OvsRig::start(if cli.old { Layout::Old } else { Layout::New })?;
    let [egress, source] =
        [&rig.egress, &rig.source].map(|node| Netns::open(node.netns.name()).map(|n| (node, n)));
    let nodes = [egress?, source?];
    let mut agents = Vec::new();
    for (node, netns) in &nodes {
        check(interrupted)?;
        agents.push(ovs::agent::start(node, netns)?);
    }
    let witness = Witness::start(rig.outside.name(), ovs::OUTSIDE)?;
    let rows = observe(witness, &rig.talkers(), interrupted)?;
    print(&rows, cli.json)?;
    let right = rows.iter().all(|row| row.ok);
    for agent in &mut agents {
        if !right {
            eprintln!("an agent's log:\n{}", agent.log());
        }
        let status = agent.stop()?;
        ensure!(status.success(), "an agent left with {status}; its log:\n{}", agent.log());
    }
    Ok(right)
}

/// Sends all pods' traffic and looks at what arrived.
fn observe(
    mut witness: Witness,
    pods: &[Talker<'_>],
    interrupted: &AtomicBool,
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for pod in pods {
        for protocol in Protocol::ALL {
            check(interrupted)?;
            rows.push(witness.observe(pod, protocol)?);
        }
    }
    Ok(rows)
}

fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        for row in rows {
            println!("{}", serde_json::to_string(row)?);
        }
        return Ok(());
    }
    println!(
        "{:<16}{:<14}{:>9}  {:<12}{:<10}{:<14}{:<14}VERDICT",
        "POD", "NAMESPACE", "VNID", "MARK", "PROTOCOL", "EXPECTED", "SEEN"
    );
    for row in rows {
        let seen = row.seen.map_or_else(|| "nothing".to_owned(), |seen| seen.to_string());
        let verdict = match (&row.failure, row.ok) {
            (_, true) => "right".to_owned(),
            (None, false) => "WRONG".to_owned(),
            (Some(failure), false) => format!("WRONG: {failure}"),
        };
        println!(
            "{:<16}{:<14}{:>9}  {:<12}{:<10}{:<14}{:<14}{verdict}",
            row.pod,
            row.namespace,
            row.vnid,
            row.mark,
            row.protocol,
            row.expected.to_string(),
            seen
        );
    }
    Ok(())
}

fn explain(rig: &Rig, agent: Option<u32>) {
    eprintln!("left standing:");
    for name in rig::standing(rig.prefix()) {
        eprintln!("  ip netns exec {name} sh");
    }
    if let Some(pid) = agent {
        eprintln!("with the agent's own mounts, pins and files (/run, /sys/fs/bpf):");
        eprintln!("  nsenter --target {pid} --net --mount sh");
    }
    eprintln!("remove all of it with `cargo xtask rig down`");
}

fn check(interrupted: &AtomicBool) -> Result<()> {
    ensure!(!interrupted.load(Ordering::Relaxed), "interrupted; the rig is removed");
    Ok(())
}

/// Becomes true at the first SIGINT or SIGTERM: the steps end between two rows, and what was built
/// is dropped. The signals then no longer end the process by themselves.
fn interruptible() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context("wait for signals")?;
    let (mut interrupt, mut terminate) = {
        let _guard = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        flag.store(true, Ordering::Relaxed);
    });
    Ok(interrupted)
}
