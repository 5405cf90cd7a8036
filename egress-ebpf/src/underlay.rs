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
    checksum::{finish, sum},
    flow::Scratch,
    mark::mark,
    nat::{Origin, Way},
    reason::Reason,
    rewrite::Hop,
    state,
    tables::Tables,
    wire::protocol,
};

use crate::{
    hooks::{ask_original, count_original, counted, said, send},
    maps::{Maps, count_path, node_hop},
    tc::{ETH_LEN, Skb, act, layout, mac_bytes},
};

/// Outer IPv4, UDP and VXLAN headers, and the inner link-layer header.
const OUTER_LEN: usize = 20 + 8 + 8 + ETH_LEN;
/// Where the inner IPv4 header begins in a frame.
const INNER: usize = ETH_LEN + OUTER_LEN;
/// Where the inner link-layer header begins.
const INNER_ETH: usize = INNER - ETH_LEN;

/// VXLAN with nothing but a VNI (RFC 7348, section 5): flags, 24 reserved bits.
const PLAIN_VXLAN: [u8; 4] = [0x08, 0, 0, 0];

/// A packet for this node: VXLAN of a tenant with a policy is translated at once, all else passes.
#[inline(always)]
pub fn receive(skb: &Skb, config: &Config, scratch: &mut Scratch) -> Result<i32, Reason> {
    if config.data_path != data_path::TC || recognise(skb, config, scratch) != said::TRANSLATE {
        return Ok(act::PASS);
    }
    match ask_original::<INNER>(skb, scratch) {
        said::DROP => Ok(act::DROP),
        said::TRANSLATE => {
            let translation = &scratch.translation;
            skb.adjust_room(-(OUTER_LEN as i32), 0)?;
            skb.set_mark(mark(scratch.origin.vnid, config.masquerade_bit, layout(config)));
            skb.stamp(config.stamp);
            skb.apply(&translation.rewrite)?;
            count_path(Path::Underlay);
            count_original(skb, translation);
            Ok(send(skb, &translation.way))
        }
        // Cluster traffic; or an answer, which the slow way gives.
        _ => Ok(act::PASS),
    }
}

/// Whether this is plain VXLAN; `scratch.origin` then says whose. A function of its own for the
/// sake of the stack.
///
/// A UDP checksum is not verified, as RFC 7348, section 5 allows: the inner packet has its own.
#[inline(never)]
fn recognise(skb: &Skb, config: &Config, scratch: &mut Scratch) -> u32 {
    skb.pull::<{ INNER + 40 }>();
    // Outer IPv4 and UDP.
    let Some(outer) = skb.bytes::<28>(ETH_LEN) else { return said::PASS };
    if outer[0] != 0x45
        || outer[9] != protocol::UDP
        || [outer[6] & 0x3f, outer[7]] != [0, 0]
        || [outer[22], outer[23]] != config.vxlan_port
        || (skb.gso_size() != 0 && config.unwrap_gso == 0)
    {
        return said::PASS;
    }
    let Some(vxlan) = skb.bytes::<8>(ETH_LEN + 28) else { return said::PASS };
    let Some(inner) = skb.bytes::<12>(INNER - 2) else { return said::PASS };
    if [vxlan[0], vxlan[1], vxlan[2], vxlan[3]] != PLAIN_VXLAN
        || vxlan[7] != 0
        // IPv4, no options, no fragment.
        || [inner[0], inner[1], inner[2]] != [0x08, 0x00, 0x45]
        || [inner[8] & 0x3f, inner[9]] != [0, 0]
    {
        return said::PASS;
    }
    // A congestion mark of the tunnel has to be carried inside (RFC 6040): the slow way does it.
    let (outer_ecn, inner_ecn) = (outer[1] & 3, inner[3] & 3);
    if outer_ecn != 0 && outer_ecn != inner_ecn {
        return said::PASS;
    }
    let vnid = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    let node = [outer[12], outer[13], outer[14], outer[15]];
    let Some(macs) = skb.macs_back(INNER_ETH) else { return said::PASS };
    scratch.origin = Origin { vnid, node, ifindex: config.tunnel, macs, hop: Hop::Program };
    said::TRANSLATE
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
    let total = (inner_len as u16 + OUTER_LEN as u16).to_be_bytes();
    let udp = (inner_len as u16 + (OUTER_LEN - 20) as u16).to_be_bytes();
    let (n, p) = (config.node, way.node);
    // ECN goes outside too (RFC 6040, section 4.1); not fragmented, so no identification is needed
    // (RFC 6864).
    let mut ip = [
        0x45,
        inner_tos & 3,
        total[0],
        total[1],
        0,
        0,
        0x40,
        0,
        64,
        protocol::UDP,
        0,
        0,
        n[0],
        n[1],
        n[2],
        n[3],
        p[0],
        p[1],
        p[2],
        p[3],
    ];
    let checksum = finish(sum(&ip));
    ip[10] = checksum[0];
    ip[11] = checksum[1];
    skb.write(ETH_LEN, ip)?;
    let source = (0xc000 | (way.entropy as u16 & 0x3fff)).to_be_bytes();
    let port = config.vxlan_port;
    let [_, v1, v2, v3] = way.vnid.to_be_bytes();
    skb.write(
        ETH_LEN + 20,
        [
            source[0], source[1], port[0], port[1], udp[0], udp[1], 0, 0, 0x08, 0, 0, 0, v1, v2,
            v3, 0,
        ],
    )?;
    skb.write(INNER_ETH, mac_bytes(way.macs))?;
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
