//! The agent on real Open vSwitch, on both nodes: what the outside sees, and what the bridges hold.
//!
//! What is promised within a second gets more here: machines that run tests are busy.
use std::{
    net::{Ipv4Addr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::{Netns, wait_until},
    ovs::{EGRESS_NODE, Node, OUTSIDE, OvsRig, SOURCE_NODE, agent},
    report::{Protocol, Witness},
    traffic::{UdpServer, udp_exchange},
};
use egress_user::{
    ovs::{Layout, text},
    reconcile::flows::COOKIE,
};

const DEADLINE: Duration = Duration::from_secs(20);
const SERVER: SocketAddrV4 = SocketAddrV4::new(OUTSIDE, 7000);
const EGRESS_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

/// The network namespaces of the source node and the egress node.
fn nodes(rig: &OvsRig) -> Result<[Netns; 2]> {
    Ok([Netns::open(rig.source.netns.name())?, Netns::open(rig.egress.netns.name())?])
}

/// A table, or the groups, as the original's notes print them: without cookie, age and counters.
fn dump(node: &Node, verb: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let counted = ["cookie=", "duration=", "n_packets=", "n_bytes="];
    let text = node.ovs.ofctl(verb, arguments)?;
    let mut lines: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("OFPST") && !line.starts_with("NXST"))
        .map(|line| {
            let words = line
                .trim()
                .split(", ")
                .filter(|word| !counted.iter().any(|counter| word.starts_with(counter)));
            words.collect::<Vec<_>>().join(", ")
        })
        .collect();
    lines.sort();
    Ok(lines)
}

/// How many flows of ours the node holds.
fn ours(node: &Node) -> Result<usize> {
    let held = text::parse_flow_dump(&node.ovs.ofctl("dump-flows", &[])?)?;
    Ok(held.iter().filter(|held| held.cookie == COOKIE).count())
}

#[test]
#[ignore = "needs root"]
fn every_pod_is_seen_with_the_egress_ip_of_its_namespace_in_both_layouts() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let [source, egress] = &nodes(&rig)?;
        let egress = agent::start(&rig.egress, egress)?;
        let source = agent::start(&rig.source, source)?;
        for row in Witness::start(rig.outside.name(), OUTSIDE)?.observe_all(&rig.talkers())? {
            assert!(row.ok, "{layout:?}: {row:?}\n{}\n{}", egress.log(), source.log());
        }
    }
    Ok(())
}

/// Both nodes without their own masquerading: a pod of no tenant reaches its gateway without a mark.
#[test]
#[ignore = "needs root"]
fn pods_without_a_policy_are_masqueraded_by_the_programs_in_both_layouts() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let netns = nodes(&rig)?;
        let mut agents = Vec::new();
        for (node, netns) in [(&rig.egress, &netns[1]), (&rig.source, &netns[0])] {
            netns.nft("delete table ip openshift\n")?;
            agents.push(agent::start_with(node, netns, "masquerade: true\n")?);
        }
        for row in Witness::start(rig.outside.name(), OUTSIDE)?.observe_all(&rig.talkers())? {
            assert!(row.ok, "{layout:?}: {row:?}\n{}\n{}", agents[0].log(), agents[1].log());
        }
        let paths = &agents[1].status()?["paths"];
        assert!(paths["gateway"].as_u64().is_some_and(|packets| packets > 10), "{paths}");
        let pod = rig.source.pod("dbtest").address.to_string();
        // First datagrams go up the stack, where they are tracked.
        let tracked = rig.source.netns.exec("conntrack -L -p tcp")?;
        assert!(!tracked.contains(&pod), "{tracked}");
    }
    Ok(())
}

/// The lines are those of the notes, of a cluster of 3.11 to 4.7.
#[test]
#[ignore = "needs root"]
fn table_100_holds_what_the_original_would_have_put_there_in_the_old_layout() -> Result<()> {
    let rig = OvsRig::start(Layout::Old)?;
    let [source, egress] = &nodes(&rig)?;
    let _egress = agent::start(&rig.egress, egress)?;
    let _source = agent::start(&rig.source, source)?;
    let foreign = |node: Ipv4Addr| {
        [
            "table=100, priority=0 actions=goto_table:101".to_owned(),
            format!("table=100, priority=200,tcp,nw_dst={node},tp_dst=53 actions=output:2"),
            format!("table=100, priority=200,udp,nw_dst={node},tp_dst=53 actions=output:2"),
            "table=100, priority=300,udp,tp_dst=4789 actions=drop".to_owned(),
        ]
    };
    let sorted = |ours: [String; 3], node: Ipv4Addr| {
        let mut lines: Vec<String> = ours.into_iter().chain(foreign(node)).collect();
        lines.sort();
        lines
    };
    let remote =
        "actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1";
    let expected = ["0x6f7936", "0xdf6553", "0x2ec40e"]
        .map(|vnid| format!("table=100, priority=100,ip,reg0={vnid} {remote}"));
    assert_eq!(
        dump(&rig.source, "dump-flows", &["table=100"])?,
        sorted(expected, SOURCE_NODE.address)
    );
    let mac = gateway_mac(&rig.egress)?;
    let expected = [("0x6f7936", "0x6f7936"), ("0xdf6553", "0x1df6552"), ("0x2ec40e", "0x2ec40e")]
        .map(|(vnid, mark)| {
            format!(
                "table=100, priority=100,ip,reg0={vnid} actions=set_field:{mac}->eth_dst,\
                     set_field:{mark}->pkt_mark,goto_table:101"
            )
        });
    assert_eq!(
        dump(&rig.egress, "dump-flows", &["table=100"])?,
        sorted(expected, EGRESS_NODE.address)
    );
    Ok(())
}

/// As `SetNamespaceEgressViaEgressIPs` of 4.8 and later makes them.
#[test]
#[ignore = "needs root"]
fn table_101_and_its_groups_are_what_the_original_would_have_made_in_the_new_layout() -> Result<()>
{
    let rig = OvsRig::start(Layout::New)?;
    let [source, egress] = &nodes(&rig)?;
    let _egress = agent::start(&rig.egress, egress)?;
    let _source = agent::start(&rig.source, source)?;
    let flows = |commit: &str| {
        let ours = [("0x6f7936", 7_305_526), ("0xdf6553", 14_640_467), ("0x2ec40e", 3_064_846)];
        let mut lines: Vec<String> = ours
            .iter()
            .map(|(register, vnid)| {
                format!("table=101, priority=100,ip,reg0={register} actions={commit}group:{vnid}")
            })
            .collect();
        lines.push("table=101, priority=0 actions=output:2".into());
        lines.push("table=101, priority=150,ct_state=+rpl actions=output:2".into());
        lines.sort();
        lines
    };
    assert_eq!(dump(&rig.source, "dump-flows", &["table=101"])?, flows("ct(commit),"));
    assert_eq!(dump(&rig.egress, "dump-flows", &["table=101"])?, flows(""));
    let remote =
        "actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1";
    let groups = [14_640_467, 3_064_846, 7_305_526]
        .map(|vnid| format!("group_id={vnid},type=select,bucket={remote}"));
    assert_eq!(dump(&rig.source, "dump-groups", &[])?, groups);
    let mac = gateway_mac(&rig.egress)?;
    let groups = [(14_640_467, "0x1df6552"), (3_064_846, "0x102e440e"), (7_305_526, "0x6f7936")]
        .map(|(vnid, mark)| {
            format!(
                "group_id={vnid},type=select,bucket=actions=set_field:{mac}->eth_dst,\
                     set_field:{mark}->pkt_mark,output:2"
            )
        });
    assert_eq!(dump(&rig.egress, "dump-groups", &[])?, groups);
    Ok(())
}

fn gateway_mac(node: &Node) -> Result<String> {
    let mac = node.ovs.vsctl(&["get", "Interface", "tun0", "mac_in_use"])?;
    Ok(mac.trim().trim_matches('"').to_owned())
}

#[test]
#[ignore = "needs root"]
fn flushed_flows_and_groups_come_back_while_traffic_runs() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let [source, egress] = &nodes(&rig)?;
    let egress = agent::start(&rig.egress, egress)?;
    let source = agent::start(&rig.source, source)?;
    let server = UdpServer::start(&Netns::open(rig.outside.name())?, SERVER)?;
    let pod = Netns::open(rig.source.pod("egress-test").netns.name())?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let client = scope.spawn(|| {
            pod.run(|| {
                let mut sent = 0;
                while !stop.load(Ordering::Relaxed) {
                    // Lost while there is no flow; what arrives must be translated.
                    let _ = udp_exchange(SERVER, sent, 100);
                    sent += 1;
                }
                sent
            })
        });
        let flush = |node: &Node, gateway: &Gateway| -> Result<()> {
            let cookie = format!("cookie={COOKIE:#x}/-1");
            for (verb, arguments) in [("del-flows", vec![cookie.as_str()]), ("del-groups", vec![])]
            {
                let whole = ours(node)?;
                node.ovs.ofctl(verb, &arguments)?;
                repaired(node, gateway, whole, verb)?;
            }
            Ok(())
        };
        let flushed = flush(&rig.source, &source).and_then(|()| flush(&rig.egress, &egress));
        stop.store(true, Ordering::Relaxed);
        let sent = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        flushed?;
        let strangers: Vec<_> = (0..sent)
            .filter_map(|id| server.peer(id))
            .filter(|peer| *peer.ip() != EGRESS_IP && *peer.ip() != SOURCE_NODE.address)
            .collect();
        ensure!(strangers.is_empty(), "seen with another address: {strangers:?}");
        Ok(())
    })?;
    pod.run(|| udp_exchange(SERVER, u64::MAX, 100))??;
    assert_eq!(server.peer(u64::MAX).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

fn repaired(node: &Node, gateway: &Gateway, whole: usize, after: &str) -> Result<()> {
    let since = Instant::now();
    let repaired = wait_until(DEADLINE, || ours(node).is_ok_and(|count| count == whole));
    ensure!(repaired, "{} after {after}: {}", node.site.name, gateway.log());
    println!("{} after {after}: repaired after {:?}", node.site.name, since.elapsed());
    Ok(())
}

/// Nothing of the switch survives, its devices neither: the uplink is another one afterwards.
#[test]
#[ignore = "needs root"]
fn a_restarted_switch_gets_its_flows_and_the_uplink_its_addresses() -> Result<()> {
    let mut rig = OvsRig::start(Layout::New)?;
    let [source, egress] = &nodes(&rig)?;
    let (at_source, at_egress) = (source, egress);
    let egress = agent::start(&rig.egress, at_egress)?;
    let source = agent::start(&rig.source, at_source)?;
    let server = UdpServer::start(&Netns::open(rig.outside.name())?, SERVER)?;
    let pod = Netns::open(rig.source.pod("egress-test").netns.name())?;
    pod.run(|| udp_exchange(SERVER, 1, 100))??;
    rig.source.restart_switch()?;
    rig.egress.restart_switch()?;
    rig.settle()?;
    repaired(&rig.source, &source, 3, "a restart")?;
    repaired(&rig.egress, &egress, 3, "a restart")?;
    let since = Instant::now();
    let through = wait_until(DEADLINE, || {
        pod.run(|| udp_exchange(SERVER, 2, 100)).is_ok_and(|exchange| exchange.is_ok())
    });
    ensure!(through, "no way through: {}\n{}", egress.log(), source.log());
    println!("traffic again after {:?}", since.elapsed());
    assert_eq!(server.peer(2).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_namespace_without_a_usable_ip_is_dropped_at_its_source() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let [source, _] = &nodes(&rig)?;
        let source = agent::start(&rig.source, source)?;
        // No node lists it any more.
        source.write_objects(&agent::objects().replace("\"10.0.0.11\", ", ""))?;
        let table = if layout == Layout::Old { "100" } else { "101" };
        let drop = format!("table={table}, priority=100,reg0=0x6f7936 actions=drop");
        let dropped = wait_until(DEADLINE, || {
            dump(&rig.source, "dump-flows", &[&format!("table={table}")])
                .is_ok_and(|lines| lines.contains(&drop))
        });
        ensure!(dropped, "{layout:?}: {}", source.log());
        rig.source.ovs.wait_for_datapath()?;
        let mut witness = Witness::start(rig.outside.name(), OUTSIDE)?;
        let talkers = rig.talkers();
        let pod = talkers.iter().find(|pod| pod.pod == "pod1").context("pod1")?;
        for protocol in Protocol::ALL {
            let row = witness.observe(pod, protocol)?;
            assert_eq!(row.seen, None, "{layout:?}: {row:?}");
        }
        let normal = talkers.iter().find(|pod| pod.namespace == "dbtest").context("dbtest")?;
        let row = witness.observe(normal, Protocol::Udp)?;
        assert!(row.ok, "{layout:?}: {row:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn foreign_flows_stay_and_go_on_counting() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let foreign = |node: &Node| -> Result<Vec<String>> {
        let held = text::parse_flow_dump(&node.ovs.ofctl("dump-flows", &[])?)?;
        let held = held.into_iter().filter(|held| held.cookie != COOKIE);
        Ok(held.map(|held| held.flow.to_string()).collect())
    };
    let before = [foreign(&rig.source)?, foreign(&rig.egress)?];
    let [source, egress] = &nodes(&rig)?;
    let mut egress = agent::start(&rig.egress, egress)?;
    let mut source = agent::start(&rig.source, source)?;
    // From one pod to the other through the tunnel, with their own addresses.
    let to = rig.egress.pod("egress-test");
    let counted = format!("ip,nw_dst={}", to.address);
    let count = || -> Result<u64> {
        let text = rig.egress.ovs.ofctl("dump-flows", &[&format!("table=70,{counted}")])?;
        let words = text.split([',', ' ']).find_map(|word| word.strip_prefix("n_packets="));
        words.and_then(|count| count.parse().ok()).with_context(|| format!("no counter: {text}"))
    };
    let server = SocketAddrV4::new(to.address, 7000);
    let seen = UdpServer::start(&Netns::open(to.netns.name())?, server)?;
    let pod = Netns::open(rig.source.pod("egress-test").netns.name())?;
    let first = count()?;
    for id in 0..5 {
        pod.run(|| udp_exchange(server, id, 100))??;
    }
    assert_eq!(seen.peer(0).map(|peer| *peer.ip()), Some(rig.source.pod("egress-test").address));
    rig.egress.ovs.wait_for_datapath()?;
    ensure!(count()? >= first + 5, "{} packets counted", count()? - first);
    assert_eq!([foreign(&rig.source)?, foreign(&rig.egress)?], before);
    for gateway in [&mut egress, &mut source] {
        ensure!(gateway.stop()?.success(), "{}", gateway.log());
    }
    assert_eq!([foreign(&rig.source)?, foreign(&rig.egress)?], before, "after the agents left");
    Ok(())
}

/// An agent that leaves gives its addresses back. Without a flow its tenants would take the node's
/// normal way out.
#[test]
#[ignore = "needs root"]
fn tenants_of_an_agent_that_left_are_dropped_and_those_of_other_nodes_go_on() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let [source, egress] = &nodes(&rig)?;
    let mut egress = agent::start(&rig.egress, egress)?;
    let mut source = agent::start(&rig.source, source)?;
    let mut witness = Witness::start(rig.outside.name(), OUTSIDE)?;
    let talkers = rig.talkers();
    let (remote, local) = (&talkers[0], &talkers[4]);
    assert_eq!((remote.pod, local.pod), ("pod1", "pod5"));
    ensure!(source.stop()?.success(), "{}", source.log());
    rig.source.ovs.wait_for_datapath()?;
    let row = witness.observe(remote, Protocol::Tcp)?;
    assert!(row.ok, "{row:?}");
    ensure!(egress.stop()?.success(), "{}", egress.log());
    let drop = "table=101, priority=100,reg0=0x6f7936 actions=drop".to_owned();
    assert!(dump(&rig.egress, "dump-flows", &["table=101"])?.contains(&drop));
    rig.egress.ovs.wait_for_datapath()?;
    for pod in [remote, local] {
        let row = witness.observe(pod, Protocol::Udp)?;
        assert_eq!(row.seen, None, "{row:?}");
    }
    Ok(())
}
