//! Other nodes' questions whether this one carries tenants' packets (`egress_common::probe`): answered
//! here, in the path that those packets take, so that a dead agent beside living programs is no dead
//! node. Only nodes of the cluster are answered.
//!
//! Whoever asks has a way to this node: its question renews the lease under which this node answers for
//! its egress IPs.
use egress_common::{
    abi::{Config, turned},
    probe::{KIND, LEN, MAGIC, SAYS, Says},
    reason::Reason,
    wire::protocol,
};

use crate::{
    hooks::counted,
    maps::{hear, is_node},
    tc::{ETH_LEN, Skb, act},
};

/// Where the outer IPv4 header's addresses begin.
const ADDRESSES: usize = ETH_LEN + 12;
const PORTS: usize = ETH_LEN + 20;
/// Where a message begins: behind the UDP header.
const MESSAGE: usize = ETH_LEN + 28;

/// Answers a question; everything else passes. A function of its own for the sake of the stack.
#[inline(never)]
pub fn receive(skb: &Skb, config: &Config) -> i32 {
    skb.pull::<{ MESSAGE + LEN }>();
    if !is_question(skb, config) {
        return act::PASS;
    }
    counted(answer(skb, config))
}

#[inline(always)]
fn is_question(skb: &Skb, config: &Config) -> bool {
    let Some(ip) = skb.bytes::<12>(ETH_LEN) else { return false };
    ip[0] == 0x45
        && ip[9] == protocol::UDP
        && [ip[6] & 0x3f, ip[7]] == [0, 0]
        && skb.bytes::<2>(PORTS + 2) == Some(config.vxlan_port)
        && skb.bytes::<1>(MESSAGE) == Some([0x08])
        && skb.bytes::<8>(MESSAGE + KIND).map(u64::from_ne_bytes) == Some(u64::from_ne_bytes(MAGIC))
        && skb.bytes::<4>(MESSAGE + SAYS) == Some(Says::Question.bytes())
}

/// The same packet back: addresses and ports change places, which changes no checksum.
#[inline(always)]
fn answer(skb: &Skb, config: &Config) -> Result<i32, Reason> {
    let [a, b, c, d, e, f, g, h] = skb.bytes::<8>(ADDRESSES).ok_or(Reason::Malformed)?;
    if !is_node([a, b, c, d]) {
        return Err(Reason::UnknownNode);
    }
    hear();
    let macs = turned(skb.macs(0).ok_or(Reason::Malformed)?);
    let [from0, from1, to0, to1] = skb.bytes::<4>(PORTS).ok_or(Reason::Malformed)?;
    let says = if config.carries == 1 { Says::Carries } else { Says::Stopped };
    skb.write(ADDRESSES, [e, f, g, h, a, b, c, d])?;
    skb.write(PORTS, [to0, to1, from0, from1])?;
    skb.write(MESSAGE + SAYS, says.bytes())?;
    skb.set_macs(macs)?;
    skb.set_mark(0);
    Ok(skb.redirect(skb.ifindex()))
}
