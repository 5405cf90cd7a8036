//! The benchmark's programs: generator, sink, and the references that translate nothing.
//!
//! An object of its own, so that nothing of it is ever loaded by the agent.
//! Surprising: the generator gets its pages back dirty, so it writes every header of every packet;
//! all stores have the natural alignment of their place, because LLVM splits others into bytes.
#![no_std]
#![no_main]

use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_tunnel_key, xdp_action},
    helpers::{
        bpf_ktime_get_ns, bpf_loop, bpf_redirect, bpf_skb_get_tunnel_key, bpf_xdp_load_bytes,
    },
    macros::{classifier, map, xdp},
    maps::{Array, PerCpuArray},
    programs::{TcContext, XdpContext},
};
use core::ffi::c_void;
use egress_common::bench::{
    CAPTURE_LEN, CAPTURES, Capture, EGRESS_BASE, LATENCY_BUCKETS, OTHER_EGRESS, PLAIN_HEADERS,
    Redirect, Shape, SinkRule, VXLAN_HEADERS, VXLAN_OVERHEAD, flow, flow_number, judged, mix, vnid,
};

#[map]
static SHAPE: Array<Shape> = Array::with_max_entries(1, 0);
/// The next packet's number. One generator runs at a time, so it needs no atomic.
#[map]
static COUNTER: Array<u32> = Array::with_max_entries(1, 0);
/// When the next packet is due, in nanoseconds; 0: now.
#[map]
static DUE: Array<u64> = Array::with_max_entries(1, 0);
#[map]
static RULE: Array<SinkRule> = Array::with_max_entries(1, 0);
/// Accepted frames at 0, others at 1.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(2, 0);
#[map]
static CAPTURED: Array<Capture> = Array::with_max_entries(CAPTURES, 0);
/// How many frames have been captured.
#[map]
static CAPTURE_COUNT: Array<u32> = Array::with_max_entries(1, 0);
#[map]
static LATENCY: PerCpuArray<u64> = PerCpuArray::with_max_entries(LATENCY_BUCKETS, 0);
/// By `egress_common::bench::judged`.
#[map]
static JUDGED: PerCpuArray<u64> = PerCpuArray::with_max_entries(judged::COUNT, 0);
#[map]
static REDIRECT: Array<Redirect> = Array::with_max_entries(1, 0);

/// A pointer to `T` at `offset` of the packet, if all of it is there. `offset` is a constant.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data() + offset;
    (start + size_of::<T>() <= ctx.data_end()).then_some(start as *mut T)
}

#[inline(always)]
fn words(number: u32) -> u32 {
    (number >> 16) + (number & 0xffff)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = words(sum);
    !(words(sum) as u16)
}

/// Plain frames: 42 bytes of headers, the VNID in the source MAC.
#[xdp]
pub fn generate_plain(ctx: XdpContext) -> u32 {
    generate::<{ PLAIN_HEADERS / 8 + 1 }, 0>(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// VXLAN frames: 92 bytes of headers.
#[xdp]
pub fn generate_vxlan(ctx: XdpContext) -> u32 {
    generate::<{ VXLAN_HEADERS / 8 + 1 }, VXLAN_OVERHEAD>(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Writes the template of `WORDS` words, then what changes; `BASE` is where the inner frame starts.
#[inline(always)]
fn generate<const WORDS: usize, const BASE: usize>(ctx: &XdpContext) -> Option<u32> {
    let shape = SHAPE.get(0)?;
    let counter = COUNTER.get_ptr_mut(0)?;
    // SAFETY: the map's only writer while a run lasts is this program.
    let number = unsafe {
        let number = *counter;
        *counter = number.wrapping_add(1);
        flow_number(shape, number)
    };
    if shape.gap != 0 {
        pace(shape.gap)?;
    }
    let flow = flow(number, shape.vnid_first, shape.vnid_count);
    let egress = if shape.node == 0 { EGRESS_BASE + flow.vnid_number } else { shape.node };
    let vnid = vnid(flow.vnid_number);
    let remote_port = egress_common::bench::REMOTE_PORT;
    let (source, destination, source_port, destination_port) = if shape.reply == 0 {
        (flow.pod, flow.remote, flow.source_port, remote_port)
    } else {
        (flow.remote, egress, remote_port, flow.source_port)
    };
    let ip_check = fold(shape.ip_sum + words(source) + words(destination));
    let mut udp_sum = shape.udp_sum
        + words(source)
        + words(destination)
        + u32::from(source_port)
        + u32::from(destination_port)
        + words(number);

    let template: *mut [u64; WORDS] = at(ctx, 0)?;
    // SAFETY: `at` has checked the bounds; the frame starts at an address divisible by 8.
    unsafe {
        let mut word = 0;
        while word < WORDS {
            (*template)[word] = shape.template[word];
            word += 1;
        }
    }
    if shape.timed != 0 {
        // SAFETY: takes no pointer.
        let now = unsafe { bpf_ktime_get_ns() };
        udp_sum += words(now as u32) + words((now >> 32) as u32);
        put32::<46, BASE>(ctx, (now >> 32) as u32)?;
        put32::<50, BASE>(ctx, now as u32)?;
    }
    if BASE == 0 {
        put16::<8, BASE>(ctx, (vnid >> 16) as u16)?;
        put16::<10, BASE>(ctx, vnid as u16)?;
    } else {
        put16::<34, 0>(ctx, 0xc000 | (mix(number) & 0x3fff) as u16)?;
        put16::<46, 0>(ctx, (vnid >> 8) as u16)?;
        put16::<48, 0>(ctx, (vnid << 8) as u16)?;
    }
    put16::<24, BASE>(ctx, ip_check)?;
    put32::<26, BASE>(ctx, source)?;
    put32::<30, BASE>(ctx, destination)?;
    put16::<34, BASE>(ctx, source_port)?;
    put16::<36, BASE>(ctx, destination_port)?;
    let udp_check = fold(udp_sum);
    put16::<40, BASE>(ctx, if udp_check == 0 { 0xffff } else { udp_check })?;
    put32::<42, BASE>(ctx, number)?;
    // SAFETY: takes no pointer.
    Some(unsafe { bpf_redirect(shape.ifindex, 0) } as u32)
}

/// The most looks at the clock that a packet is waited for: some 30 ms.
const PATIENCE: u32 = 1 << 20;

/// Waits until the packet is due. The core that waits is not the one that is measured.
#[inline(always)]
fn pace(gap: u32) -> Option<()> {
    let due = DUE.get_ptr_mut(0)?;
    // SAFETY: the map's only writer while a run lasts is this program; the helper takes no pointer.
    let mut moment = unsafe {
        match *due {
            0 => bpf_ktime_get_ns(),
            moment => moment,
        }
    };
    let look = is_due as unsafe extern "C" fn(u64, *mut u64) -> i64;
    // SAFETY: the callback gets `moment`, which outlives the call.
    unsafe {
        bpf_loop(PATIENCE, look as *mut c_void, (&raw mut moment).cast(), 0);
        *due = moment + u64::from(gap);
    }
    Some(())
}

/// The kernel's loop stops at 1.
unsafe extern "C" fn is_due(_: u64, moment: *mut u64) -> i64 {
    // SAFETY: `pace` hands in a number of its own; the helper takes no pointer.
    i64::from(unsafe { bpf_ktime_get_ns() >= *moment })
}

/// Stores a number in network byte order at `OFFSET + BASE`, which is even.
#[inline(always)]
fn put16<const OFFSET: usize, const BASE: usize>(ctx: &XdpContext, value: u16) -> Option<()> {
    let place: *mut u16 = at(ctx, OFFSET + BASE)?;
    // SAFETY: `at` has checked the bounds, and the place is even.
    unsafe { *place = value.to_be() };
    Some(())
}

#[inline(always)]
fn put32<const OFFSET: usize, const BASE: usize>(ctx: &XdpContext, value: u32) -> Option<()> {
    let place: *mut [u16; 2] = at(ctx, OFFSET + BASE)?;
    // SAFETY: `at` has checked the bounds, and the place is even.
    unsafe { *place = [((value >> 16) as u16).to_be(), (value as u16).to_be()] };
    Some(())
}

/// Counts and drops; the end of the road. Also the reference "XDP drop".
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    let accepted = accepts(&ctx).is_some();
    if let Some(count) = ARRIVED.get_ptr_mut(u32::from(!accepted)) {
        // SAFETY: a per-CPU slot.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}

#[inline(always)]
fn accepts(ctx: &XdpContext) -> Option<()> {
    let rule = RULE.get(0)?;
    let ether_type: *mut u16 = at(ctx, 12)?;
    let protocol: *mut u8 = at(ctx, 23)?;
    let source: *mut [u16; 2] = at(ctx, 26)?;
    // SAFETY: `at` has checked the bounds; the places are even.
    let (ether_type, protocol, source) = unsafe { (*ether_type, *protocol, *source) };
    let source = u32::from(u16::from_be(source[0])) << 16 | u32::from(u16::from_be(source[1]));
    if ether_type != 0x0800u16.to_be() || protocol != 17 || source & rule.mask != rule.network {
        return None;
    }
    if rule.capture != 0 {
        capture(ctx);
    }
    match rule.time_offset {
        0 => {}
        46 => latency(*read_time(ctx, 46)?),
        96 => latency(*read_time(ctx, 96)?),
        _ => return None,
    }
    Some(())
}

#[inline(always)]
fn read_time(ctx: &XdpContext, offset: usize) -> Option<&[u16; 4]> {
    // SAFETY: `at` has checked the bounds; the place is even.
    at::<[u16; 4]>(ctx, offset).map(|place| unsafe { &*place })
}

/// Adds the age of a packet sent at this time (four words, network byte order) to the histogram.
#[inline(always)]
fn latency(time: [u16; 4]) {
    let sent = time.iter().fold(0, |sent, word| sent << 16 | u64::from(u16::from_be(*word)));
    // SAFETY: takes no pointer.
    let age = unsafe { bpf_ktime_get_ns() }.saturating_sub(sent);
    if let Some(count) = LATENCY.get_ptr_mut(egress_common::bench::latency_bucket(age)) {
        // SAFETY: a per-CPU slot.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
fn capture(ctx: &XdpContext) {
    let Some(count) = CAPTURE_COUNT.get_ptr_mut(0) else { return };
    // SAFETY: captures are made with one generator running, on one CPU.
    let number = unsafe { *count };
    let Some(place) = CAPTURED.get_ptr_mut(number) else { return };
    // The black box hides that this is a difference of pointers: the verifier would not learn
    // from a comparison of those that the length is not zero.
    let len = core::hint::black_box(ctx.data_end() - ctx.data());
    let kept = ((len.min(CAPTURE_LEN) - 1) & (CAPTURE_LEN - 1)) as u32 + 1;
    // SAFETY: `place` is a map value of CAPTURE_LEN bytes after its header.
    unsafe {
        (*place).len = len as u32;
        let bytes = (&raw mut (*place).bytes).cast();
        if bpf_xdp_load_bytes(ctx.ctx, 0, bytes, kept) == 0 {
            *count = number + 1;
        }
    }
}

/// Holds every frame against what the flow number in its payload says, and drops it; the end of the
/// road of a storm.
#[xdp]
pub fn check(ctx: XdpContext) -> u32 {
    let verdict = judge(&ctx).unwrap_or(judged::OTHER);
    if let Some(count) = JUDGED.get_ptr_mut(verdict) {
        // SAFETY: a per-CPU slot.
        unsafe { *count += 1 };
    }
    if verdict == judged::WRONG {
        capture(&ctx);
    }
    xdp_action::XDP_DROP
}

/// `None`: none of the generator's.
#[inline(always)]
fn judge(ctx: &XdpContext) -> Option<u32> {
    if read::<2>(ctx, 12)?[0] != 0x0800 || !is_udp::<0>(ctx)? {
        return None;
    }
    match read::<1>(ctx, 36)?[0] {
        egress_common::bench::REMOTE_PORT => judge_packet::<0>(ctx, Side::Source),
        // A pod that was refused is told so by ICMP.
        4789 if is_udp::<VXLAN_OVERHEAD>(ctx)? => {
            judge_packet::<VXLAN_OVERHEAD>(ctx, Side::Destination)
        }
        _ => None,
    }
}

#[inline(always)]
fn is_udp<const BASE: usize>(ctx: &XdpContext) -> Option<bool> {
    let protocol: *mut u8 = at(ctx, BASE + 23)?;
    // SAFETY: `at` has checked the bounds.
    Some(unsafe { *protocol } == 17)
}

/// Which end of a packet the gateway has translated.
#[derive(PartialEq)]
enum Side {
    Source,
    Destination,
}

#[inline(always)]
fn judge_packet<const BASE: usize>(ctx: &XdpContext, side: Side) -> Option<u32> {
    let shape = SHAPE.get(0)?;
    let ip = read::<10>(ctx, 14 + BASE)?;
    // UDP's header and 6 bytes of payload.
    let udp = read::<7>(ctx, 34 + BASE)?;
    let number = u32::from(udp[4]) << 16 | u32::from(udp[5]);
    let flow = flow(number, shape.vnid_first, shape.vnid_count);
    let (source, destination) = (pair(ip[6], ip[7]), pair(ip[8], ip[9]));
    let egress = EGRESS_BASE + flow.vnid_number;
    let (remote, ends_right, port) = if side == Side::Source {
        let mine = source == egress || source == egress + OTHER_EGRESS;
        (destination, mine && udp[1] == egress_common::bench::REMOTE_PORT, udp[0])
    } else {
        let vni = read::<2>(ctx, BASE - 4)?;
        let mine = destination == flow.pod && pair(vni[0], vni[1]) >> 8 == vnid(flow.vnid_number);
        (source, mine && udp[0] == egress_common::bench::REMOTE_PORT, udp[1])
    };
    let pseudo = words(source) + words(destination) + 17 + u32::from(udp[2]);
    let sums = fold(sum(&ip)) == 0 && fold(pseudo + sum(&udp)) == 0;
    if remote != flow.remote || !ends_right || ip[4] >> 8 != 63 || !sums {
        return Some(judged::WRONG);
    }
    let kept = port == flow.source_port;
    Some(match (side, kept) {
        (Side::Source, true) => judged::ORIGINAL,
        (Side::Source, false) => judged::EXCHANGED,
        (Side::Destination, true) => judged::REPLY,
        // A pod's own port is no matter of choice.
        (Side::Destination, false) => judged::WRONG,
    })
}

/// `N` numbers of 16 bits at an even place.
#[inline(always)]
fn read<const N: usize>(ctx: &XdpContext, offset: usize) -> Option<[u16; N]> {
    let place: *mut [u16; N] = at(ctx, offset)?;
    // SAFETY: `at` has checked the bounds, and the place is even.
    Some(unsafe { *place }.map(u16::from_be))
}

#[inline(always)]
fn pair(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

#[inline(always)]
fn sum<const N: usize>(numbers: &[u16; N]) -> u32 {
    let mut total = 0;
    let mut index = 0;
    while index < N {
        total += u32::from(numbers[index]);
        index += 1;
    }
    total
}

/// Reference: the cheapest possible forwarding on XDP.
#[xdp]
pub fn redirect_xdp(ctx: XdpContext) -> u32 {
    try_redirect_xdp(&ctx).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn try_redirect_xdp(ctx: &XdpContext) -> Option<u32> {
    let to = REDIRECT.get(0)?;
    let macs: *mut [u8; 12] = at(ctx, 0)?;
    // SAFETY: `at` has checked the bounds; the helper takes no pointer.
    unsafe {
        *macs = to.macs;
        Some(bpf_redirect(to.ifindex, 0) as u32)
    }
}

/// Reference: the cheapest possible forwarding on tc.
#[classifier]
pub fn redirect_tc(ctx: TcContext) -> i32 {
    let Some(to) = REDIRECT.get(0) else { return TC_ACT_SHOT };
    if ctx.store(0, &to.macs, 0).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: takes no pointer.
    unsafe { bpf_redirect(to.ifindex, 0) as i32 }
}

/// The mark of what comes out of the tunnel: what OVS does with `set_field:…->pkt_mark`.
#[classifier]
pub fn mark_tunnel(ctx: TcContext) -> i32 {
    // SAFETY: plain numbers, for which zero is a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: size 8 is id and remote address, the part that every kernel accepts.
    if unsafe { bpf_skb_get_tunnel_key(ctx.as_ptr().cast(), &mut key, 8, 0) } != 0 {
        return TC_ACT_SHOT;
    }
    ctx.set_mark(key.tunnel_id);
    TC_ACT_OK
}

/// The mark of what local pods send: the generator has left the VNID in the source MAC.
#[classifier]
pub fn mark_gateway(ctx: TcContext) -> i32 {
    let Ok(mac) = ctx.load::<[u8; 4]>(8) else { return TC_ACT_SHOT };
    ctx.set_mark(u32::from_be_bytes(mac) & 0x00ff_ffff);
    // Go on: the program under test comes behind this one.
    TC_ACT_UNSPEC
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// The kernel offers the helpers marked GPL-only to programs under this licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
