//! The program on XDP as a gateway for the engine's stories, with the tc programs behind it: a pod's
//! packet comes in VXLAN from its node, and what XDP passes goes on to tc, as in the kernel.
use anyhow::{Context as _, Result};
use aya::programs::{TestRun as _, TestRunOptions};
use egress_common::{
    abi::{Config, NO_VNID, NodeHop, Slot, TICK_SHIFT},
    testing::{Gateway, Mapping, Outcome, checks, gateway::NODE},
};
use egress_user::bpf::{Hook, Plain};
use nix::time::{ClockId, clock_gettime};

use super::{ETH_LEN, ETHERNET, TestRunGateway};

/// The node of the stories' pods.
const SOURCE_NODE: [u8; 4] = [10, 0, 0, 3];
const TUNNEL_MTU: u32 = 1450;
/// Before the inner frame.
const OUTER_LEN: usize = ETH_LEN + 20 + 8 + 8;

/// What the program returns (see `include/uapi/linux/bpf.h`).
pub mod action {
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}

/// One story's gateway.
pub struct XdpGateway(TestRunGateway);

impl XdpGateway {
    /// # Errors
    /// The node of the pods cannot be entered.
    pub fn new(mut gateway: TestRunGateway) -> Result<Self> {
        gateway.enter(Config { tunnel_mtu: TUNNEL_MTU, ..gateway.config })?;
        // Asked for in the future: never due, or stories that last would be told to tc alone.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
        let now = (now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> TICK_SHIFT;
        let hop = NodeHop { macs: [1, 2, 3], generation: 1, asked: now as u32 + (1 << 20) };
        gateway.loaded.borrow_mut().maps.nodes.insert(SOURCE_NODE, Plain(hop), 0)?;
        Ok(Self(gateway))
    }

    /// Runs the program: what it says, and the frame afterwards.
    pub fn frame(&self, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let loaded = &mut *self.0.loaded.borrow_mut();
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
        let before = self.0.reasons();
        let (action, out) = self.frame(frame)?;
        match action {
            action::DROP => {
                let reason = self.0.counted_since(&before);
                Ok(Outcome::Dropped(reason.context("a frame was dropped and not counted")?))
            }
            action::PASS => {
                assert_eq!(out, frame, "what goes up goes as it came");
                assert_eq!(self.0.counted_since(&before), None, "what goes up is not counted");
                self.0.run_frame(Hook::UplinkIngress, 0, frame)
            }
            action::TX | action::REDIRECT => Ok(Outcome::Sent(out[ETH_LEN..].to_vec())),
            other => anyhow::bail!("uplink_xdp returned {other}"),
        }
    }

    /// Frames that XDP itself has sent so far: originals and replies.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        self.0.sent_on_xdp()
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

/// What is in a frame for the pods' node, whose outer headers must be right; other frames as they
/// are.
fn unwrapped(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Sent(bytes) if bytes.get(12..20) == Some(&[NODE, SOURCE_NODE].concat()) => {
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
            return self.0.leave_pod(vnid, packet);
        }
        let frame = in_vxlan(vnid, packet);
        match self.receive(&frame).expect("run the programs") {
            // Through the tunnel device, which a test run does not have: as from the gateway's.
            Outcome::Passed => self.0.leave_pod(vnid, packet),
            other => other,
        }
    }

    fn arrive(&mut self, packet: &[u8]) -> Outcome {
        let frame = [&ETHERNET[..], packet].concat();
        unwrapped(self.receive(&frame).expect("run the programs"))
    }

    fn leave_stack(&mut self, vnid: u32, packet: &[u8]) -> Outcome {
        self.0.leave_stack(vnid, packet)
    }

    fn rest(&mut self, ticks: u32) {
        self.0.rest(ticks);
    }

    fn mappings(&self) -> Vec<Mapping> {
        self.0.mappings()
    }

    fn set_policy(&mut self, vnid: u32, action: u8, egress_ip: [u8; 4]) {
        self.0.set_policy(vnid, action, egress_ip);
    }

    fn masquerade(&mut self) {
        self.0.masquerade();
    }

    fn set_pod(&mut self, address: [u8; 4], value: u32) {
        self.0.set_pod(address, value);
    }

    fn change_slot(&mut self, vnid: u32, change: &dyn Fn(&mut Slot)) {
        self.0.change_slot(vnid, change);
    }

    fn configure(&mut self, change: &dyn Fn(&mut Config)) {
        self.0.configure(change);
    }
}
