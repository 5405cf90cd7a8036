//! The engine's case table, told to the programs in the running kernel.
use std::path::Path;

use anyhow::Result;
use egress_common::testing::stories;
use egress_tests::{netns::Netns, test_run::Programs};
use egress_user::bpf::{BPFFS, DataPlane, Sizes};

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_the_programs_on_tc() -> Result<()> {
    let netns = Netns::create(&format!("eg{}-cases", std::process::id()))?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || -> Result<()> {
        let sizes = Sizes { flows: 1024, policies: 64 };
        let programs = Programs::new(DataPlane::load(Path::new(BPFFS), sizes)?)?;
        stories::tell(|| programs.fresh().expect("a fresh gateway"));
        Ok(())
    })?
}
