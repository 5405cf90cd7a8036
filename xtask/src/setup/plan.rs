//! What setup does about what is missing: facts in, steps out. Looks at nothing and runs nothing.
use std::fmt;

/// A package of Debian's, the command by which other distributions' users know it, and its use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    /// Empty: a library, looked for on Debian only.
    pub command: &'static str,
    pub purpose: &'static str,
}

const fn package(name: &'static str, command: &'static str, purpose: &'static str) -> Package {
    Package { name, command, purpose }
}

/// What rigs, tests and demonstration start.
pub const RIG: [Package; 11] = [
    package("iproute2", "ip", "namespaces, links and routes of the rigs"),
    package("procps", "sysctl", "kernel settings of the rigs' nodes"),
    package("iputils-ping", "ping", "ICMP of the rigs' pods"),
    package("iputils-arping", "arping", "what announcements are compared with"),
    package("iptables", "iptables", "OpenShift's way out, which tests compare with"),
    package("nftables", "nft", "the same, and packet filters of the rigs"),
    package("conntrack", "conntrack", "what the kernel has translated: looked at and flushed"),
    package("ethtool", "ethtool", "offloads of the rigs' links"),
    package("tcpdump", "tcpdump", "a look at the wire"),
    package("iperf3", "iperf3", "load"),
    package(OPEN_VSWITCH, "ovs-vswitchd", "the flows of source and egress node, for real"),
];

/// Starts a system service when it is installed.
pub const OPEN_VSWITCH: &str = "openvswitch-switch";

const LLVM: Package = package("llvm-22-dev", "", "the LLVM that bpf-linker is linked with");
const RUSTC: Package = package("rustc-web", "", "a rustc that knows the BPF target");
const CORE: Package = package("libstd-rust-web-dev-bpf", "", "that rustc's `core` for BPF");
const CLIPPY: Package = package("rust-web-clippy", "", "that rustc's clippy, for the programs");

/// Where a `core` for BPF comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    /// A rustc that ships one, with or without its clippy.
    Prebuilt { clippy: bool },
    /// rustup's nightly with rust-src, with or without its clippy.
    Nightly { clippy: bool },
}

/// How packages are installed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packages {
    /// By apt, as on Debian.
    Apt {
        /// apt has the packages of the BPF toolchain (Debian: from the security archive).
        offers_bpf: bool,
    },
    /// By the user.
    ByHand,
}

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub packages: Packages,
    pub missing: Vec<Package>,
    pub core: Option<Core>,
    /// A `bpf-linker` that runs and is new enough.
    pub linker: bool,
    /// LLVM 22 with what is needed to link with it.
    pub llvm: bool,
    pub rustup: bool,
    /// cargo-binstall, which installs published binaries.
    pub binstall: bool,
}

/// One thing that setup does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Install(Vec<Package>),
    /// Stop the service that came with [`OPEN_VSWITCH`]: the rigs run their own.
    StopOpenVswitch,
    /// rustup's nightly with rust-src and clippy.
    Nightly,
    /// Compile bpf-linker against LLVM 22.
    CompileLinker,
    /// Fetch the published bpf-linker, which brings its own LLVM.
    FetchLinker,
}

/// What setup does, in this order, and what the user must do, one sentence each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub by_hand: Vec<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Install(packages) => {
                write!(f, "install packages")?;
                packages.iter().try_for_each(|package| {
                    write!(f, "\n    {:24} {}", package.name, package.purpose)
                })
            }
            Self::StopOpenVswitch => {
                write!(f, "stop the Open vSwitch service that came along: the rigs run their own")
            }
            Self::Nightly => {
                write!(f, "install the nightly toolchain with rust-src: a `core` for BPF")
            }
            Self::CompileLinker => {
                write!(f, "compile bpf-linker against LLVM 22: it links the programs (a minute)")
            }
            Self::FetchLinker => write!(f, "fetch bpf-linker: it links the programs"),
        }
    }
}

/// Total and deterministic; nothing is missing if and only if the plan is empty.
pub fn plan(facts: &Facts) -> Plan {
    let mut plan = Plan::default();
    let core = plan_core(facts);
    let mut packages = Vec::new();
    match facts.packages {
        Packages::Apt { .. } => packages.extend(&facts.missing),
        Packages::ByHand if facts.missing.is_empty() => {}
        Packages::ByHand => {
            let commands: Vec<_> = facts.missing.iter().map(|package| package.command).collect();
            plan.by_hand.push(format!(
                "install these commands with your distribution's package manager: {}",
                commands.join(", ")
            ));
        }
    }
    let mut nightly = false;
    match (facts.core, core) {
        (None, Some(Core::Prebuilt { .. })) => packages.extend([RUSTC, CORE, CLIPPY]),
        (Some(_), Some(Core::Prebuilt { clippy: false })) if facts.packages != Packages::ByHand => {
            packages.push(CLIPPY);
        }
        (None, Some(Core::Nightly { .. })) | (_, Some(Core::Nightly { clippy: false })) => {
            nightly = true;
        }
        (_, Some(_)) => {}
        (_, None) => plan.by_hand.push(no_core(facts.packages)),
    }
    let linker = if facts.linker { None } else { plan_linker(facts, core) };
    if linker == Some(Step::CompileLinker) && !facts.llvm {
        packages.push(LLVM);
    }
    if !facts.linker && linker.is_none() && core.is_some() {
        plan.by_hand.push(
            "install bpf-linker: `cargo install cargo-binstall && cargo binstall bpf-linker@0.13.0`"
                .to_owned(),
        );
    }
    let open_vswitch = packages.iter().any(|package| package.name == OPEN_VSWITCH);
    plan.steps.extend((!packages.is_empty()).then_some(Step::Install(packages)));
    plan.steps.extend(open_vswitch.then_some(Step::StopOpenVswitch));
    plan.steps.extend(nightly.then_some(Step::Nightly));
    plan.steps.extend(linker);
    plan
}

/// The road to a `core` for BPF: the one that is there, else Debian's packages, else rustup.
fn plan_core(facts: &Facts) -> Option<Core> {
    facts.core.or(match facts.packages {
        Packages::Apt { offers_bpf: true } => Some(Core::Prebuilt { clippy: false }),
        _ => facts.rustup.then_some(Core::Nightly { clippy: false }),
    })
}

/// The linker's LLVM must not be older than rustc's: 22 is that of Debian's rustc, while nightly
/// moves on, and the published binaries with it.
fn plan_linker(facts: &Facts, core: Option<Core>) -> Option<Step> {
    let llvm = facts.llvm || facts.packages == Packages::Apt { offers_bpf: true };
    match core? {
        Core::Prebuilt { .. } if llvm => Some(Step::CompileLinker),
        _ => facts.binstall.then_some(Step::FetchLinker),
    }
}

fn no_core(packages: Packages) -> String {
    let archive = match packages {
        Packages::Apt { .. } => "add Debian's security archive to apt's sources, or ",
        Packages::ByHand => "",
    };
    format!("{archive}install rustup (https://rustup.rs): it brings a `core` for BPF")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(packages: Packages) -> Facts {
        Facts {
            packages,
            missing: RIG.to_vec(),
            core: None,
            linker: false,
            llvm: false,
            rustup: true,
            binstall: false,
        }
    }

    fn complete(packages: Packages, core: Core) -> Facts {
        Facts { missing: vec![], core: Some(core), linker: true, ..fresh(packages) }
    }

    const DEBIAN: Packages = Packages::Apt { offers_bpf: true };

    #[test]
    fn a_complete_machine_needs_nothing() {
        for packages in [DEBIAN, Packages::Apt { offers_bpf: false }, Packages::ByHand] {
            for core in [Core::Prebuilt { clippy: true }, Core::Nightly { clippy: true }] {
                assert_eq!(plan(&complete(packages, core)), Plan::default());
            }
        }
    }

    #[test]
    fn a_fresh_debian_gets_packages_and_linker_and_no_service() {
        let packages = [RIG.as_slice(), &[RUSTC, CORE, CLIPPY, LLVM]].concat();
        assert_eq!(
            plan(&fresh(DEBIAN)),
            Plan {
                steps: vec![Step::Install(packages), Step::StopOpenVswitch, Step::CompileLinker],
                by_hand: vec![],
            }
        );
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let core = Core::Prebuilt { clippy: true };
        let facts = Facts { missing: vec![RIG[3]], ..complete(DEBIAN, core) };
        assert_eq!(plan(&facts).steps, [Step::Install(vec![RIG[3]])]);

        let facts = complete(DEBIAN, Core::Prebuilt { clippy: false });
        assert_eq!(plan(&facts).steps, [Step::Install(vec![CLIPPY])]);

        let facts = Facts { linker: false, llvm: true, ..complete(DEBIAN, core) };
        assert_eq!(plan(&facts).steps, [Step::CompileLinker]);
    }

    #[test]
    fn a_debian_without_the_security_archive_takes_the_rustup_road_or_names_both() {
        let packages = Packages::Apt { offers_bpf: false };
        let facts = Facts { missing: vec![], binstall: true, ..fresh(packages) };
        assert_eq!(plan(&facts).steps, [Step::Nightly, Step::FetchLinker]);

        let plan = plan(&Facts { rustup: false, ..facts });
        assert_eq!(plan.steps, []);
        assert!(plan.by_hand[0].contains("security archive"), "{plan:?}");
        assert!(plan.by_hand[0].contains("rustup"), "{plan:?}");
    }

    #[test]
    fn another_distribution_gets_nightly_and_is_told_the_rest() {
        let plan = plan(&fresh(Packages::ByHand));
        assert_eq!(plan.steps, [Step::Nightly]);
        assert_eq!(plan.by_hand.len(), 2, "{plan:?}");
        assert!(plan.by_hand[0].contains("ip, sysctl, ping, arping"), "{plan:?}");
        assert!(plan.by_hand[1].contains("cargo binstall bpf-linker@0.13.0"), "{plan:?}");
    }

    #[test]
    fn nightly_is_never_linked_with_llvm_22() {
        let core = Core::Nightly { clippy: true };
        let facts = Facts { linker: false, llvm: true, ..complete(DEBIAN, core) };
        assert_eq!(plan(&facts).steps, []);
        assert_eq!(plan(&facts).by_hand.len(), 1);
    }
}
