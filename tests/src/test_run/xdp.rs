//! The program on XDP as a gateway for the engine's stories, with the tc programs behind it: a pod's
//! packet comes in VXLAN from its node, and what XDP passes goes on to tc, as in the kernel.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions};
use egress_common::{
    abi::{Arrival, Config, NO_VNID, NodeHop, Slot, TICK_SHIFT, Wire, xdp_send},
    testing::{
        Gateway, Mapping, Outcome, checks,
        gateway::{NODE, POLICIES},
    },
};
use egress_user::{
    bpf::{Hook, Plain},
    reconcile::maps,
};
use nix::time::{ClockId, clock_gettime};

use super::{ETH_LEN, ETHERNET, TestRunGateway};

/// The node of the stories' pods.
pub const SOURCE_NODE: [u8; 4] = [10, 0, 0, 3];
pub const TUNNEL_MTU: u32 = 1450;
/// Before the inner frame.
pub const OUTER_LEN: usize = ETH_LEN + 20 + 8 + 8;

/// What the program returns (see `include/uapi/linux/bpf.h`).
pub mod action {
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

/// The VLANs that frames are tagged with: of the uplink that they come by, of the one they leave by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vlans {
    pub of_tunnel: u16,
    pub of_egress_ips: u16,
}

/// A tick to come: what was asked for then is never due, or stories that last would be told to tc
/// alone.
pub fn in_future() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let now = (now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> TICK_SHIFT;
    Ok(now as u32 + (1 << 20))
}

/// One story's gateway.
pub struct XdpGateway {
    on_tc: TestRunGateway,
    vlans: Vlans,
}

/// The interface that test runs come by: the loopback's.
const DEVICE: u32 = 1;

impl XdpGateway {
    /// # Errors
    /// The node of the pods cannot be entered.
    pub fn new(mut gateway: TestRunGateway, vlans: Vlans) -> Result<Self> {
        let wire = |vlan| Wire { device: DEVICE, vlan, send: xdp_send::REDIRECT, pad: 0 };
        let Vlans { of_tunnel, of_egress_ips } = vlans;
        gateway.enter(Config {
            tunnel_mtu: TUNNEL_MTU,
            wire: wire(of_tunnel),
            ..gateway.config
        })?;
        gateway.wire_out = wire(of_egress_ips);
        for (vnid, action, egress_ip) in POLICIES {
            gateway.set_policy(vnid, action, egress_ip);
        }
        let arrival = Arrival { device: DEVICE, vlan: of_egress_ips.into() };
        let arrivals = BTreeMap::from([(arrival, gateway.uplink)]);
        maps::reconcile_arrivals(&mut gateway.loaded.borrow_mut().maps, &arrivals)?;
        let hop = NodeHop { macs: [1, 2, 3], generation: 1, asked: in_future()? };
        gateway.loaded.borrow_mut().maps.nodes.insert(SOURCE_NODE, Plain(hop), 0)?;
        Ok(Self { on_tc: gateway, vlans })
    }

    /// Runs the program: what it says, and the frame afterwards.
    pub fn frame(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let loaded = &mut *self.on_tc.loaded.borrow_mut();
        let result = loaded
            .data_plane
            .xdp()?
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ..TestRunOptions::default()
            })
            .context("run uplink_xdp")?;
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// What became of a frame on XDP, and on tc behind it where it was passed.
    fn receive(&self, frame: &[u8]) -> Result<Outcome> {
        let before = self.on_tc.reasons();
        let (action, out) = self.frame(frame)?;
        match action {
            action::DROP => {
                let reason = self.on_tc.counted_since(&before);
                Ok(Outcome::Dropped(reason.context("a frame was dropped and not counted")?))
            }
            action::PASS => {
                assert_eq!(out, frame, "what goes up goes as it came");
                assert_eq!(self.on_tc.counted_since(&before), None, "what goes up is not counted");
                self.on_tc.run_frame(Hook::UplinkIngress, 0, &untagged(frame))
            }
            action::TX | action::REDIRECT => {
                let packet = untagged(&out)[ETH_LEN..].to_vec();
                let Vlans { of_tunnel, of_egress_ips } = self.vlans;
                let vlan = if to_node(&packet) { of_tunnel } else { of_egress_ips };
                assert_eq!(out[..out.len() - packet.len()], *ethernet(&out[..12], vlan));
                Ok(Outcome::Sent(packet))
            }
            other => anyhow::bail!("uplink_xdp returned {other}"),
        }
    }

    /// Frames that XDP itself has sent so far: originals and replies.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        self.on_tc.sent_on_xdp()
    }
}

/// A pod's packet as its node sends it through the tunnel.
#[must_use]
pub fn in_vxlan(vnid: u32, packet: &[u8]) -> Vec<u8> {
    let mut udp = vec![0xc0, 0, 0x12, 0xb5];
    udp.extend((8 + 8 + ETH_LEN as u16 + packet.len() as u16).to_be_bytes());
    udp.extend([0, 0, 8, 0, 0, 0]);
    udp.extend((vnid << 8).to_be_bytes());
    udp.extend(ETHERNET);
    udp.extend(packet);
    let outer = egress_common::testing::packet::Datagram::new(17, SOURCE_NODE, NODE, &udp);
    [&ETHERNET[..], &outer.bytes()].concat()
}

/// A link-layer header with these addresses, of an IPv4 packet.
fn ethernet(macs: &[u8], vlan: u16) -> Vec<u8> {
    let tag = if vlan == 0 { Vec::new() } else { [[0x81, 0], vlan.to_be_bytes()].concat() };
    [macs, &tag, &[8, 0]].concat()
}

/// A frame without its tag, if it has one: as tc sees it on the VLAN's device.
fn untagged(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if frame.get(12..14) == Some(&[0x81, 0]) {
        frame.drain(12..16);
    }
    frame
}

/// Whether it is for the pods' node.
fn to_node(packet: &[u8]) -> bool {
    packet.get(12..20) == Some(&[NODE, SOURCE_NODE].concat())
}

/// A frame with the tag of a VLAN.
fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&ethernet(&frame[..12], vlan), &frame[ETH_LEN..]].concat()
}

/// What is in a frame for the pods' node, whose outer headers must be right; other frames as they
/// are.
fn unwrapped(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Sent(bytes) if to_node(&bytes) => {
            checks::checksums(&bytes).expect("the outer header's checksums");
            assert_eq!(bytes[22..24], [0x12, 0xb5], "VXLAN's port");
            Outcome::Sent(bytes[OUTER_LEN..].to_vec())
        }
        other => other,
    }
}

impl Gateway for XdpGateway {
    fn leave_pod(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        // Nothing without a VNID comes through the tunnel.
        if vnid == NO_VNID {
            return self.on_tc.leave_pod(vnid, packet);
        }
        let frame = tagged(&in_vxlan(vnid, packet), self.vlans.of_tunnel);
        match self.receive(&frame).expect("run the programs") {
            // Through the tunnel device, which a test run does not have: as from the gateway's.
            Outcome::Passed => self.on_tc.leave_pod(vnid, packet),
            other => other,
        }
    }

    fn arrive(&mut self, packet: &[u8]) -> Outcome {
        let frame = tagged(&[&ETHERNET[..], packet].concat(), self.vlans.of_egress_ips);
        unwrapped(self.receive(&frame).expect("run the programs"))
    }

    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        self.on_tc.leave_stack(vnid, packet)
    }

    fn kept(&mut self) -> usize {
        self.on_tc.kept()
    }

    fn rest(&mut self, ticks: u32) {
        self.on_tc.rest(ticks);
    }

    fn mappings(&self) -> Vec<Mapping> {
        self.on_tc.mappings()
    }

    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        self.on_tc.set_policy(vnid, action, egress_ip);
    }

    fn masquerade(&mut self) {
        self.on_tc.masquerade();
    }

    fn set_pod(&mut self, address: [u8; 4], value: u32) {
        self.on_tc.set_pod(address, value);
    }

    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot)) {
        self.on_tc.change_slot(vnid, change);
    }

    fn configure(&mut self, change: &dyn Fn(&mut Config)) {
        self.on_tc.configure(change);
    }
}
