//! The hot path before the kernel has made a packet of a frame: VXLAN in, translated out of the
//! uplink; a reply in, encapsulated out. Rewrites by stores and incremental checksums (RFC 1624).
//!
//! All decisions come before the first change of a frame: what is not treated here goes up as it
//! came, to the tc programs, which share the tables. That is also how the neighbour table is asked.
//! What is sent from here passes no guard on the uplink's egress: an error is a drop.
//!
//! It runs below VLANs' devices: a tag stands in the frame. Offsets are counted as if it did not,
//! which every access makes good ([`Frame::pointer`]).
//!
//! Surprising: a frame may come from a stack on this machine (veth, generic mode) that has left its
//! checksum for later. Nothing here tells so but the checksum field, which then holds the sum of
//! the pseudo header: such frames go up, and one in 65,535 honest ones with them.
use aya_ebpf::{
    bindings::{
        xdp_action::{XDP_DROP, XDP_PASS, XDP_TX},
        xdp_md,
    },
    helpers::generated as kernel,
    programs::XdpContext,
};
use egress_common::{
    abi::{Arrival, BEAT, Config, MacWords, Path, Wire, data_path, xdp_send},
    checksum::{fold, sum, update, update_udp},
    flow::Scratch,
    nat::{By, Way, translate_original, translate_reply},
    reason::Reason,
    rewrite::{Edit, Hop, PortEdit, Rewrite, Writer},
    state,
    tables::Tables,
    wire::{Packet, bytes, protocol},
};

use crate::{
    hooks::{count_original, count_reply, said},
    maps::{Maps, comes_by_uplink, count_path, count_reason, hear_tunnel, node_hop, scratch},
    tc::{ETH_LEN, ETH_P_IP, MAX_OFFSET, load, store},
    vxlan::{self, INNER, INNER_ETH, OUTER_LEN, outer_ip, outer_udp},
};

/// `ETH_P_8021Q`, as on the wire.
const ETH_P_8021Q: [u8; 2] = [0x81, 0x00];
/// Bytes of a VLAN tag (IEEE 802.1Q), and where one stands: before the link layer's type.
const TAG_LEN: usize = 4;
const TAG: usize = 12;

/// A frame on XDP.
#[derive(Clone, Copy)]
pub struct Frame {
    xdp: *mut xdp_md,
    /// Bytes of the tag in it: none, or [`TAG_LEN`].
    tag: usize,
}

/// The IPv4 packet that begins `BASE` bytes into a frame: offsets are from its header.
#[derive(Clone, Copy)]
struct At<const BASE: usize>(Frame);

impl<const BASE: usize> Packet for At<BASE> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.bytes(BASE.checked_add(offset)?)
    }

    /// A frame is not yet gathered into anything bigger.
    #[inline(always)]
    fn segment(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        u64::from(self.0.length()).saturating_sub(BASE as u64)
    }
}

impl<const BASE: usize> Writer for At<BASE> {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        self.0.write(BASE.wrapping_add(offset), bytes)
    }
}

impl Frame {
    #[inline(always)]
    fn maps(&self) -> Maps {
        Maps { context: self.xdp.cast() }
    }

    /// Where the frame begins and ends. Volatile, or the compiler reads them ahead and hands them to
    /// functions as 32-bit numbers, which are no pointers any more.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: fields of the program's own context.
        unsafe {
            let data = (&raw const (*self.xdp).data).read_volatile();
            let end = (&raw const (*self.xdp).data_end).read_volatile();
            (data as usize, end as usize)
        }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        let (data, end) = self.bounds();
        // The black box keeps the subtraction in 64 bits: the verifier knows no other of pointers.
        (core::hint::black_box(end - data) as u32).wrapping_sub(self.tag as u32)
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.xdp).ingress_ifindex }
    }

    #[inline(always)]
    fn pointer<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let (data, end) = self.bounds();
        // The mask is for the verifier, which does not remember where `tag` came from.
        let shift = if offset < TAG { 0 } else { self.tag & TAG_LEN };
        let at = data + shift + offset;
        if at + N > end {
            return None;
        }
        Some(at as *mut [u8; N])
    }

    /// Looks for a tag; returns the number of its VLAN, 0 for none.
    #[inline(always)]
    fn find_tag(&mut self) -> u32 {
        self.tag = 0;
        match self.bytes::<4>(TAG) {
            Some([kind, of, high, low]) if [kind, of] == ETH_P_8021Q => {
                self.tag = TAG_LEN;
                u32::from(u16::from_be_bytes([high & 0x0f, low]))
            }
            _ => 0,
        }
    }

    /// Takes bytes off the front (negative: adds some), so that the link-layer header begins there,
    /// with the tag of this VLAN. The header's addresses are still to be written.
    #[inline(always)]
    fn begin_at(&mut self, by: i32, vlan: u16) -> Result<(), Reason> {
        let tag = if vlan == 0 { 0 } else { TAG_LEN };
        self.shorten(by + (self.tag & TAG_LEN) as i32 - tag as i32)?;
        self.tag = 0;
        if vlan != 0 {
            let [high, low] = vlan.to_be_bytes();
            self.write(TAG, [ETH_P_8021Q[0], ETH_P_8021Q[1], high, low])?;
            self.tag = TAG_LEN;
        }
        Ok(())
    }

    /// `N` bytes at `offset` from the link-layer header.
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: `pointer` checked the bounds.
        Some(unsafe { load(at.cast()) })
    }

    #[inline(always)]
    fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        let at = self.pointer::<N>(offset).ok_or(Reason::Unwritable)?;
        // SAFETY: `pointer` checked the bounds.
        unsafe { store(at.cast(), bytes) };
        Ok(())
    }

    #[inline(always)]
    fn set_macs(&self, macs: MacWords) -> Result<(), Reason> {
        self.write(0, bytes(macs))
    }

    /// Takes bytes off the front, or (negative) adds some.
    #[inline(always)]
    fn shorten(&self, by: i32) -> Result<(), Reason> {
        // SAFETY: the program's own context.
        let result = unsafe { kernel::bpf_xdp_adjust_head(self.xdp, by) };
        if result == 0 { Ok(()) } else { Err(Reason::Unwritable) }
    }

    /// Makes the packet behind the link-layer header what the rewrite says.
    #[inline(never)]
    fn apply(&self, rewrite: &Rewrite) -> Result<(), Reason> {
        match &rewrite.edit {
            Edit::Ports(edit) if edit.checksum_offset == 0 => {}
            Edit::Ports(edit) => self.apply_ports(edit)?,
            Edit::Error(edit) => edit.apply(&mut At::<ETH_LEN>(*self))?,
        }
        self.write(ETH_LEN + 8, bytes(rewrite.ip))
    }

    #[inline(always)]
    fn apply_ports(&self, edit: &PortEdit) -> Result<(), Reason> {
        let offset = ETH_LEN + edit.checksum_offset;
        let field = self.bytes::<2>(offset).ok_or(Reason::Unwritable)?;
        let delta = edit.address_delta + edit.port_delta;
        let checksum =
            if edit.zero_is_none { update_udp(field, delta) } else { update(field, delta) };
        self.write(offset, checksum)?;
        if edit.offset == 0 {
            return Ok(());
        }
        self.write(ETH_LEN + edit.offset, edit.port)
    }

    /// Out of an uplink, as the frame is.
    #[inline(always)]
    fn send(&self, wire: Wire) -> u32 {
        if wire.device == self.ifindex() && wire.send == xdp_send::BACK {
            return XDP_TX;
        }
        // SAFETY: a helper with numbers for arguments.
        unsafe { kernel::bpf_redirect(wire.device, 0) as u32 }
    }
}

/// A frame from an uplink.
#[inline(always)]
pub fn uplink(context: &XdpContext) -> u32 {
    let mut frame = Frame { xdp: context.ctx, tag: 0 };
    match receive(&mut frame) {
        Ok(action) => action,
        Err(reason) => {
            count_reason(reason);
            XDP_DROP
        }
    }
}

#[inline(always)]
fn receive(frame: &mut Frame) -> Result<u32, Reason> {
    let maps = frame.maps();
    let Some(config) = maps.config() else { return Ok(XDP_PASS) };
    let here = config.data_path == data_path::TC && !config.is_shadow();
    if !here || config.wire.send == xdp_send::NONE {
        return Ok(XDP_PASS);
    }
    let arrival = Arrival { vlan: frame.find_tag(), device: frame.ifindex() };
    let first = Arrival { vlan: u32::from(config.wire.vlan), device: config.wire.device };
    if frame.bytes::<2>(12) != Some(ETH_P_IP) || arrival != first && !comes_by_uplink(arrival) {
        return Ok(XDP_PASS);
    }
    let Some(scratch) = scratch() else { return Ok(XDP_PASS) };
    if frame.bytes::<4>(ETH_LEN + 16) != Some(config.node) {
        reply(frame, config, scratch)
    } else if arrival == first {
        original(frame, config, scratch)
    } else {
        Ok(XDP_PASS)
    }
}

#[inline(always)]
fn original(frame: &mut Frame, config: &Config, scratch: &mut Scratch) -> Result<u32, Reason> {
    if recognise(frame, config, scratch) != said::TRANSLATE {
        return if config.masquerade_slot == 0 {
            Ok(XDP_PASS)
        } else {
            reply(frame, config, scratch)
        };
    }
    hear_tunnel(config, scratch.origin.node);
    match ask_original(frame, scratch) {
        said::DROP => return Ok(XDP_DROP),
        said::TRANSLATE => {}
        // Cluster traffic; or an answer, which the slow way gives.
        _ => return Ok(XDP_PASS),
    }
    let translation = &scratch.translation;
    if translation.way.by != By::Link {
        return Ok(XDP_PASS);
    }
    let wire = frame.maps().slot(translation.slot).ok_or(Reason::PolicyGone)?.wire;
    frame.begin_at(OUTER_LEN as i32, wire.vlan)?;
    frame.apply(&translation.rewrite)?;
    frame.set_macs(translation.way.macs)?;
    count_path(Path::Xdp);
    count_original(frame.length(), translation);
    Ok(frame.send(wire))
}

#[inline(always)]
fn reply(frame: &mut Frame, config: &Config, scratch: &mut Scratch) -> Result<u32, Reason> {
    if is_whole::<ETH_LEN>(frame) == 0 {
        return Ok(XDP_PASS);
    }
    match ask_reply(frame, scratch) {
        said::DROP => return Ok(XDP_DROP),
        said::TRANSLATE => {}
        _ => return Ok(XDP_PASS),
    }
    let translation = &scratch.translation;
    let length = frame.length();
    if translation.way.by != By::Tunnel || length > config.tunnel_mtu + ETH_LEN as u32 {
        return Ok(XDP_PASS);
    }
    let Some(hop) = node_hop(translation.way.node) else { return Ok(XDP_PASS) };
    let due = state::age(frame.maps().now(), hop.asked) >= BEAT;
    if due || hop.generation != config.next_hop_generation {
        return Ok(XDP_PASS);
    }
    let macs = hop.macs;
    frame.apply(&translation.rewrite)?;
    count_reply(length, translation);
    encapsulate(frame, config, &translation.way, length - ETH_LEN as u32)?;
    frame.set_macs(macs)?;
    frame.write(12, ETH_P_IP)?;
    count_path(Path::ReplyXdp);
    Ok(frame.send(config.wire))
}

/// Whether this is VXLAN to be treated here. A function of its own for the sake of the stack, as
/// those below.
#[inline(never)]
fn recognise(frame: &Frame, config: &Config, scratch: &mut Scratch) -> u32 {
    let verdict = vxlan::recognise(&At::<0>(*frame), config, &mut scratch.origin);
    if verdict != said::TRANSLATE || is_whole::<INNER>(frame) == 0 {
        return said::PASS;
    }
    scratch.origin.hop = Hop::Early;
    verdict
}

/// Whether the IPv4 packet at `BASE` is a plain one, with its checksum in place: 1 or 0.
#[inline(always)]
fn is_whole<const BASE: usize>(frame: &Frame) -> u32 {
    let Some(ip) = frame.bytes::<20>(BASE) else { return 0 };
    if ip[0] != 0x45 || [ip[6] & 0x3f, ip[7]] != [0, 0] {
        return 0;
    }
    let field = match ip[9] {
        protocol::TCP => frame.bytes::<2>(BASE + 20 + 16),
        protocol::UDP => frame.bytes::<2>(BASE + 20 + 6),
        _ => return 1,
    };
    let Some(field) = field else { return 0 };
    let addresses = [ip[12], ip[13], ip[14], ip[15], ip[16], ip[17], ip[18], ip[19]];
    let [l0, l1] = u16::from_be_bytes([ip[2], ip[3]]).wrapping_sub(20).to_be_bytes();
    let pseudo = fold(sum(&addresses) + sum(&[0, ip[9], l0, l1]));
    u32::from(pseudo.to_ne_bytes() != field)
}

#[inline(never)]
fn ask_original(frame: &Frame, scratch: &mut Scratch) -> u32 {
    said(translate_original(&At::<INNER>(*frame), &frame.maps(), scratch), scratch)
}

#[inline(never)]
fn ask_reply(frame: &Frame, scratch: &mut Scratch) -> u32 {
    said(translate_reply(&At::<ETH_LEN>(*frame), &frame.maps(), scratch), scratch)
}

/// Puts the outer headers before a translated reply, but for the link layer's.
#[inline(never)]
fn encapsulate(
    frame: &mut Frame,
    config: &Config,
    way: &Way,
    inner_len: u32,
) -> Result<(), Reason> {
    let inner_tos = frame.bytes::<1>(ETH_LEN + 1).ok_or(Reason::Malformed)?[0];
    frame.begin_at(-(OUTER_LEN as i32), config.wire.vlan)?;
    frame.write(ETH_LEN, outer_ip(config.node, way.node, inner_tos, inner_len))?;
    frame.write(ETH_LEN + 20, outer_udp(config.vxlan_port, way, inner_len))?;
    frame.write(INNER_ETH, bytes(way.macs))
}
