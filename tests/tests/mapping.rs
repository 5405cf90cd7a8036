//! Endpoint-independent mapping, seen from outside.
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    rig::{
        Rig,
        objects::{AGENT_CONFIG, CLUSTER_OBJECTS},
    },
    traffic::{PATIENCE, UdpServer},
};
use serde_json::json;

/// The port that both pods send from, and the servers' port.
const FROM: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 40_000);
const SERVERS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);

/// Sends a datagram to each outside host in turn, takes the answers, and tells the ports that the
/// hosts saw.
fn ports_seen(
    rig: &Rig,
    socket: &UdpSocket,
    servers: &[UdpServer],
    first: u64,
) -> Result<Vec<u16>> {
    let mut ports = Vec::new();
    for ((id, host), server) in (first..).zip(&rig.outside).zip(servers) {
        let to = SocketAddrV4::new(host.ip, 7000);
        socket.send_to(&id.to_be_bytes(), to)?;
        let mut answer = [0; 64];
        let (length, from) = socket.recv_from(&mut answer).context("receive the answer")?;
        ensure!(from == to.into() && answer[..length] == id.to_be_bytes(), "answer of {from}");
        let peer = server.peer(id).context("the server has seen nobody")?;
        ensure!(Some(*peer.ip()) == rig.pod("egress-test-1").egress_ip, "seen as {peer}");
        ports.push(peer.port());
    }
    Ok(ports)
}

#[test]
#[ignore = "needs root"]
fn every_host_sees_a_pods_port_as_one_port_and_no_other_pods() -> Result<()> {
    let rig = Rig::up()?;
    let name = "    name: egress-test\n";
    ensure!(CLUSTER_OBJECTS.matches(name).count() == 1, "the tenant's object is there once");
    let annotation = "    annotations: {egress/mapping: endpoint-independent}\n";
    let objects = CLUSTER_OBJECTS.replace(name, &format!("{annotation}{name}"));
    let gateway = Gateway::running(rig.netns(&rig.egress.name), AGENT_CONFIG, &objects)?;
    let servers: Vec<UdpServer> = rig
        .outside
        .iter()
        .map(|host| UdpServer::start(rig.netns(&host.name), SERVERS))
        .collect::<Result<_>>()?;
    let mut seen = Vec::new();
    for (first, pod) in [(100, "egress-test-1"), (200, "egress-test-2")] {
        let socket = rig.netns(pod).run(|| UdpSocket::bind(FROM))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        seen.push((ports_seen(&rig, &socket, &servers, first)?, socket));
    }
    let [(first, _first), (second, _second)] = &seen[..] else { unreachable!() };
    assert!(first.len() == 2 && first == &[40_000; 2], "{first:?}");
    assert!(second.len() == 2 && second[0] == second[1] && second[0] != 40_000, "{second:?}");
    let status = gateway.status()?;
    let policies = status["policies"].as_array().context("policies")?;
    let tenant = policies.iter().find(|policy| policy["vnid"] == 7_305_526).context("tenant")?;
    let told = json!([tenant["mapping"], tenant["ports"], tenant["flows"]]);
    assert_eq!(told, json!(["endpoint-independent", 2, 6]));
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}
