//! A tenant with egress IPs on two nodes: its flows are spread over both, each stays on its own, and
//! of a node that goes only its own share moves.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::wait_for,
    rig::trio::{SPREAD, SourceSide, Trio, objects},
    traffic::{Download, TcpServer, UdpServer, exchange_many, tcp_exchange, udp_exchange},
};
use egress_user::ovs::Layout;

const POD: &str = "egress-test-1";
const FLOWS: u64 = 40;
/// More than the socket buffers hold.
const LENGTH: u64 = 16 << 20;

/// The rig's objects, of which no node hosts these egress IPs any more.
fn unhosted(ips: &[Ipv4Addr]) -> String {
    let documents = objects();
    let documents = documents.split("---\n").map(|document| {
        let mut document = document.to_owned();
        if document.contains("kind: HostSubnet") {
            for ip in ips {
                document = document.replace(&format!("\"{ip}\""), "\"10.0.0.99\"");
            }
        }
        document
    });
    documents.collect::<Vec<_>>().join("---\n")
}

fn logs(agents: &[Gateway<'_>]) -> String {
    agents.iter().map(|agent| agent.log()).collect::<Vec<_>>().join("\n")
}

fn spread_and_stay(side: SourceSide) -> Result<()> {
    let rig = Trio::up(side)?;
    let agents = rig.agents("")?;
    let server = TcpServer::start(rig.netns("far"), SPREAD.far())?;
    let pod = rig.netns(POD);
    let [(stays, _), (goes, _)] = *SPREAD.egress_ips else { bail!("the tenant has two") };
    let mut downloads = BTreeMap::new();
    for id in 0..FLOWS {
        let mut download = pod.run(|| Download::start(SPREAD.far(), id, LENGTH))??;
        // A flow whose packets took turns would not come that far.
        let read = download.read(1 << 20);
        ensure!(read.is_ok(), "{side:?}: {read:?}\n{}", logs(&agents));
        downloads.insert(id, download);
    }
    let way = |id: u64| server.peer(id).map(|peer| *peer.ip()).context("it never arrived");
    let ways: BTreeMap<u64, Ipv4Addr> =
        (0..FLOWS).map(|id| Ok((id, way(id)?))).collect::<Result<_>>()?;
    for ip in [stays, goes] {
        let share = ways.values().filter(|way| **way == ip).count();
        // One of 10,000 fair spreads has less.
        ensure!(share >= 8, "{side:?}: {share} of {FLOWS} by {ip}");
    }
    let source = &agents[0];
    source.write_objects(&unhosted(&[goes]))?;
    let mut id = FLOWS;
    wait_for("all new flows to leave by the other node", || {
        id += 16;
        // One that has begun on the node that goes is cut.
        let exchanged = exchange_many(pod, SPREAD.far(), id..id + 16, 4, 64);
        Ok(exchanged.is_ok() && (id..id + 16).all(|id| way(id).is_ok_and(|way| way == stays)))
    })?;
    for (id, download) in downloads {
        if ways[&id] == stays {
            let finished = download.finish();
            ensure!(finished.is_ok(), "{side:?}: {id}: {finished:?}\n{}", logs(&agents));
        }
    }
    source.write_objects(&unhosted(&[goes, stays]))?;
    wait_for("the last way to close", || {
        id += 1;
        Ok(pod.run(|| tcp_exchange(SPREAD.far(), id, 64))?.is_err())
    })?;
    ensure!(rig.leaks()?.values().all(|count| *count == 0), "{side:?}: {:?}", rig.leaks()?);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn without_open_vswitch_flows_are_spread_and_stay_when_another_node_goes() -> Result<()> {
    spread_and_stay(SourceSide::Plain)
}

/// openshift/sdn#462: the select group may not take turns packet by packet.
#[test]
#[ignore = "needs root"]
fn by_select_groups_flows_are_spread_and_stay_when_another_node_goes() -> Result<()> {
    spread_and_stay(SourceSide::OpenVSwitch(Layout::New))
}

#[test]
#[ignore = "needs root"]
fn datagrams_whole_and_in_fragments_leave_with_one_address() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let agents = rig.agents("")?;
    let server = UdpServer::start(rig.netns("far"), SPREAD.far())?;
    let mut ways = BTreeSet::new();
    for id in 0..20 {
        let length = if id % 2 == 0 { 100 } else { 4000 };
        let exchange = rig.netns(POD).run(|| udp_exchange(SPREAD.far(), id, length))?;
        ensure!(exchange.is_ok(), "{id}: {exchange:?}\n{}", logs(&agents));
        ways.extend(server.peer(id).map(|peer| *peer.ip()));
    }
    assert_eq!(ways.len(), 1, "{ways:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn with_affinity_to_the_pod_all_its_connections_leave_with_one_address() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let agents = rig.agents("affinity: pod\n")?;
    let server = TcpServer::start(rig.netns("far"), SPREAD.far())?;
    for (first, pod) in [(0, POD), (100, "egress-test-2")] {
        let ids = first..first + 20;
        let exchanged = exchange_many(rig.netns(pod), SPREAD.far(), ids.clone(), 4, 64);
        ensure!(exchanged.is_ok(), "{exchanged:?}\n{}", logs(&agents));
        let ways: BTreeSet<_> = ids.filter_map(|id| Some(*server.peer(id)?.ip())).collect();
        assert_eq!(ways.len(), 1, "{pod}: {ways:?}");
    }
    Ok(())
}
