//! What others break on the egress node, the agent mends: addresses, links, programs; and what it
//! must not fight for.
//!
//! What is promised within a second gets more here: machines that run tests are busy.
use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_common::abi::ABI_VERSION;
use egress_tests::{
    gateway::Gateway,
    netns::{wait_for, wait_until},
    rig::{
        Rig,
        topology::{TUNNEL, UPLINK, VXLAN_PORT},
    },
    traffic::{TcpServer, UdpServer, tcp_exchange, udp_exchange},
};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(10);
const EGRESS_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const VNID: u32 = 7_305_526;
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const POD: &str = "egress-test-1";

#[test]
#[ignore = "needs root"]
fn an_address_removed_by_hand_comes_back() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let egress = rig.netns(&rig.egress.name);
    // The third time the node's own is removed with it, and added by hand again.
    for batch in [
        format!("addr del {EGRESS_IP}/24 dev {UPLINK}"),
        format!("addr flush dev {UPLINK} label {UPLINK}:eip"),
        format!(
            "addr flush dev {UPLINK}\naddr add {}/24 dev {UPLINK}\n\
             route add default via 10.0.0.1 dev {UPLINK}",
            rig.egress.ip
        ),
    ] {
        egress.ip(&format!("{batch}\n"))?;
        let since = Instant::now();
        mended(&gateway, "the address", || has_address(&rig, EGRESS_IP))?;
        println!("{batch:?}: mended after {:?}", since.elapsed());
    }
    rig.netns(POD).run(|| tcp_exchange(FAR, 1, 1 << 20))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_link_that_went_down_and_came_up_is_announced_on_again() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let router = rig.netns("outside");
    let (egress, pod) = (rig.netns(&rig.egress.name), rig.netns(POD));
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    let switch = rig.switch();
    // A wrong entry that nobody asks about again: only an announcement mends it.
    let wrong = "02:00:00:00:00:99";
    let neighbour = || -> Result<String> {
        router.output(Command::new("ip").args(["neigh", "show", &EGRESS_IP.to_string()]))
    };
    let mut carriers = [
        // The far end of the cable, then the interface itself.
        (switch, rig.egress.name.as_str(), ""),
        (egress, UPLINK, "route add default via 10.0.0.1 dev ens18\n"),
    ];
    for (netns, device, afterwards) in &mut carriers {
        // The burst of the claim must be over before the entry is falsified.
        let quiet = wait_until(DEADLINE, || {
            let falsified = router
                .ip(&format!("neigh replace {EGRESS_IP} lladdr {wrong} dev eth0 nud stale\n"))
                .is_ok();
            falsified
                && !wait_until(Duration::from_millis(1500), || {
                    neighbour().is_ok_and(|text| !text.contains(wrong))
                })
        });
        ensure!(quiet, "announcements do not end");
        netns.ip(&format!("link set {device} down\n"))?;
        netns.ip(&format!("link set {device} up\n{afterwards}"))?;
        let since = Instant::now();
        let told =
            wait_until(DEADLINE, || neighbour().is_ok_and(|text| text.contains(&rig.egress.mac)));
        ensure!(told, "{device}: {:?}; {}", neighbour(), gateway.log());
        println!("{device}: announced after {:?}", since.elapsed());
    }
    pod.run(|| tcp_exchange(FAR, 1, 1 << 20))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_program_removed_by_someone_else_comes_back() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    let before = programs(&gateway)?;
    ensure!(before.iter().all(|(_, attached)| *attached), "{before:?}");
    let all_there =
        || programs(&gateway).is_ok_and(|programs| programs.iter().all(|(_, there)| *there));
    let links = format!("/sys/fs/bpf/egress/v{ABI_VERSION}/links");
    let pins = gateway.beside(|| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&links)?.map(|entry| entry.map(|entry| entry.path()));
        Ok(entries.collect::<Result<_, _>>()?)
    })??;
    assert_eq!(pins.len(), before.len());
    for pin in pins {
        // Nothing else holds a link: with its pin it is gone, and the program detached.
        gateway.beside(|| fs::remove_file(&pin))??;
        let since = Instant::now();
        mended(&gateway, &pin.display().to_string(), all_there)?;
        println!("{}: mended after {:?}", pin.display(), since.elapsed());
    }
    rig.netns(POD).run(|| udp_exchange(FAR, 1, 1000))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_tunnel_device_that_went_is_told_and_taken_up_when_it_is_back() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let egress = rig.netns(&rig.egress.name);
    egress.ip(&format!("link del {TUNNEL}\n"))?;
    let told = || {
        conditions(&gateway)
            .is_ok_and(|all| all.iter().any(|condition| condition["reason"] == "NoDevice"))
    };
    mended(&gateway, "the word of the missing device", told)?;
    egress.ip(&format!(
        "link add {TUNNEL} type vxlan external dstport {VXLAN_PORT} nolearning udp6zerocsumrx\n\
         link set {TUNNEL} up\n"
    ))?;
    mended(&gateway, "the program on the new device", || {
        let there = |programs: Vec<(String, bool)>| {
            programs.iter().any(|(place, attached)| place.contains(TUNNEL) && *attached)
        };
        !told() && programs(&gateway).is_ok_and(there)
    })
}

/// Wanted, and not there: a condition, and the rest goes on.
#[test]
#[ignore = "needs root"]
fn without_open_vswitch_the_rest_goes_on() -> Result<()> {
    let rig = Rig::up()?;
    let config =
        include_str!("../../examples/agent.yaml").replace("enabled: auto", "enabled: true");
    let netns = rig.netns(&rig.egress.name);
    let gateway = Gateway::running(netns, &config, include_str!("../../examples/objects.yaml"))?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    rig.netns(POD).run(|| udp_exchange(FAR, 1, 8))??;
    assert_eq!(server.peer(1).map(|peer| *peer.ip()), Some(EGRESS_IP));
    let absent = |condition: &Value| {
        condition["object"] == "Agent/ovs" && condition["reason"] == "NoOpenVSwitch"
    };
    ensure!(conditions(&gateway)?.iter().any(absent), "{:?}", conditions(&gateway)?);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_egress_ip_that_another_host_has_is_not_fought_for_and_claimed_once_free() -> Result<()> {
    let rig = Rig::up()?;
    let router = rig.netns("outside");
    router.ip(&format!("addr add {EGRESS_IP}/24 dev eth0\n"))?;
    let server = UdpServer::start(rig.netns("far"), FAR)?;
    let gateway = Gateway::start(&rig)?;
    let told = wait_until(DEADLINE, || conditions(&gateway).is_ok_and(|all| conflicts(&all)));
    ensure!(told, "{:?}; {}", conditions(&gateway), gateway.log());
    ensure!(!has_address(&rig, EGRESS_IP), "claimed all the same");
    assert_eq!(action(&gateway, VNID)?, "drop");
    // Many retries later nothing has leaked.
    let error = rig.netns(POD).run(|| udp_exchange(FAR, 1, 8))?.unwrap_err();
    ensure!(server.peer(1).is_none(), "a dropped tenant was seen: {error:#}");
    // The others are served.
    rig.netns("egress-test2-1").run(|| udp_exchange(FAR, 2, 8))??;
    assert_eq!(rig.untranslated()?, (0, 0));

    router.ip(&format!("addr del {EGRESS_IP}/24 dev eth0\n"))?;
    // The retries become rare while the conflict lasts: up to thirty seconds.
    let claimed = wait_until(4 * DEADLINE, || {
        has_address(&rig, EGRESS_IP) && action(&gateway, VNID).is_ok_and(|action| action == "snat")
    });
    ensure!(claimed, "not claimed: {:?}; {}", conditions(&gateway), gateway.log());
    ensure!(!conflicts(&conditions(&gateway)?), "the condition stays");
    rig.netns(POD).run(|| udp_exchange(FAR, 3, 8))??;
    assert_eq!(server.peer(3).map(|peer| *peer.ip()), Some(EGRESS_IP));
    Ok(())
}

fn mended(gateway: &Gateway, what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    ensure!(wait_until(DEADLINE, holds), "{what} is not mended; {}", gateway.log());
    Ok(())
}

fn has_address(rig: &Rig, ip: Ipv4Addr) -> bool {
    let mut show = Command::new("ip");
    show.args(["-4", "addr", "show", "dev", UPLINK]);
    let shown = rig.netns(&rig.egress.name).output(&mut show);
    shown.is_ok_and(|text| text.contains(&format!(" {ip}/")))
}

fn status(gateway: &Gateway) -> Result<Value> {
    let output = gateway.egress(&["status", "-o", "json"])?;
    ensure!(output.status.success(), "egress status: {output:?}");
    serde_json::from_slice(&output.stdout).context("read the status")
}

fn conditions(gateway: &Gateway) -> Result<Vec<Value>> {
    let status = status(gateway)?;
    Ok(status["conditions"].as_array().context("no conditions")?.clone())
}

fn conflicts(conditions: &[Value]) -> bool {
    conditions.iter().any(|condition| {
        condition["reason"] == "Conflict" && condition["object"] == "NetNamespace/egress-test"
    })
}

fn action(gateway: &Gateway, vnid: u32) -> Result<String> {
    let status = status(gateway)?;
    let policies = status["policies"].as_array().context("no policies")?;
    let policy = policies.iter().find(|policy| policy["vnid"] == vnid).context("no policy")?;
    Ok(policy["action"].as_str().context("no action")?.to_owned())
}

/// What should run, and whether it does.
fn programs(gateway: &Gateway) -> Result<Vec<(String, bool)>> {
    let status = status(gateway)?;
    let all = status["attached"].as_array().context("nothing is attached")?;
    Ok(all.iter().map(|place| (place.to_string(), place["attached"] == true)).collect())
}

/// The gateway believes in an old owner, and does not hear us: that is told, until it answers.
#[test]
#[ignore = "needs root"]
fn an_egress_ip_is_announced_until_the_gateway_answers_to_it() -> Result<()> {
    let rig = Rig::up()?;
    let (ip, node, outside) = ("10.0.0.11", &rig.egress.name, rig.netns("outside"));
    outside.exec(&format!("ip neigh add {ip} lladdr 02:00:00:00:00:99 dev eth0 nud stale"))?;
    rig.switch().nft(&format!(
        "table netdev deaf {{\nchain {node} {{\n\
         type filter hook ingress device {node} priority 1\n\
         ether type arp arp saddr ip {ip} drop\n}}\n}}\n"
    ))?;
    let gateway = Gateway::start(&rig)?;
    let lacks = |ip: &str| -> Result<bool> {
        let status = gateway.status()?;
        let conditions = status["conditions"].as_array().context("no conditions")?;
        Ok(conditions.iter().any(|told| {
            told["object"] == format!("Address/{ip}") && told["reason"] == "Unwitnessed"
        }))
    };
    wait_for("the condition", || lacks(ip))?;
    ensure!(!lacks("10.0.0.13")?, "the gateway answers to the others");
    rig.switch().nft("delete table netdev deaf")?;
    wait_for("the condition to go", || Ok(!lacks(ip)?))?;
    let neighbour = outside.exec(&format!("ip neigh show {ip}"))?;
    ensure!(neighbour.contains(&rig.egress.mac), "{neighbour}");
    Ok(())
}
