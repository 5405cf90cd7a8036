//! Flows made and removed on one CPU as fast as it can, against traffic of the same flows on the
//! other, every frame that comes out held against what it must be.
//!
//! Half of the tenants get another egress IP thousands of times a second, so that nearly every packet
//! of theirs ends a flow and begins it again, and elements of the tables are reused under the other
//! CPU's eyes. Half of them have endpoint-independent mapping. The generator runs in the kernel; so does the checker, at the far end of the uplink.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, PerCpuArray};
use egress_common::{
    abi::{
        Config, NodeHop, Slot, Wire, action,
        mapping::{ENDPOINT_DEPENDENT, ENDPOINT_INDEPENDENT},
        xdp_send,
    },
    bench::{Capture, EGRESS_BASE, OTHER_EGRESS, vnid},
    testing::gateway::config,
};
use egress_user::bpf::{BPFFS, DataPlane, Hook, Maps, Plain, Sizes, pins};
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    bench::{
        frame,
        object::{Judged, Object},
        rig::{MAC_NET_UP, MAC_UP, NODE, ROUTER, SOURCE_NODE, dotted, mac},
        workload::{Entry, Flows, Workload},
    },
    netns::{Mounts, Netns},
};

/// Tenants; those of even numbers change their address.
const TENANTS: u32 = 64;
/// Flows that both CPUs talk in.
const FLOWS: u32 = 8192;
/// Of the tables: fewer than the fresh flows that come.
const CAPACITY: u32 = 1 << 18;
/// Between two changes of all even tenants' addresses.
const CHANGE: Duration = Duration::from_micros(300);
/// Ticks that a flow may rest: a second and a bit.
const REST: u32 = 9;

/// The node, its programs, and what is at the far end of its uplink.
pub struct Storm {
    node: Netns,
    wires: Netns,
    mounts: Mounts,
    checker: Object,
    _programs: DataPlane,
    far: u32,
}

/// What a storm came to.
#[derive(Debug)]
pub struct Outcome {
    pub judged: Judged,
    /// Some of the wrong frames, in hexadecimal.
    pub wrong: Vec<String>,
    /// Flows that were made.
    pub made: u64,
    /// How often tenants changed their addresses.
    pub changes: u64,
    pub reasons: Vec<(&'static str, u64)>,
    /// Entries without a partner, of each table, and all.
    pub halves: [usize; 3],
}

impl Storm {
    /// Sets everything up, on XDP too or on tc alone.
    pub fn make(on_xdp: bool) -> Result<Self> {
        let (node, wires) = (Netns::alone("storm")?, Netns::alone("storm-far")?);
        links(&node, &wires)?;
        let mounts = node.private_mounts()?;
        let programs = node.run_in(&mounts, || load(on_xdp))??;
        let mut checker = Object::load()?;
        wires.run(|| checker.attach_xdp("check", "far"))??;
        let far = wires.run(|| if_nametoindex("far"))??;
        Ok(Self { node, wires, mounts, checker, _programs: programs, far })
    }

    /// Sends this many packets from each of two CPUs.
    pub fn rage(&mut self, each: u32) -> Result<Outcome> {
        self.checker.set_shape(frame::shape(&packets(Flows::New), self.far))?;
        let over = AtomicBool::new(false);
        let (maps, wires, far) = (self.maps()?, &self.wires, self.far);
        let changes = thread::scope(|scope| -> Result<u64> {
            let changes = scope.spawn(|| change_addresses(maps, &over));
            let storms =
                [0, 1].map(|cpu| scope.spawn(move || wires.run(|| blow(cpu, far, each))?));
            let blown = storms.map(|storm| storm.join());
            over.store(true, Ordering::Relaxed);
            for storm in blown {
                storm.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            changes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let maps = self.maps()?;
        Ok(Outcome {
            judged: self.checker.judged()?,
            wrong: self.checker.captures()?.iter().take(4).map(hex).collect(),
            made: self.made()?,
            changes,
            reasons: reasons(&maps)?,
            halves: halves(&maps)?,
        })
    }

    fn maps(&self) -> Result<Maps> {
        self.node.run_in(&self.mounts, || Maps::open(&pins(Path::new(BPFFS))))?
    }

    /// All searches for a port so far.
    fn made(&self) -> Result<u64> {
        let pin = pins(Path::new(BPFFS)).join("maps/tries");
        let map = self.node.run_in(&self.mounts, || MapData::from_pin(pin))??;
        let tries: PerCpuArray<MapData, u64> = aya::maps::Map::PerCpuArray(map).try_into()?;
        let counts = tries.iter().map(|values| Ok(values?.iter().sum::<u64>()));
        counts.sum()
    }
}

fn links(node: &Netns, wires: &Netns) -> Result<()> {
    // A queue for each CPU, or one of them would do the work of both.
    wires.ip(&format!(
        "link add far address {} numtxqueues 2 numrxqueues 2 type veth peer name uplink \
         address {} netns {} numtxqueues 2 numrxqueues 2\nlink set far up\n",
        mac(MAC_NET_UP),
        mac(MAC_UP),
        node.name()
    ))?;
    node.ip(&format!(
        "link set uplink up\naddr add {node}/10 dev uplink\n\
         link add vxlan_sys_4789 type vxlan external dstport 4789 nolearning\n\
         link set vxlan_sys_4789 up\nroute add default via {router} dev uplink\n\
         neigh add {router} lladdr {peer} nud permanent dev uplink\n\
         neigh add {source} lladdr {peer} nud permanent dev uplink\n",
        node = dotted(NODE),
        router = dotted(ROUTER),
        source = dotted(SOURCE_NODE),
        peer = mac(MAC_NET_UP),
    ))?;
    // A veth takes frames of XDP only if it gathers.
    node.exec("ethtool -K uplink gro on")?;
    node.sysctl("ipv4/ip_forward", "1")
}

/// Loads and attaches the programs, and fills their maps as the agent does.
fn load(on_xdp: bool) -> Result<DataPlane> {
    let mut programs =
        DataPlane::load(Path::new(BPFFS), Sizes { flows: CAPACITY, policies: 2 * TENANTS })?;
    let Maps { config: settings, nodes, policy, slots, egress_ips, .. } = &mut programs.maps()?;
    let uplink = if_nametoindex("uplink")?;
    let config = Config {
        node: NODE,
        uplink,
        tunnel: if_nametoindex("vxlan_sys_4789")?,
        tunnel_mtu: 1450,
        wire: wire(uplink),
        unwrap_gso: 1,
        udp: REST,
        places: 2 * CAPACITY,
        ..config()
    };
    settings.set(0, Plain(config), 0)?;
    nodes.insert(SOURCE_NODE, Plain(NodeHop::default()), 0)?;
    for number in 0..TENANTS {
        slots.set(number, Plain(slot(number, uplink, false)), 0)?;
        policy.insert(vnid(number), number, 0)?;
        for other in [0, OTHER_EGRESS] {
            egress_ips.insert((EGRESS_BASE + number + other).to_be_bytes(), number, 0)?;
        }
    }
    programs.attach(Hook::UplinkEgress, "uplink")?;
    programs.attach(Hook::TunnelIngress, "vxlan_sys_4789")?;
    programs.attach(Hook::UplinkIngress, "uplink")?;
    if on_xdp {
        programs.attach_xdp("uplink", aya::programs::XdpMode::Driver)?;
    }
    Ok(programs)
}

fn wire(device: u32) -> Wire {
    Wire { device, vlan: 0, send: xdp_send::REDIRECT, pad: 0 }
}

fn slot(number: u32, uplink: u32, other: bool) -> Slot {
    let egress_ip = EGRESS_BASE + number + if other { OTHER_EGRESS } else { 0 };
    Slot {
        vnid: vnid(number),
        egress_ip: egress_ip.to_be_bytes(),
        uplink,
        wire: wire(uplink),
        action: action::SNAT,
        mapping: if number % 4 < 2 { ENDPOINT_DEPENDENT } else { ENDPOINT_INDEPENDENT },
        ..bytemuck::Zeroable::zeroed()
    }
}

/// Gives the even tenants one address and the other until it is over; how often.
fn change_addresses(mut maps: Maps, over: &AtomicBool) -> Result<u64> {
    let uplink = maps.slots.get(&0, 0)?.0.uplink;
    let mut changes = 0;
    while !over.load(Ordering::Relaxed) {
        for number in (0..TENANTS).step_by(2) {
            maps.slots.set(number, Plain(slot(number, uplink, changes % 2 == 0)), 0)?;
        }
        changes += 1;
        thread::sleep(CHANGE);
    }
    Ok(changes)
}

/// Packets of the shortest payload, which the generator writes whole: a refused one's page comes back
/// with what was written into the answer.
fn packets(flows: Flows) -> Workload {
    Workload::new("storm", Entry::Tunnel, flows, TENANTS).payload(6)
}

/// One CPU's packets: on the first the same flows again and again and fresh ones among them; on the
/// second the same flows and their replies.
fn blow(cpu: usize, far: u32, most: u32) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("stay on one CPU")?;
    let mut generator = Object::load()?;
    let known = packets(Flows::Established(FLOWS));
    let other = if cpu == 0 { packets(Flows::New) } else { known.clone().replies() };
    let share = if cpu == 0 { 5_000 } else { 50_000 };
    let (mut sent, mut next) = (0, 1 << 20);
    while sent < most {
        for (workload, count) in [(&known, 50_000), (&other, share)] {
            let count = count.min(most - sent);
            generator.set_shape(frame::shape(workload, far))?;
            if workload.flows == Flows::New {
                generator.set_counter(next)?;
                next += count;
            }
            generator.send(workload.generator(), workload.frame_len(), count, workload.batch)?;
            sent += count;
        }
    }
    Ok(())
}

fn hex(frame: &Capture) -> String {
    let bytes = &frame.bytes[..frame.bytes.len().min(frame.len as usize)];
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn reasons(maps: &Maps) -> Result<Vec<(&'static str, u64)>> {
    let mut counted = Vec::new();
    for (reason, name) in egress_common::reason::Reason::ALL {
        let count = maps.reasons.get(&(*reason as u32), 0)?.iter().sum::<u64>();
        counted.extend((count != 0).then_some((*name, count)));
    }
    Ok(counted)
}

/// Entries without a partner that says the same: originals, replies; then all originals.
fn halves(maps: &Maps) -> Result<[usize; 3]> {
    let originals = maps.flows_original.iter().collect::<Result<Vec<_>, _>>()?;
    let replies = maps.flows_reply.iter().collect::<Result<Vec<_>, _>>()?;
    let tags = |of: &mut dyn Iterator<Item = u32>| of.collect::<std::collections::HashSet<_>>();
    let of_originals = tags(&mut originals.iter().map(|(_, flow)| flow.0.tag));
    let of_replies = tags(&mut replies.iter().map(|(_, flow)| flow.0.tag));
    ensure!(!originals.is_empty(), "no flow is left to look at");
    Ok([
        originals.iter().filter(|(_, flow)| !of_replies.contains(&flow.0.tag)).count(),
        replies.iter().filter(|(_, flow)| !of_originals.contains(&flow.0.tag)).count(),
        originals.len(),
    ])
}
