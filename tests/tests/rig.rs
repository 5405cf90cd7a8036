//! The rig itself: what the kernel does without an agent.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use egress_tests::{
    report::{Protocol, Witness},
    rig::{self, Rig, Snat},
    traffic::{TcpServer, UdpServer, ping, tcp_exchange, udp_exchange},
};

const ANY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 7000);

fn at(ip: Ipv4Addr) -> SocketAddrV4 {
    SocketAddrV4::new(ip, 7000)
}

#[test]
#[ignore = "needs root"]
fn pods_of_a_tenant_reach_each_other_across_nodes_with_their_own_addresses() -> Result<()> {
    let rig = Rig::up()?;
    for (client, server) in [
        ("egress-test-1", "egress-test-2"),
        ("egress-test-1", "egress-test-3"),
        ("egress-test-3", "egress-test-1"),
        ("gitea-1", "gitea-2"),
        ("gitea-2", "gitea-1"),
    ] {
        let (tcp, udp) = serve(&rig, server)?;
        let to = at(rig.pod(server).ip);
        rig.netns(client).run(|| {
            tcp_exchange(to, 1, 1 << 20)?;
            udp_exchange(to, 2, 1000)?;
            ping(*to.ip(), 3)
        })??;
        let ip = rig.pod(client).ip;
        assert_eq!(tcp.peer(1).map(|peer| *peer.ip()), Some(ip), "{client} to {server}");
        assert_eq!(udp.peer(2).map(|peer| *peer.ip()), Some(ip), "{client} to {server}");
    }
    assert_eq!(rig.untranslated()?, (0, 0), "cluster traffic left the tunnel");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn tenants_do_not_reach_each_other() -> Result<()> {
    let rig = Rig::up()?;
    let (_tcp, udp) = serve(&rig, "egress-test-1")?;
    let to = at(rig.pod("egress-test-1").ip);
    let error = rig.netns("egress-test2-1").run(|| tcp_exchange(to, 1, 8))?.unwrap_err();
    assert!(error.to_string().contains("connect"), "{error:#}");
    assert_eq!(udp.peer(1), None);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn pods_and_the_egress_node_reach_each_other() -> Result<()> {
    let rig = Rig::up()?;
    let _node = serve(&rig, "ocprouter01")?;
    for pod in &rig.pods {
        let to = at(rig.egress.ip);
        rig.netns(&pod.name).run(|| tcp_exchange(to, 1, 1 << 20))??;
        rig.netns(&rig.egress.name).run(|| ping(pod.ip, 2))??;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn without_an_agent_no_pod_leaves_with_an_egress_ip() -> Result<()> {
    let rig = Rig::up()?;
    for host in &rig.outside {
        for row in
            Witness::start(rig.netns(&host.name).name(), host.ip)?.observe_all(&rig.talkers())?
        {
            let policy = rig.pod(&row.pod).egress_ip.is_some();
            assert_eq!(row.ok, !policy, "{row:?}");
            assert_eq!(
                row.seen,
                Some(if policy { rig.egress.ip } else { row.expected }),
                "{row:?}"
            );
            assert_eq!(row.failure, None, "{row:?}");
        }
    }
    let (pod_address, node_address) = rig.untranslated()?;
    assert_eq!(pod_address, 0);
    assert!(node_address > 0);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_kernel_translates_by_mark_as_openshift_does() -> Result<()> {
    let rig = Rig::up_as(&format!("eg{}-k-", std::process::id()), Snat::Kernel)?;
    for host in &rig.outside {
        for row in
            Witness::start(rig.netns(&host.name).name(), host.ip)?.observe_all(&rig.talkers())?
        {
            assert!(row.ok, "{row:?}");
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_is_not_answered_is_still_seen() -> Result<()> {
    let rig = Rig::up()?;
    rig.netns(&rig.egress.name).nft("delete table ip nat")?;
    let far = &rig.outside[1];
    let mut witness = Witness::start(rig.netns(&far.name).name(), far.ip)?;
    let pod = rig.pod("egress-test-1");
    for protocol in Protocol::ALL {
        let row = witness.observe(&rig.talker(pod), protocol)?;
        assert_eq!((row.seen, row.ok), (Some(pod.ip), false), "{row:?}");
        assert!(row.failure.is_some(), "{row:?}");
    }
    let (pod_address, _) = rig.untranslated()?;
    assert!(pod_address >= 3);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn down_leaves_nothing_and_may_be_repeated() -> Result<()> {
    let prefix = format!("eg{}-d-", std::process::id());
    let mut rig = Rig::up_as(&prefix, Snat::Node)?;
    rig.keep();
    drop(rig);
    assert!(!rig::standing(&prefix).is_empty(), "a kept rig stands");
    assert!(Rig::up_as(&prefix, Snat::Node).is_err(), "no second rig of the same name");
    let removed = rig::down(&prefix)?;
    assert_eq!(removed.len(), 12);
    assert_eq!(rig::standing(&prefix), Vec::<String>::new());
    assert_eq!(rig::down(&prefix)?, Vec::<String>::new());
    Ok(())
}

fn serve(rig: &Rig, member: &str) -> Result<(TcpServer, UdpServer)> {
    let netns = rig.netns(member);
    Ok((TcpServer::start(netns, ANY)?, UdpServer::start(netns, ANY)?))
}
