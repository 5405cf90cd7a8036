//! The programs in the running kernel: they load, and how much the verifier had to look at.
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::loaded_programs;
use egress_tests::netns::Netns;
use egress_user::bpf::{BPFFS, DataPlane, Hook, Sizes};

#[test]
#[ignore = "needs root"]
fn every_program_passes_the_verifier_and_its_cost_is_printed() -> Result<()> {
    let netns = Netns::alone("load")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || -> Result<()> {
        let sizes = Sizes { flows: 1024, policies: 64 };
        let _programs = DataPlane::load(Path::new(BPFFS), sizes)?;
        for hook in Hook::ALL {
            let info = loaded_programs()
                .filter_map(Result::ok)
                .find(|info| hook.name().starts_with(info.name_as_str().unwrap_or("?")))
                .with_context(|| format!("{hook} is not loaded"))?;
            println!(
                "{hook}: {} instructions verified, {} bytes of machine code",
                info.verified_instruction_count().context("the kernel does not tell")?,
                info.size_jitted(),
            );
        }
        Ok(())
    })?
}
