//! Looks at a node as an agent would at its start, and says everything instead of the first thing.
//! Changes nothing.
use std::{fs, path::Path};

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use egress_common::abi::phase;
use serde::Serialize;

use super::{
    lock,
    node::{self, Devices},
};
use crate::{
    bpf::{self, Hook, Maps, Sizes, fit},
    config::{AgentConfig, DataPath},
    identity::Identity,
    iptables::{self, rules},
    netlink::Netlink,
    ovs::Presence,
    reconcile::maps,
    takeover::{chain, journal::Journal},
};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found; and the cure, where there has to be one.
    pub found: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// It runs, but not as one would want it.
    Unwise,
    /// It does not run without.
    Missing,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into() }
    }

    fn unwise(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Unwise, found: found.into() }
    }

    fn missing(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Missing, found: found.into() }
    }

    /// What an agent would refuse to start without.
    fn needed(name: &'static str, found: Result<String>) -> Self {
        match found {
            Ok(found) => Self::good(name, found),
            Err(error) => Self::missing(name, format!("{error:#}")),
        }
    }
}

/// Everything, in the order in which an agent needs it.
pub async fn examine(config: &AgentConfig, bpffs: &Path, run_dir: &Path) -> Vec<Check> {
    let mut checks = vec![
        Check::needed(
            "privileges",
            fit::check_privileges().map(|()| "all that an agent needs".to_owned()),
        ),
        Check::needed("kernel", fit::running_kernel()),
        Check::needed("programs", fit::built_in().map(|()| "built in".to_owned())),
        Check::needed(
            "bpffs",
            fit::check_bpffs(bpffs).map(|()| format!("mounted at {}", bpffs.display())),
        ),
        btf(),
        Check::needed("pins", pins(config, bpffs)),
        agent(run_dir),
        takeover(run_dir),
    ];
    checks.extend(network(config).await);
    checks.push(ovs(config).await);
    checks.push(rules(bpffs).await);
    checks
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match Path::new(path).exists() {
        true => Check::good("btf", format!("{path} is there")),
        false => Check::unwise(
            "btf",
            format!(
                "{path} is not there: bpftool shows less; build the kernel with CONFIG_DEBUG_INFO_BTF"
            ),
        ),
    }
}

fn pins(config: &AgentConfig, bpffs: &Path) -> Result<String> {
    let sizes = Sizes { flows: config.flows.max, policies: config.policies.max };
    fit::check_pins(bpffs, sizes)?;
    let pins = bpf::pins(bpffs);
    if !pins.exists() {
        return Ok("none".to_owned());
    }
    let in_force = Maps::open(&pins).and_then(|maps| maps::settings(&maps))?;
    let what = match in_force.phase {
        _ if in_force.node == [0; 4] => "not yet filled",
        phase::BESIDE | phase::HOLD => "taking part beside the node's own NAT",
        phase::SHADOW => "only looking on",
        _ => "in force",
    };
    Ok(format!("{}: {what}", pins.display()))
}

fn agent(run_dir: &Path) -> Check {
    match lock::holder(run_dir) {
        Some(pid) => Check::good("agent", format!("runs (pid {pid})")),
        None => Check::good("agent", "does not run"),
    }
}

fn takeover(run_dir: &Path) -> Check {
    match Journal::read(run_dir) {
        Ok(None) => Check::good("takeover", "none is under way"),
        Ok(Some(journal)) => match journal.unfinished() {
            Some(unfinished) => Check::missing("takeover", unfinished),
            None => Check::good(
                "takeover",
                format!("done; {} rules are kept for `egress handback`", journal.rules.len()),
            ),
        },
        Err(error) => Check::missing("takeover", format!("{error:#}")),
    }
}

async fn network(config: &AgentConfig) -> Vec<Check> {
    let asked = async {
        let netlink = Netlink::open()?;
        let identity = node::identify(&netlink, config).await?;
        anyhow::Ok((node::devices(&netlink, config).await?, identity, netlink))
    };
    let (devices, identity, netlink) = match asked.await {
        Ok(found) => found,
        Err(error) => return vec![Check::missing("node", format!("{error:#}"))],
    };
    let Identity { name, ip, uplink, .. } = &identity;
    let mut checks = vec![Check::good("node", format!("{name}, {ip} on {}", uplink.name))];
    checks.extend(self::devices(config, &devices));
    let uplinks = std::iter::once(&uplink.name).chain(&config.node.uplinks);
    let on_uplinks = uplinks.flat_map(|name| {
        [Hook::UplinkEgress, Hook::UplinkIngress].map(|hook| (hook, name.clone()))
    });
    let links: Vec<_> = on_uplinks.chain(devices.places()).collect();
    let mut names: Vec<&str> = links.iter().map(|(_, link)| link.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    checks.push(reverse_path(config, &names));
    checks.push(forwarding(config));
    let mut others = Vec::new();
    for (hook, link) in &links {
        others.extend(strangers(*hook, link));
    }
    if let Ok(Some(on_xdp)) = netlink.on_xdp(uplink.index).await
        && !is_ours(on_xdp.program)
    {
        others.push(format!("program {} on XDP of {}", on_xdp.program, uplink.name));
    }
    checks.push(match others.is_empty() {
        true => Check::good("others", "no other program where ours belong"),
        false => Check::unwise(
            "others",
            format!(
                "{}: look which of them lets packets by, or takes them away",
                others.join(", ")
            ),
        ),
    });
    checks
}

fn devices(config: &AgentConfig, devices: &Devices) -> Vec<Check> {
    let mut checks: Vec<Check> = devices
        .missing
        .iter()
        .map(|name| {
            Check::missing(
                "device",
                format!("{name} does not exist: make it, or correct the AgentConfig"),
            )
        })
        .collect();
    match (&devices.tunnel, &config.tunnel.device) {
        (Some(link), _) => checks.push(Check::good("tunnel", link.name.clone())),
        (None, crate::config::Device::Auto) => checks.push(Check::unwise(
            "tunnel",
            format!(
                "no vxlan_sys_{}: tunnelled fragments are not treated; name tunnel.device",
                config.tunnel.port
            ),
        )),
        _ => {}
    }
    if config.gateway.is_none() {
        checks.push(Check::unwise(
            "gateway",
            "not set: this node's own pods are not treated; name the device, as tun0",
        ));
    }
    checks
}

/// Strict filtering drops what comes by a device that the way back does not take.
fn reverse_path(config: &AgentConfig, links: &[&str]) -> Check {
    let read = |name: &str| {
        let path = format!("/proc/sys/net/ipv4/conf/{name}/rp_filter");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0)
    };
    let all = read("all");
    let strict: Vec<&str> = links.iter().copied().filter(|link| all.max(read(link)) == 1).collect();
    if strict.is_empty() {
        return Check::good("rp_filter", "not strict");
    }
    let found = format!(
        "strict on {}: what the programs leave to the stack is dropped there; set \
         net.ipv4.conf.*.rp_filter to 2",
        strict.join(", ")
    );
    match config.data_path {
        DataPath::Stack => Check::missing("rp_filter", found),
        _ => Check::unwise("rp_filter", found),
    }
}

fn forwarding(config: &AgentConfig) -> Check {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    if text.trim() == "1" {
        return Check::good("forwarding", "on");
    }
    let found = "off: the node forwards nothing; set net.ipv4.ip_forward to 1";
    match config.data_path {
        DataPath::Stack => Check::missing("forwarding", found),
        _ => Check::unwise("forwarding", found),
    }
}

/// Programs at a hook of ours that are not ours.
fn strangers(hook: Hook, link: &str) -> Vec<String> {
    let direction = hook.direction();
    let Ok((_, there)) = SchedClassifier::query_tcx(link, direction) else { return Vec::new() };
    let way = if direction == TcAttachType::Egress { "out of" } else { "into" };
    there
        .iter()
        .filter(|info| !is_named_ours(info.name_as_str().unwrap_or_default()))
        .map(|info| {
            let name = info.name_as_str().unwrap_or("?");
            format!("program {} ({name}) {way} {link}", info.id())
        })
        .collect()
}

fn is_ours(program: u32) -> bool {
    let info = aya::programs::loaded_programs().flatten().find(|info| info.id() == program);
    info.is_some_and(|info| is_named_ours(info.name_as_str().unwrap_or_default()))
}

/// The kernel keeps 15 bytes of a program's name.
fn is_named_ours(name: &str) -> bool {
    let hooks = Hook::ALL.iter().map(|hook| hook.name()).chain([bpf::XDP]);
    hooks.into_iter().any(|ours| ours == name || ours.len() > 15 && ours.get(..15) == Some(name))
}

async fn ovs(config: &AgentConfig) -> Check {
    let Some(ovs) = node::ovs(config) else { return Check::good("ovs", "switched off") };
    match ovs.presence().await {
        Ok(Presence::Present(facts)) => Check::good(
            "ovs",
            match facts.rule_version {
                Some(version) => format!("{}, rule version {version}", config.ovs.bridge),
                None => format!("{}, without a note of its rule version", config.ovs.bridge),
            },
        ),
        Ok(Presence::Absent(why)) if config.ovs.enabled == crate::config::Enabled::Yes => {
            Check::missing("ovs", format!("{why}, and ovs.enabled is true"))
        }
        Ok(Presence::Absent(why)) => Check::good("ovs", why),
        Err(error) => Check::missing("ovs", format!("{error:#}")),
    }
}

async fn rules(bpffs: &Path) -> Check {
    let saved = match iptables::save(&["nat"]).await {
        Ok(saved) => saved,
        Err(error) => return Check::unwise("rules", format!("not looked at: {error:#}")),
    };
    let left = chain::tenants(&rules::parse(&saved)).len();
    let in_force = Maps::open(&bpf::pins(bpffs))
        .context("no pins")
        .and_then(|maps| maps::settings(&maps))
        .is_ok_and(|settings| settings.node != [0; 4] && settings.phase == phase::OWN);
    match (left, in_force) {
        (0, _) => Check::good("rules", "the nat table has no tenant's rule"),
        (left, true) => Check::unwise(
            "rules",
            format!(
                "{left} rules of tenants are in the nat table beside us: `egress takeover` removes them"
            ),
        ),
        (left, false) => Check::good(
            "rules",
            format!(
                "{left} rules of tenants: the node is the original's, `egress takeover` takes it over"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_programs_are_known_by_the_name_that_the_kernel_keeps() {
        for name in
            ["uplink_ingress", "gateway_ingress", "gateway_ingres", "uplink_xdp", "cil_from_netdev"]
        {
            let ours = name != "cil_from_netdev" && name != "gateway_ingres";
            assert_eq!(is_named_ours(name), ours, "{name}");
        }
    }

    #[test]
    fn an_unfinished_takeover_is_missing_and_names_both_ways_out() {
        let run_dir = std::env::temp_dir().join(format!("egress-doctor-{}", std::process::id()));
        fs::create_dir_all(&run_dir).expect("a directory");
        assert_eq!(takeover(&run_dir), Check::good("takeover", "none is under way"));
        let mut journal = Journal::default();
        journal.write(&run_dir).expect("written");
        let check = takeover(&run_dir);
        assert_eq!(check.verdict, Verdict::Missing);
        for way in ["egress takeover", "egress handback", "`noted`"] {
            assert!(check.found.contains(way), "{}", check.found);
        }
        journal.step = crate::takeover::journal::Step::Done;
        journal.write(&run_dir).expect("written");
        assert_eq!(takeover(&run_dir).verdict, Verdict::Good);
        fs::remove_dir_all(&run_dir).expect("removed");
    }
}
