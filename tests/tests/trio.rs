//! The rig of three nodes, alone: cables, counters, and the ways that no agent makes.
use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use egress_tests::{
    netns::wait_for,
    rig::trio::{EGRESS, SOURCE, SPREAD, SourceSide, TENANTS, Trio, objects},
    traffic::{TcpServer, tcp_exchange},
};
use egress_user::{ovs::Layout, source::files::Input};

/// For a connection that is not to come.
const PATIENCE: Duration = Duration::from_millis(500);
const SIDES: [SourceSide; 2] = [SourceSide::Plain, SourceSide::OpenVSwitch(Layout::New)];

#[test]
fn its_objects_and_settings_are_read_without_a_word() -> Result<()> {
    let mut input = Input::default();
    input.add_text(&objects(), "objects.yaml")?;
    assert_eq!(input.objects.conditions, []);
    assert_eq!(input.objects.net_namespaces.len(), TENANTS.len());
    assert_eq!(input.objects.host_subnets.len(), 3);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn pods_leave_through_either_egress_node_and_a_pulled_cable_ends_that() -> Result<()> {
    for side in SIDES {
        let rig = Trio::up(side)?;
        let agents = rig.agents("")?;
        let logs = || agents.iter().map(|agent| agent.log()).collect::<Vec<_>>().join("\n");
        let mut servers = Vec::new();
        for (tenant, pod) in
            TENANTS.iter().zip(["egress-test-1", "egress-test2-1", "egress-test3-1"])
        {
            let server = TcpServer::start(rig.netns("far"), tenant.far())?;
            let exchange = rig.netns(pod).run(|| tcp_exchange(tenant.far(), 1, 1 << 20))?;
            ensure!(exchange.is_ok(), "{side:?} {pod}: {exchange:?}\n{}", logs());
            let own = |ip: Ipv4Addr| tenant.egress_ips.iter().any(|(own, _)| *own == ip);
            ensure!(server.peers().iter().all(|peer| own(*peer.ip())), "{:?}", server.peers());
            servers.push(server);
        }
        ensure!(rig.leaks()?.values().all(|count| *count == 0), "{:?}", rig.leaks()?);
        // The gateways reach each other through the tunnel, until a cable is pulled.
        let gateway = SocketAddr::from((rig.node(EGRESS[1]).gateway, 9));
        let far = TENANTS[2].far().into();
        let connect = |from: &str, to| {
            let connected = rig.netns(from).run(|| TcpStream::connect_timeout(&to, PATIENCE))?;
            anyhow::Ok(connected.err().map(|error| error.kind()))
        };
        assert_eq!(connect(SOURCE, gateway)?, Some(ErrorKind::ConnectionRefused), "{side:?}");
        rig.pull(EGRESS[1])?;
        assert_eq!(connect(SOURCE, gateway)?, Some(ErrorKind::TimedOut), "{side:?}");
        assert_eq!(connect("egress-test3-1", far)?, Some(ErrorKind::TimedOut), "{side:?}");
        rig.plug(EGRESS[1])?;
        wait_for("the cable", || Ok(connect("egress-test3-1", far)?.is_none()))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_switch_counts_what_leaves_with_a_wrong_address() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let node = rig.netns(EGRESS[0]);
    node.ip("addr add 10.0.0.13/24 dev ens18\n")?;
    // Else the node would masquerade what looks like a pod's.
    node.nft("delete table ip nat")?;
    let far = SPREAD.far();
    for from in [rig.node(EGRESS[0]).ip, Ipv4Addr::new(10, 0, 0, 13), rig.node(EGRESS[0]).gateway] {
        // The gateway's is in the cluster network, as a pod's.
        node.run(|| UdpSocket::bind((from, 0)).and_then(|socket| socket.send_to(b"hello", far)))??;
    }
    wait_for("the counters", || {
        let leaks = rig.leaks()?;
        Ok(leaks["node_address"] == 1 && leaks["pod_address"] == 1 && leaks["other_tenants"] == 3)
    })
}

#[test]
#[ignore = "needs root"]
fn the_switch_loses_the_share_it_is_told() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let at = SocketAddrV4::new(rig.outside[0].ip, 7000);
    let server = rig.netns("outside").run(|| UdpSocket::bind(at))??;
    server.set_read_timeout(Some(Duration::from_millis(300)))?;
    let arrive = |count: usize| -> Result<usize> {
        rig.netns(EGRESS[0]).run(|| -> Result<()> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            for _ in 0..count {
                socket.send_to(b"hello", at)?;
            }
            Ok(())
        })??;
        Ok(std::iter::from_fn(|| server.recv(&mut [0; 8]).ok()).count())
    };
    assert_eq!(arrive(100)?, 100);
    rig.lose(10)?;
    // Five standard deviations about the mean, and short of the socket's buffer.
    let arrived = arrive(250)?;
    ensure!((200..=248).contains(&arrived), "{arrived} of 250");
    rig.lose(0)?;
    assert_eq!(arrive(100)?, 100);
    Ok(())
}
