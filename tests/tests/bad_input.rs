//! Bad input: one sentence that names the object and the cure, an exit code, nothing half done, and
//! the good still served.
use std::{fs, net::SocketAddrV4, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData};
use egress_common::abi::TICK_SHIFT;
use egress_tests::{
    gateway::Gateway,
    lone::{config, egress_ips, node, with},
    netns::{Netns, wait_until},
    rig::{Rig, objects::CLUSTER_OBJECTS},
    traffic::{UdpServer, udp_exchange},
};
use egress_user::bpf::{self, Maps};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);
const BPFFS: &str = bpf::BPFFS;

/// Neither an address nor a pin is left by an agent that did not start.
fn assert_nothing_done(netns: &Netns, gateway: &Gateway<'_>) -> Result<()> {
    assert_eq!(egress_ips(netns)?, [""; 0]);
    let pinned = gateway.beside(|| Path::new(BPFFS).join("egress").exists())?;
    ensure!(!pinned, "pins were left behind");
    Ok(())
}

/// One sentence on standard error with these words, and this exit code.
#[track_caller]
fn assert_refused((code, log): (Option<i32>, String), expected: i32, words: &[&str]) {
    assert_eq!(code, Some(expected), "{log}");
    let sentences: Vec<&str> = log.lines().filter(|line| line.starts_with("egress: ")).collect();
    let [sentence] = sentences[..] else { panic!("not one sentence: {log}") };
    for word in words {
        assert!(sentence.contains(word), "{word:?} is not in {sentence:?}");
    }
}

/// The conditions that `egress status` tells of an object, as "Reason: message".
fn conditions(status: &Value, object: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let all = status["conditions"].as_array().into_iter().flatten();
    all.filter(|told| told["object"] == object)
        .map(|told| format!("{}: {}", text(&told["reason"]), text(&told["message"])))
        .collect()
}

/// Waits until status tells this of the object.
#[track_caller]
fn wait_for_condition(gateway: &Gateway<'_>, object: &str, words: &[&str]) -> Result<()> {
    let told = wait_until(DEADLINE, || {
        gateway.status().is_ok_and(|status| {
            conditions(&status, object)
                .iter()
                .any(|told| words.iter().all(|word| told.contains(word)))
        })
    });
    ensure!(told, "no {words:?} of {object}: {:#}", gateway.status()?["conditions"]);
    Ok(())
}

fn wait_for_no_condition(gateway: &Gateway<'_>, object: &str) -> Result<()> {
    let gone = wait_until(DEADLINE, || {
        gateway.status().is_ok_and(|status| conditions(&status, object).is_empty())
    });
    ensure!(gone, "{object} still has: {:#}", gateway.status()?["conditions"]);
    Ok(())
}

/// What the programs do with a VNID: "snat", "drop", or nothing at all.
fn action(status: &Value, vnid: u32) -> Option<String> {
    let policies = status["policies"].as_array()?;
    let policy = policies.iter().find(|policy| policy["vnid"] == vnid)?;
    policy["action"].as_str().map(str::to_owned)
}

#[test]
#[ignore = "needs root"]
fn settings_that_cannot_be_used_end_the_start_before_anything_is_done() -> Result<()> {
    let netns = node()?;
    let many: Vec<String> = (0..32).map(|n| format!("10.{n}.0.0/16")).collect();
    let many = format!("clusterNetworks: [{}] #", many.join(", "));
    for (change, code, words) in [
        (("masqueradeBit: 0", "masqueradeBits: 0"), 2, &["AgentConfig", "masqueradeBits"][..]),
        (("clusterNetworks: []", "clusterNetworks: [10.128.0.0/33]"), 2, &["clusterNetworks"]),
        (("kind: AgentConfig", "kind: AgentConf"), 2, &["--config", "no AgentConfig"]),
        (("uplink: ens18", "uplink: ens99"), 3, &["uplink ens99 does not exist", "node.uplink"]),
        (("ip: 10.0.0.2/24", "ip: 10.0.0.9"), 3, &["10.0.0.9", "on no link", "node.ip"]),
        (("clusterNetworks: []", many.as_str()), 3, &["34", "room for 32", "join"]),
        // Half of the maps are made by then.
        (("max: 1048576", "max: 4294967295"), 3, &["memory", "flows.max 4294967295"]),
    ] {
        let gateway = Gateway::new(&netns, &with(&config(), change), CLUSTER_OBJECTS)?;
        assert_refused(gateway.refused(&[])?, code, words);
        assert_nothing_done(&netns, &gateway)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn files_without_objects_end_the_start_before_anything_is_done() -> Result<()> {
    let netns = node()?;
    let bad = "apiVersion: network.openshift.io/v1\nkind: NetNamespaces\nmetadata: {name: a}\n";
    for (objects, words) in [
        ("# nothing\n", &["no HostSubnet and no NetNamespace", "-f"][..]),
        (bad, &["NetNamespaces/a", "unknown kind"]),
    ] {
        let gateway = Gateway::new(&netns, &config(), objects)?;
        assert_refused(gateway.refused(&[])?, 2, words);
        assert_nothing_done(&netns, &gateway)?;
    }
    let gateway = Gateway::new(&netns, &config(), CLUSTER_OBJECTS)?;
    assert_refused(gateway.refused(&["-f", "/run/missing.yaml"])?, 2, &["read /run/missing.yaml"]);
    assert_nothing_done(&netns, &gateway)
}

#[test]
#[ignore = "needs root"]
fn a_node_that_is_not_fit_says_why() -> Result<()> {
    let netns = node()?;
    let gateway = Gateway::new(&netns, &config(), CLUSTER_OBJECTS)?;
    let elsewhere = gateway.refused(&["--bpffs", "/run"])?;
    assert_refused(elsewhere, 3, &["/run is not a bpffs", "mount -t bpf bpf /run"]);
    let nowhere = gateway.refused(&["--bpffs", "/run/missing"])?;
    assert_refused(nowhere, 3, &["/run/missing", "is bpffs mounted there?"]);
    let run = ["run", "--config", "/run/agent.yaml", "-f", "/run/objects.yaml"];
    let nobody = gateway.egress_as_nobody(&run)?;
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert_refused((nobody.status.code(), said), 3, &["no privileges", "as root", "CAP_NET_ADMIN"]);
    assert_nothing_done(&netns, &gateway)
}

#[test]
#[ignore = "needs root"]
fn pins_of_another_make_are_refused_and_left_alone() -> Result<()> {
    let netns = node()?;
    let gateway = Gateway::new(&netns, &config(), CLUSTER_OBJECTS)?;
    let maps = bpf::pins(Path::new(BPFFS)).join("maps");
    let pin = maps.join("policy");
    gateway.beside(|| -> Result<()> {
        fs::create_dir_all(&maps)?;
        // An array where a hash map is expected, and a value twice as long.
        Ok(Array::<MapData, u64>::create(16, 0)?.pin(&pin)?)
    })??;
    let pin_name = pin.display().to_string();
    let words = [pin_name.as_str(), "another layout", "egress cleanup"];
    assert_refused(gateway.refused(&[])?, 3, &words);
    assert_eq!(egress_ips(&netns)?, [""; 0]);
    let left = gateway.beside(|| fs::read_dir(&maps).map(Iterator::count))??;
    assert_eq!(left, 1, "only the other's map is there");
    let cleaned = gateway.egress(&["cleanup"])?;
    let removed = format!("{} (1)", maps.display());
    assert!(String::from_utf8_lossy(&cleaned.stdout).contains(&removed), "{cleaned:?}");

    gateway.beside(|| fs::create_dir_all(Path::new(BPFFS).join("egress/v0/maps")))??;
    let words = ["egress/v0", "another egress version", "egress cleanup"];
    assert_refused(gateway.refused(&[])?, 3, &words);
    gateway.egress(&["cleanup"])?;
    assert_nothing_done(&netns, &gateway)
}

#[test]
#[ignore = "needs root"]
fn a_second_agent_is_refused_and_the_first_goes_on() -> Result<()> {
    let netns = node()?;
    let gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    let pid = gateway.status()?["agent"]["pid"].to_string();
    let words = ["an agent runs here", &format!("(pid {pid})"), "stop it first"];
    assert_refused(gateway.refused(&[])?, 3, &words);
    let cleanup = gateway.egress(&["cleanup"])?;
    let said = String::from_utf8_lossy(&cleanup.stderr).into_owned();
    assert_refused((cleanup.status.code(), said), 3, &words);
    let status = gateway.status()?;
    assert_eq!(
        (&status["agent"]["running"], status["agent"]["pid"].to_string()),
        (&true.into(), pid)
    );
    assert_eq!(egress_ips(&netns)?, ["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    let programs = status["attached"].as_array().context("attached")?;
    assert!(programs.iter().all(|program| program["attached"] == true), "{programs:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn refused_objects_are_named_and_all_others_served() -> Result<()> {
    let netns = node()?;
    let namespace = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: network.openshift.io/v1\nkind: NetNamespace\nmetadata: {{name: \
             {name}}}\nnetname: {name}\n{rest}"
        )
    };
    let host = "---\napiVersion: network.openshift.io/v1\nkind: HostSubnet\nmetadata: {name: other}\n\
                host: other\nhostIP: 10.0.0.4\nsubnet: 10.132.0.0/33\n";
    let hosted =
        with(CLUSTER_OBJECTS, ("  - 10.0.0.13\n  host:", "  - 10.0.0.13\n  - 10.9.9.9\n  host:"));
    let objects = [
        hosted.as_str(),
        &namespace("too-high", "netid: 16777216\n"),
        &namespace("mistyped", "netid: 21\negressIP: [10.0.0.15]\n"),
        &namespace("node-ip", "netid: 22\negressIPs: [10.0.0.2]\n"),
        &namespace("outside", "netid: 23\negressIPs: [10.9.9.9]\n"),
        host,
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: stray}\n",
        "---\n{ no: yaml\n",
    ]
    .concat();
    let gateway = Gateway::running(&netns, &config(), &objects)?;
    let status = gateway.status()?;
    for (object, words) in [
        ("NetNamespace/too-high", &["Invalid", "netid", "16777215"][..]),
        ("NetNamespace/mistyped", &["Invalid", "egressIP"]),
        ("NetNamespace/node-ip", &["IsNodeIP", "10.0.0.2", "ask for another"]),
        ("NetNamespace/outside", &["NotInSubnet", "10.9.9.9", "10.0.0.0/24"]),
        ("HostSubnet/other", &["Invalid", "10.132.0.0/33"]),
        ("Pod/stray", &["Invalid", "unknown kind"]),
        ("Document//run/objects.yaml#8", &["Invalid", "no YAML"]),
    ] {
        let told = conditions(&status, object);
        let [told] = &told[..] else { panic!("not one condition of {object}: {status:#}") };
        assert!(words.iter().all(|word| told.contains(word)), "{object}: {told}");
        assert!(gateway.log().contains(object), "{object} is not in the log");
    }
    assert_eq!(egress_ips(&netns)?, ["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
    for (vnid, expected) in [
        (7_305_526, Some("snat")),
        (14_640_467, Some("snat")),
        (3_064_846, Some("snat")),
        (22, Some("drop")),
        (23, Some("drop")),
        (21, None),
    ] {
        assert_eq!(action(&status, vnid).as_deref(), expected, "VNID {vnid}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn files_that_turn_bad_change_nothing_and_are_named_until_they_are_good() -> Result<()> {
    let netns = node()?;
    let gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    let all = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];

    gateway.write_config(&with(&config(), ("masqueradeBit: 0", "masqueradeBits: 0")))?;
    wait_for_condition(&gateway, "Agent/files", &["Invalid", "masqueradeBits", "as they were"])?;
    assert_eq!(gateway.log().matches("Agent/files").count(), 1, "said once: {}", gateway.log());
    gateway.write_config(&config())?;
    wait_for_no_condition(&gateway, "Agent/files")?;

    gateway.write_objects("# emptied by mistake\n")?;
    wait_for_condition(&gateway, "Agent/files", &["no HostSubnet and no NetNamespace"])?;
    assert_eq!(egress_ips(&netns)?, all);

    gateway.write_objects(&with(CLUSTER_OBJECTS, ("netid: 7305526", "netid: 73055260")))?;
    let words = ["Invalid", "73055260", "stays as it was"];
    wait_for_condition(&gateway, "NetNamespace/egress-test", &words)?;
    let status = gateway.status()?;
    assert_eq!(action(&status, 7_305_526).as_deref(), Some("snat"));
    assert_eq!(egress_ips(&netns)?, all);

    gateway.write_objects(CLUSTER_OBJECTS)?;
    wait_for_no_condition(&gateway, "NetNamespace/egress-test")
}

#[test]
#[ignore = "needs root"]
fn after_a_restart_who_cannot_be_read_is_dropped_and_not_let_out() -> Result<()> {
    let netns = node()?;
    let mut gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    gateway.kill()?;
    gateway.write_objects(&with(CLUSTER_OBJECTS, ("netid: 7305526", "netid: 73055260")))?;
    gateway.run_agent()?;
    wait_for_condition(&gateway, "VNID/7305526", &["Invalid", "dropped"])?;
    let status = gateway.status()?;
    assert_eq!(action(&status, 7_305_526).as_deref(), Some("drop"));
    assert_eq!(action(&status, 3_064_846).as_deref(), Some("snat"));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn changed_settings_are_taken_over_or_wait_for_a_restart_by_name() -> Result<()> {
    let netns = node()?;
    let gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    let changed = with(&config(), ("udp: 300s", "udp: 200s"));
    let changed = with(&changed, ("max: 1048576", "max: 4096"));
    gateway.write_config(&with(&changed, ("gateway: tun0", "gateway: tun1")))?;
    let words = ["NeedsRestart", "gateway, flows.max", "egress cleanup"];
    wait_for_condition(&gateway, "AgentConfig/agent", &words)?;
    let config = gateway.beside(|| -> Result<_> {
        let maps = Maps::open(&bpf::pins(Path::new(BPFFS)))?;
        Ok(maps.config.get(&0, 0)?.0)
    })??;
    let ticks = (200_u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    assert_eq!(u64::from(config.udp), ticks);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn who_finds_no_room_is_dropped_and_never_let_out() -> Result<()> {
    let rig = Rig::up()?;
    let netns = rig.netns(&rig.egress.name);
    let config = config().replace("max: 16384", "max: 2");
    let gateway = Gateway::running(netns, &config, CLUSTER_OBJECTS)?;
    let status = gateway.status()?;
    // VNIDs in order: the last one is who found no room.
    let told = conditions(&status, "VNID/14640467");
    assert!(told[0].contains("NoRoom: dropped: policies.max is 2"), "{told:?}");
    assert_eq!(action(&status, 14_640_467).as_deref(), Some("drop"));
    let far = SocketAddrV4::new(rig.outside[1].ip, 7000);
    let server = UdpServer::start(rig.netns("far"), far)?;
    let dropped = rig.netns("egress-test2-1").run(|| udp_exchange(far, 1, 8))?;
    assert!(dropped.is_err(), "an answer came");
    for (id, pod) in [(2, "egress-test-1"), (3, "egress-test3-1")] {
        rig.netns(pod).run(|| udp_exchange(far, id, 8))??;
        assert_eq!(server.peer(id).map(|peer| *peer.ip()), rig.pod(pod).egress_ip, "{pod}");
    }
    assert_eq!(server.peer(1), None);
    assert_eq!(rig.untranslated()?, (0, 0));
    // Room that becomes free is taken.
    gateway
        .write_objects(&with(CLUSTER_OBJECTS, ("  egressIPs:\n  - 10.0.0.12\n  kind", "  kind")))?;
    wait_for_no_condition(&gateway, "VNID/14640467")?;
    assert_eq!(action(&gateway.status()?, 14_640_467).as_deref(), Some("snat"));
    Ok(())
}
