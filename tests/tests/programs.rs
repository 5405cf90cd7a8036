//! The programs in the running kernel: they load, and how much the verifier had to look at.
use std::path::Path;

use anyhow::{Context as _, Result};
use egress_tests::netns::Netns;
use egress_user::bpf::{BPFFS, DataPlane, Hook, Sizes, XDP};

#[test]
#[ignore = "needs root"]
fn every_program_passes_the_verifier_and_its_cost_is_printed() -> Result<()> {
    let netns = Netns::alone("load")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || -> Result<()> {
        let sizes = Sizes { flows: 1024, policies: 64 };
        let mut programs = DataPlane::load(Path::new(BPFFS), sizes)?;
        let mut infos = Vec::new();
        for hook in Hook::ALL {
            infos.push((hook.name(), programs.info(hook)?));
        }
        infos.push((XDP, programs.xdp_info()?));
        for (name, info) in infos {
            println!(
                "{name}: {} instructions verified, {} bytes of machine code",
                info.verified_instruction_count().context("the kernel does not tell")?,
                info.size_jitted(),
            );
        }
        Ok(())
    })?
}
