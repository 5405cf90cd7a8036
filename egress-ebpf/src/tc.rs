//! The tc side: packets as sk_buffs, rewrites with the kernel's checksum helpers, redirects.
//!
//! A helper that changes the packet invalidates every packet pointer: bounds are checked anew
//! where bytes are touched. Checksums go through the helpers because a packet may be
//! CHECKSUM_PARTIAL (the field holds the pseudo header's sum) or CHECKSUM_COMPLETE.
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        BPF_F_ZERO_CSUM_TX,
        bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET},
        bpf_tunnel_key,
    },
    helpers::generated as kernel,
    programs::TcContext,
};
use egress_common::{
    abi::{Config, KEPT_BYTES, MacWords},
    checksum::{Sum, fold},
    mark::Layout,
    reason::Reason,
    rewrite::{Edit, PortEdit, Rewrite, Writer},
    wire::{Packet, bytes},
};

use crate::maps::mac_words;

/// Bytes of a link-layer header.
pub const ETH_LEN: usize = 14;
/// `ETH_P_IP`, as on the wire.
pub const ETH_P_IP: [u8; 2] = [0x08, 0x00];
/// No packet field the engine reads begins further in than this (two IPv4 headers with options,
/// an ICMP header and a TCP checksum).
pub const MAX_OFFSET: usize = 256;

/// What a program returns: see `include/uapi/linux/pkt_cls.h`.
pub mod act {
    /// Go on: the next program decides.
    pub const PASS: i32 = -1;
    pub const DROP: i32 = 2;
}

/// A packet on tc.
#[derive(Clone, Copy)]
pub struct Skb {
    skb: *mut __sk_buff,
}

/// The IPv4 packet that begins `BASE` bytes into a frame: offsets are from its header.
#[derive(Clone, Copy)]
pub struct At<const BASE: usize>(pub Skb);

impl<const BASE: usize> Packet for At<BASE> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.bytes(BASE.checked_add(offset)?)
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        self.0.gso_size()
    }

    #[inline(always)]
    fn length(&self) -> u64 {
        u64::from(self.0.frame_length()).saturating_sub(BASE as u64)
    }
}

impl<const BASE: usize> Writer for At<BASE> {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        self.0.write(BASE.wrapping_add(offset), bytes)
    }
}

impl Skb {
    #[inline(always)]
    pub fn new(context: &TcContext) -> Self {
        Self { skb: context.skb.skb }
    }

    #[inline(always)]
    pub fn context(&self) -> *mut core::ffi::c_void {
        self.skb.cast()
    }

    #[inline(always)]
    pub fn frame_length(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.skb).len }
    }

    /// The payload of each segment of a big packet; 0 for an ordinary one.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.skb).gso_size }
    }

    /// `N` bytes at `offset` from the link-layer header.
    #[inline(always)]
    pub fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.pointer::<N>(offset)?;
        // SAFETY: `pointer` checked the bounds.
        Some(unsafe { load(at.cast()) })
    }

    #[inline(always)]
    fn pointer<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        // SAFETY: fields of the program's own context.
        let (data, end) = unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) };
        let at = data + offset;
        if at + N > end {
            return None;
        }
        Some(at as *mut [u8; N])
    }

    #[inline(always)]
    pub fn write<const N: usize>(&self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        let at = self.pointer::<N>(offset).ok_or(Reason::Unwritable)?;
        // SAFETY: `pointer` checked the bounds; the kernel unclones before direct writes.
        unsafe { store(at.cast(), bytes) };
        Ok(())
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.skb).mark }
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: a writable field of the program's own context.
        unsafe { (*self.skb).mark = mark };
    }

    /// Leaves word for the guard that this packet was translated: the control block travels with it
    /// through a redirect. The word is a random number of this node's, so nobody else writes it.
    #[inline(always)]
    pub fn stamp(&self, stamp: [u32; 2]) {
        // SAFETY: writable fields of the program's own context.
        unsafe {
            (*self.skb).cb[0] = stamp[0];
            (*self.skb).cb[1] = stamp[1];
        }
    }

    #[inline(always)]
    pub fn is_stamped(&self, stamp: [u32; 2]) -> bool {
        // SAFETY: fields of the program's own context.
        let word = unsafe { [(*self.skb).cb[0], (*self.skb).cb[1]] };
        // Before the agent has chosen a stamp nothing is stamped.
        stamp[0] != 0 && word == stamp
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.skb).ifindex }
    }

    /// Brings `N` bytes of headers into the linear part; what cannot be is seen by the reads that
    /// fail.
    #[inline(always)]
    pub fn pull<const N: usize>(&self) {
        if self.pointer::<N>(0).is_none() {
            let length = self.frame_length().min(MAX_OFFSET as u32);
            // SAFETY: the program's own context.
            unsafe { kernel::bpf_skb_pull_data(self.skb, length) };
        }
    }

    /// The VLAN that a frame was tagged with, its tag being beside its bytes; 0: none.
    #[inline(always)]
    pub fn vlan(&self) -> u32 {
        // SAFETY: fields of the program's own context.
        let (present, tag) = unsafe { ((*self.skb).vlan_present, (*self.skb).vlan_tci) };
        if present == 0 {
            return 0;
        }
        if tag & 0xfff == 0 {
            // A priority and no VLAN (IEEE 802.1Q, 9.6): the frame goes on without.
            // SAFETY: the program's own context. Failing, it goes on with it.
            unsafe { kernel::bpf_skb_vlan_pop(self.skb) };
        }
        tag & 0xfff
    }

    #[inline(always)]
    pub fn is_ipv4(&self) -> bool {
        self.bytes::<2>(12) == Some(ETH_P_IP)
    }

    /// The addresses in the link-layer header at `offset`.
    #[inline(always)]
    pub fn macs(&self, offset: usize) -> Option<MacWords> {
        Some(mac_words(self.bytes(offset)?))
    }

    #[inline(always)]
    pub fn set_macs(&self, macs: MacWords) -> Result<(), Reason> {
        self.write(0, bytes(macs))
    }

    /// Adds (or, negative, removes) room between the link-layer header and the IPv4 header.
    #[inline(always)]
    pub fn adjust_room(&self, by: i32, flags: u64) -> Result<(), Reason> {
        // SAFETY: the program's own context.
        let result = unsafe { kernel::bpf_skb_adjust_room(self.skb, by, BPF_ADJ_ROOM_MAC, flags) };
        if result == 0 { Ok(()) } else { Err(Reason::Unwritable) }
    }

    /// Makes the packet what the rewrite says.
    #[inline(never)]
    pub fn apply(&self, rewrite: &Rewrite) -> Result<(), Reason> {
        match &rewrite.edit {
            Edit::Ports(edit) if edit.checksum_offset == 0 => {}
            Edit::Ports(edit) => self.apply_ports(edit)?,
            Edit::Error(edit) => edit.apply(&mut At::<ETH_LEN>(*self))?,
        }
        self.write(ETH_LEN + 8, bytes(rewrite.ip))
    }

    #[inline(always)]
    fn apply_ports(&self, edit: &PortEdit) -> Result<(), Reason> {
        let offset = (ETH_LEN + edit.checksum_offset) as u32;
        let zero = if edit.zero_is_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        if edit.address_delta != 0 {
            self.add_to_checksum(offset, edit.address_delta, zero | u64::from(BPF_F_PSEUDO_HDR))?;
        }
        if edit.offset == 0 {
            return Ok(());
        }
        // A preserved port changes nothing: its delta is a zero of the one's complement.
        if fold(edit.port_delta) != 0xffff {
            self.add_to_checksum(offset, edit.port_delta, zero)?;
        }
        self.write(ETH_LEN + edit.offset, edit.port)
    }

    #[inline(always)]
    fn add_to_checksum(&self, offset: u32, delta: Sum, flags: u64) -> Result<(), Reason> {
        let delta = u64::from(fold(delta));
        // SAFETY: the program's own context; size 0 makes `to` a difference.
        let result = unsafe { kernel::bpf_l4_csum_replace(self.skb, offset, 0, delta, flags) };
        if result == 0 { Ok(()) } else { Err(Reason::Unwritable) }
    }

    /// Replaces everything behind the link-layer header; `options` bytes of IP options are in it.
    ///
    /// The kernel cuts no packet before its transport header, so options are taken out first.
    #[inline(always)]
    pub fn replace<const N: usize>(&self, packet: [u8; N], options: usize) -> Result<(), Reason> {
        if options != 0 {
            let (by, mode) = (-(options as i32), BPF_ADJ_ROOM_NET);
            // SAFETY: the program's own context.
            if unsafe { kernel::bpf_skb_adjust_room(self.skb, by, mode, 0) } != 0 {
                return Err(Reason::Unwritable);
            }
        }
        // SAFETY: the program's own context.
        let resized = unsafe { kernel::bpf_skb_change_tail(self.skb, (ETH_LEN + N) as u32, 0) };
        if resized != 0 {
            return Err(Reason::Unwritable);
        }
        self.write(ETH_LEN, packet)
    }

    /// Copies the whole frame. `None`: it does not fit.
    #[inline(always)]
    pub fn copy(&self, to: &mut [u8; KEPT_BYTES]) -> Option<u32> {
        // The mask keeps the bound where the verifier sees it.
        let length = core::hint::black_box(self.frame_length());
        if length >= KEPT_BYTES as u32 || (length as usize) < ETH_LEN {
            return None;
        }
        let length = length & (KEPT_BYTES as u32 - 1);
        // SAFETY: the program's own context; `length` is less than the room.
        let result = unsafe {
            kernel::bpf_skb_load_bytes(self.skb.cast(), 0, to.as_mut_ptr().cast(), length)
        };
        (result == 0).then_some(length)
    }

    /// Makes the packet another frame of this length.
    #[inline(always)]
    pub fn become_frame(&self, frame: &[u8; KEPT_BYTES], length: u32) -> Result<(), Reason> {
        let length = core::hint::black_box(length);
        if length >= KEPT_BYTES as u32 || (length as usize) < ETH_LEN {
            return Err(Reason::Unwritable);
        }
        let length = length & (KEPT_BYTES as u32 - 1);
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: the program's own context; `length` is less than there is in `frame`.
        let result = unsafe {
            match kernel::bpf_skb_change_tail(self.skb, length, 0) {
                0 => kernel::bpf_skb_store_bytes(self.skb, 0, frame.as_ptr().cast(), length, flags),
                error => error,
            }
        };
        if result == 0 { Ok(()) } else { Err(Reason::Unwritable) }
    }

    /// Lets a copy of the packet, as it is now, arrive at its interface anew.
    #[inline(always)]
    pub fn arrive_again(&self) {
        // SAFETY: the program's own context. Failing, the kernel has dropped the copy.
        unsafe {
            kernel::bpf_clone_redirect(self.skb, self.ifindex(), u64::from(BPF_F_INGRESS));
        }
    }

    /// Out of `ifindex`, as the packet is.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32) -> i32 {
        // SAFETY: a helper with numbers for arguments.
        unsafe { kernel::bpf_redirect(ifindex, 0) as i32 }
    }

    /// Out of `ifindex` to the next hop that the stack finds; it resolves the neighbour too.
    #[inline(always)]
    pub fn redirect_to_neighbour(&self, ifindex: u32) -> i32 {
        // SAFETY: no parameters means: look the route up.
        unsafe { kernel::bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }

    /// The VNID and the node of a packet that came through the tunnel device.
    #[inline(always)]
    pub fn tunnel_source(&self) -> Option<(u32, [u8; 4])> {
        // The shortest form of `struct bpf_tunnel_key` that the kernel accepts: VNI and remote
        // address, both in host byte order.
        let mut key = [0_u32; 2];
        // SAFETY: the program's own context; the kernel fills no more than the size given.
        let result = unsafe {
            kernel::bpf_skb_get_tunnel_key(
                self.skb,
                (&raw mut key).cast(),
                size_of_val(&key) as u32,
                0,
            )
        };
        (result == 0).then_some((key[0], key[1].to_be_bytes()))
    }

    /// Asks the tunnel device to encapsulate the packet for `node` as `vnid`.
    #[inline(always)]
    pub fn set_tunnel(&self, vnid: u32, node: [u8; 4]) -> Result<(), Reason> {
        // SAFETY: all-zero is a valid value of this plain struct.
        let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
        key.tunnel_id = vnid;
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(node);
        key.tunnel_ttl = 64;
        // SAFETY: the program's own context, the struct with its size.
        let result = unsafe {
            kernel::bpf_skb_set_tunnel_key(
                self.skb,
                &raw mut key,
                size_of::<bpf_tunnel_key>() as u32,
                u64::from(BPF_F_ZERO_CSUM_TX),
            )
        };
        if result == 0 { Ok(()) } else { Err(Reason::Unwritable) }
    }

    /// Takes a packet for another host's MAC as this host's: `PACKET_HOST`.
    #[inline(always)]
    pub fn make_ours(&self) {
        // SAFETY: the program's own context. Failing, the stack drops the packet: closed.
        unsafe { kernel::bpf_skb_change_type(self.skb, 0) };
    }
}

/// Reads in words where it can. The target has no alignment to keep, but the compiler reads what it
/// takes for unaligned byte by byte: several times the instructions, and the stack to hold them.
///
/// # Safety
/// `N` bytes must be readable at `at`.
#[inline(always)]
pub unsafe fn load<const N: usize>(at: *const u8) -> [u8; N] {
    let mut bytes = [0; N];
    let mut done = 0;
    while done + 4 <= N {
        // SAFETY: the caller's promise.
        let word = unsafe { *at.add(done).cast::<u32>() };
        bytes[done..done + 4].copy_from_slice(&word.to_ne_bytes());
        done += 4;
    }
    while done + 2 <= N {
        // SAFETY: the caller's promise.
        let half = unsafe { *at.add(done).cast::<u16>() };
        bytes[done..done + 2].copy_from_slice(&half.to_ne_bytes());
        done += 2;
    }
    if done < N {
        // SAFETY: the caller's promise.
        bytes[done] = unsafe { *at.add(done) };
    }
    bytes
}

/// Writes in words where it can: see [`load`].
///
/// # Safety
/// `N` bytes must be writable at `at`.
#[inline(always)]
pub unsafe fn store<const N: usize>(at: *mut u8, bytes: [u8; N]) {
    let mut done = 0;
    while done + 4 <= N {
        let word =
            u32::from_ne_bytes([bytes[done], bytes[done + 1], bytes[done + 2], bytes[done + 3]]);
        // SAFETY: the caller's promise.
        unsafe { *at.add(done).cast::<u32>() = word };
        done += 4;
    }
    while done + 2 <= N {
        let half = u16::from_ne_bytes([bytes[done], bytes[done + 1]]);
        // SAFETY: the caller's promise.
        unsafe { *at.add(done).cast::<u16>() = half };
        done += 2;
    }
    if done < N {
        // SAFETY: the caller's promise.
        unsafe { *at.add(done) = bytes[done] };
    }
}

/// The rule by which marks are made on this node.
#[inline(always)]
pub fn layout(config: &Config) -> Layout {
    if config.mark_old == 1 { Layout::Old } else { Layout::New }
}
