//! The benchmark's own honesty: what does not do the job gets no figure.
use std::{
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use egress_tests::bench::{
    campaign::{self, Effort, Row},
    conntrack::Room,
    frame::Expect,
    net,
    plan::Level,
    progress::Progress,
    rig::Rig,
    variants::{Forwarding, Iptables, NftMap, RedirectXdp, Variant},
    workload::{Entry, Flows, Talk, Workload},
};

const SMALL: Effort = Effort { rounds: 3, run: Duration::from_millis(10), new_flows: 2_000 };

/// There is one: at a fixed rate nobody may take it from the node, or its packets are lost.
fn measuring_core() -> MutexGuard<'static, ()> {
    static CORE: Mutex<()> = Mutex::new(());
    CORE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody waits for a test to tell how long it takes.
fn unplanned() -> Progress {
    Progress::new(Duration::ZERO)
}

/// The only row of this variant under this workload.
fn row(workload: Workload, variant: impl Variant + Clone + 'static) -> Row {
    let _core = measuring_core();
    net::sandbox().expect("a mount namespace");
    let catalogue = || -> Vec<Box<dyn Variant>> { vec![Box::new(variant.clone())] };
    let mut rows =
        campaign::run(&[workload], catalogue, SMALL, 1, &mut unplanned()).expect("a campaign");
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

/// As [`row`], of a variant that is right: where a busy machine lost packets, it is measured again.
fn right_row<V: Variant + Clone + 'static>(workload: &Workload, variant: &V) -> Row {
    let lossy = |row: &Row| row.void.as_deref().is_some_and(|why| why.contains("lost "));
    let measure = || row(workload.clone(), variant.clone());
    (0..5).map(|_| measure()).find(|row| !lossy(row)).unwrap_or_else(measure)
}

fn established(entry: Entry) -> Workload {
    Workload::new("established", entry, Flows::Established(100), 2)
}

/// Says it translates, and only forwards.
#[derive(Clone)]
struct NoTranslation;

impl Variant for NoTranslation {
    fn name(&self) -> String {
        "no-translation".to_owned()
    }

    fn carries(&self, _workload: &Workload) -> bool {
        true
    }

    fn install(&mut self, _rig: &mut Rig) -> Result<()> {
        Ok(())
    }
}

/// Translates like iptables, then damages it with an nft rule in the forward chain.
#[derive(Clone)]
struct Damaged(&'static str);

impl Variant for Damaged {
    fn name(&self) -> String {
        "damaged".to_owned()
    }

    fn carries(&self, _workload: &Workload) -> bool {
        true
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        Iptables::legacy().install(rig)?;
        let chain = format!(
            "table ip damage {{ chain forward {{ type filter hook forward priority 0;\n{}\n}}\n}}\n",
            self.0
        );
        rig.node.run_with_input(&["nft", "-f", "-"], &chain).map(drop)
    }
}

/// Fails to start.
#[derive(Clone)]
struct Broken;

impl Variant for Broken {
    fn name(&self) -> String {
        "broken".to_owned()
    }

    fn carries(&self, _workload: &Workload) -> bool {
        true
    }

    fn install(&mut self, _rig: &mut Rig) -> Result<()> {
        anyhow::bail!("no such kernel")
    }
}

#[test]
#[ignore = "needs root"]
fn plain_forwarding_gets_a_figure() {
    let row = row(established(Entry::Gateway), Forwarding);
    assert_eq!(row.void, None);
    assert_eq!(row.samples.len(), 2, "the first round of three is dropped");
    assert!(row.samples.iter().all(|sample| sample.ns > 0.0 && sample.lost <= 0.001));
}

#[test]
#[ignore = "needs root"]
fn iptables_gets_a_figure_out_of_the_tunnel_and_back() {
    for workload in [established(Entry::Tunnel), established(Entry::Tunnel).replies()] {
        assert_eq!(row(workload, Iptables::legacy()).void, None);
    }
}

#[test]
#[ignore = "needs root"]
fn new_flows_are_never_repeated() {
    let workload = Workload::new("new", Entry::Gateway, Flows::New, 2);
    let row = row(workload, Iptables::legacy());
    assert_eq!(row.void, None);
    assert!(row.samples.iter().all(|sample| sample.packets == SMALL.new_flows));
}

#[test]
#[ignore = "needs root"]
fn a_redirected_vxlan_frame_is_known_as_untouched() {
    assert_eq!(row(established(Entry::Tunnel), RedirectXdp).void, None);
}

#[test]
#[ignore = "needs root"]
fn a_variant_without_translation_is_void() {
    for entry in [Entry::Gateway, Entry::Tunnel] {
        let row = row(established(entry), NoTranslation);
        let reason = row.void.unwrap();
        assert!(
            reason.starts_with("0 of 40 packets arrived as translated (40 others)"),
            "{reason}"
        );
        assert!(row.samples.is_empty());
    }
}

#[test]
#[ignore = "needs root"]
fn a_variant_that_loses_one_packet_in_a_hundred_is_void() {
    // The hundredth, so that the forty packets of the verification still come through.
    let row = row(
        Workload::new("one flow", Entry::Gateway, Flows::Established(1), 1),
        Damaged("numgen inc mod 100 == 99 drop"),
    );
    let reason = row.void.unwrap();
    assert!(reason.starts_with("lost 1.00 % of 10000 packets"), "{reason}");
}

#[test]
#[ignore = "needs root"]
fn a_variant_that_gives_one_tenant_the_address_of_another_is_void() {
    let row = row(established(Entry::Gateway), Damaged("meta mark set 0x2"));
    let reason = row.void.unwrap();
    assert!(reason.contains("source is [100, 96, 0, 0], not [100, 96, 0, 1]"), "{reason}");
}

#[test]
#[ignore = "needs root"]
fn a_variant_that_changes_the_ttl_is_void() {
    let row = row(established(Entry::Gateway), Damaged("ip ttl set 9"));
    let reason = row.void.unwrap();
    assert!(reason.contains("TTL is 9, not 63"), "{reason}");
}

#[test]
#[ignore = "needs root"]
fn sockets_talk_through_the_node() {
    for talk in [Talk::Stream, Talk::Transactions, Talk::Connections] {
        let row = row(Workload::sockets("sockets", talk, false), Iptables::nft());
        assert_eq!(row.void, None, "{talk:?}");
        assert_eq!(row.samples.len(), 2, "{talk:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn sockets_that_see_a_wrong_address_are_void() {
    let workload = Workload::sockets("sockets", Talk::Transactions, false);
    let reason = row(workload, Impostor).void.unwrap();
    assert_eq!(reason, "the server was reached from 100.96.0.9, not 100.96.0.0");
}

#[test]
#[ignore = "needs root"]
fn masqueraded_pods_must_leave_with_the_nodes_address() {
    let masqueraded = established(Entry::Gateway).masqueraded();
    assert_eq!(right_row(&masqueraded, &Iptables::legacy()).void, None);
    let reason = row(masqueraded, Impostor).void.unwrap();
    assert!(reason.starts_with("0 of 40 packets arrived as translated"), "{reason}");
}

/// Gives all pods one address, which is not their egress IP.
#[derive(Clone)]
struct Impostor;

impl Variant for Impostor {
    fn name(&self) -> String {
        "impostor".to_owned()
    }

    fn carries(&self, _workload: &Workload) -> bool {
        true
    }

    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let rule = "*nat\n-A POSTROUTING -j SNAT --to-source 100.96.0.9\nCOMMIT\n";
        rig.node.run_with_input(&["iptables-nft-restore"], rule).map(drop)
    }
}

#[test]
#[ignore = "needs root"]
fn a_variant_that_does_not_start_is_void_with_its_reason() {
    let row = row(established(Entry::Gateway), Broken);
    assert_eq!(row.void.unwrap(), "no such kernel");
}

#[test]
#[ignore = "needs root"]
fn every_workload_of_the_grid_can_be_carried() {
    let rows = {
        let _core = measuring_core();
        net::sandbox().unwrap();
        let catalogue = || -> Vec<Box<dyn Variant>> { vec![Box::new(NftMap)] };
        campaign::run(&Level::Full.workloads(), catalogue, SMALL, 1, &mut unplanned()).unwrap()
    };
    for mut row in rows {
        if row.void.as_deref().is_some_and(|why| why.contains("lost ")) {
            row = right_row(&row.workload, &NftMap);
        }
        let name = row.workload.name;
        match row.void {
            // Conntrack's size is the machine's, so a million flows may not fit.
            Some(reason) if name.ends_with("1m") => {
                assert!(reason.starts_with("conntrack holds"), "{name}: {reason}");
            }
            void => assert_eq!(void, None, "{name}"),
        }
    }
}

#[test]
#[ignore = "needs root"]
fn at_a_fixed_rate_the_nodes_threads_are_what_costs() {
    let workload = established(Entry::Tunnel).paced(100_000);
    let row = right_row(&workload, &Iptables::legacy());
    assert_eq!(row.void, None);
    for sample in row.samples {
        assert!(sample.ns > 100.0 && sample.ns < sample.wall_ns, "{sample:?}");
        // 10,000 packets in a tenth of a second, and what the sender's call takes to end.
        assert!(sample.wall_ns > 9_900.0, "{sample:?}");
    }
}

const CONNTRACK: [&str; 2] =
    ["/proc/sys/net/netfilter/nf_conntrack_max", "/sys/module/nf_conntrack/parameters/hashsize"];

fn conntrack() -> [u64; 2] {
    CONNTRACK.map(|path| {
        let text = fs::read_to_string(path).expect("conntrack's settings are there");
        text.trim().parse().expect("a number")
    })
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
#[ignore = "needs root"]
fn conntrack_has_room_for_a_million_flows_while_needed_even_if_the_benchmark_is_killed() {
    let before = conntrack();
    let room = Room::make().unwrap();
    let [max, buckets] = conntrack();
    assert!(max >= 2_000_000 && buckets >= 1_000_000, "{max} {buckets}");
    room.give_back().unwrap();
    assert_eq!(conntrack(), before);

    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("killed");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--only", "tunnel/established-1m", "--only", "iptables-legacy", "--out"])
        .arg(&out)
        .spawn()
        .unwrap();
    wait_for("no room is made", || conntrack() != before);
    bench.kill().unwrap();
    bench.wait().unwrap();
    wait_for("the settings are not given back", || conntrack() == before);
}

#[test]
#[ignore = "needs root"]
fn a_variant_in_a_page_of_code_gets_a_figure() {
    let one = Workload::new("one", Entry::Tunnel, Flows::Established(100), 1);
    assert_eq!(row(one, Masquerade).void, None);
}

#[test]
fn the_page_of_code_is_the_one_in_the_docs() {
    let docs = include_str!("../../docs/benchmarking.md");
    let (_, code) = docs.split_once("```rust\n").unwrap();
    let (code, _) = code.split_once("```").unwrap();
    assert!(include_str!("bench.rs").contains(code), "docs/benchmarking.md has:\n{code}");
}

#[derive(Clone)]
pub struct Masquerade;

impl Variant for Masquerade {
    fn name(&self) -> String {
        "masquerade".to_owned()
    }

    /// What must come out: here, packets with a translated source.
    fn expect(&self) -> Expect {
        Expect::Translated
    }

    /// One address can serve one VNID.
    fn carries(&self, workload: &Workload) -> bool {
        workload.policies == 1
    }

    /// `rig.node` is the node's namespace with `uplink`, `tun0` and `vxlan_sys_4789`.
    fn install(&mut self, rig: &mut Rig) -> Result<()> {
        let rules =
            "*nat\n-A POSTROUTING -s 10.128.0.0/14 -j SNAT --to-source 100.96.0.0\nCOMMIT\n";
        rig.node.run_with_input(&["iptables-nft-restore"], rules).map(drop)
    }

    /// Runs of new flows start with an empty table.
    fn forget(&mut self, rig: &mut Rig) -> Result<()> {
        rig.node.run(&["conntrack", "-F"]).map(drop)
    }
}
