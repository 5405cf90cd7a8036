//! The engine itself behind the [`Gateway`] of the stories.
use std::collections::BTreeMap;

use crate::{
    abi::{Config, FragmentKey, NO_VNID, OriginalKey, Slot, Usage},
    answer,
    flow::Scratch,
    fragment,
    mark::MAX_VNID,
    masquerade::{give_way, unmarked},
    nat::{AnswerKind, Origin, Verdict, leaves_translated, translate_original, translate_reply},
    reason::Reason,
    rewrite::Hop,
    testing::{
        Bytes, MemoryTables, apply,
        gateway::{Gateway, Mapping, Outcome, POLICIES, config, masquerade_slot},
    },
    wire::Ipv4,
};

/// The engine and its tables.
pub struct Host {
    pub tables: MemoryTables,
    pub scratch: Scratch,
    /// Fragments that are kept, by their place: of which packet, since when, and the bytes.
    pub kept: BTreeMap<u32, (FragmentKey, u32, Vec<u8>)>,
    /// What became of those that a first fragment has brought along.
    pub released: Vec<Outcome>,
}

impl Default for Host {
    fn default() -> Self {
        let mut tables = MemoryTables { config: Some(config()), ..MemoryTables::default() };
        for (vnid, action, egress_ip) in POLICIES {
            tables.add_policy(vnid, action, egress_ip);
        }
        Self { tables, scratch: Scratch::default(), kept: BTreeMap::new(), released: Vec::new() }
    }
}

/// What a hook does with the engine's verdict, on bytes.
pub fn outcome(verdict: Result<Verdict, Reason>, packet: &[u8], scratch: &Scratch) -> Outcome {
    match verdict {
        Err(reason) => Outcome::Dropped(reason),
        Ok(Verdict::Pass) => Outcome::Passed,
        Ok(Verdict::Keep) => Outcome::Kept,
        Ok(Verdict::Translate) => {
            let mut packet = packet.to_vec();
            apply(&mut packet, &scratch.translation.rewrite);
            Outcome::Sent(packet)
        }
        Ok(Verdict::Answer) => {
            let said = &scratch.answer;
            let ip = Ipv4::read(&Bytes(packet), 0).expect("what is answered has a header");
            let answer = match said.kind {
                AnswerKind::RESET => answer::reset(&Bytes(packet), &ip).map(|bytes| bytes.to_vec()),
                AnswerKind { kind, code } => {
                    answer::icmp_error(&Bytes(packet), &ip, said, kind, code)
                        .map(|bytes| bytes.to_vec())
                }
            };
            match answer {
                Some(bytes) => Outcome::Answered(said.reason, bytes),
                None => Outcome::Dropped(said.reason),
            }
        }
    }
}

impl Host {
    /// A pod's packet with its whole origin.
    pub fn original(&mut self, origin: Origin, packet: &[u8]) -> Outcome {
        self.scratch.origin = origin;
        let verdict = translate_original(&Bytes(packet), &self.tables, &mut self.scratch);
        self.unless_shadow(outcome(verdict, packet, &self.scratch))
    }

    /// As the hooks do: the engine decides, and the packet goes on as it came.
    fn unless_shadow(&self, outcome: Outcome) -> Outcome {
        let config = self.tables.config.as_ref().expect("the gateway is configured");
        if config.is_shadow() { Outcome::Passed } else { outcome }
    }

    /// What the hook does with a fragment that came too early.
    fn keep(&mut self, packet: &[u8]) -> Outcome {
        let (key, now) = (self.scratch.fragment, self.tables.now.get());
        let first = fragment::shelf(&key);
        let is_free =
            |place: &u32| self.kept.get(place).is_none_or(|kept| fragment::has_waited(now, kept.1));
        let Some(place) = (first..first + fragment::PLACES).find(is_free) else {
            return Outcome::Dropped(Reason::FragmentEarly);
        };
        self.kept.insert(place, (key, now, packet.to_vec()));
        Outcome::Kept
    }

    /// What it does with those kept behind a first fragment: they arrive anew.
    fn release(&mut self) {
        let (key, now) = (self.scratch.fragment, self.tables.now.get());
        let kept = std::mem::take(&mut self.kept).into_iter();
        let (released, kept): (BTreeMap<_, _>, _) = kept.partition(|(_, kept)| kept.0 == key);
        self.kept = kept;
        for (_, seen, packet) in released.into_values() {
            let outcome = match fragment::is_kept_in_time(now, seen) {
                true => self.arrive(&packet),
                false => Outcome::Dropped(Reason::FragmentEarly),
            };
            self.released.push(outcome);
        }
    }
}

impl Host {
    /// What a hook knows of a packet's tenant; `Err`: what becomes of the packet without one.
    fn whose(&self, vnid: u32, ip: &Ipv4) -> Result<u32, Outcome> {
        if vnid != NO_VNID {
            return Ok(vnid);
        }
        let config = self.tables.config.as_ref().expect("the gateway is configured");
        match unmarked(config, ip, self.tables.pods.get(&ip.source).copied()) {
            Ok(Some(vnid)) => Ok(vnid),
            Ok(None) => Err(Outcome::Passed),
            Err(reason) => Err(Outcome::Dropped(reason)),
        }
    }
}

fn end(address: [u8; 4], port: [u8; 2]) -> ([u8; 4], u16) {
    (address, u16::from_be_bytes(port))
}

impl Gateway for Host {
    fn leave_pod(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        let vnid = match Ipv4::read(&Bytes(packet), 0).map(|ip| self.whose(vnid, &ip)) {
            None if vnid == NO_VNID => return Outcome::Passed,
            None => vnid,
            Some(Ok(vnid)) => vnid,
            Some(Err(outcome)) => return outcome,
        };
        self.original(Origin { vnid, ifindex: 7, macs: [4, 5, 6], ..Origin::default() }, packet)
    }

    fn arrive(&mut self, packet: &[u8]) -> Outcome {
        let verdict = translate_reply(&Bytes(packet), &self.tables, &mut self.scratch);
        let found = self.unless_shadow(outcome(verdict, packet, &self.scratch));
        let ip = self.scratch.ip;
        match found {
            Outcome::Kept => return self.keep(packet),
            Outcome::Sent(_) if ip.more_fragments && ip.fragment_offset == 0 => self.release(),
            _ => {}
        }
        found
    }

    fn kept(&mut self) -> usize {
        self.kept.len()
    }

    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        let Some(ip) = Ipv4::read(&Bytes(packet), 0) else {
            return Outcome::Dropped(Reason::Malformed);
        };
        let vnid = match self.whose(vnid, &ip) {
            Ok(vnid) => vnid,
            Err(outcome) => {
                let config = self.tables.config.as_ref().expect("the gateway is configured");
                if ip.source == config.node && config.masquerade_slot != 0 {
                    give_way(&Bytes(packet), &self.tables, &mut self.scratch);
                }
                return outcome;
            }
        };
        let config = self.tables.config.as_ref().expect("the gateway is configured");
        if config.is_untouched(ip.destination) || config.is_shadow() {
            return Outcome::Passed;
        }
        match leaves_translated(ip.source, vnid, &self.tables) {
            Err(reason) => return Outcome::Dropped(reason),
            Ok(true) => return Outcome::Passed,
            Ok(false) => {}
        }
        match self.original(Origin { vnid, hop: Hop::Stack, ..Origin::default() }, packet) {
            Outcome::Passed | Outcome::Answered(..) | Outcome::Kept => {
                Outcome::Dropped(Reason::Untranslated)
            }
            other => other,
        }
    }

    fn rest(&mut self, ticks: u32) {
        self.tables.now.set(self.tables.now.get().wrapping_add(ticks));
    }

    fn mappings(&self) -> Vec<Mapping> {
        let (original, reply) = (self.tables.original.borrow(), self.tables.reply.borrow());
        assert_eq!(original.len(), reply.len(), "every entry has a partner");
        let mapping = |(key, flow): (&OriginalKey, &&crate::abi::OriginalFlow)| {
            let partner = key.reply(flow.egress_ip, flow.egress_port);
            let partner = reply.get(&partner).expect("the reply's half is there");
            assert_eq!(
                (
                    partner.pod,
                    partner.pod_port,
                    partner.vnid & MAX_VNID,
                    partner.tag,
                    partner.slot.get()
                ),
                (key.pod, key.pod_port, key.vnid(), flow.tag, flow.slot.get()),
                "both halves tell the same"
            );
            Mapping {
                vnid: key.vnid(),
                protocol: key.protocol(),
                pod: end(key.pod, key.pod_port),
                remote: end(key.remote, key.remote_port),
                egress: end(flow.egress_ip, flow.egress_port),
            }
        };
        let mut mappings: Vec<Mapping> = original.iter().map(mapping).collect();
        mappings.sort_unstable();
        mappings
    }

    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        if let Some(&index) = self.tables.policy.get(&vnid) {
            self.tables.egress_ips.retain(|_, slot| *slot != index);
            let slot = &mut self.tables.slots[index as usize];
            (slot.action, slot.egress_ip) = (action, egress_ip);
            if egress_ip != [0; 4] {
                self.tables.egress_ips.insert(egress_ip, index);
            }
        } else {
            self.tables.add_policy(vnid, action, egress_ip);
        }
    }

    fn masquerade(&mut self) {
        let config = self.tables.config.as_mut().expect("the gateway is configured");
        config.masquerade_slot = self.tables.slots.len() as u32;
        self.tables.slots.push(masquerade_slot(2));
        self.tables.usage.push(Usage::default());
    }

    fn set_pod(&mut self, address: [u8; 4], value: u32) {
        self.tables.pods.insert(address, value);
    }

    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot)) {
        let index = self.tables.policy[&vnid];
        change(&mut self.tables.slots[index as usize]);
    }

    fn configure(&mut self, change: &dyn Fn(&mut Config)) {
        change(self.tables.config.as_mut().expect("the gateway is configured"));
    }
}
