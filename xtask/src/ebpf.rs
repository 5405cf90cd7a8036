//! Builds `egress-ebpf` for the BPF target.
//!
//! Two roads lead to a `core` for that target: a rustc that ships one (Debian packages such a
//! compiler), or the nightly toolchain with its `rust-src` component. Without either the object is
//! left empty: checks and host tests still work, and the agent says what it lacks when it starts.
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "bpfel-unknown-none";

/// ELF header, `e_machine`: the Linux BPF virtual machine.
const EM_BPF: [u8; 2] = 247u16.to_le_bytes();

/// A compiler that can build for the BPF target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The rustc at this path has a prebuilt `core` for the BPF target.
    Prebuilt(PathBuf),
    /// The rustup toolchain `nightly` has `rust-src`; `core` is built with `-Z build-std`.
    Nightly,
}

impl Toolchain {
    /// The toolchain at hand, the prebuilt `core` first. `None`: nothing here can build for BPF.
    pub fn find() -> Option<Self> {
        has_linker().then(Self::with_core).flatten()
    }

    /// As [`Toolchain::find`], whether or not `bpf-linker` is there.
    pub fn with_core() -> Option<Self> {
        ["rustc", "/usr/bin/rustc"]
            .map(PathBuf::from)
            .into_iter()
            .find(|rustc| has_prebuilt_core(rustc))
            .map(Self::Prebuilt)
            .or_else(|| has_nightly_source().then_some(Self::Nightly))
    }

    /// `cargo VERB` for the BPF target with this toolchain, free of what an outer cargo has set.
    pub fn cargo(&self, verb: &str) -> Command {
        let mut command = match self {
            Self::Prebuilt(rustc) => {
                let mut command = Command::new("cargo");
                // aya-ebpf alone needs an unstable feature: asm_experimental_arch.
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "aya_ebpf");
                command
            }
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]).env_remove("RUSTC");
                command
            }
        };
        command.arg(verb);
        if *self == Self::Nightly {
            command.args(["-Z", "build-std=core"]);
        }
        command
            .args(["--release", "--target", TARGET])
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env("RUSTFLAGS", rustflags());
        command
    }

    /// The clippy of this compiler. `None`: it has none.
    pub fn clippy_driver(&self) -> Option<PathBuf> {
        let mut command = match self {
            Self::Prebuilt(rustc) => Command::new(rustc),
            Self::Nightly => nightly_rustc(),
        };
        let driver = sysroot(&mut command)?.join("bin/clippy-driver");
        driver.is_file().then_some(driver)
    }
}

fn rustflags() -> String {
    // v3 of the instruction set: atomic compare-and-swap, 32-bit jumps (kernel 5.12 and later).
    format!(
        "-C debuginfo=2 -C target-cpu=v3 -C link-arg=--btf --cfg=bpf_target_arch=\"{}\"",
        env::consts::ARCH
    )
}

fn has_linker() -> bool {
    let output = Command::new("bpf-linker").arg("--version").output();
    output.is_ok_and(|output| output.status.success())
}

fn nightly_rustc() -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", "rustc"]);
    command
}

/// The directory that the compiler `rustc` lives in.
fn sysroot(rustc: &mut Command) -> Option<PathBuf> {
    let output = rustc.args(["--print", "sysroot"]).output().ok()?;
    let path = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn has_prebuilt_core(rustc: &Path) -> bool {
    let Ok(output) =
        Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).output()
    else {
        return false;
    };
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success()
        && fs::read_dir(directory).is_ok_and(|entries| {
            entries
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore"))
        })
}

fn has_nightly_source() -> bool {
    sysroot(&mut nightly_rustc())
        .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").is_dir())
}

/// Called from a build script: leaves the agent's object at `OUT_DIR/egress.o`, empty when no
/// toolchain can build it.
pub fn build_from_build_script() -> Result<()> {
    build_binary_from_build_script("egress-ebpf", "egress.o")
}

/// The same for the binary `binary` of egress-ebpf, left at `OUT_DIR/NAME`.
pub fn build_binary_from_build_script(binary: &str, name: &str) -> Result<()> {
    let out_dir = PathBuf::from(env::var("OUT_DIR").context("OUT_DIR: not in a build script")?);
    let manifest_dir = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&manifest_dir).join("..");
    for input in ["egress-ebpf", "egress-common", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed=PATH");
    let object = out_dir.join(name);
    let Some(toolchain) = Toolchain::find() else {
        println!(
            "cargo::warning=no BPF toolchain: {name} is left empty, without its programs; \
             `cargo xtask setup` installs it"
        );
        println!("cargo::rerun-if-changed={}", what_setup_changes().display());
        return fs::write(&object, []).with_context(|| format!("write {}", object.display()));
    };
    // OUT_DIR is TARGET/PROFILE/build/PACKAGE-HASH/out: one BPF build serves every profile.
    let target_dir = out_dir.ancestors().nth(4).context("OUT_DIR has no target directory")?;
    let built = build(&toolchain, &root, &target_dir.join("ebpf"), binary)?;
    fs::copy(&built, &object)
        .with_context(|| format!("copy {} to {}", built.display(), object.display()))?;
    Ok(())
}

/// Setup's last step is the linker, which goes where cargo installs binaries; a linker without a
/// compiler is looked at again in every build (cargo takes a missing file for a changed one).
fn what_setup_changes() -> PathBuf {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    match cargo_home {
        Some(home) if !has_linker() => home.join("bin"),
        _ => PathBuf::from("no-bpf-toolchain"),
    }
}

/// Whether the object at `path` is a BPF object. An error names what it is instead and the cure.
pub fn check_object(path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    check_object_bytes(&bytes).with_context(|| format!("the eBPF object {}", path.display()))
}

fn check_object_bytes(bytes: &[u8]) -> Result<()> {
    ensure!(
        !bytes.is_empty(),
        "is empty, because no BPF toolchain was found: run `cargo xtask setup`, then build again"
    );
    ensure!(
        bytes.starts_with(b"\x7fELF") && bytes.get(18..20) == Some(&EM_BPF),
        "is not an ELF file for BPF: remove the target directory and build again"
    );
    Ok(())
}

/// Builds the binary `binary` of egress-ebpf below `target_dir` and returns the object's path.
pub fn build(
    toolchain: &Toolchain,
    root: &Path,
    target_dir: &Path,
    binary: &str,
) -> Result<PathBuf> {
    let status = toolchain
        .cargo("build")
        .args(["--package", "egress-ebpf", "--bin", binary, "--target-dir"])
        .arg(target_dir)
        .current_dir(root)
        .status()
        .context("start cargo for the BPF target")?;
    ensure!(status.success(), "building {binary} for the BPF target failed: {status}");
    Ok(target_dir.join(TARGET).join("release").join(binary))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(machine: u8) -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        bytes.resize(64, 0);
        bytes[18] = machine;
        bytes
    }

    #[test]
    fn an_empty_object_is_refused_with_the_cure() {
        let error = check_object_bytes(&[]).unwrap_err().to_string();
        assert!(error.contains("cargo xtask setup"), "{error}");
    }

    #[test]
    fn only_an_elf_file_for_bpf_is_an_object() {
        assert!(check_object_bytes(&elf(247)).is_ok());
        assert!(check_object_bytes(&elf(62)).is_err(), "x86-64");
        assert!(check_object_bytes(&elf(247)[..18]).is_err(), "cut before the machine");
        assert!(
            check_object_bytes(b"not an object, but longer than the header's 20 bytes").is_err()
        );
    }
}
