//! The programs and maps in the running kernel: they load, how much the verifier had to look at,
//! and what a flow takes in memory.
use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::MapData;
use egress_tests::netns::Netns;
use egress_user::bpf::{BPFFS, DataPlane, Hook, Sizes, XDP, pins};

/// Instructions that the verifier may look at in one program. The kernel gives up at a million, and
/// another kernel, or another compiler, may need more than this one.
const VERIFIED: u32 = 250_000;

/// Loads the programs with tables of this size, and shows them.
fn with_programs<T: Send>(
    flows: u32,
    look: impl FnOnce(&mut DataPlane) -> Result<T> + Send,
) -> Result<T> {
    let netns = Netns::alone("load")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || {
        look(&mut DataPlane::load(Path::new(BPFFS), Sizes { flows, policies: 64 })?)
    })?
}

#[test]
#[ignore = "needs root"]
fn every_program_passes_the_verifier_and_its_cost_is_printed() -> Result<()> {
    with_programs(1024, |programs| {
        let mut infos = vec![(XDP, programs.xdp_info()?)];
        for hook in Hook::ALL {
            infos.push((hook.name(), programs.info(hook)?));
        }
        for (name, info) in &infos {
            let verified = info.verified_instruction_count().context("the kernel does not tell")?;
            let jitted = info.size_jitted();
            println!("{name}: {verified} instructions verified, {jitted} bytes of machine code");
            assert!(verified <= VERIFIED, "{name}: more than {VERIFIED} instructions verified");
        }
        // A program that no line above shows would not be looked at in review.
        let of_object: Vec<_> = programs.ebpf_mut().programs().map(|(name, _)| name).collect();
        let shown = |name: &&str| infos.iter().any(|(shown, _)| shown == name);
        assert!(of_object.iter().all(shown) && of_object.len() == infos.len(), "{of_object:?}");
        Ok(())
    })
}

/// The memory of the pinned maps by name, in bytes: the kernel's own figures.
fn memory(_loaded: &mut DataPlane) -> Result<BTreeMap<String, u64>> {
    let mut memory = BTreeMap::new();
    for entry in fs::read_dir(pins(Path::new(BPFFS)).join("maps"))? {
        let entry = entry?;
        let map = MapData::from_pin(entry.path())?;
        let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        let bytes = bytes.with_context(|| format!("no memlock in {path}"))?.trim().parse()?;
        memory.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
    }
    Ok(memory)
}

/// What docs/architecture.md says.
const BYTES_A_FLOW: u64 = 336;

#[test]
#[ignore = "needs root"]
fn a_flow_takes_the_memory_that_the_documents_say() -> Result<()> {
    let (few, many) = (1 << 16, 1 << 18);
    let [small, big] = [few, many].map(|flows| with_programs(flows, memory));
    let (small, big) = (small?, big?);
    for (name, bytes) in &small {
        let grown = (big[name] - bytes) as f64 / f64::from(many - few);
        println!("{name}: {bytes} bytes for {few} flows, {grown:.1} bytes for each more");
    }
    let sum = |maps: &BTreeMap<String, u64>| maps.values().sum::<u64>();
    let flow = (sum(&big) - sum(&small)) / u64::from(many - few);
    let fixed = sum(&small) - flow * u64::from(few);
    let fit = (1_u64 << 30).saturating_sub(fixed) / flow;
    println!("{flow} bytes a flow, {fixed} bytes besides; {fit} flows in 1 GiB");
    ensure!(flow == BYTES_A_FLOW, "docs/architecture.md says {BYTES_A_FLOW} bytes a flow");
    Ok(())
}
