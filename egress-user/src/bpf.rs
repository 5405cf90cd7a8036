//! The programs and maps in the kernel: loading, pinning, attaching, and typed access to the maps.
//!
//! Everything is pinned below `BPFFS/egress/vN`, N being the maps' layout version: a killed agent
//! leaves traffic running, a new one takes over the maps and swaps the programs of the links. A pin
//! is looked at before it is taken over, since the loader itself reuses whatever it finds.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, MapInfo, PerCpuArray},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
    },
    util::KernelVersion,
};
use egress_common::abi::{
    ABI_VERSION, Config, OriginalKey, OriginalRecord, ReplyKey, ReplyRecord, Slot, SlotCounters,
};

pub mod fit;
pub mod log;

use self::log::ProgramLog;

/// The object that the build script made; empty when it found no BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.o"));

/// Where bpffs is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A map type of ours, as aya wants to see it: fixed size, no padding, any bits valid.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct Plain<T>(pub T);

// SAFETY: transparent, and bytemuck::Pod promises all that aya::Pod asks for.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// Where the programs hook in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    TunnelIngress,
    GatewayIngress,
    UplinkIngress,
    UplinkEgress,
}

impl Hook {
    pub const ALL: [Self; 4] =
        [Self::UplinkEgress, Self::UplinkIngress, Self::GatewayIngress, Self::TunnelIngress];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TunnelIngress => "tunnel_ingress",
            Self::GatewayIngress => "gateway_ingress",
            Self::UplinkIngress => "uplink_ingress",
            Self::UplinkEgress => "uplink_egress",
        }
    }

    fn direction(self) -> TcAttachType {
        match self {
            Self::UplinkEgress => TcAttachType::Egress,
            _ => TcAttachType::Ingress,
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How big the maps are made; what is pinned already keeps its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub flows: u32,
    pub policies: u32,
}

impl Sizes {
    /// VNIDs that the policy map takes: those beyond `policies` cannot be translated, but must be
    /// known, so that they are dropped.
    fn tenants(self) -> u32 {
        self.policies.saturating_mul(4).max(1 << 16)
    }
}

/// The directory of this version's pins below a bpffs.
pub fn pins(bpffs: &Path) -> PathBuf {
    bpffs.join("egress").join(format!("v{ABI_VERSION}"))
}

/// The loaded programs and their maps.
#[derive(Debug)]
pub struct DataPlane {
    ebpf: Ebpf,
    pins: PathBuf,
    log: ProgramLog,
}

impl DataPlane {
    /// Loads the programs; takes over the pinned maps, or makes and pins them.
    pub fn load(bpffs: &Path, sizes: Sizes) -> Result<Self> {
        fit::check_object(OBJECT)?;
        fit::check_kernel(KernelVersion::current().context("ask for the kernel's version")?)?;
        fit::check_bpffs(bpffs)?;
        let pins = pins(bpffs);
        fit::refuse_other_versions(bpffs, &pins)?;
        let maps = pins.join("maps");
        fit::check_pinned_maps(OBJECT, &maps, sizes)?;
        let adopted = maps.exists();
        let loaded = load(&pins, sizes);
        if loaded.is_err() && !adopted {
            // Nothing half done: the pins are this call's own.
            let _ = remove_pins(bpffs);
        }
        let mut ebpf = loaded?;
        let log = ProgramLog::open(&mut ebpf);
        Ok(Self { ebpf, pins, log })
    }

    fn link_pin(&self, hook: Hook, interface: &str) -> PathBuf {
        self.pins.join("links").join(format!("{hook}-{interface}"))
    }

    /// Whether this agent's program is what runs at the hook.
    pub fn is_attached(&mut self, hook: Hook, interface: &str) -> Result<bool> {
        let id = program(&mut self.ebpf, hook)?
            .info()
            .with_context(|| format!("ask for the program {hook}"))?
            .id();
        let (_, there) = SchedClassifier::query_tcx(interface, hook.direction())
            .with_context(|| format!("ask what is attached to {interface}"))?;
        Ok(there.iter().any(|info| info.id() == id))
    }

    /// Attaches this agent's program, in one step where a predecessor's link is pinned.
    pub fn attach(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let pin = self.link_pin(hook, interface);
        let what = || format!("attach {hook} to {interface}");
        let program = program(&mut self.ebpf, hook)?;
        let id = match adopted(program, &pin) {
            Some(id) => id,
            None => program
                .attach_with_options(
                    interface,
                    hook.direction(),
                    TcAttachOptions::TcxOrder(LinkOrder::first()),
                )
                .with_context(what)?,
        };
        let link = program.take_link(id).with_context(what)?;
        let link: FdLink = link.try_into().with_context(what)?;
        // A pin that holds the very link that was swapped stays.
        if !pin.exists() {
            link.pin(&pin).with_context(|| {
                format!("pin the link of {hook} on {interface} at {}", pin.display())
            })?;
        }
        Ok(())
    }

    /// Hands on what the programs have logged.
    pub fn flush_log(&mut self) {
        self.log.flush();
    }

    /// The maps, typed. They live as long as anything holds or pins them.
    pub fn maps(&self) -> Result<Maps> {
        Maps::open(&self.pins)
    }
}

/// Makes the pin directories, loads maps and programs.
fn load(pins: &Path, sizes: Sizes) -> Result<Ebpf> {
    let maps = pins.join("maps");
    for directory in [&maps, &pins.join("links")] {
        fs::create_dir_all(directory)
            .with_context(|| format!("make the pin directory {}", directory.display()))?;
    }
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(&maps)
        .map_max_entries("flows_original", sizes.flows)
        .map_max_entries("flows_reply", sizes.flows)
        .map_max_entries("policy", sizes.tenants())
        .map_max_entries("slots", sizes.policies)
        .map_max_entries("egress_ips", sizes.policies)
        .map_max_entries("slot_counters", sizes.policies)
        .load(OBJECT)
        .with_context(|| {
            let Sizes { flows, policies } = sizes;
            format!(
                "make the eBPF maps: is there memory for flows.max {flows} and policies.max \
                 {policies}?"
            )
        })?;
    for hook in Hook::ALL {
        program(&mut ebpf, hook)?
            .load()
            .with_context(|| format!("load the program {hook} into the kernel"))?;
    }
    Ok(ebpf)
}

/// How many flows the pinned tables hold at most.
pub fn flow_capacity(pins: &Path) -> Result<u32> {
    let pin = pins.join("maps/flows_reply");
    let info = MapInfo::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
    Ok(info.max_entries())
}

/// The link of a predecessor with our program in it, if there is one that still works.
fn adopted(
    program: &mut SchedClassifier,
    pin: &Path,
) -> Option<aya::programs::tc::SchedClassifierLinkId> {
    let pinned = PinnedLink::from_pin(pin).ok()?;
    let link = SchedClassifierLink::try_from(FdLink::from(pinned)).ok();
    let id = link.and_then(|link| program.attach_to_link(link).ok());
    if id.is_none() {
        // Its interface is gone: the link is a shell that cannot be filled again.
        let _ = fs::remove_file(pin);
    }
    id
}

fn program(ebpf: &mut Ebpf, hook: Hook) -> Result<&mut SchedClassifier> {
    ebpf.program_mut(hook.name())
        .with_context(|| format!("the eBPF object has no program {hook}"))?
        .try_into()
        .with_context(|| format!("{hook} is no tc program"))
}

/// The pinned maps, with their types.
pub struct Maps {
    pub config: Array<MapData, Plain<Config>>,
    pub nodes: HashMap<MapData, [u8; 4], u32>,
    pub pods: HashMap<MapData, [u8; 4], u32>,
    pub policy: HashMap<MapData, u32, u32>,
    pub slots: Array<MapData, Plain<Slot>>,
    pub egress_ips: HashMap<MapData, [u8; 4], u32>,
    pub flows_original: HashMap<MapData, Plain<OriginalKey>, Plain<OriginalRecord>>,
    pub flows_reply: HashMap<MapData, Plain<ReplyKey>, Plain<ReplyRecord>>,
    pub reasons: PerCpuArray<MapData, u64>,
    pub paths: PerCpuArray<MapData, u64>,
    pub slot_counters: PerCpuArray<MapData, Plain<SlotCounters>>,
}

impl Maps {
    /// Opens the maps that are pinned below `pins`.
    pub fn open(pins: &Path) -> Result<Self> {
        let directory = pins.join("maps");
        let open = |name: &str| {
            let pin = directory.join(name);
            MapData::from_pin(&pin).with_context(|| {
                format!("open the pinned map {}: is the agent running here?", pin.display())
            })
        };
        let array = |name: &str| open(name).map(aya::maps::Map::Array);
        let hash = |name: &str| open(name).map(aya::maps::Map::HashMap);
        let per_cpu = |name: &str| open(name).map(aya::maps::Map::PerCpuArray);
        Ok(Self {
            config: array("config")?.try_into()?,
            nodes: hash("nodes")?.try_into()?,
            pods: hash("pods")?.try_into()?,
            policy: hash("policy")?.try_into()?,
            slots: array("slots")?.try_into()?,
            egress_ips: hash("egress_ips")?.try_into()?,
            flows_original: hash("flows_original")?.try_into()?,
            flows_reply: hash("flows_reply")?.try_into()?,
            reasons: per_cpu("reasons")?.try_into()?,
            paths: per_cpu("paths")?.try_into()?,
            slot_counters: per_cpu("slot_counters")?.try_into()?,
        })
    }
}

/// Removes every pin, of any version: links first, so that no program runs on half its maps. What
/// was there is returned.
pub fn remove_pins(bpffs: &Path) -> Result<Vec<PathBuf>> {
    let root = bpffs.join("egress");
    let mut removed = Vec::new();
    let Ok(versions) = fs::read_dir(&root) else { return Ok(removed) };
    for version in versions.flatten().map(|entry| entry.path()) {
        for kind in ["links", "maps"] {
            let directory = version.join(kind);
            for pin in fs::read_dir(&directory).into_iter().flatten().flatten() {
                fs::remove_file(pin.path())
                    .with_context(|| format!("remove the pin {}", pin.path().display()))?;
                removed.push(pin.path());
            }
            remove_directory(&directory)?;
        }
        remove_directory(&version)?;
    }
    remove_directory(&root)?;
    removed.sort();
    Ok(removed)
}

fn remove_directory(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_dir(path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}
