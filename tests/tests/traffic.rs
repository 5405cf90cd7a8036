//! Traffic of pods through the agent's translation, on the plain VXLAN rig.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_tests::{
    netns::wait_until,
    on_every_data_path,
    report::{Protocol, Witness},
    rig::{DataPath, topology::VXLAN_PORT},
    traffic::{
        Capture, PATIENCE, TcpServer, UdpServer, exchange_many, ping, tcp_exchange, udp_exchange,
    },
};

const MEBIBYTE: u64 = 1 << 20;

/// The far host's server, and where it listens on every host.
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);

/// The id of an exchange, as it is on the wire.
const ONE: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 1];

on_every_data_path! {
    every_pod_is_seen_with_the_egress_ip_of_its_namespace
    a_thousand_connections_carry_a_mebibyte_each_way
    no_tenant_is_ever_seen_with_the_address_of_another
    pods_with_the_same_source_port_get_mappings_of_their_own
    cluster_traffic_is_untouched
    a_connection_from_outside_to_an_egress_ip_is_refused
    a_tunnel_source_that_is_no_node_is_dropped
}

fn every_pod_is_seen_with_the_egress_ip_of_its_namespace(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let _gateway = on.gateway(&rig)?;
    let (tenants, others): (Vec<_>, Vec<_>) =
        rig.pods.iter().partition(|pod| pod.egress_ip.is_some());
    // Those without policy leave with their node's address: they come last, to keep the counters.
    for (pods, untranslated) in [(tenants, 0), (others, 1)] {
        for host in &rig.outside {
            let mut witness = Witness::start(rig.netns(&host.name).name(), host.ip)?;
            for pod in &pods {
                for protocol in Protocol::ALL {
                    let row = witness.observe(&rig.talker(pod), protocol)?;
                    assert!(row.ok, "{row:?} at {}", host.name);
                }
            }
        }
        let (pod_address, node_address) = rig.untranslated()?;
        assert_eq!((pod_address, node_address.min(1)), (0, untranslated));
    }
    Ok(())
}

fn a_thousand_connections_carry_a_mebibyte_each_way(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let gateway = on.gateway(&rig)?;
    let server = TcpServer::start(rig.netns("far"), ANY)?;
    exchange_many(rig.netns("egress-test-1"), FAR, 0..1000, 8, MEBIBYTE)?;
    let peers = server.peers();
    assert_eq!(peers.len(), 1000);
    let expected = rig.pod("egress-test-1").egress_ip;
    let strangers: Vec<_> = peers.iter().filter(|peer| Some(*peer.ip()) != expected).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert_eq!(rig.untranslated()?, (0, 0));
    let paths = &gateway.status()?["paths"];
    let count = |name: &str| paths[name].as_u64().with_context(|| format!("{name} in {paths}"));
    let there = (count("underlay")? + count("tunnel")?, count("reply_underlay")?);
    let early = (count("xdp")?, count("reply_xdp")?);
    match on {
        DataPath::Tc => assert_eq!(early, (0, 0), "{paths}"),
        DataPath::Tunnel => assert!(count("tunnel")? > 1000 && count("reply_tunnel")? > 1000),
        DataPath::Stack => assert!(count("stack")? > 1000 && count("reply_stack")? > 1000),
        // The rest asks the neighbour table.
        DataPath::Xdp => {
            assert!(early.0 > 9 * there.0 && early.1 > 9 * there.1, "{paths}");
        }
        DataPath::XdpUnfinished => assert!(there.0 > 0 && there.1 > 0, "{paths}"),
    }
    Ok(())
}

fn no_tenant_is_ever_seen_with_the_address_of_another(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let _gateway = on.gateway(&rig)?;
    let server = TcpServer::start(rig.netns("far"), ANY)?;
    let pods = ["egress-test-1", "egress-test-2", "egress-test2-1", "egress-test3-1"];
    // All at once, so that pods ask for the same ports at the same time.
    thread::scope(|scope| {
        let clients: Vec<_> = (0..)
            .step_by(1000)
            .zip(pods)
            .map(|(first, pod)| {
                let netns = rig.netns(pod);
                scope.spawn(move || exchange_many(netns, FAR, first..first + 100, 4, 4096))
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<Result<()>>>()
    })
    .into_iter()
    .collect::<Result<Vec<()>>>()?;
    for (first, pod) in (0..).step_by(1000).zip(pods) {
        let expected = rig.pod(pod).egress_ip;
        for id in first..first + 100 {
            let seen = server.peer(id).map(|peer| *peer.ip());
            assert_eq!(seen, expected, "exchange {id} of {pod}");
        }
    }
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

fn pods_with_the_same_source_port_get_mappings_of_their_own(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let _gateway = on.gateway(&rig)?;
    let echo = UdpServer::start(rig.netns("far"), ANY)?;
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 40_000);
    let mut sockets = Vec::new();
    for (id, pod) in [(1_u64, "egress-test-1"), (2, "egress-test-2")] {
        let socket = rig.netns(pod).run(|| UdpSocket::bind(from))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(&id.to_be_bytes(), FAR)?;
        sockets.push((id, socket));
    }
    let mut answer = [0; 64];
    for (id, socket) in &sockets {
        let length = socket.recv(&mut answer).with_context(|| format!("answer to {id}"))?;
        assert_eq!(answer[..length], id.to_be_bytes(), "the answer went to another pod");
    }
    let [first, second] = [1, 2].map(|id| echo.peer(id));
    let (first, second) = (first.context("first")?, second.context("second")?);
    assert_eq!(first.ip(), second.ip());
    assert_ne!(first.port(), second.port());
    Ok(())
}

fn cluster_traffic_is_untouched(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let _gateway = on.gateway(&rig)?;
    for (client, server) in [
        ("egress-test-1", "egress-test-3"),
        ("egress-test-3", "egress-test-1"),
        ("egress-test-1", "egress-test-2"),
        ("egress-test-1", "ocprouter01"),
        ("egress-test-3", "ocprouter01"),
        ("gitea-1", "gitea-2"),
    ] {
        let ip = match server {
            "ocprouter01" => rig.egress.ip,
            pod => rig.pod(pod).ip,
        };
        let to = SocketAddrV4::new(ip, 7000);
        let netns = rig.netns(server);
        let (tcp, udp) = (TcpServer::start(netns, to)?, UdpServer::start(netns, to)?);
        rig.netns(client)
            .run(|| {
                tcp_exchange(to, 1, MEBIBYTE)?;
                udp_exchange(to, 2, 1000)?;
                ping(ip, 3)
            })?
            .with_context(|| format!("{client} to {server}"))?;
        let own = Some(rig.pod(client).ip);
        assert_eq!(tcp.peer(1).map(|peer| *peer.ip()), own, "TCP of {client} at {server}");
        assert_eq!(udp.peer(2).map(|peer| *peer.ip()), own, "UDP of {client} at {server}");
    }
    Ok(())
}

fn a_connection_from_outside_to_an_egress_ip_is_refused(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let _gateway = on.gateway(&rig)?;
    // A server of the node itself, at all its addresses: it must not be reached by this one.
    let _node = rig.netns(&rig.egress.name).run(|| TcpListener::bind(ANY))??;
    let pod = rig.pod("egress-test-1");
    let egress_ip = pod.egress_ip.context("egress IP")?;
    let to = SocketAddrV4::new(egress_ip, 7000);
    for host in &rig.outside {
        let error = rig
            .netns(&host.name)
            .run(|| TcpStream::connect_timeout(&to.into(), PATIENCE))?
            .expect_err("connected to an egress IP");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "TCP from {}", host.name);
        let error = rig
            .netns(&host.name)
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(PATIENCE))?;
                socket.connect(to)?;
                socket.send(b"anyone there?")?;
                socket.recv(&mut [0; 64])
            })?
            .expect_err("a datagram was answered");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "UDP from {}", host.name);
    }
    Ok(())
}

fn a_tunnel_source_that_is_no_node_is_dropped(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let gateway = on.gateway(&rig)?;
    let _server = UdpServer::start(rig.netns("far"), ANY)?;
    let capture = Capture::start(rig.netns("far"), "eth0")?;
    let pod = rig.pod("egress-test-1");
    let tunnel = SocketAddrV4::new(rig.egress.ip, VXLAN_PORT);
    let frame = vxlan_datagram(pod.vnid, pod.ip, FAR, b"intruder");
    rig.netns("outside").run(|| -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(&frame, tunnel)?;
        Ok(())
    })??;
    // What was sent after it has arrived: it would have, too.
    rig.netns(&pod.name).run(|| udp_exchange(FAR, u64::from_be_bytes(ONE), 8))??;
    let later = capture.find(0, PATIENCE, |packet| packet.payload.get(8..16) == Some(&ONE));
    later.context("the packet sent later is not captured")?;
    let intruder = capture.find(0, Duration::ZERO, |packet| packet.payload.ends_with(b"intruder"));
    assert_eq!(intruder, None, "an intruder's packet left the uplink");
    let said = || gateway.log().contains("tunnel source 10.0.0.1 is no node");
    assert!(wait_until(PATIENCE, said), "the programs have not logged it: {}", gateway.log());
    Ok(())
}

/// What a node would send through the tunnel: a VXLAN header, and a pod's UDP datagram with its
/// checksum left out, from the pod's MAC to the source node's gateway.
fn vxlan_datagram(vnid: u32, pod: Ipv4Addr, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut udp = Vec::new();
    for field in [40_000, to.port(), 8 + payload.len() as u16, 0] {
        udp.extend(field.to_be_bytes());
    }
    udp.extend(payload);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp.len() as u16).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(pod.octets());
    ip.extend(to.ip().octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = vec![8, 0, 0, 0];
    frame.extend((vnid << 8).to_be_bytes());
    frame.extend([0x22, 0xe9, 0x5c, 0x34, 0xa4, 0x83]);
    frame.extend([0x0a, 0x58]);
    frame.extend(pod.octets());
    frame.extend([8, 0]);
    frame.extend(ip);
    frame.extend(udp);
    frame
}
