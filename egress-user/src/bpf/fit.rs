//! Whether this node can run the programs, and what is pinned here may be taken over: asked before
//! anything is made. Each refusal is one sentence with its cure.
use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use aya::{maps::MapInfo, util::KernelVersion};

use super::Sizes;

/// What the agent needs, by number as in `linux/capability.h`. CAP_BPF loads programs too, but only
/// CAP_SYS_ADMIN may ask which program is attached.
const CAPABILITIES: [(u32, &str); 3] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (21, "CAP_SYS_ADMIN")];

/// Whether this process may do what an agent does.
pub fn check_privileges() -> Result<()> {
    let path = "/proc/thread-self/status";
    let status = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let effective = status
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok())
        .with_context(|| format!("{path} has no CapEff"))?;
    let missing = missing_capabilities(effective);
    ensure!(
        missing.is_empty(),
        "no privileges for it: run it as root, or give it {}",
        missing.join(", ")
    );
    Ok(())
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let lacks = |(number, _): &(u32, &str)| effective & 1 << number == 0;
    CAPABILITIES.into_iter().filter(lacks).map(|(_, name)| name).collect()
}

/// Whether this binary has its programs.
pub fn built_in() -> Result<()> {
    check_object(super::OBJECT)
}

/// The running kernel's version, if it is one that the programs run on.
pub fn running_kernel() -> Result<String> {
    let running = KernelVersion::current().context("ask for the kernel's version")?;
    check_kernel(running)?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(format!("Linux {}", release.trim()))
}

/// Whether what is pinned below a bpffs, if anything, may be taken over.
pub fn check_pins(bpffs: &Path, sizes: Sizes) -> Result<()> {
    let pins = super::pins(bpffs);
    refuse_other_versions(bpffs, &pins)?;
    built_in()?;
    check_pinned_maps(super::OBJECT, &pins.join("maps"), sizes)
}

pub(super) fn check_object(object: &[u8]) -> Result<()> {
    ensure!(
        !object.is_empty(),
        "this egress was built without its eBPF programs: build it with `cargo xtask build`"
    );
    Ok(())
}

pub(super) fn check_kernel(running: KernelVersion) -> Result<()> {
    ensure!(
        running >= KernelVersion::new(6, 6, 0),
        "this kernel is too old: egress needs Linux 6.6 or later, the first with tcx links"
    );
    Ok(())
}

pub fn check_bpffs(bpffs: &Path) -> Result<()> {
    let found = nix::sys::statfs::statfs(bpffs)
        .with_context(|| format!("look at {}: is bpffs mounted there?", bpffs.display()))?;
    ensure!(
        found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC,
        "{} is not a bpffs: mount one with `mount -t bpf bpf {}`",
        bpffs.display(),
        bpffs.display()
    );
    Ok(())
}

pub(super) fn refuse_other_versions(bpffs: &Path, ours: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(bpffs.join("egress")) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        ensure!(
            path == ours,
            "pins of another egress version are at {}: stop that one and remove them with \
             `egress cleanup`",
            path.display()
        );
    }
    Ok(())
}

/// Refuses a pinned map whose layout is not the one that the programs were compiled for: the loader
/// would take over whatever it finds.
pub(super) fn check_pinned_maps(object: &[u8], directory: &Path, sizes: Sizes) -> Result<()> {
    let object = aya_obj::Object::parse(object).context("parse the eBPF object")?;
    for (name, map) in &object.maps {
        let pin = directory.join(name);
        if !pin.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&pin)
            .with_context(|| format!("open the pinned map {}", pin.display()))?;
        let kind = info.map_type().map_or(0, |kind| kind as u32);
        let there = (kind, info.key_size(), info.value_size());
        let wanted = (map.map_type(), map.key_size(), map.value_size());
        ensure!(
            there == wanted,
            "the pinned map {} has another layout (type, key and value {there:?}, not \
             {wanted:?}): stop its agent and remove it with `egress cleanup`",
            pin.display()
        );
        for (of, key, size) in [
            ("flows_reply", "flows.max", sizes.flows),
            ("egress_ips", "policies.max", sizes.policies),
        ] {
            if name == of && info.max_entries() != size {
                log::warn!(
                    "{key} is {size}, but the pinned map {name} was made for {}, and is kept: \
                     `egress cleanup` lets the next start make it anew",
                    info.max_entries()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_capability_is_named() {
        assert_eq!(missing_capabilities(u64::MAX), [""; 0]);
        assert_eq!(missing_capabilities(0), ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
        assert_eq!(missing_capabilities(1 << 12 | 1 << 21), ["CAP_NET_RAW"]);
    }

    #[test]
    fn an_old_kernel_is_refused_with_the_version_that_is_needed() {
        for old in [KernelVersion::new(5, 14, 0), KernelVersion::new(6, 5, 13)] {
            let error = check_kernel(old).expect_err("too old").to_string();
            assert!(error.contains("Linux 6.6"), "{error}");
        }
        assert!(check_kernel(KernelVersion::new(6, 6, 0)).is_ok());
    }

    #[test]
    fn a_build_without_programs_says_how_to_build() {
        let error = check_object(&[]).expect_err("no programs").to_string();
        assert!(error.contains("cargo xtask build"), "{error}");
    }

    #[test]
    fn an_ordinary_directory_is_no_bpffs() {
        let error = check_bpffs(Path::new("/proc")).expect_err("procfs").to_string();
        assert_eq!(error, "/proc is not a bpffs: mount one with `mount -t bpf bpf /proc`");
    }
}
