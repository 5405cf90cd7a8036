//! The programs in the kernel as a gateway for the engine's stories: single packets, run through
//! `BPF_PROG_TEST_RUN`. No packet enters a device.
//!
//! Surprising: the kernel's clock cannot be set, so time passes by making every flow older.
pub mod live;
pub mod xdp;

use std::{cell::RefCell, rc::Rc};

use anyhow::{Context as _, Result};
use aya::{
    maps::HashMap,
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use egress_common::{
    abi::{
        Config, FragmentKey, FragmentOwner, Kept, NO_VNID, OriginalKey, OriginalRecord, Path,
        ReplyKey, ReplyRecord, Slot, Wire,
    },
    mark::{Layout, MAX_VNID, mark},
    reason::Reason,
    testing::{
        Gateway, Mapping, Outcome,
        gateway::{POLICIES, config, masquerade_slot},
        packet::End,
    },
};
use egress_user::bpf::{DataPlane, Hook, Maps, Plain};

/// Of the link layer's header, which the programs want to see and the stories do not.
const ETH_LEN: usize = 14;
/// Of every frame; addresses are of no meaning to the programs.
pub const ETHERNET: [u8; ETH_LEN] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
/// Of `struct __sk_buff`, of which only the mark is filled in.
const CONTEXT_LEN: usize = 192;
const MARK_AT: usize = 8;
/// The bits of a life that are the time.
const LAST_SEEN_SHIFT: u32 = 32;

/// What the programs return (see `include/uapi/linux/pkt_cls.h`).
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// The loaded programs, of which one gateway after the other is made.
pub struct Programs {
    loaded: Rc<RefCell<Loaded>>,
    uplink: u32,
}

struct Loaded {
    data_plane: DataPlane,
    maps: Maps,
}

impl Programs {
    /// With the uplink of this number: the programs look for next hops there.
    pub fn new(data_plane: DataPlane, uplink: u32) -> Result<Self> {
        let maps = data_plane.maps()?;
        Ok(Self { loaded: Rc::new(RefCell::new(Loaded { data_plane, maps })), uplink })
    }

    /// A gateway with the stories' policies and settings, and without flows.
    pub fn fresh(&self) -> Result<TestRunGateway> {
        // As the agent does: the guard looks at what bears no stamp.
        let config = Config { stamp: [1, 1], uplink: self.uplink, ..config() };
        let (loaded, uplink) = (self.loaded.clone(), self.uplink);
        let mut gateway = TestRunGateway { loaded, config, uplink, wire_out: Wire::default() };
        gateway.clear()?;
        gateway.clear_slots()?;
        clear_fragments(&mut gateway.loaded.borrow_mut().data_plane)?;
        gateway.enter(gateway.config)?;
        for (vnid, action, egress_ip) in POLICIES {
            gateway.set_policy(vnid, action, egress_ip);
        }
        Ok(gateway)
    }
}

/// One story's gateway.
pub struct TestRunGateway {
    loaded: Rc<RefCell<Loaded>>,
    config: Config,
    uplink: u32,
    /// How XDP sends what leaves.
    wire_out: Wire,
}

impl TestRunGateway {
    fn clear(&mut self) -> Result<()> {
        let Maps { flows_original, flows_reply, policy, pods, egress_ips, crowds, .. } =
            &mut self.loaded.borrow_mut().maps;
        for key in flows_original.keys().collect::<Result<Vec<_>, _>>()? {
            flows_original.remove(&key)?;
        }
        for key in flows_reply.keys().collect::<Result<Vec<_>, _>>()? {
            flows_reply.remove(&key)?;
        }
        for key in policy.keys().collect::<Result<Vec<_>, _>>()? {
            policy.remove(&key)?;
        }
        for key in pods.keys().collect::<Result<Vec<_>, _>>()? {
            pods.remove(&key)?;
        }
        for key in crowds.keys().collect::<Result<Vec<_>, _>>()? {
            crowds.remove(&key)?;
        }
        for key in egress_ips.keys().collect::<Result<Vec<_>, _>>()? {
            egress_ips.remove(&key)?;
        }
        Ok(())
    }

    fn clear_slots(&mut self) -> Result<()> {
        let Maps { slots, usage, .. } = &mut self.loaded.borrow_mut().maps;
        for index in 0..slots.len() {
            slots.set(index, Plain(bytemuck::Zeroable::zeroed()), 0)?;
            usage.set(index, Plain(bytemuck::Zeroable::zeroed()), 0)?;
        }
        Ok(())
    }

    fn enter(&mut self, config: Config) -> Result<()> {
        self.config = config;
        self.loaded.borrow_mut().maps.config.set(0, Plain(config), 0).context("set the config")
    }

    fn reasons(&self) -> Vec<u64> {
        let reasons = &self.loaded.borrow().maps.reasons;
        let count = |(reason, _): &(Reason, &str)| {
            let values = reasons.get(&(*reason as u32), 0).expect("every reason has a counter");
            values.iter().sum()
        };
        Reason::ALL.iter().map(count).collect()
    }

    /// The first reason that was counted since.
    fn counted_since(&self, before: &[u64]) -> Option<Reason> {
        let counted = Reason::ALL.iter().zip(before.iter().zip(self.reasons()));
        counted
            .filter(|(_, (before, after))| **before != *after)
            .map(|((reason, _), _)| *reason)
            .next()
    }

    /// Frames sent on XDP so far: originals and replies.
    fn sent_on_xdp(&self) -> (u64, u64) {
        let paths = &self.loaded.borrow().maps.paths;
        let count = |path: Path| -> u64 {
            let values = paths.get(&(path as u32), 0).expect("every path has a counter");
            values.iter().sum()
        };
        (count(Path::Xdp), count(Path::ReplyXdp))
    }

    /// A tenant's packets that were dropped since its policy was set.
    ///
    /// # Errors
    /// The tenant has no policy.
    pub fn dropped(&self, vnid: u32) -> Result<u64> {
        let Maps { policy, slot_counters, .. } = &self.loaded.borrow().maps;
        let index = policy.get(&vnid, 0).context("find the policy")?;
        let counters = slot_counters.get(&index, 0).context("read the policy's counters")?;
        Ok(counters.iter().map(|cpu| cpu.0.dropped).sum())
    }

    fn run(&self, hook: Hook, mark: u32, packet: &[u8]) -> Result<Outcome> {
        self.run_frame(hook, mark, &[&ETHERNET[..], packet].concat())
    }

    /// What becomes of a frame; outcomes are of the packet in it.
    fn run_frame(&self, hook: Hook, mark: u32, frame: &[u8]) -> Result<Outcome> {
        let (before, kept) = (self.reasons(), self.count_kept()?);
        let mut context = [0; CONTEXT_LEN];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        let mut out = vec![0; frame.len() + 256];
        let result = {
            let loaded = &mut *self.loaded.borrow_mut();
            let program: &mut SchedClassifier = loaded
                .data_plane
                .ebpf_mut()
                .program_mut(hook.name())
                .with_context(|| format!("the object has no program {hook}"))?
                .try_into()?;
            program.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ..TestRunOptions::default()
            })?
        };
        out.truncate(result.data_size_out as usize);
        let after = out.split_off(ETH_LEN);
        let counted = self.counted_since(&before);
        // In the shadow what is counted passes all the same.
        let counted = counted.filter(|_| !self.config.is_shadow());
        Ok(match (result.return_value, counted) {
            (DROP, Some(reason)) => Outcome::Dropped(reason),
            (DROP, None) if self.count_kept()? == kept + 1 => Outcome::Kept,
            (DROP, None) => anyhow::bail!("a packet was dropped and not counted"),
            (PASS, None) if after == frame[ETH_LEN..] => Outcome::Passed,
            (_, None) => Outcome::Sent(after),
            (_, Some(reason)) => Outcome::Answered(reason, after),
        })
    }

    fn count_kept(&self) -> Result<usize> {
        let data_plane = &mut self.loaded.borrow_mut().data_plane;
        let map = data_plane.ebpf_mut().map_mut("kept").context("the object has no map kept")?;
        let kept: HashMap<_, u32, Plain<Kept>> = map.try_into()?;
        Ok(kept.keys().collect::<Result<Vec<_>, _>>()?.len())
    }

    /// Who has no VNID has no mark.
    fn mark(&self, vnid: u32) -> u32 {
        if vnid == NO_VNID { 0 } else { mark(vnid, self.config.masquerade_bit, Layout::New) }
    }
}

fn end(address: [u8; 4], port: [u8; 2]) -> End {
    (address, u16::from_be_bytes(port))
}

fn mapping(
    (key, flow): (Plain<OriginalKey>, Plain<OriginalRecord>),
    reply: impl Fn(&ReplyKey) -> ReplyRecord,
) -> Mapping {
    let (key, flow) = (key.0, flow.0);
    let partner = reply(&key.reply(flow.egress_ip, flow.egress_port));
    assert_eq!(
        (partner.pod, partner.pod_port, partner.vnid & MAX_VNID, partner.tag, partner.slot),
        (key.pod, key.pod_port, key.vnid(), flow.tag, flow.slot),
        "both halves tell the same"
    );
    Mapping {
        vnid: key.vnid(),
        protocol: key.protocol(),
        pod: end(key.pod, key.pod_port),
        remote: end(key.remote, key.remote_port),
        egress: end(flow.egress_ip, flow.egress_port),
    }
}

fn clear_fragments(data_plane: &mut DataPlane) -> Result<()> {
    let map = data_plane.ebpf_mut().map_mut("fragments").context("the object has no fragments")?;
    let mut fragments: HashMap<_, Plain<FragmentKey>, Plain<FragmentOwner>> = map.try_into()?;
    for key in fragments.keys().collect::<Result<Vec<_>, _>>()? {
        fragments.remove(&key)?;
    }
    let map = data_plane.ebpf_mut().map_mut("kept").context("the object has no map kept")?;
    let mut kept: HashMap<_, u32, Plain<Kept>> = map.try_into()?;
    for place in kept.keys().collect::<Result<Vec<_>, _>>()? {
        kept.remove(&place)?;
    }
    Ok(())
}

fn make_fragments_older(data_plane: &mut DataPlane, ticks: u32) -> Result<()> {
    let map = data_plane.ebpf_mut().map_mut("fragments").context("the object has no fragments")?;
    let mut fragments: HashMap<_, Plain<FragmentKey>, Plain<FragmentOwner>> = map.try_into()?;
    for entry in fragments.iter().collect::<Result<Vec<_>, _>>()? {
        let (key, Plain(owner)) = entry;
        let owner = FragmentOwner { seen: owner.seen.wrapping_sub(ticks), ..owner };
        fragments.insert(key, Plain(owner), 0)?;
    }
    Ok(())
}

impl Gateway for TestRunGateway {
    fn leave_pod(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        self.run(Hook::GatewayIngress, self.mark(vnid), packet).expect("run gateway_ingress")
    }

    fn arrive(&mut self, packet: &[u8]) -> Outcome {
        self.run(Hook::UplinkIngress, 0, packet).expect("run uplink_ingress")
    }

    fn kept(&mut self) -> usize {
        self.count_kept().expect("count what is kept")
    }

    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        self.run(Hook::UplinkEgress, self.mark(vnid), packet).expect("run uplink_egress")
    }

    fn rest(&mut self, ticks: u32) {
        let Loaded { data_plane, maps } = &mut *self.loaded.borrow_mut();
        make_fragments_older(data_plane, ticks).expect("make fragments older");
        let Maps { flows_original, flows_reply, .. } = maps;
        let older = |life: u64| {
            let last_seen = (life >> LAST_SEEN_SHIFT) as u32;
            u64::from(last_seen.wrapping_sub(ticks)) << LAST_SEEN_SHIFT | u64::from(life as u32)
        };
        let originals: Vec<_> = flows_original.iter().map(|entry| entry.expect("read")).collect();
        for (key, Plain(flow)) in originals {
            let flow = OriginalRecord { life: older(flow.life), ..flow };
            flows_original.insert(key, Plain(flow), 0).expect("make a flow older");
        }
        let replies: Vec<_> = flows_reply.iter().map(|entry| entry.expect("read")).collect();
        for (key, Plain(flow)) in replies {
            let flow = ReplyRecord { life: older(flow.life), ..flow };
            flows_reply.insert(key, Plain(flow), 0).expect("make a flow older");
        }
    }

    fn mappings(&self) -> Vec<Mapping> {
        let Maps { flows_original, flows_reply, .. } = &self.loaded.borrow().maps;
        let partner =
            |key: &ReplyKey| flows_reply.get(&Plain(*key), 0).expect("the reply's half is there").0;
        let originals = flows_original.iter().map(|entry| entry.expect("read a flow"));
        let mut mappings: Vec<_> = originals.map(|entry| mapping(entry, partner)).collect();
        assert_eq!(flows_reply.keys().count(), mappings.len(), "every entry has a partner");
        mappings.sort_unstable();
        mappings
    }

    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        let Maps { policy, slots, egress_ips, .. } = &mut self.loaded.borrow_mut().maps;
        let used = policy.keys().count() as u32;
        let index = policy.get(&vnid, 0).unwrap_or(used);
        let before = slots.get(&index, 0).expect("read a slot").0.egress_ip;
        // Not in use is as good as removed.
        let _ = egress_ips.remove(&before);
        let slot = Slot {
            vnid,
            egress_ip,
            action,
            uplink: self.uplink,
            wire: self.wire_out,
            ..bytemuck::Zeroable::zeroed()
        };
        slots.set(index, Plain(slot), 0).expect("set a slot");
        policy.insert(vnid, index, 0).expect("set a policy");
        if egress_ip != [0; 4] {
            egress_ips.insert(egress_ip, index, 0).expect("set an egress IP");
        }
    }

    fn masquerade(&mut self) {
        let slot = Slot { wire: self.wire_out, ..masquerade_slot(self.uplink) };
        let index = {
            let maps = &mut self.loaded.borrow_mut().maps;
            let index = maps.masquerade_slot();
            maps.slots.set(index, Plain(slot), 0).expect("set the slot to masquerade by");
            index
        };
        self.configure(&|config| config.masquerade_slot = index);
    }

    fn set_pod(&mut self, address: [u8; 4], value: u32) {
        let pods = &mut self.loaded.borrow_mut().maps.pods;
        pods.insert(address, value, 0).expect("enter a pod");
    }

    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot)) {
        let Maps { policy, slots, .. } = &mut self.loaded.borrow_mut().maps;
        let index = policy.get(&vnid, 0).expect("the tenant has a policy");
        let mut slot = slots.get(&index, 0).expect("read a slot").0;
        change(&mut slot);
        slots.set(index, Plain(slot), 0).expect("set a slot");
    }

    fn configure(&mut self, change: &dyn Fn(&mut Config)) {
        let mut config = self.config;
        change(&mut config);
        self.enter(config).expect("set the config");
    }
}
