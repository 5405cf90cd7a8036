//! Nodes that die, stop, lose packets or are half deaf, as the source node sees it: who leaves by whom,
//! and that nothing ever leaves with a wrong address.
use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::wait_for,
    rig::trio::{EGRESS, SOURCE, SPREAD, SourceSide, TENANTS, Tenant, Trio},
    traffic::{Download, TcpServer, exchange_many, tcp_exchange},
};
use egress_user::ovs::Layout;
use serde_json::Value;

const SIDES: [SourceSide; 2] = [SourceSide::Plain, SourceSide::OpenVSwitch(Layout::New)];
/// For a connection that is not to come.
const PATIENCE: Duration = Duration::from_millis(500);
const DOWNLOADS: u64 = 20;
/// Of a download: more than the socket buffers hold.
const LENGTH: u64 = 16 << 20;

/// What the agent says of an egress node.
fn health(agent: &Gateway<'_>, node: &str) -> Result<Value> {
    let status = agent.status()?;
    let nodes = status["nodes"].as_array().context("no nodes in the status")?;
    Ok(nodes.iter().find(|known| known["name"] == node).cloned().unwrap_or(Value::Null))
}

/// Whether a condition of that reason holds for a node; it names all that was tried.
fn has_condition(agent: &Gateway<'_>, reason: &str, node: &str) -> Result<bool> {
    let status = agent.status()?;
    let conditions = status["conditions"].as_array().context("no conditions")?;
    Ok(conditions.iter().any(|told| {
        let message = told["message"].as_str().unwrap_or_default();
        told["object"] == format!("HostSubnet/{node}")
            && told["reason"] == reason
            && ["UDP 4789", "TCP port 9"].iter().all(|tried| message.contains(tried))
    }))
}

/// The agents, when the source node's hears both others by both ways.
fn agents<'a>(rig: &'a Trio, settings: &str) -> Result<[Gateway<'a>; 3]> {
    let agents = rig.agents(settings)?;
    for node in EGRESS {
        wait_for(&format!("{node} to be heard"), || {
            let health = health(&agents[0], node)?;
            Ok(health["probe"] == "answers" && health["gateway"] == "answers")
        })
        .with_context(|| agents[0].log())?;
    }
    Ok(agents)
}

/// Tries until so many exchanges one after the other have succeeded.
fn wait_for_traffic(rig: &Trio, pod: &str, tenant: &Tenant, ids: u64) -> Result<()> {
    wait_for(&format!("traffic of {pod}"), || {
        for _ in 0..10 {
            if !connects(rig, pod, tenant)? {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    for id in ids..ids + 10 {
        rig.netns(pod).run(|| tcp_exchange(tenant.far(), id, 10_000))??;
    }
    Ok(())
}

fn connects(rig: &Trio, pod: &str, tenant: &Tenant) -> Result<bool> {
    let to = SocketAddr::from(tenant.far());
    Ok(rig.netns(pod).run(|| TcpStream::connect_timeout(&to, PATIENCE))?.is_ok())
}

fn no_leaks(rig: &Trio) -> Result<()> {
    let leaks = rig.leaks()?;
    ensure!(leaks.values().all(|packets| *packets == 0), "{leaks:?}");
    Ok(())
}

fn egress_ip(tenant: &Tenant, place: usize) -> Result<Ipv4Addr> {
    tenant.on(place).context("the tenant has no egress IP there")
}

#[test]
#[ignore = "needs root"]
fn tenants_leave_by_the_other_node_when_a_cable_is_pulled_and_who_has_none_is_dropped() -> Result<()>
{
    for side in SIDES {
        let rig = Trio::up(side)?;
        let agents = agents(&rig, "")?;
        let servers = TENANTS
            .iter()
            .map(|tenant| TcpServer::start(rig.netns("far"), tenant.far()))
            .collect::<Result<Vec<_>>>()?;
        wait_for_traffic(&rig, "egress-test-1", SPREAD, 0)?;
        wait_for_traffic(&rig, "egress-test2-1", &TENANTS[1], 0)?;
        rig.pull(EGRESS[0])?;
        wait_for("the node to be offline", || {
            Ok(health(&agents[0], EGRESS[0])?["state"] == "offline"
                && has_condition(&agents[0], "Offline", EGRESS[0])?)
        })
        .with_context(|| agents[0].log())?;
        wait_for_traffic(&rig, "egress-test-1", SPREAD, 100)?;
        let other = egress_ip(SPREAD, 1)?;
        for id in 100..110 {
            assert_eq!(servers[0].peer(id).map(|peer| *peer.ip()), Some(other), "{side:?}");
        }
        ensure!(!connects(&rig, "egress-test2-1", &TENANTS[1])?, "out of nowhere");
        no_leaks(&rig)?;
        rig.plug(EGRESS[0])?;
        wait_for("the node to be online", || {
            Ok(health(&agents[0], EGRESS[0])?["state"] == "online")
        })?;
        wait_for_traffic(&rig, "egress-test2-1", &TENANTS[1], 100)?;
        wait_for_traffic(&rig, "egress-test-2", SPREAD, 200)?;
        no_leaks(&rig)?;
    }
    Ok(())
}

/// Downloads of the spread tenant that last, each with the number by which the server knows it.
struct Lasting<'a> {
    rig: &'a Trio,
    server: &'a TcpServer,
    next: u64,
}

impl Lasting<'_> {
    /// So many more, all under way.
    fn begin(&mut self) -> Result<Vec<(u64, Download)>> {
        self.next += DOWNLOADS;
        let begin = |id| {
            let to = SPREAD.far();
            let mut download =
                self.rig.netns("egress-test-1").run(|| Download::start(to, id, LENGTH))??;
            download.read(1 << 20).with_context(|| format!("begin the download {id}"))?;
            Ok((id, download))
        };
        (self.next..self.next + DOWNLOADS).map(begin).collect()
    }

    fn is_by(&self, id: u64, ip: Ipv4Addr) -> bool {
        self.server.peer(id).is_some_and(|peer| *peer.ip() == ip)
    }

    /// Whether any of a number of new connections leaves so.
    fn any_new_is_by(&mut self, ip: Ipv4Addr) -> Result<bool> {
        self.next += DOWNLOADS;
        let ids = self.next..self.next + DOWNLOADS;
        exchange_many(self.rig.netns("egress-test-1"), SPREAD.far(), ids.clone(), 4, 64)?;
        Ok(ids.into_iter().any(|id| self.is_by(id, ip)))
    }
}

#[test]
#[ignore = "needs root"]
fn what_went_elsewhere_stays_there_when_a_node_returns_however_often() -> Result<()> {
    for side in SIDES {
        let rig = Trio::up(side)?;
        let agents = agents(&rig, "health: {interval: 400ms, holdDown: 500ms}\n")?;
        let server = TcpServer::start(rig.netns("far"), SPREAD.far())?;
        let [goes, stays] = [egress_ip(SPREAD, 0)?, egress_ip(SPREAD, 1)?];
        let is = |state: &str| {
            wait_for(state, || Ok(health(&agents[0], EGRESS[0])?["state"] == state))
                .with_context(|| agents[0].log())
        };
        let mut lasting = Lasting { rig: &rig, server: &server, next: 0 };
        let mut running = Vec::new();
        for _ in 0..2 {
            running.extend(lasting.begin()?);
            rig.pull(EGRESS[0])?;
            is("offline")?;
            wait_for("no flow to leave by the node that is gone", || {
                Ok(!lasting.any_new_is_by(goes).unwrap_or(true))
            })?;
            running.retain(|(id, _)| lasting.is_by(*id, stays));
            running.extend(lasting.begin()?);
            rig.plug(EGRESS[0])?;
            is("online")?;
            wait_for("new flows to leave by the node that is back", || lasting.any_new_is_by(goes))
                .with_context(|| format!("{side:?}: {}", agents[0].log()))?;
            for (id, download) in &mut running {
                let read = download.read(1 << 20);
                ensure!(read.is_ok(), "{side:?}: {id}: {read:?}\n{}", agents[0].log());
            }
        }
        no_leaks(&rig)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn who_stops_in_order_is_left_at_once_and_who_is_killed_carries_on() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let mut agents = agents(&rig, "")?;
    let _servers = TENANTS
        .iter()
        .map(|tenant| TcpServer::start(rig.netns("far"), tenant.far()))
        .collect::<Result<Vec<_>>>()?;
    wait_for_traffic(&rig, "egress-test-1", SPREAD, 0)?;
    agents[1].kill()?;
    let killed = Instant::now();
    let mut id = 1000;
    while killed.elapsed() < Duration::from_secs(2) {
        rig.netns("egress-test2-1").run(|| tcp_exchange(TENANTS[1].far(), id, 1000))??;
        id += 1;
    }
    assert_eq!(health(&agents[0], EGRESS[0])?["state"], "online");
    agents[1].run_agent()?;
    ensure!(agents[1].stop()?.success(), "{}", agents[1].log());
    wait_for("the node to be offline", || {
        let health = health(&agents[0], EGRESS[0])?;
        Ok(health["state"] == "offline" && health["probe"] == "stopped")
    })
    .with_context(|| agents[0].log())?;
    wait_for_traffic(&rig, "egress-test-1", SPREAD, 100)?;
    no_leaks(&rig)
}

#[test]
#[ignore = "needs root"]
fn one_silent_way_is_told_and_the_node_stays_in_use() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let agents = agents(&rig, "")?;
    let _server = TcpServer::start(rig.netns("far"), TENANTS[1].far())?;
    // Questions are lost on their way; tenants' packets, which are no VNID 0, are not.
    rig.netns("switch").nft(&format!(
        "table netdev deaf {{\nchain {SOURCE} {{\n\
         type filter hook ingress device {SOURCE} priority 1\n\
         udp dport 4789 @th,96,24 0 @ih,64,48 0x0180c200000e drop\n}}\n}}\n"
    ))?;
    wait_for("the condition", || has_condition(&agents[0], "Silent", EGRESS[0]))
        .with_context(|| agents[0].log())?;
    let known = health(&agents[0], EGRESS[0])?;
    assert_eq!(
        (&known["state"], &known["probe"], &known["gateway"]),
        (&"online".into(), &"silent".into(), &"answers".into())
    );
    wait_for_traffic(&rig, "egress-test2-1", &TENANTS[1], 0)?;
    rig.netns("switch").nft("delete table netdev deaf")?;
    wait_for("the condition to go", || Ok(!has_condition(&agents[0], "Silent", EGRESS[0])?))
}

/// For ten seconds, or as many as `EGRESS_LOSS_SECONDS` says.
#[test]
#[ignore = "needs root"]
fn a_tenth_of_all_packets_lost_changes_nothing() -> Result<()> {
    let seconds = std::env::var("EGRESS_LOSS_SECONDS").map_or(Ok(10), |text| text.parse())?;
    let rig = Trio::up(SourceSide::Plain)?;
    let agents = agents(&rig, "")?;
    let before = EGRESS.map(|node| health(&agents[0], node).map(|known| known["since"].clone()));
    let told = agents[0].log().len();
    rig.lose(10)?;
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for (node, since) in EGRESS.iter().zip(&before) {
            let known = health(&agents[0], node)?;
            assert_eq!(
                (&known["state"], Some(&known["since"])),
                (&"online".into(), since.as_ref().ok())
            );
        }
    }
    let log = agents[0].log().split_off(told);
    ensure!(!log.contains("Offline"), "{log}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_node_that_hears_no_other_is_silent_about_its_egress_ips_even_without_its_agent() -> Result<()>
{
    let rig = Trio::up(SourceSide::Plain)?;
    let mut agents = agents(&rig, "health: {lease: 1s}\n")?;
    let _server = TcpServer::start(rig.netns("far"), TENANTS[1].far())?;
    let answers = |ip: Ipv4Addr| {
        rig.netns("outside").exec(&format!("arping -q -c 1 -w 1 -I eth0 {ip}")).is_ok()
    };
    let node = rig.node(EGRESS[0]).ip;
    let mine = egress_ip(&TENANTS[1], 0)?;
    agents[1].kill()?;
    // For longer than the lease: the others' questions renew it.
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(3) {
        ensure!(answers(mine), "silent because its agent is dead");
    }
    wait_for_traffic(&rig, "egress-test2-1", &TENANTS[1], 0)?;
    let others: String = [SOURCE, EGRESS[1]]
        .iter()
        .map(|port| {
            format!(
                "chain {port} {{\ntype filter hook ingress device {port} priority 1\n\
                 ip daddr {node} drop\n}}\n"
            )
        })
        .collect();
    rig.netns("switch").nft(&format!("table netdev apart {{\n{others}}}\n"))?;
    wait_for("the node to be silent", || Ok(!answers(mine)))?;
    ensure!(answers(node), "its own address is none of an egress IP's");
    agents[1].run_agent()?;
    wait_for("the condition", || Ok(agents[1].log().contains("Agent/lease Fenced")))?;
    ensure!(!answers(mine), "answered because of its agent");
    rig.netns("switch").nft("delete table netdev apart")?;
    wait_for("the node to answer", || Ok(answers(mine)))?;
    wait_for_traffic(&rig, "egress-test2-1", &TENANTS[1], 100)?;
    no_leaks(&rig)
}
