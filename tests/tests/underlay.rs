//! What the hot path promises beyond right addresses: nearly all packets take it, big ones stay big,
//! marks of the network are kept, none is lost while a neighbour is found, and what is not for it is
//! left to whoever had it before.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_common::testing::packet::udp;
use egress_tests::{
    gateway::Gateway,
    netns::wait_until,
    rig::{
        Rig,
        topology::{TUNNEL, UPLINK, mac_bytes},
    },
    test_run::xdp::in_vxlan,
    traffic::{
        Capture, PATIENCE, RawSocket, TcpServer, UdpServer, exchange_many, ping, tcp_exchange,
        udp_exchange,
    },
};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use serde_json::Value;

const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const POD: &str = "egress-test-1";
const MEBIBYTE: u64 = 1 << 20;

fn packets(status: &Value, path: &str) -> u64 {
    status["paths"][path].as_u64().unwrap_or_default()
}

#[test]
#[ignore = "needs root"]
fn of_an_ordinary_load_99_of_100_packets_take_the_hot_path() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start_on(&rig, "tc")?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    exchange_many(rig.netns(POD), FAR, 0..300, 8, MEBIBYTE / 4)?;
    assert_eq!(server.peers().len(), 300);
    let status = gateway.status()?;
    let paths = status["paths"].as_object().context("paths")?;
    let all: u64 = paths.values().filter_map(Value::as_u64).sum();
    let hot = packets(&status, "underlay") + packets(&status, "reply_underlay");
    assert!(hot > 1000 && hot * 100 >= all * 99, "{hot} of {all}: {}", status["paths"]);
    Ok(())
}

/// Bytes of a mean packet of the tenant, out and back.
fn mean_sizes(status: &Value, vnid: u32) -> Result<(u64, u64)> {
    let policies = status["policies"].as_array().context("policies")?;
    let policy = policies.iter().find(|policy| policy["vnid"] == vnid).context("the policy")?;
    let mean = |bytes: &str, packets: &str| {
        Some(policy[bytes].as_u64()? / policy[packets].as_u64()?.max(1))
    };
    let out = mean("originalBytes", "originalPackets").context("counters")?;
    Ok((out, mean("replyBytes", "replyPackets").context("counters")?))
}

#[test]
#[ignore = "needs root"]
fn tcp_keeps_its_big_segments_through_the_underlay_both_ways() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start_on(&rig, "tc")?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    rig.netns(POD).run(|| tcp_exchange(FAR, 1, 32 * MEBIBYTE))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), rig.pod(POD).egress_ip);
    let status = gateway.status()?;
    let (out, back) = mean_sizes(&status, rig.pod(POD).vnid)?;
    // Data one way, acknowledgements the other, and the same turned round: a wire's packets have
    // 1,500 bytes at most.
    assert!(out > 3000 && back > 3000, "{out} and {back} bytes: {status}");
    assert!(packets(&status, "underlay") > 9 * packets(&status, "tunnel"), "{status}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_datagrams_of_one_big_packet_arrive_as_they_were_sent() -> Result<()> {
    const SIZE: usize = 1000;
    const COUNT: u8 = 20;
    for data_path in ["tc", "tunnel"] {
        let rig = Rig::up()?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        let server = rig.netns("far").run(|| UdpSocket::bind(FAR))??;
        server.set_read_timeout(Some(PATIENCE))?;
        let pod = rig.netns(POD).run(|| UdpSocket::bind("0.0.0.0:0"))??;
        setsockopt(&pod, UdpGsoSegment, &(SIZE as i32)).context("ask for segmentation")?;
        let payload: Vec<u8> = (0..COUNT).flat_map(|number| [number; SIZE]).collect();
        pod.send_to(&payload, FAR)?;
        let mut numbers: Vec<u8> = Vec::new();
        let mut datagram = [0; 65536];
        for _ in 0..COUNT {
            let length = server.recv(&mut datagram).with_context(|| {
                format!("on {data_path}, after {numbers:?}: {:?}", gateway.status())
            })?;
            assert_eq!(datagram[..length], [datagram[0]; SIZE], "on {data_path}");
            numbers.push(datagram[0]);
        }
        assert_eq!(numbers, (0..COUNT).collect::<Vec<u8>>());
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_neighbour_that_is_not_known_costs_no_packet() -> Result<()> {
    for data_path in ["tc", "tunnel", "xdp"] {
        let rig = Rig::up()?;
        rig.take_xdp_frames()?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        let _server = UdpServer::start(rig.netns("far"), FAR)?;
        let node = rig.netns(&rig.egress.name);
        for id in 1..6 {
            // Neither the way out nor the way back: one datagram, and nobody sends it again.
            node.exec(&format!("ip neigh flush dev {UPLINK}"))?;
            rig.netns(POD)
                .run(|| udp_exchange(FAR, id, 100))?
                .with_context(|| format!("exchange {id} on {data_path}: {:?}", gateway.status()))?;
        }
    }
    Ok(())
}

/// A datagram of the pod in VXLAN, with these types of service, as its node sends it.
fn marked(rig: &Rig, outer: u8, inner: u8, payload: &[u8]) -> Result<Vec<u8>> {
    let pod = rig.pod(POD);
    let mut packet = udp((pod.ip.octets(), 40_000), (FAR.ip().octets(), FAR.port()), payload);
    packet.tos = inner;
    let mut frame = in_vxlan(pod.vnid, &packet.bytes());
    frame[..12]
        .copy_from_slice(&[mac_bytes(&rig.egress.mac)?, mac_bytes(&rig.source.mac)?].concat());
    // The outer header's sum is of words: the low byte of the first one grows by the mark.
    let sum = u32::from(u16::from_be_bytes([frame[24], frame[25]]) ^ 0xffff) + u32::from(outer);
    frame[15] = outer;
    frame[24..26].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    Ok(frame)
}

#[test]
#[ignore = "needs root"]
fn marks_of_the_tunnel_are_carried_on_as_rfc_6040_says() -> Result<()> {
    const AF11: u8 = 10 << 2;
    for data_path in ["tc", "xdp"] {
        let rig = Rig::up()?;
        rig.take_xdp_frames()?;
        let _gateway = Gateway::start_on(&rig, data_path)?;
        let node = RawSocket::open(rig.netns(&rig.source.name), UPLINK)?;
        let capture = Capture::start(rig.netns("far"), "eth0")?;
        // Section 4.2: outer and inner ECN to what leaves. DSCP is the inner one (RFC 2983, pipe).
        for (outer, inner, leaves) in [
            (0, AF11, Some(AF11)),
            (2, AF11 | 2, Some(AF11 | 2)),
            (3, AF11 | 2, Some(AF11 | 3)),
            (AF11 | 3, 1, Some(3)),
            (1, 2, Some(1)),
            (3, 3, Some(3)),
            // Congestion on a packet whose sender does not understand the mark: dropped.
            (3, AF11, None),
            (0, AF11 | 1, Some(AF11 | 1)),
        ] {
            let payload = [b'm', outer, inner];
            node.send(&marked(&rig, outer, inner, &payload)?)?;
            let deadline = if leaves.is_some() { PATIENCE } else { Duration::ZERO };
            let seen = capture.find(0, deadline, |packet| packet.payload.ends_with(&payload));
            let tos = seen.map(|packet| packet.tos);
            assert_eq!(tos, leaves, "outer {outer:#x}, inner {inner:#x} on {data_path}");
        }
        // What was to be dropped has not come meanwhile either.
        assert!(!capture.packets().iter().any(|packet| packet.payload.ends_with(&[b'm', 3, AF11])));
    }
    Ok(())
}

/// Echo requests and replies of cluster traffic that the bridge behind the tunnel device got.
fn at_the_bridge(rig: &Rig) -> Result<u64> {
    let node = rig.netns(&rig.egress.name);
    let text = node.exec("nft -j list counters table netdev seen")?;
    let json: Value = serde_json::from_str(&text)?;
    let counter = json["nftables"].as_array().into_iter().flatten();
    let packets = counter.filter_map(|item| item["counter"]["packets"].as_u64()).next();
    packets.context("nft shows no counter")
}

#[test]
#[ignore = "needs root"]
fn the_bridge_gets_the_same_cluster_traffic_as_without_the_agent() -> Result<()> {
    const ECHOES: u64 = 20;
    for data_path in ["tc", "xdp"] {
        let rig = Rig::up()?;
        rig.take_xdp_frames()?;
        // Behind tc, where Open vSwitch takes its packets from.
        rig.netns(&rig.egress.name).nft(&format!(
            "table netdev seen {{\n\
               counter echoes {{}}\n\
               chain tunnel {{\n\
                 type filter hook ingress device {TUNNEL} priority 10\n\
                 ip protocol icmp counter name echoes\n\
               }}\n\
             }}\n"
        ))?;
        let pings = || -> Result<u64> {
            let before = at_the_bridge(&rig)?;
            let peer = rig.pod("egress-test-3").ip;
            rig.netns(POD).run(|| (0..ECHOES).try_for_each(|id| ping(peer, id)))??;
            Ok(at_the_bridge(&rig)? - before)
        };
        assert_eq!(pings()?, ECHOES);
        let gateway = Gateway::start_on(&rig, data_path)?;
        assert_eq!(pings()?, ECHOES, "{}", gateway.status()?["paths"]);
        // And of what leaves the cluster it gets nothing more.
        let before = at_the_bridge(&rig)?;
        rig.netns(POD).run(|| (0..ECHOES).try_for_each(|id| ping(*FAR.ip(), id)))??;
        let more = at_the_bridge(&rig)? - before;
        assert_eq!(more, 0, "{}", gateway.status()?["paths"]);
        let idle = || gateway.status().is_ok_and(|now| packets(&now, "tunnel") == 0);
        assert!(wait_until(Duration::ZERO, idle), "{}", gateway.status()?["paths"]);
    }
    Ok(())
}
