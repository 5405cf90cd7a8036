//! The benchmark's own honesty: what does not do the job gets no figure.
use std::time::Duration;

use anyhow::Result;
use egress_tests::bench::{
    campaign::{self, Effort, Row},
    net,
    plan::Level,
    rig::Rig,
    variants::{Forwarding, Iptables, NftMap, RedirectXdp, Variant},
    workload::{Entry, Flows, Talk, Workload},
};

const SMALL: Effort = Effort { rounds: 3, run: Duration::from_millis(10), new_flows: 2_000 };

/// The only row of this variant under this workload.
fn row(workload: Workload, variant: impl Variant + Clone + 'static) -> Row {
    net::sandbox().expect("a mount namespace");
    let catalogue = || -> Vec<Box<dyn Variant>> { vec![Box::new(variant.clone())] };
    let mut rows = campaign::run(&[workload], catalogue, SMALL, 1).expect("a campaign");
    assert_eq!(rows.len(), 1);
    rows.remove(0)
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
    net::sandbox().unwrap();
    let catalogue = || -> Vec<Box<dyn Variant>> { vec![Box::new(NftMap)] };
    let rows = campaign::run(&Level::Full.workloads(), catalogue, SMALL, 1).unwrap();
    for row in rows {
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
