//! The VXLAN wrapping (RFC 7348), recognised and made. Only the plain case: whatever is unusual is
//! the tunnel device's. Nothing here touches a packet.
use egress_common::{
    abi::Config,
    checksum::{finish, sum},
    nat::{Origin, Way},
    rewrite::Hop,
    wire::{Packet, protocol},
};

use crate::{hooks::said, maps::mac_words, tc::ETH_LEN};

/// Outer IPv4, UDP and VXLAN headers, and the inner link-layer header.
pub const OUTER_LEN: usize = 20 + 8 + 8 + ETH_LEN;
/// Where the inner IPv4 header begins in a frame.
pub const INNER: usize = ETH_LEN + OUTER_LEN;
/// Where the inner link-layer header begins.
pub const INNER_ETH: usize = INNER - ETH_LEN;

/// VXLAN with nothing but a VNI (RFC 7348, section 5): flags, 24 reserved bits.
const PLAIN_VXLAN: [u8; 4] = [0x08, 0, 0, 0];

/// Whether a frame is plain VXLAN with a plain IPv4 packet in it; `origin` then says whose.
///
/// A UDP checksum is not verified, as RFC 7348, section 5 allows: the inner packet has its own.
#[inline(always)]
pub fn recognise<F: Packet>(frame: &F, config: &Config, origin: &mut Origin) -> u32 {
    // Outer IPv4 and UDP.
    let Some(outer) = frame.read::<28>(ETH_LEN) else { return said::PASS };
    if outer[0] != 0x45
        || outer[9] != protocol::UDP
        || [outer[6] & 0x3f, outer[7]] != [0, 0]
        || [outer[22], outer[23]] != config.vxlan_port
    {
        return said::PASS;
    }
    let Some(vxlan) = frame.read::<8>(ETH_LEN + 28) else { return said::PASS };
    let Some(inner) = frame.read::<12>(INNER - 2) else { return said::PASS };
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
    let Some(macs) = frame.read(INNER_ETH) else { return said::PASS };
    // Read anew: a word of its own, where bytes of the header would be stored one by one.
    let Some(node) = frame.read(ETH_LEN + 12) else { return said::PASS };
    let vnid = u32::from_be_bytes([0, vxlan[4], vxlan[5], vxlan[6]]);
    let macs = mac_words(macs);
    *origin = Origin { vnid, node, ifindex: config.tunnel, macs, hop: Hop::Program };
    said::TRANSLATE
}

/// The outer IPv4 header of an inner packet of this length and type of service.
///
/// ECN goes outside too (RFC 6040, section 4.1); not fragmented, so no identification is needed
/// (RFC 6864).
#[inline(always)]
pub fn outer_ip(node: [u8; 4], peer: [u8; 4], inner_tos: u8, inner_len: u32) -> [u8; 20] {
    let total = (inner_len as u16 + OUTER_LEN as u16).to_be_bytes();
    let (n, p) = (node, peer);
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
    ip
}

/// The UDP header, without a checksum, and the VXLAN header.
#[inline(always)]
pub fn outer_udp(port: [u8; 2], way: &Way, inner_len: u32) -> [u8; 16] {
    let udp = (inner_len as u16 + (OUTER_LEN - 20) as u16).to_be_bytes();
    let source = (0xc000 | (way.entropy as u16 & 0x3fff)).to_be_bytes();
    let [_, v1, v2, v3] = way.vnid.to_be_bytes();
    [source[0], source[1], port[0], port[1], udp[0], udp[1], 0, 0, 0x08, 0, 0, 0, v1, v2, v3, 0]
}
