//! The same traffic on every data path, and the paths switched under running connections.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::{DEADLINE, Gateway},
    netns::wait_until,
    report::Witness,
    rig::{Rig, objects},
    traffic::{Download, TcpServer, exchange_many, tcp_exchange},
};

const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);

/// A data path, how to ask for it, and the counters its packets show up in: out and back.
struct Way {
    name: &'static str,
    config: &'static str,
    out: &'static str,
    back: &'static str,
}

const WAYS: [Way; 4] = [
    Way { name: "XDP", config: "dataPath: xdp", out: "xdp", back: "reply_xdp" },
    Way { name: "underlay", config: "dataPath: tc", out: "underlay", back: "reply_underlay" },
    Way { name: "tunnel device", config: "dataPath: tunnel", out: "tunnel", back: "reply_tunnel" },
    Way { name: "stack", config: "dataPath: stack", out: "stack", back: "reply_stack" },
];

/// The examples' settings with another data path.
fn with(data_path: &str) -> String {
    objects::AGENT_CONFIG.replace("dataPath: auto", data_path)
}

fn packets(gateway: &Gateway<'_>, path: &str) -> Result<u64> {
    let status = gateway.status()?;
    status["paths"][path].as_u64().with_context(|| format!("no path {path} in {status}"))
}

#[test]
#[ignore = "needs root"]
fn every_path_translates_right_and_is_the_one_that_was_asked_for() -> Result<()> {
    for way in WAYS {
        let rig = Rig::up()?;
        if way.out == "xdp" {
            rig.take_xdp_frames()?;
            rig.send_whole_frames()?;
        }
        let node = rig.netns(&rig.egress.name);
        let gateway = Gateway::running(node, &with(way.config), objects::CLUSTER_OBJECTS)?;
        let tenants: Vec<_> = rig.pods.iter().filter(|pod| pod.egress_ip.is_some()).collect();
        for host in &rig.outside {
            let mut witness = Witness::start(rig.netns(&host.name).name(), host.ip)?;
            for pod in &tenants {
                for row in witness.observe_all(&[rig.talker(pod)])? {
                    ensure!(row.ok, "{}: {row:?} at {}", way.name, host.name);
                }
            }
        }
        let server = TcpServer::start(rig.netns("far"), ANY)?;
        exchange_many(rig.netns("egress-test-1"), FAR, 0..100, 8, 1 << 18)?;
        assert!(server.peers().iter().all(|peer| *peer.ip() == Ipv4Addr::new(10, 0, 0, 11)));
        assert!(packets(&gateway, way.back)? > 100, "{}: {}", way.name, gateway.status()?);
        assert!(packets(&gateway, way.out)? > 100, "{}: {}", way.name, gateway.status()?);
        assert_eq!(rig.untranslated()?, (0, 0), "{}", way.name);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn switching_the_data_path_loses_none_of_a_thousand_connections() -> Result<()> {
    const CONNECTIONS: u64 = 1000;
    const LENGTH: u64 = 64 << 10;
    let rig = Rig::up()?;
    let mut gateway =
        Gateway::new(rig.netns(&rig.egress.name), &with("dataPath: tc"), objects::CLUSTER_OBJECTS)?;
    gateway.run_agent()?;
    let _server = TcpServer::start(rig.netns("far"), ANY)?;
    rig.netns("egress-test-1").run(|| -> Result<()> {
        let mut downloads = (0..CONNECTIONS)
            .map(|id| Download::start(FAR, id, LENGTH))
            .collect::<Result<Vec<_>>>()?;
        for (data_path, counter) in [
            ("dataPath: stack", "stack"),
            ("dataPath: tc", "underlay"),
            ("dataPath: stack", "stack"),
        ] {
            gateway.write_config(&with(data_path))?;
            let before = packets(&gateway, counter)?;
            let switched = wait_until(DEADLINE, || {
                let probe = tcp_exchange(FAR, CONNECTIONS, 8);
                probe.is_ok() && packets(&gateway, counter).is_ok_and(|now| now > before)
            });
            ensure!(switched, "{data_path} is not in force: {}", gateway.log());
            for download in &mut downloads {
                download.read(LENGTH / 8)?;
            }
        }
        downloads.into_iter().try_for_each(Download::finish)
    })??;
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}
