//! The programs where the kernel runs them, as a gateway for the engine's stories: attached to the
//! devices of a node, whole frames sent and received at the far ends.
//!
//! A ping of the node itself goes behind every frame: what has not come out before its answer does
//! not come. Surprising: what passes must not be forwarded by the stack, or it would come out too.
use std::{cell::RefCell, net::Ipv4Addr, rc::Rc};

use anyhow::{Context as _, Result};
use egress_common::{
    abi::{Config, NO_VNID, NodeHop, Slot, Wire, xdp_send},
    testing::{
        Gateway, Mapping, Outcome, checks,
        gateway::{NODE, POLICIES},
        packet::icmp,
    },
};
use egress_user::bpf::{DataPlane, Hook, Plain};
use nix::net::if_::if_nametoindex;

use super::{
    ETH_LEN, ETHERNET, Programs, TestRunGateway,
    xdp::{OUTER_LEN, SOURCE_NODE, TUNNEL_MTU, in_future, in_vxlan},
};
use crate::{
    lone,
    netns::{Netns, wait_until},
    traffic::{PATIENCE, RawSocket},
};

/// Who pings.
const ROUTER: [u8; 4] = [10, 0, 0, 1];

/// Where pods' packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Their node, through the tunnel.
    Tunnel,
    /// The gateway device, with their tenant's mark.
    Gateway,
}

/// The ends of a node's devices.
struct Wires {
    uplink: RawSocket,
    /// The far end of the gateway device.
    pods: RawSocket,
    /// The node's own side of the uplink, where the stack sends.
    stack: RawSocket,
    pings: u16,
}

/// The node's namespace and that of its far ends, made before anything runs in them.
pub struct Node {
    pub node: Netns,
    wires: Netns,
}

impl Node {
    /// Makes both.
    pub fn make() -> Result<Self> {
        let (node, wires) = lone::wired()?;
        // The stack hears nothing but pings and the tunnel, and forwards nothing.
        node.nft(&format!(
            "table ip deaf {{\n\
               chain input {{ type filter hook input priority 0; policy drop;\n\
                 ip saddr {router} icmp type echo-request accept\n\
                 udp dport 4789 accept\n\
               }}\n\
               chain forward {{ type filter hook forward priority 0; policy drop;\n}}\n\
             }}\n",
            router = Ipv4Addr::from(ROUTER)
        ))?;
        Ok(Self { node, wires })
    }

    /// Attaches the programs and opens the ends. Inside the node's namespace.
    pub fn gateways(&self, mut programs: DataPlane, entry: Entry) -> Result<Gateways> {
        programs.attach(Hook::UplinkEgress, "ens18")?;
        programs.attach(Hook::UplinkIngress, "ens18")?;
        programs.attach(Hook::GatewayIngress, "tun0")?;
        programs.attach(Hook::TunnelIngress, "vxlan_sys_4789")?;
        let wires = Wires {
            uplink: RawSocket::open(&self.wires, "far")?,
            pods: RawSocket::open(&self.node, "pods")?,
            stack: RawSocket::open(&self.node, "ens18")?,
            pings: 0,
        };
        let programs = Programs::new(programs, if_nametoindex("ens18")?)?;
        Ok(Gateways { programs, wires: Rc::new(RefCell::new(wires)), entry })
    }
}

/// Of which one gateway after the other is made.
pub struct Gateways {
    programs: Programs,
    wires: Rc<RefCell<Wires>>,
    entry: Entry,
}

impl Gateways {
    /// A gateway without flows.
    pub fn fresh(&self) -> Result<LiveGateway> {
        let mut tables = self.programs.fresh()?;
        let uplink = if_nametoindex("ens18")?;
        let wire = Wire { device: uplink, vlan: 0, send: xdp_send::REDIRECT, pad: 0 };
        tables.enter(Config {
            tunnel: if_nametoindex("vxlan_sys_4789")?,
            gateway: if_nametoindex("tun0")?,
            uplink,
            tunnel_mtu: TUNNEL_MTU,
            wire,
            ..tables.config
        })?;
        tables.wire_out = wire;
        for (vnid, action, egress_ip) in POLICIES {
            tables.set_policy(vnid, action, egress_ip);
        }
        let hop = NodeHop { macs: [1, 2, 3], generation: 1, asked: in_future()? };
        tables.loaded.borrow_mut().maps.nodes.insert(SOURCE_NODE, Plain(hop), 0)?;
        Ok(LiveGateway { tables, wires: self.wires.clone(), entry: self.entry })
    }
}

/// One story's gateway.
pub struct LiveGateway {
    tables: TestRunGateway,
    wires: Rc<RefCell<Wires>>,
    entry: Entry,
}

impl Wires {
    /// All packets that come out until the node has answered a ping, twice: what takes the long way
    /// through the tunnel device may be overtaken by the first.
    fn all_out(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        for _ in 0..2 {
            self.pings = self.pings.wrapping_add(1);
            let [high, low] = self.pings.to_be_bytes();
            let ping = icmp((8, 0), ROUTER, NODE, [high, low, 0, 1], b"all out?");
            let answer = icmp((0, 0), NODE, ROUTER, [high, low, 0, 1], b"all out?").payload;
            self.uplink.send(&[&ETHERNET[..], &ping.bytes()].concat())?;
            let mut answered = false;
            wait_until(PATIENCE, || {
                answered = self.take_out(&answer, &mut found).unwrap_or(true);
                answered
            });
            anyhow::ensure!(answered, "the node does not answer a ping");
        }
        Ok(found)
    }

    /// Adds what has come out; whether the answer was there.
    fn take_out(&mut self, answer: &[u8], found: &mut Vec<Vec<u8>>) -> Result<bool> {
        let mut answered = false;
        for wire in [&mut self.uplink, &mut self.pods] {
            while let Some(frame) = wire.receive()? {
                let Some(packet) = frame.get(ETH_LEN..).filter(|_| frame[12..14] == [8, 0]) else {
                    continue;
                };
                if packet[12..20] == [NODE, ROUTER].concat() && packet[20..] == *answer {
                    answered = true;
                } else {
                    found.push(unwrapped(packet));
                }
            }
        }
        Ok(answered)
    }
}

/// What is in a packet for the pods' node, whose outer header must be right; others as they are.
fn unwrapped(packet: &[u8]) -> Vec<u8> {
    if packet.get(12..20) != Some(&[NODE, SOURCE_NODE].concat()) {
        return packet.to_vec();
    }
    checks::checksums(packet).expect("the outer header's checksums");
    assert_eq!(packet[22..24], [0x12, 0xb5], "VXLAN's port");
    packet[OUTER_LEN..].to_vec()
}

impl LiveGateway {
    /// What becomes of a packet that is put in like this.
    fn outcome(&self, packet: &[u8], put_in: impl FnOnce(&Wires) -> Result<()>) -> Result<Outcome> {
        let (before, kept) = (self.tables.reasons(), self.tables.count_kept()?);
        let mut wires = self.wires.borrow_mut();
        put_in(&wires)?;
        let found = wires.all_out()?;
        let kept_now = self.tables.count_kept()?;
        // A first fragment brings those along that were kept behind it.
        let brought = kept.saturating_sub(kept_now);
        anyhow::ensure!(found.len() <= 1 + brought, "one packet in, these out: {found:02x?}");
        // In the shadow what is counted passes all the same.
        let counted = self.tables.counted_since(&before);
        let counted = counted.filter(|_| !self.tables.config.is_shadow());
        Ok(match (found.into_iter().next(), counted) {
            (None, Some(reason)) => Outcome::Dropped(reason),
            (None, None) if kept_now == kept + 1 => Outcome::Kept,
            (None, None) => Outcome::Passed,
            (Some(out), None) if out == packet => Outcome::Passed,
            (Some(out), None) => Outcome::Sent(out),
            (Some(out), Some(reason)) => Outcome::Answered(reason, out),
        })
    }
}

impl Gateway for LiveGateway {
    fn leave_pod(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        let put_in = |wires: &Wires| match self.entry {
            // Nothing without a VNID comes through the tunnel.
            Entry::Tunnel if vnid != NO_VNID => wires.uplink.send(&in_vxlan(vnid, packet)),
            _ => wires.pods.send_marked(&framed(packet), self.tables.mark(vnid)),
        };
        self.outcome(packet, put_in).context("a pod's packet").expect("a packet is sent")
    }

    fn arrive(&mut self, packet: &[u8]) -> Outcome {
        let put_in = |wires: &Wires| wires.uplink.send(&framed(packet));
        self.outcome(packet, put_in).context("a packet from outside").expect("a packet is sent")
    }

    fn kept(&mut self) -> usize {
        self.tables.kept()
    }

    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        let put_in =
            |wires: &Wires| wires.stack.send_marked(&framed(packet), self.tables.mark(vnid));
        self.outcome(packet, put_in).context("the stack's packet").expect("a packet is sent")
    }

    fn rest(&mut self, ticks: u32) {
        self.tables.rest(ticks);
    }

    fn mappings(&self) -> Vec<Mapping> {
        self.tables.mappings()
    }

    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        self.tables.set_policy(vnid, action, egress_ip);
    }

    fn masquerade(&mut self) {
        self.tables.masquerade();
    }

    fn set_pod(&mut self, address: [u8; 4], value: u32) {
        self.tables.set_pod(address, value);
    }

    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot)) {
        self.tables.change_slot(vnid, change);
    }

    fn configure(&mut self, change: &dyn Fn(&mut Config)) {
        self.tables.configure(change);
    }
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&ETHERNET[..], packet].concat()
}
