//! XDP on the uplink: taken and given back under traffic, and refused.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
};

use anyhow::{Context as _, Result};
use aya::programs::XdpMode;
use egress_common::{
    testing::packet::{tcp, udp},
    wire::tcp::{ACK, SYN},
};
use egress_tests::{
    gateway::Gateway,
    mutation::{Chance, mend},
    rig::{
        Rig, objects,
        topology::{UPLINK, mac_bytes},
    },
    test_run::xdp::in_vxlan,
    traffic::{Download, RawSocket, TcpServer, tcp_exchange},
};
use egress_user::bpf::{BPFFS, DataPlane, Sizes};

const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const POD: &str = "egress-test-1";
const CONNECTIONS: u64 = 1000;
const PART: u64 = 64 << 10;

#[test]
#[ignore = "needs root"]
fn a_thousand_connections_live_through_a_change_to_tc_and_back() -> Result<()> {
    let rig = Rig::up()?;
    rig.take_xdp_frames()?;
    rig.send_whole_frames()?;
    let mut gateway = Gateway::start_on(&rig, "xdp")?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let mut downloads = rig.netns(POD).run(|| {
        (0..CONNECTIONS).map(|id| Download::start(FAR, id, 64 * PART)).collect::<Result<Vec<_>>>()
    })??;
    for data_path in ["xdp", "tc", "xdp"] {
        if gateway.status()?["dataPath"]["path"] != data_path {
            gateway.set_data_path(data_path)?;
            gateway.kill()?;
            gateway.run_agent()?;
        }
        assert_eq!(gateway.status()?["dataPath"]["path"], data_path);
        let before = replies_on_xdp(&gateway)?;
        for download in &mut downloads {
            download.read(PART).with_context(|| format!("on {data_path}"))?;
        }
        let sent = replies_on_xdp(&gateway)? - before;
        assert_eq!(sent > 0, data_path == "xdp", "{sent} on {data_path}");
    }
    drop(downloads);
    let expected = rig.pod(POD).egress_ip;
    let lost = (0..CONNECTIONS).filter(|id| server.peer(*id).map(|peer| *peer.ip()) != expected);
    assert_eq!(lost.collect::<Vec<u64>>(), Vec::<u64>::new());
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

fn replies_on_xdp(gateway: &Gateway) -> Result<u64> {
    gateway.status()?["paths"]["reply_xdp"].as_u64().context("the path reply_xdp is counted")
}

#[test]
#[ignore = "needs root"]
fn frames_too_big_for_the_driver_run_generic() -> Result<()> {
    let rig = Rig::up()?;
    rig.take_xdp_frames()?;
    rig.send_whole_frames()?;
    let netns = rig.netns(&rig.egress.name);
    rig.switch().ip(&format!("link set {} mtu 9000\n", rig.egress.name))?;
    netns.ip(&format!("link set {UPLINK} mtu 9000\n"))?;
    let gateway = Gateway::start_on(&rig, "xdp-generic")?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let before = replies_on_xdp(&gateway)?;
    rig.netns(POD).run(|| tcp_exchange(FAR, 1, 1 << 20))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), rig.pod(POD).egress_ip);
    assert!(replies_on_xdp(&gateway)? > before, "nothing went by XDP");
    Ok(())
}

const MUTANTS: u32 = 1_000_000;

#[test]
#[ignore = "needs root"]
fn a_million_mutated_frames_let_no_pods_address_out_and_hurt_nobody() -> Result<()> {
    let rig = Rig::up()?;
    rig.take_xdp_frames()?;
    rig.send_whole_frames()?;
    let gateway = Gateway::start_on(&rig, "xdp")?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let pod = rig.pod(POD);
    let ethernet = [mac_bytes(&rig.egress.mac)?, mac_bytes(&rig.source.mac)?].concat();
    let (client, remote) = ((pod.ip.octets(), 40_001), (FAR.ip().octets(), FAR.port()));
    let frames: Vec<Vec<u8>> =
        [tcp(client, remote, SYN), tcp(client, remote, ACK), udp(client, remote, b"?")]
            .iter()
            .map(|packet| {
                let mut frame = in_vxlan(pod.vnid, &packet.bytes());
                frame[..12].copy_from_slice(&ethernet);
                frame
            })
            .collect();
    let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
    let wire = RawSocket::open(rig.netns(&rig.source.name), UPLINK)?;
    for _ in 0..MUTANTS {
        let mut frame = frames[chance.below(frames.len())].clone();
        chance.mutate(&mut frame);
        if chance.below(4) != 0 {
            mend(&mut frame, 64);
        }
        // Of the same tenant: one without a policy is the node's own business.
        if let Some(vnid) = frame.get_mut(46..49) {
            vnid.copy_from_slice(&pod.vnid.to_be_bytes()[1..]);
        }
        // What the device refuses is no frame.
        let _ = wire.send(&frame);
    }
    rig.netns(POD).run(|| tcp_exchange(FAR, 1, 1 << 20))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), pod.egress_ip);
    let status = gateway.status()?;
    let drops = status["drops"].as_object().context("drops")?;
    let dropped: u64 = drops.values().filter_map(serde_json::Value::as_u64).sum();
    println!("{} {}", status["drops"], status["paths"]);
    assert!(dropped > 0 && status["paths"]["xdp"].as_u64() > Some(0));
    assert_eq!(rig.untranslated()?.0, 0);
    Ok(())
}

/// The agent starts on tc with this condition, and traffic goes.
fn is_refused(rig: &Rig, why: &str) -> Result<()> {
    let netns = rig.netns(&rig.egress.name);
    let config = objects::AGENT_CONFIG.replace("dataPath: auto", "dataPath: xdp");
    let gateway = Gateway::running(netns, &config, objects::CLUSTER_OBJECTS)?;
    let status = gateway.status()?;
    assert_eq!(status["dataPath"]["path"], "tc", "{}", status["dataPath"]);
    let conditions = status["conditions"].as_array().context("conditions")?;
    let condition = conditions
        .iter()
        .find(|condition| condition["reason"] == "NoXdp")
        .with_context(|| format!("no condition NoXdp: {conditions:?}"))?;
    assert_eq!(condition["object"], format!("Device/{UPLINK}"));
    let message = condition["message"].as_str().context("a message")?;
    assert!(message.contains(why), "{message}");
    let _server = TcpServer::start(rig.netns("far"), FAR)?;
    rig.netns(POD).run(|| tcp_exchange(FAR, 1, 1 << 20))?
}

#[test]
#[ignore = "needs root"]
fn a_veth_whose_far_end_takes_no_frames_from_xdp_is_left_to_tc() -> Result<()> {
    is_refused(&Rig::up()?, "the far end of the veth takes no frames from XDP")
}

#[test]
#[ignore = "needs root"]
fn another_program_on_xdp_stays_and_tc_takes_over() -> Result<()> {
    let rig = Rig::up()?;
    rig.take_xdp_frames()?;
    let netns = rig.netns(&rig.egress.name);
    // Without settings it passes everything: as good a stranger as any.
    let elsewhere = netns.private_mounts()?;
    netns.run_in(&elsewhere, || {
        let sizes = Sizes { flows: 1024, policies: 64 };
        DataPlane::load(Path::new(BPFFS), sizes)?.attach_xdp(UPLINK, XdpMode::Driver)
    })??;
    is_refused(&rig, "is attached already, by somebody else")?;
    assert!(netns.exec(&format!("ip link show {UPLINK}"))?.contains("prog/xdp"));
    Ok(())
}
