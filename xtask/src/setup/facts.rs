//! What is there: reads the system, changes nothing.
use std::{
    collections::BTreeSet,
    env, fs,
    path::Path,
    process::{Command, Output},
};

use xtask::ebpf::Toolchain;

use super::plan::{Core, Facts, Package, Packages, RIG};

/// LLVM 22 where Debian's packages put it; `llvm-config` comes with the development files.
pub const LLVM: &str = "/usr/lib/llvm-22";

/// The bpf-linker that setup installs, and the oldest that it leaves alone.
pub const LINKER_VERSION: (u32, u32, u32) = (0, 13, 0);

/// What /etc/os-release says about the distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// For people.
    pub name: String,
    /// Debian or a child of it: has apt and dpkg.
    pub debian: bool,
}

impl Distribution {
    /// This machine's.
    pub fn here() -> Self {
        let text = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok());
        Self::parse(&text.unwrap_or_default())
    }

    /// Reads os-release(5): shell-like assignments, the value quoted or not.
    fn parse(text: &str) -> Self {
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))
                .map(|value| value.trim_matches(['"', '\'']))
        };
        let name = value("PRETTY_NAME").or(value("NAME")).unwrap_or("an unknown distribution");
        let kin = [value("ID"), value("ID_LIKE")];
        Self {
            name: name.to_owned(),
            debian: kin
                .into_iter()
                .flatten()
                .flat_map(str::split_whitespace)
                .any(|id| id == "debian"),
        }
    }
}

/// Looks at everything. On Debian what apt offers is only asked once its lists are fresh: until
/// then it counts as offered.
pub fn gather(distribution: &Distribution, lists_are_fresh: bool) -> Facts {
    let packages = if distribution.debian {
        Packages::Apt { offers_bpf: !lists_are_fresh || offers_bpf() }
    } else {
        Packages::ByHand
    };
    Facts {
        packages,
        missing: missing(distribution.debian),
        core: Toolchain::with_core().map(|toolchain| {
            let clippy = toolchain.clippy_driver().is_some();
            match toolchain {
                Toolchain::Prebuilt(_) => Core::Prebuilt { clippy },
                Toolchain::Nightly => Core::Nightly { clippy },
            }
        }),
        linker: has_linker(),
        llvm: Path::new(LLVM).join("bin/llvm-config").exists(),
        rustup: output("rustup", &["--version"]).is_some(),
        binstall: output("cargo-binstall", &["-V"]).is_some(),
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<Output> {
    let output = Command::new(program).args(arguments).env("LC_ALL", "C").output().ok()?;
    output.status.success().then_some(output)
}

fn missing(debian: bool) -> Vec<Package> {
    if debian {
        let mut query = Command::new("dpkg-query");
        query.args(["-W", "-f=${Package} ${db:Status-Status}\n"]).env("LC_ALL", "C");
        // It fails as soon as one name is unknown, and still prints the others.
        let output = query.args(RIG.iter().map(|package| package.name)).output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let installed = installed(&text);
        RIG.into_iter().filter(|package| !installed.contains(package.name)).collect()
    } else {
        RIG.into_iter().filter(|package| !is_command(package.command)).collect()
    }
}

fn installed(dpkg_query: &str) -> BTreeSet<&str> {
    dpkg_query.lines().filter_map(|line| line.strip_suffix(" installed")).collect()
}

fn is_command(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into))
        .any(|directory| directory.join(name).is_file())
}

fn offers_bpf() -> bool {
    let names = ["llvm-22-dev", "libstd-rust-web-dev-bpf"];
    output("apt-cache", &["policy", names[0], names[1]])
        .is_some_and(|output| candidates(&String::from_utf8_lossy(&output.stdout)) == names.len())
}

/// How many packages of `apt-cache policy` could be installed; it is silent about unknown names.
fn candidates(policy: &str) -> usize {
    policy
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .count()
}

fn has_linker() -> bool {
    output("bpf-linker", &["--version"])
        .and_then(|output| version(&String::from_utf8_lossy(&output.stdout)))
        .is_some_and(|version| version >= LINKER_VERSION)
}

/// Reads `bpf-linker 0.13.0`.
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split_whitespace().nth(1)?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_told_from_others() {
        let debian = Distribution::parse("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n");
        assert_eq!(debian, Distribution { name: "Debian GNU/Linux 12".into(), debian: true });
        assert!(Distribution::parse("ID=mint\nID_LIKE=\"ubuntu debian\"\n").debian);
        let fedora = Distribution::parse("NAME=\"Fedora Linux\"\nID=fedora\nVERSION_ID=44\n");
        assert_eq!(fedora, Distribution { name: "Fedora Linux".into(), debian: false });
        assert!(!Distribution::parse("ID=notdebian\nID_LIKE='rhel'").debian);
        assert!(!Distribution::parse("").debian);
    }

    #[test]
    fn a_removed_package_with_configuration_left_is_not_installed() {
        let text = "iproute2 installed\niputils-arping config-files\nnftables installed\n";
        assert_eq!(installed(text), BTreeSet::from(["iproute2", "nftables"]));
    }

    #[test]
    fn a_package_without_candidate_is_not_offered() {
        let one = "llvm-22-dev:\n  Installed: (none)\n  Candidate: 1:22.1.8-1~deb12u1\n";
        let other = "libstd-rust-web-dev-bpf:\n  Installed: (none)\n  Candidate: (none)\n";
        assert_eq!(candidates(&format!("{one}{other}")), 1);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("bpf-linker 0.9.15\n").unwrap() < LINKER_VERSION);
        assert!(version("bpf-linker 0.13.0\n").unwrap() >= LINKER_VERSION);
        assert_eq!(version("bpf-linker"), None);
    }
}
