//! The agent's life under traffic: killed, started again, given other objects, stopped.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::wait_until,
    rig::{Rig, objects, topology::UPLINK},
    traffic::{Download, TcpServer, UdpServer, tcp_exchange, udp_exchange},
};

const DEADLINE: Duration = Duration::from_secs(30);
const MEBIBYTE: u64 = 1 << 20;

/// The far host's server.
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);

#[test]
#[ignore = "needs root"]
fn a_killed_agent_does_not_stop_traffic_and_the_next_one_takes_over() -> Result<()> {
    let rig = Rig::up()?;
    let mut gateway = Gateway::start(&rig)?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let pod = rig.netns("egress-test-1");
    let mut download = pod.run(|| Download::start(FAR, 1, 256 * MEBIBYTE))??;
    download.read(8 * MEBIBYTE)?;
    gateway.kill()?;
    download.read(32 * MEBIBYTE).context("after the agent was killed")?;
    pod.run(|| tcp_exchange(FAR, 2, MEBIBYTE))?.context("a new connection without agent")?;
    gateway.run_agent()?;
    download.read(32 * MEBIBYTE).context("after the agent was started again")?;
    pod.run(|| tcp_exchange(FAR, 3, MEBIBYTE))?.context("a new connection with the new agent")?;
    download.finish()?;
    let status = gateway.egress(&["status"])?;
    ensure!(status.status.success(), "egress status: {status:?}");
    let expected = rig.pod("egress-test-1").egress_ip;
    for id in 1..=3 {
        assert_eq!(server.peer(id).map(|peer| *peer.ip()), expected, "exchange {id}");
    }
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn nothing_leaves_untranslated_while_agents_come_and_go() -> Result<()> {
    let rig = Rig::up()?;
    let mut gateway = Gateway::start(&rig)?;
    let _server = UdpServer::start(rig.netns("far"), FAR)?;
    let stop = AtomicBool::new(false);
    let exchanges = thread::scope(|scope| -> Result<u64> {
        let client = scope.spawn(|| {
            rig.netns("egress-test-1").run(|| {
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    udp_exchange(FAR, done, 1000).with_context(|| format!("exchange {done}"))?;
                    done += 1;
                }
                Ok(done)
            })?
        });
        let agents = (0..3).try_for_each(|_| gateway.kill().and_then(|()| gateway.run_agent()));
        stop.store(true, Ordering::Relaxed);
        let exchanges = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        agents.and(exchanges)
    })?;
    assert!(exchanges > 0);
    assert_eq!(rig.untranslated()?, (0, 0), "after {exchanges} exchanges");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_changed_egress_ip_is_served_without_a_restart() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    let pod = rig.netns("egress-test-1");
    pod.run(|| udp_exchange(FAR, 0, 8))??;
    let new = Ipv4Addr::new(10, 0, 0, 14);
    let objects = objects::CLUSTER_OBJECTS.replace("10.0.0.11", &new.to_string());
    gateway.write_objects(&objects)?;
    let mut seen = None;
    let changed = wait_until(DEADLINE, || {
        // Between the two addresses an exchange may go unanswered; none may leave as it is.
        let exchange = pod.run(|| udp_exchange(FAR, 1, 8));
        seen = server.peer(1).map(|peer| *peer.ip());
        matches!(exchange, Ok(Ok(()))) && seen == Some(new)
    });
    assert!(changed, "still seen with {seen:?}; {}", gateway.log());
    let released = wait_until(DEADLINE, || {
        uplink_addresses(&rig).is_ok_and(|addresses| !addresses.contains(&"10.0.0.11/24".into()))
    });
    assert!(released, "10.0.0.11 is still on the uplink");
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn under_a_changed_egress_ip_each_packet_has_the_old_or_the_new_and_others_go_on() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let (echo, _server) =
        (UdpServer::start(rig.netns("far"), FAR)?, TcpServer::start(rig.netns("far"), FAR)?);
    let mut other = rig.netns("egress-test2-1").run(|| Download::start(FAR, 9, 1 << 24))??;
    other.read(1 << 20)?;
    let (old, new) = (Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 14));
    let socket = rig.netns("egress-test-1").run(|| UdpSocket::bind("0.0.0.0:0"))??;
    let objects = objects::CLUSTER_OBJECTS.replace(&old.to_string(), &new.to_string());
    let (mut id, mut seen) = (100, BTreeSet::new());
    let changed = wait_until(DEADLINE, || {
        // One flow, and never a pause in it.
        if id == 120 && gateway.write_objects(&objects).is_err() {
            return false;
        }
        id += 1;
        let sent = socket.send_to(&u64::to_be_bytes(id), FAR);
        seen.extend(echo.peer(id - 1).map(|peer| *peer.ip()));
        sent.is_ok() && seen.contains(&new)
    });
    assert!(changed && id > 120, "after {id} datagrams seen as {seen:?}: {}", gateway.log());
    assert_eq!(seen, BTreeSet::from([old, new]));
    other.finish().context("the other tenant's download")?;
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_node_that_is_none_any_more_loses_its_flows_too() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let _server = UdpServer::start(rig.netns("far"), FAR)?;
    let pod = rig.netns("egress-test-1");
    // One socket, so one flow: it is established when its node goes.
    let socket = pod.run(|| UdpSocket::bind("0.0.0.0:0"))??;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.connect(FAR)?;
    pod.run(|| udp_exchange(FAR, 0, 8))??;
    socket.send(&[0; 24])?;
    let renumbered = objects::CLUSTER_OBJECTS.replace("hostIP: 10.0.0.3\n", "hostIP: 10.0.0.33\n");
    assert_ne!(renumbered, objects::CLUSTER_OBJECTS);
    gateway.write_objects(&renumbered)?;
    let dropped = wait_until(DEADLINE, || {
        socket.send(&[0; 24]).is_ok()
            && gateway.status().is_ok_and(|status| status["drops"]["unknown_node"] != 0)
    });
    assert!(dropped, "{}", gateway.status()?);
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_bad_object_does_not_stop_the_others() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    let bad = "---\n\
               apiVersion: network.openshift.io/v1\n\
               kind: NetNamespace\n\
               metadata: {name: too-high}\n\
               netname: too-high\n\
               netid: 16777216\n\
               egressIPs: [\"10.0.0.15\"]\n";
    gateway.write_objects(&format!("{}{bad}", objects::CLUSTER_OBJECTS))?;
    let named = wait_until(DEADLINE, || gateway.log().contains("too-high"));
    assert!(named, "the log does not name the object: {}", gateway.log());
    for (id, pod) in [(1, "egress-test-1"), (2, "egress-test2-1"), (3, "egress-test3-1")] {
        rig.netns(pod).run(|| udp_exchange(FAR, id, 8))??;
        let seen = server.peer(id).map(|peer| *peer.ip());
        assert_eq!(seen, rig.pod(pod).egress_ip, "{pod}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_stopped_agent_takes_its_addresses_with_it_and_leaves_the_others() -> Result<()> {
    let rig = Rig::up()?;
    let addresses = || uplink_addresses(&rig);
    rig.netns(&rig.egress.name).ip(&format!("addr add 10.0.0.13/24 dev {UPLINK}"))?;
    let mut gateway = Gateway::start(&rig)?;
    assert_eq!(addresses()?, ["10.0.0.11/24", "10.0.0.12/24", "10.0.0.13/24", "10.0.0.2/24"]);
    let status = gateway.stop()?;
    assert!(status.success(), "{status}; {}", gateway.log());
    assert_eq!(addresses()?, ["10.0.0.13/24", "10.0.0.2/24"]);
    Ok(())
}

/// The addresses of the egress node's uplink, sorted as text.
fn uplink_addresses(rig: &Rig) -> Result<Vec<String>> {
    let mut ip = Command::new("ip");
    let text =
        rig.netns(&rig.egress.name).output(ip.args(["-j", "-4", "addr", "show", "dev", UPLINK]))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let list = json[0]["addr_info"].as_array().context("no addr_info")?;
    let mut addresses: Vec<String> = list
        .iter()
        .map(|address| {
            format!("{}/{}", address["local"].as_str().unwrap_or("?"), address["prefixlen"])
        })
        .collect();
    addresses.sort();
    Ok(addresses)
}
