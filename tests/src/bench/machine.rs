//! What the figures hold for: the machine, its kernel and the versions of what was compared.
use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::net::command;

/// Facts without which a figure says nothing.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub memory_mib: u64,
    /// A hypervisor takes cores away now and then: see the column "steal".
    pub virtual_machine: bool,
    pub kernel: String,
    /// Mitigations in force, e.g. `spectre_v2: Mitigation: Retpolines`.
    pub mitigations: Vec<String>,
    pub conntrack_max: Option<u64>,
    pub conntrack_buckets: Option<u64>,
    /// Versions of the programs that were used.
    pub versions: Vec<String>,
    /// The commit of the working directory, `+` if it has changes.
    pub commit: String,
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_line(program: &str, arguments: &[&str]) -> Option<String> {
    Some(command(program, arguments).ok()?.lines().next()?.trim().to_owned())
}

fn commit() -> String {
    let Some(commit) = first_line("git", &["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = first_line("git", &["status", "--porcelain"]).is_some();
    commit + if changed { "+" } else { "" }
}

impl Machine {
    pub fn read() -> Result<Self> {
        let cpu = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let memory = read("/proc/meminfo").and_then(|text| field(&text, "MemTotal"));
        let kib = memory.and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
        let mut mitigations: Vec<String> = fs::read_dir("/sys/devices/system/cpu/vulnerabilities")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let state = read(entry.path())?;
                let name = entry.file_name().to_string_lossy().into_owned();
                (state != "Not affected").then(|| format!("{name}: {state}"))
            })
            .collect();
        mitigations.sort();
        let number = |path: &str| read(path)?.parse().ok();
        Ok(Self {
            processor: field(&cpu, "model name").unwrap_or_else(|| "unknown".to_owned()),
            cores: cpu.lines().filter(|line| line.starts_with("processor")).count(),
            memory_mib: kib.unwrap_or(0) / 1024,
            virtual_machine: field(&cpu, "flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            mitigations,
            conntrack_max: number("/proc/sys/net/netfilter/nf_conntrack_max"),
            conntrack_buckets: number("/sys/module/nf_conntrack/parameters/hashsize"),
            versions: [
                first_line("iptables-legacy", &["--version"]),
                first_line("iptables-nft", &["--version"]),
                first_line("nft", &["--version"]),
                first_line("ip", &["-V"]),
            ]
            .into_iter()
            .flatten()
            .collect(),
            commit: commit(),
        })
    }
}
