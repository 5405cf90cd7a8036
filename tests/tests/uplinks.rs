//! Further uplinks: an egress IP lives on the uplink of its subnet, whose packets come and go there.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::{Context as _, Result, ensure};
use egress_common::testing::packet::udp;
use egress_tests::{
    gateway::{DEADLINE, Gateway},
    netns::wait_until,
    report::Witness,
    rig::{
        Rig, objects,
        second::{BEYOND, EGRESS_IP, FAR, SECOND, Second, Wire, has_vlans, labelled},
        topology::{UPLINK, mac_bytes},
    },
    traffic::{Capture, PATIENCE, RawSocket, TcpServer, tcp_exchange},
};
use serde_json::{Value, json};

/// The pod whose egress IP is of the second network, and one that leaves as ever.
const MOVED: &str = "egress-test2-1";
const STAYING: &str = "egress-test-1";
const MEBIBYTE: u64 = 1 << 20;

/// A rig with the second network, where the egress IP of [`MOVED`] is.
fn rig(wire: Wire) -> Result<(Rig, Second, String)> {
    let mut rig = Rig::up()?;
    let second = Second::up(&rig, wire)?;
    let pod = rig.pods.iter_mut().find(|pod| pod.name == MOVED).context(MOVED)?;
    let before = pod.egress_ip.replace(EGRESS_IP).context("an egress IP")?;
    Ok((rig, second, Second::objects(before)))
}

fn has_condition(status: &Value, object: &str, reason: &str) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|told| told["object"] == object && told["reason"] == reason)
}

/// Each pod leaves by its egress IP's uplink, near and far, and nothing else leaves by the second.
fn every_pod_leaves_by_its_own(rig: &Rig, second: &Second) -> Result<()> {
    let capture = Capture::start(&second.beyond, "eth0")?;
    for host in [BEYOND, FAR] {
        let mut witness = Witness::start(second.beyond.name(), host)?;
        for row in witness.observe_all(&[rig.talker(rig.pod(MOVED))])? {
            ensure!(row.ok, "{row:?} at {host}");
        }
    }
    for host in &rig.outside {
        let mut witness = Witness::start(rig.netns(&host.name).name(), host.ip)?;
        for row in witness.observe_all(&[rig.talker(rig.pod(STAYING))])? {
            ensure!(row.ok, "{row:?} at {}", host.name);
        }
    }
    let server = TcpServer::start(&second.beyond, SocketAddrV4::new(FAR, 7000))?;
    rig.netns(MOVED).run(|| tcp_exchange(server.address(), 1, 4 * MEBIBYTE))??;
    let sources: BTreeSet<Ipv4Addr> =
        capture.packets().into_iter().map(|packet| packet.source).collect();
    assert_eq!(sources, BTreeSet::from([EGRESS_IP]));
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

fn an_egress_ip_has_its_uplink(wire: Wire, data_path: &str, counters: [&str; 2]) -> Result<()> {
    let (rig, second, objects) = rig(wire)?;
    second.add_route(&rig)?;
    let node = rig.netns(&rig.egress.name);
    let gateway = Gateway::running(node, &second.config(data_path), &objects)?;
    let status = gateway.status()?;
    let uplink = &status["uplinks"][1];
    assert_eq!(
        (&uplink["name"], &uplink["subnets"], &uplink["addresses"]),
        (&json!(second.uplink), &json!(["192.0.2.0/24"]), &json!([EGRESS_IP]))
    );
    assert_eq!(status["missing"], json!([]));
    assert_eq!(labelled(node, &second.uplink)?, BTreeSet::from([EGRESS_IP.to_string()]));
    assert!(!labelled(node, UPLINK)?.contains(&EGRESS_IP.to_string()));
    every_pod_leaves_by_its_own(&rig, &second)
        .with_context(|| format!("{wire:?} on {data_path}: {}", gateway.log()))?;
    let status = gateway.status()?;
    for counter in counters {
        assert!(status["paths"][counter].as_u64() > Some(100), "{counter}: {}", status["paths"]);
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_uplink_of_its_own_carries_its_egress_ips_on_every_path() -> Result<()> {
    an_egress_ip_has_its_uplink(Wire::Device, "tc", ["underlay", "reply_underlay"])?;
    an_egress_ip_has_its_uplink(Wire::Device, "tunnel", ["tunnel", "reply_tunnel"])?;
    an_egress_ip_has_its_uplink(Wire::Device, "stack", ["stack", "reply_stack"])
}

#[test]
#[ignore = "needs root"]
fn a_vlan_on_the_first_uplink_carries_its_egress_ips_on_every_path() -> Result<()> {
    if !has_vlans()? {
        eprintln!("not run: this kernel has no VLAN devices");
        return Ok(());
    }
    let wire = Wire::Vlan(100);
    an_egress_ip_has_its_uplink(wire, "tc", ["underlay", "reply_underlay"])?;
    an_egress_ip_has_its_uplink(wire, "tunnel", ["tunnel", "reply_tunnel"])?;
    an_egress_ip_has_its_uplink(wire, "stack", ["stack", "reply_stack"])
}

#[test]
#[ignore = "needs root"]
fn a_vlan_on_another_device_carries_its_egress_ips() -> Result<()> {
    if !has_vlans()? {
        eprintln!("not run: this kernel has no VLAN devices");
        return Ok(());
    }
    an_egress_ip_has_its_uplink(Wire::DeviceVlan(7), "tc", ["underlay", "reply_underlay"])
}

#[test]
#[ignore = "needs root"]
fn an_egress_ip_is_probed_and_announced_on_its_own_network_alone() -> Result<()> {
    let (rig, second, objects) = rig(Wire::Device)?;
    let node = rig.netns(&rig.egress.name);
    let outside = rig.netns(&rig.outside[0].name);
    for host in [outside, &second.beyond] {
        host.sysctl("ipv4/conf/all/arp_accept", "1")?;
    }
    second.beyond.ip(&format!("addr add {EGRESS_IP}/32 dev eth0\n"))?;
    let config = second.config("tc").replace("probe: false", "probe: true");
    let gateway = Gateway::running(node, &config, &objects)?;
    let status = gateway.status()?;
    assert!(has_condition(&status, "NetNamespace/egress-test2", "Conflict"), "{status}");
    assert_eq!(labelled(node, &second.uplink)?, BTreeSet::new());

    second.beyond.ip(&format!("addr del {EGRESS_IP}/32 dev eth0\n"))?;
    let knows = |host: &egress_tests::netns::Netns, device: &str| {
        host.exec("ip neigh show").is_ok_and(|text| {
            text.lines().any(|line| line.starts_with(&format!("{EGRESS_IP} dev {device} lladdr")))
        })
    };
    assert!(wait_until(DEADLINE, || knows(&second.beyond, "eth0")), "{}", gateway.log());
    assert!(!knows(outside, "eth0"), "announced on the first uplink");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_keeps_an_uplink_from_being_of_use_is_a_condition() -> Result<()> {
    let (rig, second, objects) = rig(Wire::Device)?;
    let node = rig.netns(&rig.egress.name);
    node.ip("link add bare type veth peer name nobody\nlink set bare up\n")?;
    let config = second.config("tc").replace("[ens19]", "[ens19, bare, nosuch]");
    let mut gateway = Gateway::running(node, &config, &objects)?;
    let status = gateway.status()?;
    for (object, reason) in
        [("Device/ens19", "NoRoute"), ("Device/bare", "NoAddress"), ("Device/nosuch", "NoDevice")]
    {
        assert!(has_condition(&status, object, reason), "{object}: {}", status["conditions"]);
    }
    gateway.kill()?;
    second.add_route(&rig)?;
    gateway.run_agent()?;
    assert!(!has_condition(&gateway.status()?, "Device/ens19", "NoRoute"));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_uplink_that_is_none_any_more_is_cleared_and_its_tenant_dropped() -> Result<()> {
    let (rig, second, objects) = rig(Wire::Device)?;
    second.add_route(&rig)?;
    let node = rig.netns(&rig.egress.name);
    let mut gateway = Gateway::running(node, &second.config("tc"), &objects)?;
    assert_eq!(labelled(node, &second.uplink)?.len(), 1);
    gateway.kill()?;
    gateway.write_config(objects::AGENT_CONFIG)?;
    gateway.run_agent()?;
    assert_eq!(labelled(node, &second.uplink)?, BTreeSet::new());
    let status = gateway.status()?;
    assert!(has_condition(&status, "NetNamespace/egress-test2", "NotInSubnet"), "{status}");
    let attached = status["attached"].as_array().context("attached")?;
    assert!(attached.iter().all(|place| place["interface"] != second.uplink.as_str()));

    gateway.kill()?;
    gateway.write_config(&second.config("tc"))?;
    gateway.run_agent()?;
    gateway.kill()?;
    let cleanup = gateway.egress(&["cleanup"])?;
    let said = String::from_utf8_lossy(&cleanup.stdout).into_owned();
    assert!(said.contains(&format!("released {EGRESS_IP} on {}\n", second.uplink)), "{said}");
    assert_eq!(labelled(node, &second.uplink)?, BTreeSet::new());
    Ok(())
}

/// The second network as a wire would have it: whole frames, and GRO where XDP's frames arrive.
fn whole_frames(rig: &Rig, second: &Second) -> Result<()> {
    rig.take_xdp_frames()?;
    rig.send_whole_frames()?;
    second.beyond.exec("ethtool -K eth0 tx off tso off gso off").map(drop)
}

fn paths_in_force(status: &Value) -> Vec<&Value> {
    let uplinks = status["uplinks"].as_array().into_iter().flatten();
    uplinks.map(|uplink| &uplink["dataPath"]["path"]).collect()
}

#[test]
#[ignore = "needs root"]
fn xdp_goes_from_one_uplink_to_the_other_and_back() -> Result<()> {
    let (rig, second, objects) = rig(Wire::Device)?;
    second.add_route(&rig)?;
    whole_frames(&rig, &second)?;
    rig.switch().exec(&format!("ethtool -K {SECOND} gro on"))?;
    let node = rig.netns(&rig.egress.name);
    let gateway = Gateway::running(node, &second.config("xdp"), &objects)?;
    let status = gateway.status()?;
    assert_eq!(paths_in_force(&status), ["xdp", "xdp"], "{}", status["conditions"]);
    every_pod_leaves_by_its_own(&rig, &second).with_context(|| gateway.log())?;
    let server = TcpServer::start(&second.beyond, SocketAddrV4::new(FAR, 7001))?;
    let before = gateway.status()?["paths"].clone();
    rig.netns(MOVED).run(|| tcp_exchange(server.address(), 2, 8 * MEBIBYTE))??;
    let after = gateway.status()?["paths"].clone();
    let more = |path: &str| {
        let count = |paths: &Value| paths[path].as_u64().unwrap_or_default();
        count(&after) - count(&before)
    };
    for (early, late) in [("xdp", "underlay"), ("reply_xdp", "reply_underlay")] {
        assert!(more(early) > 9 * more(late) && more(early) > 1000, "{before} {after}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_uplink_that_takes_no_frames_from_xdp_is_left_to_tc() -> Result<()> {
    let (rig, second, objects) = rig(Wire::Device)?;
    second.add_route(&rig)?;
    whole_frames(&rig, &second)?;
    let node = rig.netns(&rig.egress.name);
    let gateway = Gateway::running(node, &second.config("xdp"), &objects)?;
    let status = gateway.status()?;
    assert_eq!(paths_in_force(&status), ["xdp", "tc"]);
    assert!(has_condition(&status, "Device/ens19", "NoXdp"), "{}", status["conditions"]);
    every_pod_leaves_by_its_own(&rig, &second).with_context(|| gateway.log())?;
    let paths = gateway.status()?["paths"].clone();
    for path in ["xdp", "reply_xdp", "underlay", "reply_underlay"] {
        assert!(paths[path].as_u64() > Some(10), "{path} of the one uplink or the other: {paths}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn xdp_takes_and_sends_the_frames_of_a_vlan_on_its_device() -> Result<()> {
    if !has_vlans()? {
        eprintln!("not run: this kernel has no VLAN devices");
        return Ok(());
    }
    let (rig, second, objects) = rig(Wire::Vlan(100))?;
    second.add_route(&rig)?;
    whole_frames(&rig, &second)?;
    let node = rig.netns(&rig.egress.name);
    let mut gateway = Gateway::running(node, &second.config("xdp"), &objects)?;
    let status = gateway.status()?;
    assert_eq!(paths_in_force(&status), ["tc", "tc"], "the tags are not in the frames");
    assert!(has_condition(&status, "Device/ens18", "NoXdp"), "{}", status["conditions"]);
    gateway.kill()?;
    // In the frames, both ways.
    node.exec(&format!("ethtool -K {UPLINK} rxvlan off"))?;
    rig.switch().exec(&format!("ethtool -K {} txvlan off", rig.egress.name))?;
    gateway.run_agent()?;
    let status = gateway.status()?;
    assert_eq!(paths_in_force(&status), ["xdp", "xdp"], "{}", status["conditions"]);
    every_pod_leaves_by_its_own(&rig, &second).with_context(|| gateway.log())?;
    let paths = gateway.status()?["paths"].clone();
    for path in ["xdp", "reply_xdp"] {
        assert!(paths[path].as_u64() > Some(1000), "{path}: {paths}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn tagged_frames_are_not_taken_for_those_of_the_uplink_below() -> Result<()> {
    for data_path in ["tc", "xdp"] {
        let rig = Rig::up()?;
        rig.take_xdp_frames()?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        let outside = RawSocket::open(rig.netns(&rig.outside[0].name), "eth0")?;
        let packet = udp(([10, 0, 0, 1], 4000), ([10, 0, 0, 11], 7000), b"anyone there?").bytes();
        let refused = |count: u64| {
            let counted = || gateway.status().is_ok_and(|now| now["drops"]["refused"] == count);
            wait_until(PATIENCE, counted)
        };
        let mut frame = [mac_bytes(&rig.egress.mac)?, vec![2, 0, 0, 0, 0, 1]].concat();
        frame.extend([0x81, 0, 0, 100, 8, 0]);
        frame.extend(packet);
        // Another network's, then one with a priority and no VLAN, then an untagged one.
        outside.send(&frame)?;
        frame[15] = 0;
        outside.send(&frame)?;
        assert!(refused(1), "{}", gateway.status()?["drops"]);
        frame.drain(12..16);
        outside.send(&frame)?;
        assert!(refused(2), "{}", gateway.status()?["drops"]);
    }
    Ok(())
}
