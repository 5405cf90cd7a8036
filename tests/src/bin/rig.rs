//! `rig up` and `rig down`: the plain VXLAN rig, standing, without agent.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use egress_tests::rig::{self, Description, FIXED_PREFIX, Rig, Snat};

/// The plain VXLAN rig of network namespaces, for traffic of your own.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build the rig and leave it standing.
    Up {
        /// Describe it as JSON: namespaces, devices, addresses, VNIDs, pods.
        #[arg(long)]
        json: bool,
        /// Let nftables translate by mark on the egress node, as OpenShift's rules do.
        #[arg(long)]
        kernel_snat: bool,
    },
    /// Remove the rig and every process in it.
    Down,
}

fn main() -> ExitCode {
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rig: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Up { json, kernel_snat } => {
            let snat = if *kernel_snat { Snat::Kernel } else { Snat::Node };
            let mut rig = Rig::up_as(FIXED_PREFIX, snat)?;
            rig.keep();
            if *json {
                println!("{}", serde_json::to_string_pretty(&Description::of(&rig))?);
            } else {
                print(&rig);
            }
        }
        Verb::Down => {
            let removed = rig::down(FIXED_PREFIX)?;
            println!("removed {} network namespaces", removed.len());
        }
    }
    Ok(())
}

fn print(rig: &Rig) {
    for node in [&rig.source, &rig.egress] {
        println!("node {} {} in {}", node.name, node.ip, rig.netns(&node.name).name());
    }
    for pod in &rig.pods {
        println!(
            "pod {} {} of {} ({}) on {} in {}",
            pod.name,
            pod.ip,
            pod.namespace,
            pod.vnid,
            pod.node,
            rig.netns(&pod.name).name()
        );
    }
    for host in &rig.outside {
        println!("outside {} {} in {}", host.name, host.ip, rig.netns(&host.name).name());
    }
    println!("enter one with `ip netns exec NAMESPACE sh`; remove all with `cargo xtask rig down`");
}
