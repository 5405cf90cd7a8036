//! No wrong translation in a storm of flows that come and go.
use std::env;

use anyhow::{Context as _, Result};
use egress_tests::storm::Storm;

/// Of both CPUs together: as many as the issue of the translation asks for.
const PACKETS: u32 = 10_000_000;

fn every_frame_is_right_or_refused(on_xdp: bool) -> Result<()> {
    let packets = match env::var("EGRESS_STORM_PACKETS") {
        Ok(text) => text.parse().context("EGRESS_STORM_PACKETS")?,
        Err(_) => PACKETS / 2,
    };
    let storm = Storm::make(on_xdp)?.rage(packets / 2)?;
    println!("{storm:#?}");
    let judged = &storm.judged;
    assert_eq!(judged.wrong, 0, "wrong translations");
    let share = |of: u64| of as f64 / f64::from(packets);
    assert!(share(judged.original) > 0.6, "{judged:?}");
    assert!(share(judged.reply) > 0.05, "{judged:?}");
    assert!(share(storm.made) > 0.1 && storm.changes > 100, "no storm: {storm:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn in_a_storm_every_frame_on_tc_is_right_or_refused() -> Result<()> {
    every_frame_is_right_or_refused(false)
}

#[test]
#[ignore = "needs root"]
fn in_a_storm_every_frame_on_xdp_is_right_or_refused() -> Result<()> {
    every_frame_is_right_or_refused(true)
}
