//! The kernel's NAT as the oracle: the same packets through it and through ours (docs/nat-oracle.md).
use std::{collections::BTreeSet, env, fs, path::Path};

use anyhow::{Context as _, Result};
use egress_tests::oracle::{
    What,
    differences::CLASSES,
    play::{Failure, Report, describe, play, show},
    trace::Trace,
};

const SEED: u64 = 1;
/// As many as the issue of the translation asks for at least.
const PACKETS: u64 = 100_000;

/// A number from the environment.
fn option(name: &str) -> Result<Option<u64>> {
    let Ok(text) = env::var(name) else { return Ok(None) };
    text.parse().map(Some).with_context(|| format!("{name} is no number: {text}"))
}

fn does_what_the_kernels_nat_does(data_path: &str) -> Result<()> {
    let seed = option("EGRESS_ORACLE_SEED")?.unwrap_or(SEED);
    let packets = option("EGRESS_ORACLE_PACKETS")?.unwrap_or(PACKETS);
    let session = option("EGRESS_ORACLE_SESSION")?.map(u32::try_from).transpose()?;
    let trace = session.map_or_else(|| Trace::of(seed), |session| Trace::only(seed, session));
    let report = play(trace, data_path, packets)?;
    println!("{report}");
    if let Some(failure) = report.failures.first() {
        explain(failure, seed, data_path)?;
        panic!("{} differences of no class, see above", report.failures.len());
    }
    if session.is_none() && packets >= PACKETS {
        really_translated(&report);
    }
    Ok(())
}

/// Shows a failure, in its session alone if that fails too.
fn explain(failure: &Failure, seed: u64, data_path: &str) -> Result<()> {
    let session = failure.step.session;
    let alone = play(Trace::only(seed, session), data_path, u64::MAX)?;
    let (shown, only) = match alone.failures.first() {
        Some(alone) => (alone, format!(" EGRESS_ORACLE_SESSION={session}")),
        None => (failure, String::new()),
    };
    let again = format!("cargo xtask test --filter {data_path}_does_what -- --nocapture");
    println!("run it again: EGRESS_ORACLE_SEED={seed}{only} {again}");
    println!("the session's steps up to the one that differs:");
    for step in Trace::only(seed, session) {
        println!("{}", describe(&step));
        if step.packets == shown.step.packets {
            break;
        }
    }
    println!("ours{}\ntheirs{}", show(&shown.ours), show(&shown.theirs));
    Ok(())
}

/// It was no comparison of nothing with nothing.
fn really_translated(report: &Report) {
    let alike = |what, outcome| report.alike.get(&(what, outcome)).copied().unwrap_or(0);
    for (what, outcome, least) in [
        (What::Plain, "crossed", PACKETS / 2),
        (What::Error, "crossed", PACKETS / 40),
        (What::Fragments, "crossed", PACKETS / 100),
        (What::AddressOnly, "crossed", PACKETS / 200),
        (What::StrayFromOutside, "answered", PACKETS / 500),
        (What::LastHop, "answered", PACKETS / 500),
    ] {
        let found = alike(what, outcome);
        assert!(found >= least, "{what:?} {outcome}: {found} of {least}");
    }
    let (ours, theirs) = report.exchanged;
    assert!(ours > 500 && theirs > 500, "ports exchanged: {:?}", report.exchanged);
    let absent = CLASSES.iter().map(|class| class.name);
    let absent: Vec<_> = absent.filter(|name| !report.differences.contains_key(name)).collect();
    assert!(absent.is_empty(), "no longer a difference: {absent:?}");
}

#[test]
#[ignore = "needs root"]
fn tc_does_what_the_kernels_nat_does() -> Result<()> {
    does_what_the_kernels_nat_does("tc")
}

#[test]
#[ignore = "needs root"]
fn xdp_does_what_the_kernels_nat_does() -> Result<()> {
    does_what_the_kernels_nat_does("xdp")
}

#[test]
fn every_class_of_differences_is_in_the_document_and_no_other() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/nat-oracle.md");
    let text = fs::read_to_string(path)?;
    let row = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
    let rows: BTreeSet<String> = text.lines().filter_map(row).collect();
    let names: BTreeSet<String> = CLASSES.iter().map(|class| class.name.to_owned()).collect();
    assert_eq!(rows, names);
    Ok(())
}

#[test]
fn a_trace_is_the_same_for_the_same_seed_and_a_session_the_same_alone() {
    let packets = |trace: Trace| trace.take(3000).map(|step| step.packets).collect::<Vec<_>>();
    assert_eq!(packets(Trace::of(7)), packets(Trace::of(7)));
    assert_ne!(packets(Trace::of(7)), packets(Trace::of(8)));
    let among: Vec<_> = Trace::of(7)
        .take(3000)
        .filter(|step| step.session == 20)
        .map(|step| step.packets)
        .collect();
    assert!(!among.is_empty());
    assert_eq!(packets(Trace::only(7, 20)), among);
}
