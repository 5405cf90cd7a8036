//! The hot path: VXLAN taken off the uplink, and put on it, by the program itself.
//!
//! The kernel's own VXLAN receive costs more than the whole translation (docs/benchmarks.md). Only
//! the plain case is treated here; whatever is unusual goes on untouched, through the tunnel device
//! to `tunnel_ingress`. Big packets (GSO) are treated here on the way in only where the uplink is
//! virtual: removing the outer headers leaves a packet marked as tunnelled, which software
//! segments right and hardware may not. Behind the tunnel device they keep their size too.
use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO,
};
use egress_common::{
    abi::{BEAT, Config, Path, data_path},
    flow::Scratch,
    mark::mark,
    nat::Way,
    reason::Reason,
    state,
    tables::Tables,
    wire::{bytes, protocol},
};

use crate::{
    hooks::{ask_original, count_original, counted, said, send},
    maps::{Maps, count_path, hear_tunnel, node_hop},
    probe,
    tc::{At, ETH_LEN, Skb, act, layout},
    vxlan::{self, INNER, INNER_ETH, OUTER_LEN, outer_ip, outer_udp},
};

/// A packet for this node: VXLAN of a tenant with a policy is translated at once, all else passes.
/// VXLAN that comes by a further uplink is the tunnel device's.
#[inline(always)]
pub fn receive(skb: &Skb, config: &Config, scratch: &mut Scratch) -> Result<i32, Reason> {
    // The shadow looks on behind the tunnel device.
    let here = config.data_path == data_path::TC && !config.is_shadow();
    if !here || skb.ifindex() != config.uplink || recognise(skb, config, scratch) != said::TRANSLATE
    {
        return Ok(probe::receive(skb, config));
    }
    hear_tunnel(config, scratch.origin.node);
    match ask_original::<INNER>(skb, scratch) {
        said::DROP => Ok(act::DROP),
        said::TRANSLATE => {
            let translation = &scratch.translation;
            // The payload of each segment stays as it is: who sent them chose their size.
            skb.adjust_room(-(OUTER_LEN as i32), u64::from(BPF_F_ADJ_ROOM_FIXED_GSO))?;
            skb.set_mark(mark(scratch.origin.vnid, config.masquerade_bit, layout(config)));
            skb.stamp(config.stamp);
            skb.apply(&translation.rewrite)?;
            count_path(Path::Underlay);
            count_original(skb.frame_length(), translation);
            Ok(send(skb, &translation.way))
        }
        // Cluster traffic; or an answer, which the slow way gives.
        _ => Ok(act::PASS),
    }
}

/// Whether this is VXLAN to be treated here. A function of its own for the sake of the stack.
#[inline(never)]
fn recognise(skb: &Skb, config: &Config, scratch: &mut Scratch) -> u32 {
    skb.pull::<{ INNER + 40 }>();
    // Datagrams gathered into one packet would be taken for a tunnel's, from the mark that stays.
    let unwraps = config.unwrap_gso == 1 && skb.bytes(INNER + 9) == Some([protocol::TCP]);
    if skb.gso_size() != 0 && !unwraps {
        return said::PASS;
    }
    vxlan::recognise(&At::<0>(*skb), config, &mut scratch.origin)
}

/// Whether a reply can be encapsulated here: whole, and in one outer packet.
#[inline(always)]
pub fn carries(skb: &Skb, config: &Config) -> bool {
    if config.data_path != data_path::TC {
        return false;
    }
    let length = skb.frame_length();
    let payload = skb.gso_size();
    if payload == 0 {
        return length <= config.tunnel_mtu + ETH_LEN as u32;
    }
    let Some(head) = skb.bytes::<34>(ETH_LEN) else { return false };
    let transport = match (head[0], head[9]) {
        (0x45, protocol::TCP) => u32::from(head[32] >> 4) * 4,
        (0x45, protocol::UDP) => 8,
        _ => return false,
    };
    // Each segment fits the tunnel, and all of them the outer length field.
    20 + transport + payload <= config.tunnel_mtu && length as usize + OUTER_LEN <= 0xffff
}

/// Encapsulates a translated reply for its pod's node, and sends it. A function of its own for the
/// sake of the stack.
#[inline(never)]
pub fn transmit(skb: &Skb, config: &Config, way: &Way) -> i32 {
    counted(encapsulate(skb, config, way))
}

#[inline(always)]
fn encapsulate(skb: &Skb, config: &Config, way: &Way) -> Result<i32, Reason> {
    let maps = Maps { context: skb.context() };
    let Some(hop) = node_hop(way.node) else { return Err(Reason::UnknownNode) };
    let now = maps.now();
    let beat = state::age(now, hop.asked) >= BEAT;
    if beat || hop.generation != config.next_hop_generation {
        hop.asked = now;
        let found = maps.next_hop(config.uplink, config.node, way.node, &mut hop.macs);
        hop.generation = if found { config.next_hop_generation } else { 0 };
    }
    let inner_tos = skb.bytes::<1>(ETH_LEN + 1).ok_or(Reason::Malformed)?[0];
    let inner_len = skb.frame_length() - ETH_LEN as u32;
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
    // The inner link-layer header's length, in the flags' top byte.
    skb.adjust_room(OUTER_LEN as i32, u64::from(flags) | (ETH_LEN as u64) << 56)?;
    skb.write(ETH_LEN, outer_ip(config.node, way.node, inner_tos, inner_len))?;
    skb.write(ETH_LEN + 20, outer_udp(config.vxlan_port, way, inner_len))?;
    skb.write(INNER_ETH, bytes(way.macs))?;
    skb.write(INNER_ETH + 12, [0x08, 0x00])?;
    skb.set_mark(0);
    skb.stamp(config.stamp);
    count_path(Path::ReplyUnderlay);
    if beat || hop.generation != config.next_hop_generation {
        return Ok(skb.redirect_to_neighbour(config.uplink));
    }
    skb.set_macs(hop.macs)?;
    Ok(skb.redirect(config.uplink))
}
