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
        LinkOrder, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        tc::{SchedClassifierLink, TcAttachOptions},
        xdp::XdpLink,
    },
    util::KernelVersion,
};
use egress_common::abi::{
    ABI_VERSION, Arrival, Config, NodeHop, OriginalKey, OriginalRecord, ReplyKey, ReplyRecord,
    Slot, SlotCounters, UsageRecord,
};
use egress_common::crowd::CROWD_WORDS;

pub mod fit;
pub mod log;
#[cfg(test)]
mod stack;

use self::log::ProgramLog;

/// The object that the build script made; empty when it found no BPF toolchain.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.o"));

/// Where bpffs is mounted by convention.
pub const BPFFS: &str = "/sys/fs/bpf";

/// A map type of ours, as aya wants to see it: fixed size, no padding, any bits valid.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: transparent, and bytemuck::Pod promises all that aya::Pod asks for.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// The name of the program on XDP: it has no hook among those of tc.
pub const XDP: &str = "uplink_xdp";

/// Where the programs on tc hook in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    TunnelIngress,
    GatewayIngress,
    /// In place of the gateway's, where a pod's tenant is known by its device or address.
    PodIngress,
    UplinkIngress,
    UplinkEgress,
}

impl Hook {
    pub const ALL: [Self; 5] = [
        Self::UplinkEgress,
        Self::UplinkIngress,
        Self::GatewayIngress,
        Self::PodIngress,
        Self::TunnelIngress,
    ];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::TunnelIngress => "tunnel_ingress",
            Self::GatewayIngress => "gateway_ingress",
            Self::PodIngress => "pod_ingress",
            Self::UplinkIngress => "uplink_ingress",
            Self::UplinkEgress => "uplink_egress",
        }
    }

    /// Before other programs, one of which could end the chain and so let a packet by. Only on the
    /// gateway device behind them: who marks packets there comes first, and the guard is still to
    /// come.
    fn order(self) -> LinkOrder {
        match self {
            Self::GatewayIngress => LinkOrder::last(),
            _ => LinkOrder::first(),
        }
    }

    pub fn direction(self) -> TcAttachType {
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

    /// One for each policy, and the last one for all that have none: [`Maps::masquerade_slot`].
    fn slots(self) -> u32 {
        self.policies.saturating_add(1)
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

    fn link_pin(&self, program: &str, interface: &str) -> PathBuf {
        // A bpffs keeps names with a dot for itself; no interface has a colon in its name.
        self.pins.join("links").join(format!("{program}-{}", interface.replace('.', ":")))
    }

    /// The loaded object, for its log and for test runs of its programs.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// What the kernel says of a loaded program.
    pub fn info(&mut self, hook: Hook) -> Result<ProgramInfo> {
        program(&mut self.ebpf, hook)?.info().with_context(|| format!("ask for the program {hook}"))
    }

    /// Whether this agent's program is what runs at the hook.
    pub fn is_attached(&mut self, hook: Hook, interface: &str) -> Result<bool> {
        let id = self.info(hook)?.id();
        let (_, there) = SchedClassifier::query_tcx(interface, hook.direction())
            .with_context(|| format!("ask what is attached to {interface}"))?;
        Ok(there.iter().any(|info| info.id() == id))
    }

    /// Attaches this agent's program, in one step where a predecessor's link is pinned.
    pub fn attach(&mut self, hook: Hook, interface: &str) -> Result<()> {
        let pin = self.link_pin(hook.name(), interface);
        let what = || format!("attach {hook} to {interface}");
        let program = program(&mut self.ebpf, hook)?;
        let id = match adopted(program, &pin) {
            Some(id) => id,
            None => program
                .attach_with_options(
                    interface,
                    hook.direction(),
                    TcAttachOptions::TcxOrder(hook.order()),
                )
                .with_context(what)?,
        };
        let link = program.take_link(id).with_context(what)?;
        keep(link.try_into().with_context(what)?, &pin)
    }

    /// The program on XDP, loaded when it is first asked for: a node that stays on tc needs none.
    pub fn xdp(&mut self) -> Result<&mut Xdp> {
        let program: &mut Xdp = self
            .ebpf
            .program_mut(XDP)
            .with_context(|| format!("the eBPF object has no program {XDP}"))?
            .try_into()
            .with_context(|| format!("{XDP} is no XDP program"))?;
        if program.fd().is_err() {
            program.load().with_context(|| format!("load the program {XDP} into the kernel"))?;
        }
        Ok(program)
    }

    /// What the kernel says of the program on XDP.
    pub fn xdp_info(&mut self) -> Result<ProgramInfo> {
        self.xdp()?.info().with_context(|| format!("ask for the program {XDP}"))
    }

    /// Whether a link of ours, this agent's or a predecessor's, is pinned for the interface.
    pub fn has_xdp_link(&self, interface: &str) -> bool {
        self.link_pin(XDP, interface).exists()
    }

    /// Attaches this agent's program on XDP; a predecessor's link keeps its mode.
    ///
    /// # Errors
    /// Another program is attached, the driver has no such mode, or the frames are too big for it.
    pub fn attach_xdp(&mut self, interface: &str, mode: XdpMode) -> Result<()> {
        let pin = self.link_pin(XDP, interface);
        let what = || format!("attach {XDP} to {interface}");
        let program = self.xdp()?;
        let predecessor = PinnedLink::from_pin(&pin)
            .ok()
            .and_then(|pinned| XdpLink::try_from(FdLink::from(pinned)).ok());
        let id = match predecessor.and_then(|link| program.attach_to_link(link).ok()) {
            Some(id) => id,
            None => {
                // A shell that cannot be filled again, or nothing.
                let _ = fs::remove_file(&pin);
                program.attach(interface, mode).with_context(what)?
            }
        };
        let link = program.take_link(id).with_context(what)?;
        keep(link.try_into().with_context(what)?, &pin)
    }

    /// Takes the program off XDP: the tc programs go on where it stopped.
    pub fn detach_xdp(&mut self, interface: &str) -> Result<()> {
        let pin = self.link_pin(XDP, interface);
        if pin.exists() {
            fs::remove_file(&pin).with_context(|| format!("remove the pin {}", pin.display()))?;
        }
        Ok(())
    }

    /// The interfaces with a pinned link of the program on XDP, this agent's or a predecessor's.
    pub fn xdp_links(&self) -> Vec<String> {
        let pins = fs::read_dir(self.pins.join("links")).into_iter().flatten().flatten();
        let names = pins.filter_map(|pin| pin.file_name().into_string().ok());
        let prefix = format!("{XDP}-");
        names.filter_map(|name| Some(name.strip_prefix(&prefix)?.replace(':', "."))).collect()
    }

    /// Hands on what the programs have logged.
    pub fn flush_log(&mut self) {
        self.log.flush();
    }

    /// Detaches what is attached anywhere else; returns the names of what was.
    pub fn detach_all_but(&self, wanted: &[(Hook, String)]) -> Result<Vec<String>> {
        let links = self.pins.join("links");
        let mut gone = Vec::new();
        for pin in fs::read_dir(&links).with_context(|| format!("read {}", links.display()))? {
            let path = pin.with_context(|| format!("read {}", links.display()))?.path();
            // The program on XDP is attached and detached by its own rules.
            let is_xdp =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(XDP));
            if is_xdp
                || wanted
                    .iter()
                    .any(|(hook, interface)| self.link_pin(hook.name(), interface) == path)
            {
                continue;
            }
            // The pin is all that holds the link.
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            gone.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
        Ok(gone)
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
        .map_max_entries("slots", sizes.slots())
        .map_max_entries("egress_ips", sizes.policies)
        .map_max_entries("slot_counters", sizes.slots())
        .map_max_entries("usage", sizes.slots())
        .map_max_entries("places", sizes.flows.saturating_mul(2))
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

/// Pins a link, so that it outlives the agent. A pin that holds the very link stays.
fn keep(link: FdLink, pin: &Path) -> Result<()> {
    if !pin.exists() {
        link.pin(pin).with_context(|| format!("pin a link at {}", pin.display()))?;
    }
    Ok(())
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
    pub nodes: HashMap<MapData, [u8; 4], Plain<NodeHop>>,
    pub pods: HashMap<MapData, [u8; 4], u32>,
    pub policy: HashMap<MapData, u32, u32>,
    pub slots: Array<MapData, Plain<Slot>>,
    pub egress_ips: HashMap<MapData, [u8; 4], u32>,
    /// The further uplinks as XDP sees them, to their interfaces.
    pub arrivals: HashMap<MapData, Plain<Arrival>, u32>,
    pub flows_original: HashMap<MapData, Plain<OriginalKey>, Plain<OriginalRecord>>,
    pub flows_reply: HashMap<MapData, Plain<ReplyKey>, Plain<ReplyRecord>>,
    /// Bitmaps of ports by destination (port 0 in the key): removed with a flow of theirs.
    pub crowds: HashMap<MapData, Plain<ReplyKey>, Plain<[u64; CROWD_WORDS]>>,
    pub usage: Array<MapData, Plain<UsageRecord>>,
    /// When another node was last heard, in ticks; 0: never yet.
    pub heard: Array<MapData, u32>,
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
            arrivals: hash("arrivals")?.try_into()?,
            flows_original: hash("flows_original")?.try_into()?,
            flows_reply: hash("flows_reply")?.try_into()?,
            crowds: open("crowds").map(aya::maps::Map::LruHashMap)?.try_into()?,
            usage: array("usage")?.try_into()?,
            heard: array("heard")?.try_into()?,
            reasons: per_cpu("reasons")?.try_into()?,
            paths: per_cpu("paths")?.try_into()?,
            slot_counters: per_cpu("slot_counters")?.try_into()?,
        })
    }
}

impl Maps {
    /// Where the slot is by which pods without a policy leave.
    pub fn masquerade_slot(&self) -> u32 {
        self.slots.len().saturating_sub(1)
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
