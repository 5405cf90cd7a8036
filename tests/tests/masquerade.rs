//! Pods without a policy on a node that masquerades them itself: its kernel has no rule for them.
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_common::testing::packet::{Datagram, tcp};
use egress_tests::{
    gateway::Gateway,
    lone,
    netns::{Netns, wait_until},
    report::{Protocol, Witness},
    rig::{
        Rig,
        objects::{AGENT_CONFIG, CLUSTER_OBJECTS},
    },
    traffic::{
        Capture, PATIENCE, TcpServer, UdpServer, exchange_many, ping, tcp_exchange, udp_exchange,
    },
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, socket};
use serde_json::Value;

/// A pod of the egress node, of a VNID that asks for no egress IP.
const POD: &str = "gitea-2";
/// A tenant's, there too.
const TENANT: &str = "egress-test-3";
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);
/// The ports that the settings of the examples give to masquerading, and the kernel to sockets.
const OURS: std::ops::RangeInclusive<u16> = 11_000..=29_999;
const SOCKETS: std::ops::RangeInclusive<u16> = 32_768..=60_999;

/// The rig without the node's own rule for such pods, and the agent that takes its place.
fn masquerading<'a>(rig: &'a Rig, data_path: &str) -> Result<Gateway<'a>> {
    let node = rig.netns(&rig.egress.name);
    node.nft("delete table ip nat\n")?;
    let config = config(AGENT_CONFIG).replace("dataPath: auto", &format!("dataPath: {data_path}"));
    let gateway = Gateway::running(node, &config, CLUSTER_OBJECTS)?;
    Ok(gateway)
}

fn config(text: &str) -> String {
    lone::with(text, ("masquerade: false", "masquerade: true"))
}

/// What a pod, a tenant's pod and the node do, all against the same server.
fn every_pod_is_seen_as_it_should_be(data_path: &str) -> Result<()> {
    let rig = Rig::up()?;
    let gateway = masquerading(&rig, data_path)?;
    for host in &rig.outside {
        let mut witness = Witness::start(rig.netns(&host.name).name(), host.ip)?;
        for pod in rig
            .pods
            .iter()
            .filter(|pod| [POD, TENANT, "egress-test2-1"].contains(&pod.name.as_str()))
        {
            for protocol in Protocol::ALL {
                let row = witness.observe(&rig.talker(pod), protocol)?;
                assert!(row.ok, "{row:?} at {}", host.name);
            }
        }
    }
    let server = TcpServer::start(rig.netns("far"), ANY)?;
    exchange_many(rig.netns(POD), FAR, 0..200, 8, 100_000)?;
    exchange_many(rig.netns(TENANT), FAR, 1000..1100, 8, 100_000)?;
    for id in 0..200 {
        let seen = server.peer(id).context("an exchange without a peer")?;
        assert_eq!(*seen.ip(), rig.egress.ip);
        assert!(OURS.contains(&seen.port()), "{seen}");
    }
    for id in 1000..1100 {
        assert_eq!(server.peer(id).map(|peer| *peer.ip()), rig.pod(TENANT).egress_ip);
    }
    assert_eq!(rig.untranslated()?.0, 0, "packets with a pod's address");
    let paths = &gateway.status()?["paths"];
    let direct = if data_path == "stack" { "stack" } else { "gateway" };
    assert!(paths[direct].as_u64().is_some_and(|count| count > 3000), "{paths}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn pods_without_a_policy_leave_with_the_nodes_address_beside_tenants_on_tc() -> Result<()> {
    every_pod_is_seen_as_it_should_be("tc")
}

#[test]
#[ignore = "needs root"]
fn pods_without_a_policy_leave_with_the_nodes_address_beside_tenants_through_the_stack()
-> Result<()> {
    every_pod_is_seen_as_it_should_be("stack")
}

#[test]
#[ignore = "needs root"]
fn nothing_of_a_masqueraded_connection_is_in_the_nodes_conntrack() -> Result<()> {
    let rig = Rig::up()?;
    let _gateway = masquerading(&rig, "tc")?;
    let node = rig.netns(&rig.egress.name);
    // Something that makes the kernel track at all, as on any node of a cluster.
    node.nft(
        "table ip track {\nchain in {\ntype filter hook prerouting priority 0\n\
         ct state invalid counter\n}\n}\n",
    )?;
    let _server = TcpServer::start(rig.netns("far"), ANY)?;
    exchange_many(rig.netns(POD), FAR, 0..50, 8, 10_000)?;
    let tracked = node.exec("conntrack -L -p tcp")?;
    assert!(!tracked.contains(&rig.pod(POD).ip.to_string()), "{tracked}");
    Ok(())
}

/// From ports that the kernel takes for sockets, `step` apart, towards the one remote that all speak
/// to.
fn datagrams_from_ports(netns: &Netns, step: usize) -> Result<()> {
    netns.run(|| {
        let mut answer = [0; 64];
        for port in SOCKETS.step_by(step) {
            let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            let socket = match UdpSocket::bind(from) {
                // The agent watches other nodes from such ports too.
                Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
                bound => bound.with_context(|| format!("bind {port}"))?,
            };
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(FAR)?;
            let id = (u64::from(port) | 1 << 32).to_be_bytes();
            socket.send(&id)?;
            let length = socket.recv(&mut answer).with_context(|| format!("answer to {port}"))?;
            anyhow::ensure!(answer[..length] == id, "{port} got the answer of another");
        }
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn the_nodes_own_connections_work_under_load_and_its_ports_never_collide() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = masquerading(&rig, "tc")?;
    let node = rig.netns(&rig.egress.name);
    let far = rig.netns("far");
    let (server, _datagrams) = (TcpServer::start(far, ANY)?, UdpServer::start(far, ANY)?);
    let here = SocketAddrV4::new(rig.egress.ip, 7000);
    let _node_server = TcpServer::start(node, here)?;
    thread::scope(|scope| {
        let at_work: Vec<thread::ScopedJoinHandle<Result<()>>> = vec![
            scope.spawn(|| datagrams_from_ports(node, 1)),
            scope.spawn(|| datagrams_from_ports(rig.netns(POD), 2)),
            scope.spawn(|| exchange_many(node, FAR, 0..400, 4, 20_000)),
            scope.spawn(|| exchange_many(rig.netns(POD), FAR, 1000..1400, 4, 20_000)),
            scope.spawn(|| exchange_many(far, here, 2000..2200, 4, 20_000)),
        ];
        at_work
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Result<Vec<()>>>()
    })?;
    node.run(|| ping(*FAR.ip(), 7))??;
    for (ids, ports) in [(0..400, SOCKETS), (1000..1400, OURS)] {
        for id in ids {
            let peer = server.peer(id).with_context(|| format!("exchange {id} never arrived"))?;
            assert_eq!(*peer.ip(), rig.egress.ip);
            assert!(ports.contains(&peer.port()), "{peer} of {id}");
        }
    }
    assert_eq!(rig.untranslated()?.0, 0, "packets with a pod's address");
    assert!(!gateway.log().contains("took port"), "{}", gateway.log());
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_socket_of_the_node_in_the_range_gets_its_answers_and_is_told_of() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = masquerading(&rig, "tc")?;
    let node = rig.netns(&rig.egress.name);
    let echo = UdpServer::start(rig.netns("far"), ANY)?;
    let pods_port = |id: u64| -> Result<u16> {
        rig.netns(POD).run(|| udp_exchange(FAR, id, 8))??;
        Ok(echo.peer(id).context("the pod's datagram never arrived")?.port())
    };
    let port = pods_port(1)?;
    assert!(OURS.contains(&port), "{port}");
    // The node's program takes that very port towards the same remote.
    let socket = node.run(|| UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)))??;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send_to(&2_u64.to_be_bytes(), FAR)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).context("the node's answer went to the pod")?;
    assert_eq!(answer[..length], 2_u64.to_be_bytes());
    let said = || gateway.log().contains(&format!("took port {port} of protocol 17"));
    assert!(wait_until(PATIENCE, said), "{}", gateway.log());
    // The pod goes on by another flow.
    pods_port(3)?;
    Ok(())
}

/// What the node's NAT lets in keeps its own way out, with the client's address seen by the pod: as
/// a NodePort with `externalTrafficPolicy: Local`, or a hostPort.
#[test]
#[ignore = "needs root"]
fn connections_that_the_nodes_nat_lets_in_to_a_pod_are_answered() -> Result<()> {
    let rig = Rig::up()?;
    let _gateway = masquerading(&rig, "tc")?;
    let pod = rig.pod(POD);
    rig.netns(&rig.egress.name).nft(&format!(
        "table ip ports {{\nchain pre {{\ntype nat hook prerouting priority dstnat\n\
         ip daddr {node} tcp dport 30080 dnat to {pod}:7000\n\
         ip daddr {node} udp dport 30053 dnat to {pod}:7000\n}}\n}}\n",
        node = rig.egress.ip,
        pod = pod.ip
    ))?;
    let netns = rig.netns(POD);
    let (streams, datagrams) = (TcpServer::start(netns, ANY)?, UdpServer::start(netns, ANY)?);
    let far = rig.netns("far");
    far.run(|| -> Result<()> {
        for id in 0..20 {
            tcp_exchange(SocketAddrV4::new(rig.egress.ip, 30080), id, 100_000)?;
            udp_exchange(SocketAddrV4::new(rig.egress.ip, 30053), id, 100)?;
        }
        Ok(())
    })??;
    let client = Some(rig.outside[1].ip);
    assert_eq!(streams.peer(3).map(|peer| *peer.ip()), client);
    assert_eq!(datagrams.peer(3).map(|peer| *peer.ip()), client);
    assert_eq!(rig.untranslated()?.0, 0, "packets with a pod's address");
    Ok(())
}

/// A service with its endpoint outside. Where kube-proxy asks for the node's address by its bit, its
/// own rule gives it; where it does not, the packet comes to the uplink with the pod's.
#[test]
#[ignore = "needs root"]
fn what_kube_proxy_masquerades_is_left_to_it() -> Result<()> {
    let rig = Rig::up()?;
    let _gateway = masquerading(&rig, "tc")?;
    rig.netns(&rig.egress.name).nft(&format!(
        "table ip kube {{\n\
         chain services {{\ntype nat hook prerouting priority dstnat\n\
         ip daddr 172.30.0.80 tcp dport 80 meta mark set meta mark or 0x1 dnat to {FAR}\n\
         ip daddr 172.30.0.80 tcp dport 81 dnat to {FAR}\n}}\n\
         chain postrouting {{\ntype nat hook postrouting priority srcnat\n\
         meta mark and 0x1 == 0x1 masquerade\n}}\n}}\n"
    ))?;
    let server = TcpServer::start(rig.netns("far"), ANY)?;
    rig.netns(POD).run(|| -> Result<()> {
        for (port, id) in [(80, 1), (81, 2)] {
            tcp_exchange(SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 80), port), id, 100_000)?;
        }
        Ok(())
    })??;
    let [marked, unmarked] = [1, 2].map(|id| server.peer(id));
    let (marked, unmarked) = (marked.context("marked")?, unmarked.context("unmarked")?);
    assert_eq!((*marked.ip(), *unmarked.ip()), (rig.egress.ip, rig.egress.ip));
    assert!(!OURS.contains(&marked.port()), "{marked}");
    assert!(OURS.contains(&unmarked.port()), "{unmarked}");
    assert_eq!(rig.untranslated()?.0, 0, "packets with a pod's address");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn stray_segments_of_a_pod_never_leave_the_node() -> Result<()> {
    let rig = Rig::up()?;
    let _gateway = masquerading(&rig, "tc")?;
    let _server = UdpServer::start(rig.netns("far"), ANY)?;
    let capture = Capture::start(rig.netns("far"), "eth0")?;
    let pod = rig.pod(POD);
    let flags = [0x11_u8, 0x04, 0x14, 0x01, 0x10, 0x12];
    let strays: Vec<Datagram> = flags
        .into_iter()
        .map(|flags| tcp((pod.ip.octets(), 45_000), (FAR.ip().octets(), 7000), flags))
        .collect();
    rig.netns(POD).run(|| send_raw(&strays, *FAR.ip()))??;
    // What was sent after them has arrived: they would have, too.
    rig.netns(POD).run(|| udp_exchange(FAR, 9, 8))??;
    let later = capture.find(0, PATIENCE, |packet| packet.protocol == 17);
    later.context("the datagram sent later is not captured")?;
    let stray = capture.find(0, Duration::ZERO, |packet| packet.protocol == 6);
    assert_eq!(stray, None, "a stray segment left the node");
    assert_eq!(rig.untranslated()?.0, 0, "packets with a pod's address");
    Ok(())
}

fn send_raw(packets: &[Datagram], to: Ipv4Addr) -> Result<()> {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
        .context("open a raw socket")?;
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    for packet in packets {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&raw);
        nix::sys::socket::sendto(fd, &packet.bytes(), &to, nix::sys::socket::MsgFlags::empty())
            .context("send a raw packet")?;
    }
    Ok(())
}

/// The node's routes say which interface; only what goes by the uplink is the programs'.
#[test]
#[ignore = "needs root"]
fn what_the_node_routes_elsewhere_is_left_to_it() -> Result<()> {
    let rig = Rig::up()?;
    let _gateway = masquerading(&rig, "tc")?;
    let node = rig.netns(&rig.egress.name);
    let side = Netns::alone("side")?;
    node.ip(&format!(
        "link add side type veth peer name eth0 netns {}\n\
         addr add 192.0.2.1/24 dev side\nlink set side up\n",
        side.name()
    ))?;
    side.ip("addr add 192.0.2.9/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1\n")?;
    side.wait_up("eth0")?;
    let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 9), 7000);
    let (streams, datagrams) = (TcpServer::start(&side, ANY)?, UdpServer::start(&side, ANY)?);
    rig.netns(POD).run(|| -> Result<()> {
        tcp_exchange(to, 1, 10_000)?;
        udp_exchange(to, 2, 100)?;
        ping(*to.ip(), 3)
    })??;
    // Whoever is behind that interface: the programs translate nothing on it.
    let own = Some(rig.pod(POD).ip);
    assert_eq!(streams.peer(1).map(|peer| *peer.ip()), own);
    assert_eq!(datagrams.peer(2).map(|peer| *peer.ip()), own);
    Ok(())
}

fn collisions(status: &Value) -> Vec<String> {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|condition| condition["reason"] == "PortCollision")
        .filter_map(|condition| condition["message"].as_str().map(str::to_owned))
        .collect()
}

#[test]
#[ignore = "needs root"]
fn ports_that_the_node_may_take_itself_are_a_condition_with_its_cure() -> Result<()> {
    let netns = lone::node()?;
    netns.sysctl("ipv4/ip_local_port_range", "1024 65535")?;
    let _socket = netns.run(|| TcpListener::bind("0.0.0.0:12000"))??;
    let gateway = Gateway::running(&netns, &config(&lone::config()), CLUSTER_OBJECTS)?;
    let found = collisions(&gateway.status()?);
    assert_eq!(found.len(), 2, "{found:?}");
    let cure = "sysctl -w net.ipv4.ip_local_reserved_ports=11000-29999";
    assert!(found.iter().any(|message| message.contains(cure)), "{found:?}");
    // The agent's own connections may be among them, until the cure.
    let bound = |message: &String| message.contains("bound to") && message.contains("12000");
    assert!(found.iter().any(bound), "{found:?}");
    // The cure cures, at the next round.
    netns.sysctl("ipv4/ip_local_reserved_ports", "11000-29999")?;
    gateway.write_objects(&format!("{CLUSTER_OBJECTS}\n# changed\n"))?;
    let cured = || gateway.status().is_ok_and(|status| collisions(&status).len() == 1);
    assert!(wait_until(PATIENCE, cured), "{:?}", gateway.status());
    Ok(())
}
