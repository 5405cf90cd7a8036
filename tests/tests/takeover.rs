//! A node of the original, with its chain in iptables, over to us and back under running connections.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    lone,
    netns::{wait_for, wait_until},
    rig::{Rig, Snat, objects, topology::UPLINK},
    traffic::{Long, LongServer, PATIENCE, UdpServer, keep_asking},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

/// The far host's server.
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
/// Pods of all tenants, three of them of one: those use the same ports. The last is the node's own.
const PODS: [&str; 5] =
    ["egress-test-1", "egress-test-2", "egress-test2-1", "egress-test3-1", "egress-test-3"];
const FILES: [&str; 4] = ["--config", "/run/agent.yaml", "-f", "/run/objects.yaml"];

/// A pod of the egress node, of a VNID that asks for no egress IP.
const LONE: &str = "gitea-2";

/// Connections from one place.
struct Crowd<'a> {
    /// The pod, or the node.
    pod: &'a str,
    source: Ipv4Addr,
    busy: Vec<Long>,
    /// The pod has said its last word until the server speaks.
    idle: Vec<Long>,
}

/// The original's node, and a place for us.
struct Site<'a> {
    rig: &'a Rig,
    gateway: Gateway<'a>,
    words: AtomicU64,
}

fn original(label: &str) -> Result<Rig> {
    // Both ends of all connections are this process's.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Rig::up_as(&format!("eg{}-{label}-", std::process::id()), Snat::Iptables)
}

impl<'a> Site<'a> {
    fn new(rig: &'a Rig) -> Result<Self> {
        let netns = rig.netns(&rig.egress.name);
        let gateway = Gateway::new(netns, objects::AGENT_CONFIG, objects::CLUSTER_OBJECTS)?;
        Ok(Self { rig, gateway, words: AtomicU64::new(1) })
    }

    fn crowds(&self, busy: u16, idle: u16) -> Result<Vec<Crowd<'a>>> {
        let tenant = |pod: &&'static str| {
            let source = self.rig.pod(pod).egress_ip.context("a tenant")?;
            self.crowd(pod, source, 20_000..20_000 + busy + idle, idle)
        };
        PODS.iter().map(tenant).collect()
    }

    /// Connections from these ports, the last of them idle.
    fn crowd(
        &self,
        pod: &'a str,
        source: Ipv4Addr,
        ports: Range<u16>,
        idle: u16,
    ) -> Result<Crowd<'a>> {
        let busy_ones = ports.len() - usize::from(idle);
        let open = || ports.map(|port| Long::open(FAR, port)).collect::<Result<Vec<_>>>();
        let mut busy = self.rig.netns(pod).run(open)??;
        let seen: BTreeSet<Ipv4Addr> = busy.iter().map(|long| *long.seen_as().ip()).collect();
        ensure!(seen == BTreeSet::from([source]), "{pod} is seen as {seen:?}");
        let mut idle = busy.split_off(busy_ones);
        idle.iter_mut().try_for_each(Long::wait)?;
        Ok(Crowd { pod, source, busy, idle })
    }

    /// Does the work while all busy connections are asked and new ones come and go.
    fn under_traffic(
        &self,
        crowds: &mut [Crowd<'_>],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let askers: Vec<_> = crowds
                .iter_mut()
                .map(|Crowd { pod, source, busy, .. }| {
                    let (stop, words) = (&stop, &self.words);
                    scope.spawn(move || {
                        self.rig
                            .netns(pod)
                            .run(|| keep_asking(busy, FAR, *source, stop, words))?
                            .with_context(|| format!("traffic of {pod}"))
                    })
                })
                .collect();
            let done = work();
            stop.store(true, Ordering::Relaxed);
            let asked: Vec<Result<()>> =
                askers.into_iter().map(|asker| asker.join().expect("no panic")).collect();
            // What a connection suffered says more than what came of it.
            asked.into_iter().collect::<Result<()>>()?;
            done
        })
    }

    /// Lets traffic go on for so many words.
    fn churn(&self, words: u64) -> Result<()> {
        let goal = self.words.load(Ordering::Relaxed) + words;
        let came =
            wait_until(Duration::from_secs(30), || self.words.load(Ordering::Relaxed) > goal);
        ensure!(came, "the traffic stands still");
        Ok(())
    }

    /// What the verb says; it must end with this code.
    fn egress(&self, words: &[&str], code: i32) -> Result<String> {
        let mut all = words.to_vec();
        all.extend(FILES);
        let output = self.gateway.egress(&all)?;
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(
            output.status.code() == Some(code),
            "egress {words:?}: {:?}\n{out}{err}{}",
            output.status,
            self.gateway.log()
        );
        Ok(format!("{out}{err}"))
    }

    fn rules(&self) -> Result<String> {
        self.rig.netns(&self.rig.egress.name).exec("iptables -t nat -S")
    }

    /// The node's entries of connections between pods and the outside.
    fn tracked(&self) -> Result<usize> {
        let listed = self.rig.netns(&self.rig.egress.name).exec("conntrack -L")?;
        let far = FAR.ip().to_string();
        Ok(listed.lines().filter(|line| line.contains(&far) && line.contains("src=10.1")).count())
    }
}

#[test]
#[ignore = "needs root"]
fn a_thousand_connections_live_through_takeover_churn_and_handback() -> Result<()> {
    let rig = original("over")?;
    let server = LongServer::start(rig.netns("far"), FAR)?;
    let mut site = Site::new(&rig)?;
    let mut crowds = site.crowds(180, 20)?;
    let ports: BTreeMap<u16, usize> = crowds
        .iter()
        .flat_map(|crowd| crowd.busy.iter().map(|long| long.seen_as().port()))
        .fold(BTreeMap::new(), |mut ports, port| {
            *ports.entry(port).or_default() += 1;
            ports
        });
    ensure!(
        ports.keys().any(|port| !(20_000..20_200).contains(port)),
        "the kernel changed no port"
    );
    let before = site.rules()?;
    ensure!(site.tracked()? >= 1000, "the node tracks its connections");
    site.under_traffic(&mut crowds, || {
        site.churn(2000)?;
        site.egress(&["takeover"], 0)?;
        let rules = site.rules()?;
        ensure!(!rules.contains("--to-source"), "no tenant's rule is left:\n{rules}");
        ensure!(rules.contains("OPENSHIFT-MASQUERADE-2"), "and all else is:\n{rules}");
        ensure!(site.tracked()? == 0, "the node tracks none of the tenants' connections");
        site.churn(5000)?;
        ensure!(site.tracked()? == 0, "nor any new one");
        Ok(())
    })?;
    site.gateway.run_agent().context("the agent goes on with what was taken over")?;
    site.under_traffic(&mut crowds, || site.churn(5000))?;
    let (idle, waiting): (Vec<_>, Vec<_>) =
        crowds.iter_mut().map(|crowd| (crowd.pod, crowd.idle.split_off(10))).unzip();
    server.speak();
    for long in crowds.iter_mut().flat_map(|crowd| &mut crowd.idle) {
        long.heard().context("what a silent pod is told after the takeover")?;
    }
    let mut waiting: Vec<Long> = waiting.into_iter().flatten().collect();
    ensure!(waiting.len() == 10 * idle.len());
    site.under_traffic(&mut crowds, || {
        site.egress(&["handback"], 0)?;
        ensure!(site.rules()? == before, "the rules are as they were:\n{}", site.rules()?);
        ensure!(site.tracked()? >= 900, "the node tracks all connections again");
        site.churn(5000)
    })?;
    for long in &mut waiting {
        long.heard()?;
        long.ask(1).context("an idle connection after the hand-back")?;
    }
    ensure!(site.gateway.wait()?.success(), "the agent let go");
    let pins = site.gateway.beside(|| std::path::Path::new("/sys/fs/bpf/egress").exists())?;
    ensure!(!pins, "no program is left");
    let addresses = rig.netns(&rig.egress.name).exec(&format!("ip addr show dev {UPLINK}"))?;
    ensure!(addresses.matches(":eip").count() == 3, "the egress IPs stay: {addresses}");
    ensure!(rig.untranslated()? == (0, 0), "nothing left with a pod's or the node's address");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn masqueraded_connections_and_the_nodes_own_live_through_takeover_and_handback() -> Result<()> {
    let rig = original("masquerade")?;
    let server = LongServer::start(rig.netns("far"), FAR)?;
    let datagrams = UdpServer::start(rig.netns("far"), FAR)?;
    let mut site = Site::new(&rig)?;
    let config = objects::AGENT_CONFIG;
    site.gateway.write_config(&lone::with(config, ("masquerade: false", "masquerade: true")))?;
    let mut crowds = site.crowds(10, 0)?;
    // Ports outside the range that new connections get.
    crowds.push(site.crowd(LONE, rig.egress.ip, 40_000..40_200, 20)?);
    let node = rig.netns(&rig.egress.name);
    crowds.push(site.crowd(&rig.egress.name, rig.egress.ip, 50_000..50_020, 0)?);
    node.sysctl("ipv4/ip_local_reserved_ports", "8080,40010-40019")?;
    let reserved = || node.exec("sysctl -n net.ipv4.ip_local_reserved_ports");
    let before = site.rules()?;
    let socket = rig.netns(LONE).run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 45_000)))??;
    socket.connect(FAR)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let ask = |id: u64| -> Result<SocketAddrV4> {
        let mut answer = [0; 8];
        socket.send(&id.to_be_bytes())?;
        socket.recv(&mut answer).with_context(|| format!("the answer to datagram {id}"))?;
        datagrams.peer(id).context("a datagram without a peer")
    };
    let seen_as = ask(1)?;
    site.under_traffic(&mut crowds, || {
        site.egress(&["takeover"], 0)?;
        ensure!(ask(2)? == seen_as, "the datagrams' port");
        let rules = site.rules()?;
        ensure!(!rules.contains("--to-source"), "no tenant's rule is left:\n{rules}");
        ensure!(rules.contains(&format!("! -o {UPLINK}")), "pods are ours:\n{rules}");
        ensure!(site.tracked()? == 0, "the node tracks no pod's connection");
        let reserved = reserved()?;
        let range = |range: &str| reserved.split(',').any(|held| held.trim() == range);
        ensure!(["8080", "40000-40199", "45000"].into_iter().all(range), "reserved: {reserved}");
        site.churn(3000)?;
        ensure!(site.tracked()? == 0, "nor any new one");
        Ok(())
    })?;
    site.gateway.run_agent().context("the agent goes on with what was taken over")?;
    site.under_traffic(&mut crowds, || site.churn(3000))?;
    server.speak();
    let lone = crowds.iter_mut().find(|crowd| crowd.pod == LONE).context("the lone pod")?;
    for long in &mut lone.idle {
        long.heard().context("what a silent pod is told after the takeover")?;
    }
    site.under_traffic(&mut crowds, || {
        site.egress(&["handback"], 0)?;
        ensure!(ask(3)? == seen_as, "the datagrams' port after the hand-back");
        ensure!(site.rules()? == before, "the rules are as they were:\n{}", site.rules()?);
        ensure!(reserved()?.trim() == "8080,40010-40019", "reserved: {}", reserved()?);
        ensure!(site.tracked()? >= 200, "the node tracks all connections again");
        site.churn(3000)
    })?;
    ensure!(site.gateway.wait()?.success(), "the agent let go");
    ensure!(rig.untranslated()?.0 == 0, "nothing left with a pod's address");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_takeover_that_stops_anywhere_is_finished_or_undone() -> Result<()> {
    let rig = original("steps")?;
    let _server = LongServer::start(rig.netns("far"), FAR)?;
    let site = Site::new(&rig)?;
    let mut crowds = site.crowds(20, 0)?;
    let before = site.rules()?;
    site.under_traffic(&mut crowds, || {
        for (step, finishes) in [
            ("noted", &[false][..]),
            ("beside", &[true, false]),
            ("own", &[false]),
            ("unruled", &[true]),
        ] {
            for &finish in finishes {
                site.egress(&["takeover", "--until", step], 0).with_context(|| step.to_owned())?;
                site.churn(300).with_context(|| format!("stopped at {step}"))?;
                let refused = site.gateway.refused(&[])?;
                ensure!(
                    refused.1.contains(&format!("a takeover has stopped at the step `{step}`")),
                    "an agent that starts meanwhile: {refused:?}"
                );
                if finish {
                    site.egress(&["takeover"], 0).with_context(|| step.to_owned())?;
                    ensure!(!site.rules()?.contains("--to-source"), "{step}: {}", site.rules()?);
                    site.churn(300).with_context(|| format!("finished from {step}"))?;
                }
                site.egress(&["handback"], 0).with_context(|| step.to_owned())?;
                ensure!(site.rules()? == before, "{step}, {finish}: {}", site.rules()?);
                site.churn(300).with_context(|| format!("back from {step}"))?;
            }
        }
        for (step, finish) in [("ruled", true), ("given", false)] {
            site.egress(&["takeover"], 0)?;
            site.egress(&["handback", "--until", step], 0).with_context(|| step.to_owned())?;
            site.churn(300).with_context(|| format!("stopped at {step}"))?;
            if !finish {
                site.egress(&["takeover"], 0).with_context(|| step.to_owned())?;
                site.churn(300).with_context(|| format!("undone from {step}"))?;
            }
            site.egress(&["handback"], 0).with_context(|| step.to_owned())?;
            ensure!(site.rules()? == before, "{step}, {finish}: {}", site.rules()?);
        }
        site.churn(300)
    })?;
    ensure!(rig.untranslated()? == (0, 0), "nothing left with a pod's or the node's address");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn whoever_is_killed_at_any_moment_loses_no_connection() -> Result<()> {
    let rig = original("kill")?;
    let _server = LongServer::start(rig.netns("far"), FAR)?;
    let site = Site::new(&rig)?;
    let mut crowds = site.crowds(20, 0)?;
    let before = site.rules()?;
    let turns = std::env::var("EGRESS_KILLS").map_or(3, |turns| turns.parse().unwrap_or(3));
    site.under_traffic(&mut crowds, || {
        for turn in 0..turns {
            for verb in ["takeover", "handback"] {
                let mut words = vec![verb];
                words.extend(FILES);
                let mut killed = site.gateway.start_egress(&words)?;
                // Spread over the time that it takes; ended by itself is as good.
                thread::sleep(Duration::from_millis(100 + 150 * turn));
                killed.kill()?;
                killed.wait()?;
                site.churn(200).with_context(|| format!("{verb} killed, turn {turn}"))?;
            }
            site.egress(&["takeover"], 0).with_context(|| format!("turn {turn}"))?;
            site.churn(200)?;
            site.egress(&["handback"], 0).with_context(|| format!("turn {turn}"))?;
            ensure!(site.rules()? == before, "turn {turn}: {}", site.rules()?);
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_hold_that_nobody_ends_is_over_by_itself() -> Result<()> {
    let rig = original("hold")?;
    let _server = LongServer::start(rig.netns("far"), FAR)?;
    let site = Site::new(&rig)?;
    let mut crowds = site.crowds(2, 0)?;
    site.egress(&["takeover", "--until", "held"], 0)?;
    for Crowd { pod, busy, .. } in &mut crowds {
        for long in busy {
            long.ask(7).with_context(|| format!("{pod} while it is held"))?;
        }
    }
    wait_for("new connections", || {
        let opened = rig.netns(PODS[0]).run(|| Long::open(FAR, 0))?;
        Ok(opened.is_ok())
    })?;
    site.egress(&["takeover"], 0).map(drop)
}

#[test]
#[ignore = "needs root"]
fn a_node_that_differs_from_the_objects_is_not_taken_over() -> Result<()> {
    let rig = original("differ")?;
    let site = Site::new(&rig)?;
    let changed = objects::CLUSTER_OBJECTS.replace("10.0.0.13", "10.0.0.14");
    site.gateway.write_objects(&changed)?;
    let before = site.rules()?;
    let said = site.egress(&["takeover"], 3)?;
    ensure!(said.contains("rule/0x1df6552: the node has 10.0.0.13, the plan 10.0.0.14"), "{said}");
    ensure!(said.contains("egress diff"), "the cure: {said}");
    ensure!(site.rules()? == before, "nothing was changed");
    let said = site.egress(&["handback"], 3)?;
    ensure!(said.contains("nothing to hand back"), "{said}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_shadow_changes_nothing_and_tells_what_it_would_have_done() -> Result<()> {
    let rig = original("shadow")?;
    let _server = LongServer::start(rig.netns("far"), FAR)?;
    let mut site = Site::new(&rig)?;
    let node = rig.netns(&rig.egress.name);
    let state = |site: &Site| -> Result<String> {
        let addresses = node.exec("ip -4 -o addr")?;
        Ok(format!("{}{addresses}{}", site.rules()?, node.exec("nft list table netdev flows")?))
    };
    let before = state(&site)?;
    site.gateway.run_agent_with(&["--shadow"])?;
    let mut crowds = site.crowds(5, 0)?;
    site.under_traffic(&mut crowds, || site.churn(500))?;
    let told: Value = serde_json::from_str(&site.egress(&["diff", "-o", "json"], 0)?)?;
    ensure!(told["differences"] == json!([]), "{told:#}");
    let seen = told["traffic"].as_array().context("traffic was compared")?;
    let source = |one: &Value, what: &str| -> Option<String> {
        Some(one[what].as_str()?.split(':').next()?.to_owned())
    };
    ensure!(seen.len() >= 25, "every connection was seen: {}", seen.len());
    ensure!(seen.iter().all(|one| source(one, "got") == source(one, "planned")), "{told:#}");
    let status = site.gateway.status()?;
    ensure!(status["dataPath"]["path"] == "shadow", "{status:#}");
    // A rule that somebody changed by hand: the node gives another tenant's address.
    let rule = "OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x1df6552 -j SNAT --to-source";
    node.exec(&format!("iptables -t nat -I {rule} 10.0.0.12"))?;
    let wrong = rig.netns("egress-test2-1").run(|| Long::open(FAR, 0))??;
    ensure!(*wrong.seen_as().ip() == Ipv4Addr::new(10, 0, 0, 12), "the rule is in force");
    let said = site.egress(&["diff"], 1)?;
    for part in [
        "rule/0x1df6552: the node has 10.0.0.12, the plan 10.0.0.13".to_owned(),
        "1 got another source than planned".to_owned(),
        format!("got {}, planned 10.0.0.13", wrong.seen_as()),
    ] {
        ensure!(said.contains(&part), "{part}: {said}");
    }
    node.exec(&format!("iptables -t nat -D {rule} 10.0.0.12"))?;
    ensure!(site.gateway.stop()?.success(), "the shadow ends in order");
    ensure!(state(&site)? == before, "nothing was changed");
    let pins = site.gateway.beside(|| std::path::Path::new("/sys/fs/bpf/egress").exists())?;
    ensure!(!pins, "nothing is left");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_doctor_names_what_is_missing_and_its_cure() -> Result<()> {
    let rig = original("doctor")?;
    let site = Site::new(&rig)?;
    let doctor = |code: i32| -> Result<Value> {
        let output =
            site.gateway.egress(&["doctor", "--config", "/run/agent.yaml", "-o", "json"])?;
        ensure!(output.status.code() == Some(code), "{output:?}");
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let found = |told: &Value, name: &str| -> Result<(String, String)> {
        let checks = told["checks"].as_array().context("checks")?;
        let check = checks.iter().find(|check| check["name"] == name);
        let check = check.with_context(|| format!("{name} was looked at: {told:#}"))?;
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        Ok((text("verdict"), text("found")))
    };
    let told = doctor(0)?;
    ensure!(told["ready"] == true, "{told:#}");
    let (verdict, rules) = found(&told, "rules")?;
    ensure!(verdict == "good" && rules.starts_with("3 rules of tenants: the node is"), "{rules}");
    rig.netns(&rig.egress.name).sysctl("ipv4/conf/ens18/rp_filter", "1")?;
    let (verdict, strict) = found(&doctor(0)?, "rp_filter")?;
    ensure!(verdict == "unwise" && strict.starts_with("strict on ens18"), "{strict}");
    site.egress(&["takeover", "--until", "beside"], 0)?;
    let (verdict, halfway) = found(&doctor(3)?, "takeover")?;
    ensure!(verdict == "missing" && halfway.contains("at the step `beside`"), "{halfway}");
    site.egress(&["takeover"], 0)?;
    let (verdict, done) = found(&doctor(0)?, "takeover")?;
    ensure!(verdict == "good" && done.starts_with("done; 3 rules are kept"), "{done}");
    // OpenShift SDN started again, and put a rule back.
    let rule = "OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6f7936 -j SNAT --to-source";
    rig.netns(&rig.egress.name).exec(&format!("iptables -t nat -I {rule} 10.0.0.11"))?;
    let (verdict, left) = found(&doctor(0)?, "rules")?;
    ensure!(verdict == "unwise" && left.starts_with("1 rules of tenants are in"), "{left}");
    site.gateway.beside(|| std::fs::write("/run/agent.yaml", NO_DEVICE))??;
    let told = doctor(3)?;
    let (verdict, device) = found(&told, "device")?;
    ensure!(verdict == "missing" && device.starts_with("vxlan9 does not exist"), "{device}");
    Ok(())
}

const NO_DEVICE: &str = "\
apiVersion: egress/v1alpha1
kind: AgentConfig
node: {name: ocprouter01, ip: 10.0.0.2}
tunnel: {device: vxlan9}
gateway: tun0
";
