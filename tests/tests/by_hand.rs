//! `egress add` and `egress del` beside a running agent: what the notes do in four steps.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    process::Output,
};

use anyhow::{Result, ensure};
use egress_tests::{
    gateway::{Gateway, OBJECTS},
    rig::{Rig, objects},
    traffic::{UdpServer, udp_exchange},
};

const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
/// The notes' third namespace, the last one to get an egress IP.
const ADD: &str = "add --vnid 0x2EC40E --egress-ip 10.0.0.12 --egress-node 10.0.0.2 --wait 20";
const DEL: &str = "del --vnid 0x2EC40E --egress-ip 10.0.0.12 --wait 20";
const POD: &str = "egress-test3-1";

fn egress(gateway: &Gateway, arguments: &str) -> Result<Output> {
    let mut words: Vec<&str> = arguments.split_whitespace().collect();
    words.extend(["-f", OBJECTS]);
    gateway.egress(&words)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
#[ignore = "needs root"]
fn one_command_is_in_force_when_it_returns() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    let pod = rig.netns(POD);
    let exchange = |id| pod.run(|| udp_exchange(FAR, id, 100));
    exchange(1)??;
    let output = egress(&gateway, DEL)?;
    ensure!(output.status.success(), "{}; {}", said(&output), gateway.log());
    // Without an egress IP it leaves as the node does.
    exchange(2)??;
    let output = egress(&gateway, ADD)?;
    ensure!(output.status.success(), "{}; {}", said(&output), gateway.log());
    exchange(3)??;
    let seen: Vec<_> = (1..=3).map(|id| server.peer(id).map(|peer| *peer.ip())).collect();
    let (egress_ip, node) = (Some(Ipv4Addr::new(10, 0, 0, 12)), Some(rig.egress.ip));
    assert_eq!(seen, [egress_ip, node, egress_ip]);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_the_node_cannot_have_is_said_with_the_reason() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let output = egress(
        &gateway,
        "add --vnid 12235633 --egress-ip 192.0.2.7 --egress-node ocprouter01 --wait 2",
    )?;
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    ensure!(said(&output).contains("NotInSubnet"), "{}", said(&output));
    ensure!(said(&output).contains("192.0.2.7 is outside 10.0.0.0/24"), "{}", said(&output));
    let file = gateway.beside(|| fs::read_to_string(OBJECTS))??;
    ensure!(file.contains("192.0.2.7") && file.len() > objects::CLUSTER_OBJECTS.len());
    Ok(())
}
