//! egressCIDRs in running agents: one deals out, all do as it says.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::{Gateway, OBJECTS},
    netns::wait_for,
    rig::trio::{EGRESS, SOURCE, SourceSide, TENANTS, Trio, objects},
    traffic::{TcpServer, exchange_many},
};

/// A file that all agents read, with its lock and what replaces it.
struct Shared(PathBuf);

impl Shared {
    fn new(text: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("egress-shared-{}", std::process::id()));
        fs::create_dir_all(&directory).context("make the shared directory")?;
        fs::write(directory.join("objects.yaml"), text).context("write the shared objects")?;
        Ok(Self(directory))
    }

    fn path(&self) -> PathBuf {
        self.0.join("objects.yaml")
    }

    fn start<'a>(&self, rig: &'a Trio, node: &str) -> Result<Gateway<'a>> {
        let settings = format!("allocator: {}\n", EGRESS[0]);
        let mut gateway = rig.gateway(node, &settings)?;
        gateway
            .beside(|| fs::remove_file(OBJECTS).and_then(|()| symlink(self.path(), OBJECTS)))??;
        gateway.run_agent()?;
        Ok(gateway)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The rig's objects, with egressCIDRs on the egress nodes in place of egress IPs.
fn automatic() -> String {
    let documents = objects();
    let documents = documents.split("---\n").map(|document| {
        let mut lines: Vec<&str> = document.lines().collect();
        if EGRESS.iter().any(|node| document.contains(&format!("host: {node}\n"))) {
            lines.retain(|line| !line.starts_with("egressIPs:"));
            lines.push("egressCIDRs: [10.0.0.8/29]");
        }
        lines.join("\n") + "\n"
    });
    documents.collect::<Vec<_>>().join("---\n")
}

/// What each agent holds, by node.
fn held(agents: &[(&str, Gateway<'_>)]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let held = |gateway: &Gateway<'_>| -> Result<BTreeSet<String>> {
        let status = gateway.status()?;
        let addresses = status["addresses"].as_array().context("addresses")?;
        let ip = |address: &serde_json::Value| {
            address["ip"].as_str().or(address.as_str()).unwrap_or_default().to_owned()
        };
        Ok(addresses.iter().map(ip).collect())
    };
    agents.iter().map(|(node, gateway)| Ok(((*node).to_owned(), held(gateway)?))).collect()
}

#[test]
#[ignore = "needs root"]
fn what_one_agent_deals_out_both_egress_nodes_host() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let shared = Shared::new(&automatic())?;
    // Who deals out comes last, lest it finds the other one offline before that one has begun.
    let [second, first] = [shared.start(&rig, EGRESS[1])?, shared.start(&rig, EGRESS[0])?];
    let agents = [(EGRESS[0], first), (EGRESS[1], second)];
    let logs = || agents.iter().map(|(_, agent)| agent.log()).collect::<Vec<_>>().join("\n");
    let all: BTreeSet<String> =
        TENANTS.iter().flat_map(|tenant| tenant.egress_ips).map(|(ip, _)| ip.to_string()).collect();
    let whole = wait_for("both to host what was dealt out", || {
        let held: Vec<BTreeSet<String>> = held(&agents)?.into_values().collect();
        let together: BTreeSet<String> = held.iter().flatten().cloned().collect();
        // Two each, and those of one tenant apart.
        let two = [TENANTS[0].egress_ips[0].0, TENANTS[0].egress_ips[1].0].map(|ip| ip.to_string());
        let apart = held.iter().all(|ips| two.iter().filter(|ip| ips.contains(*ip)).count() == 1);
        Ok(apart && held.iter().all(|ips| ips.len() == 2) && together == all)
    });
    ensure!(whole.is_ok(), "{whole:?}: {:?}\n{}", held(&agents)?, logs());
    let source = shared.start(&rig, SOURCE)?;
    for (tenant, pod) in TENANTS.iter().zip(["egress-test-1", "egress-test2-1", "egress-test3-1"]) {
        let server = TcpServer::start(rig.netns("far"), tenant.far())?;
        let exchanged = exchange_many(rig.netns(pod), tenant.far(), 0..16, 4, 1 << 10);
        ensure!(exchanged.is_ok(), "{pod}: {exchanged:?}\n{}\n{}", logs(), source.log());
        let seen: BTreeSet<_> = server.peers().iter().map(|peer| *peer.ip()).collect();
        let own: BTreeSet<_> = tenant.egress_ips.iter().map(|(ip, _)| *ip).collect();
        assert_eq!(seen, own, "{pod}");
    }
    // The second node is one no more: what the first can have too moves there.
    let text = fs::read_to_string(shared.path())?;
    let without: Vec<&str> =
        text.split("---\n").filter(|d| !d.contains(&format!("host: {}\n", EGRESS[1]))).collect();
    fs::write(shared.path().with_extension("new"), without.join("---\n"))?;
    fs::rename(shared.path().with_extension("new"), shared.path())?;
    let moved = wait_for("the first to host what it may", || {
        let held = held(&agents)?;
        Ok(held[EGRESS[0]].len() == 3 && held[EGRESS[1]].is_empty())
    });
    ensure!(moved.is_ok(), "{moved:?}: {:?}\n{}", held(&agents)?, logs());
    ensure!(rig.leaks()?.values().all(|count| *count == 0), "{:?}", rig.leaks()?);
    Ok(())
}
