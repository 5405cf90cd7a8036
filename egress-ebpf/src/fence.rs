//! A fenced node (`egress_common::fence`) neither answers ARP for its egress IPs nor announces them:
//! the kernel answers, and the agent announces, what the uplink carries.
use egress_common::{fence::is_fenced, reason::Reason, tables::Tables};

use crate::{
    maps::{Maps, count_reason},
    tc::{ETH_LEN, Skb, act},
};

/// Where ARP for IPv4 over Ethernet (RFC 826) has the sender's and the target's IPv4 address.
pub const SENDER: usize = ETH_LEN + 14;
pub const TARGET: usize = ETH_LEN + 24;

const ETH_P_ARP: [u8; 2] = [0x08, 0x06];

/// Drops ARP about an egress IP, which stands at this place, while this node is fenced.
///
/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn arp<const AT: usize>(skb: &Skb) -> i32 {
    let maps = Maps { context: skb.context() };
    let Some(config) = maps.config() else { return act::PASS };
    if !is_fenced(&maps, config) {
        return act::PASS;
    }
    skb.pull::<{ ETH_LEN + 28 }>();
    if skb.bytes::<2>(12) != Some(ETH_P_ARP) {
        return act::PASS;
    }
    match skb.bytes::<4>(AT) {
        Some(address) if address != config.node && maps.egress_ip(address).is_some() => {
            count_reason(Reason::Fenced);
            act::DROP
        }
        _ => act::PASS,
    }
}
