//! The competitors: source translation by mark with the kernel's conntrack.
//!
//! They get the best case: the SNAT rules are all there is in the chain, packets are marked by a
//! few instructions instead of OVS, checksums are not verified, and conntrack is flushed for them
//! between runs of new flows, while ours has to expire its flows itself.
use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_common::bench::{EGRESS_BASE, vnid};

use super::{Variant, mark_packets};
use crate::bench::{
    rig::{GATEWAY, Rig, TUNNEL, UPLINK, dotted},
    workload::{Flows, Workload},
};

const CLUSTER: &str = "10.128.0.0/14";

/// Rules beyond which a rule list is no longer tried: a new flow would cost a millisecond.
const MOST_RULES: u32 = 5_000;

/// The egress IP of the VNID with this number.
pub fn egress_ip(number: u32) -> String {
    dotted((EGRESS_BASE + number).to_be_bytes())
}

fn tune(rig: &mut Rig) -> Result<()> {
    mark_packets(rig)?;
    for (key, value) in [("checksum", "0"), ("udp_timeout", "3600"), ("udp_timeout_stream", "3600")]
    {
        rig.node.sysctl(&format!("net/netfilter/nf_conntrack_{key}"), value)?;
    }
    Ok(())
}

/// How many flows conntrack can hold: set for the whole machine, not for a namespace.
fn capacity(rig: &Rig) -> Result<u64> {
    let max = rig.node.read_sysctl("net/netfilter/nf_conntrack_max")?;
    max.parse().with_context(|| format!("nf_conntrack_max is {max:?}"))
}

fn fits(rig: &Rig, workload: &Workload) -> Result<()> {
    let Flows::Established(flows) = workload.flows else { return Ok(()) };
    let capacity = capacity(rig)?;
    ensure!(
        u64::from(flows) * 11 / 10 <= capacity,
        "conntrack holds {capacity} flows: raise net.netfilter.nf_conntrack_max, and \
         /sys/module/nf_conntrack/parameters/hashsize with it, before the run"
    );
    Ok(())
}

fn forget(rig: &mut Rig) -> Result<()> {
    rig.node.run(&["conntrack", "-F"]).map(drop)
}

fn facts(rig: &Rig) -> Result<String> {
    let path = "/sys/module/nf_conntrack/parameters/hashsize";
    let buckets = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    Ok(format!("conntrack max {}, buckets {}", capacity(rig)?, buckets.trim()))
}

/// `iptables -t nat -A POSTROUTING -s CLUSTER -m mark --mark M -j SNAT --to-source IP`, one a VNID.
#[derive(Debug, Clone, Copy)]
pub struct Iptables {
    flavour: &'static str,
}

impl Iptables {
    /// The xtables of old.
    pub fn legacy() -> Self {
        Self { flavour: "legacy" }
    }

    /// The same rules as nf_tables expressions.
    pub fn nft() -> Self {
        Self { flavour: "nft" }
    }
}

/// One line of `iptables-restore` for the VNID with this number.
pub fn snat_rule(number: u32) -> String {
    let (mark, address) = (vnid(number), egress_ip(number));
    format!("-A POSTROUTING -s {CLUSTER} -m mark --mark {mark:#x} -j SNAT --to-source {address}")
}

/// The original's two chains, without the tenants' rules.
const MASQUERADE_RULES: &str = "\
:OPENSHIFT-MASQUERADE - [0:0]
:OPENSHIFT-MASQUERADE-2 - [0:0]
-A POSTROUTING -j OPENSHIFT-MASQUERADE
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -j OPENSHIFT-MASQUERADE-2
-A OPENSHIFT-MASQUERADE-2 -d 10.128.0.0/14 -j RETURN
-A OPENSHIFT-MASQUERADE-2 -j MASQUERADE
";

impl Variant for Iptables {
    fn name(&self) -> String {
        format!("iptables-{}", self.flavour)
    }

    fn carries(&self, workload: &Workload) -> bool {
        workload.policies <= MOST_RULES
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let mut rules = "*nat\n".to_owned();
        if rig.setting.masquerade {
            rules.push_str(MASQUERADE_RULES);
        } else {
            for number in 0..rig.setting.policies {
                writeln!(rules, "{}", snat_rule(number))?;
            }
        }
        rules.push_str("COMMIT\n");
        let restore = format!("iptables-{}-restore", self.flavour);
        rig.node.run_with_input(&[&restore, "--wait"], &rules)?;
        tune(rig)
    }

    fn prepare(&mut self, rig: &mut Rig, workload: &Workload) -> Result<()> {
        fits(rig, workload)?;
        forget(rig)
    }

    fn forget(&mut self, rig: &mut Rig) -> Result<()> {
        forget(rig)
    }

    fn facts(&self, rig: &Rig) -> Result<String> {
        facts(rig)
    }
}

/// One rule for all VNIDs: `snat to meta mark map`.
#[derive(Debug, Clone, Copy)]
pub struct NftMap;

fn nft_map(policies: u32) -> String {
    let elements: Vec<String> = (0..policies)
        .map(|number| format!("{:#x} : {}", vnid(number), egress_ip(number)))
        .collect();
    format!(
        "map egress {{ type mark : ipv4_addr; elements = {{ {} }}; }}\n\
         chain postrouting {{ type nat hook postrouting priority srcnat;\n\
         ip saddr {CLUSTER} snat to meta mark map @egress\n}}\n",
        elements.join(", ")
    )
}

impl Variant for NftMap {
    fn name(&self) -> String {
        "nft-map".to_owned()
    }

    fn carries(&self, workload: &Workload) -> bool {
        !workload.masquerade
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let table = format!("table ip egress {{\n{}}}\n", nft_map(rig.setting.policies));
        rig.node.run_with_input(&["nft", "-f", "-"], &table)?;
        tune(rig)
    }

    fn prepare(&mut self, rig: &mut Rig, workload: &Workload) -> Result<()> {
        fits(rig, workload)?;
        forget(rig)
    }

    fn forget(&mut self, rig: &mut Rig) -> Result<()> {
        forget(rig)
    }

    fn facts(&self, rig: &Rig) -> Result<String> {
        facts(rig)
    }
}

/// The same, with established flows forwarded by a flow table.
#[derive(Debug, Clone, Copy)]
pub struct Flowtable;

impl Variant for Flowtable {
    fn name(&self) -> String {
        "nft-flowtable".to_owned()
    }

    fn carries(&self, workload: &Workload) -> bool {
        // It shortens the way of established flows; a new one takes nft-map's.
        workload.flows != Flows::New && !workload.masquerade
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let table = format!(
            "table ip egress {{\n\
             flowtable fast {{ hook ingress priority 0; devices = {{ {UPLINK}, {GATEWAY}, {TUNNEL} }}; }}\n\
             chain forward {{ type filter hook forward priority 0; flow add @fast\n}}\n{}}}\n",
            nft_map(rig.setting.policies)
        );
        rig.node.run_with_input(&["nft", "-f", "-"], &table).map_err(|error| {
            let missing = error.to_string().contains("No such file or directory");
            if missing { anyhow!("the kernel has no CONFIG_NF_FLOW_TABLE") } else { error }
        })?;
        tune(rig)
    }

    fn prepare(&mut self, rig: &mut Rig, workload: &Workload) -> Result<()> {
        fits(rig, workload)?;
        forget(rig)
    }

    fn forget(&mut self, rig: &mut Rig) -> Result<()> {
        forget(rig)
    }

    fn facts(&self, rig: &Rig) -> Result<String> {
        facts(rig)
    }
}
