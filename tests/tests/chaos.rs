//! Minutes of disorder, short here. Longer, or a seed again:
//!
//! `EGRESS_CHAOS_SEED=7 EGRESS_CHAOS_STEPS=200 cargo xtask test --filter whatever_is_broken`
use std::{env, str::FromStr};

use anyhow::{Context as _, Result};
use egress_tests::{chaos, rig::trio::SourceSide};
use egress_user::ovs::Layout;

const SEED: u64 = 1;
const STEPS: usize = 20;

fn told<T: FromStr>(name: &str, default: T) -> Result<T> {
    match env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}

fn disorder(side: SourceSide) -> Result<()> {
    let (seed, steps) = (told("EGRESS_CHAOS_SEED", SEED)?, told("EGRESS_CHAOS_STEPS", STEPS)?);
    println!("EGRESS_CHAOS_SEED={seed} EGRESS_CHAOS_STEPS={steps}");
    chaos::run(side, seed, steps)
}

#[test]
#[ignore = "needs root"]
fn whatever_is_broken_comes_back_and_nothing_leaks_on_plain_nodes() -> Result<()> {
    disorder(SourceSide::Plain)
}

#[test]
#[ignore = "needs root"]
fn whatever_is_broken_comes_back_and_nothing_leaks_with_open_vswitch() -> Result<()> {
    disorder(SourceSide::OpenVSwitch(Layout::New))
}
