//! What each tc hook does with a packet: ask the engine, do what it says, count.
use aya_ebpf::programs::TcContext;
use egress_common::{
    abi::{Config, NO_SLOT, NO_VNID, Path, data_path, phase, turned},
    answer,
    flow::Scratch,
    limit::may_answer,
    mark::{mark, vnid_of_mark},
    masquerade::{give_way, unmarked},
    nat::{
        AnswerKind, By, Origin, Translation, Verdict, Way, leaves_translated, translate_original,
        translate_reply,
    },
    reason::Reason,
    rewrite::Hop,
    tables::Tables,
    wire::Ipv4,
};

use crate::{
    fence::{self, SENDER, TARGET},
    kept, log,
    maps::{
        Maps, count_dropped, count_path, count_reason, hear, is_node, is_shadow, pod, scratch,
        slot_counters,
    },
    tc::{At, ETH_LEN, Skb, act, layout},
    underlay,
};

/// A packet out of the tunnel device.
#[inline(always)]
pub fn tunnel_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    counted(from_tunnel(&skb))
}

/// A packet of a pod of this node, or of any pod that OVS hands to the node.
#[inline(always)]
pub fn gateway_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    counted(from_gateway(&skb))
}

/// A packet from outside.
#[inline(always)]
pub fn uplink_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    counted(from_outside(&skb))
}

/// The last guard, and the translation of what came through the stack.
#[inline(always)]
pub fn uplink_egress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    counted(to_outside(&skb))
}

/// A packet that is not treated is dropped, and its reason counted. In the shadow it is only counted.
#[inline(always)]
pub fn counted(result: Result<i32, Reason>) -> i32 {
    match result {
        Ok(action) => action,
        Err(reason) => {
            count_reason(reason);
            if is_shadow() { act::PASS } else { act::DROP }
        }
    }
}

#[inline(always)]
fn from_tunnel(skb: &Skb) -> Result<i32, Reason> {
    let Some((vnid, node)) = skb.tunnel_source() else { return Ok(act::PASS) };
    if !is_node(node) {
        return Err(Reason::UnknownNode);
    }
    hear();
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    let macs = skb.macs(0).ok_or(Reason::Malformed)?;
    let scratch = scratch().ok_or(Reason::NotReady)?;
    scratch.origin = Origin { vnid, node, ifindex: skb.ifindex(), macs, hop: Hop::Program };
    send_original(skb, scratch, Path::Tunnel)
}

#[inline(always)]
fn from_gateway(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    skb.pull::<{ ETH_LEN + 60 }>();
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    let whose = match skb.mark() {
        0 => whose(skb, config)?,
        // Another's mark: what comes of it is the stack's to find out.
        value => vnid_of_mark(value, config.masquerade_bit, layout(config)),
    };
    let Some(vnid) = whose else { return Ok(act::PASS) };
    let macs = skb.macs(0).ok_or(Reason::Malformed)?;
    let scratch = scratch().ok_or(Reason::NotReady)?;
    scratch.origin = Origin { vnid, node: [0; 4], ifindex: skb.ifindex(), macs, hop: Hop::Program };
    send_original(skb, scratch, Path::Gateway)
}

/// The tenant of a packet with neither a tunnel nor a tenant's mark, by its pod's address.
#[inline(always)]
fn whose(skb: &Skb, config: &Config) -> Result<Option<u32>, Reason> {
    let Some(ip) = Ipv4::read(&At::<ETH_LEN>(*skb), 0) else { return Ok(None) };
    unmarked(config, &ip, pod(ip.source))
}

#[inline(always)]
fn send_original(skb: &Skb, scratch: &mut Scratch, path: Path) -> Result<i32, Reason> {
    skb.pull::<{ ETH_LEN + 60 }>();
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    if config.data_path == data_path::STACK && !config.is_shadow() {
        return Ok(mark_for_stack(skb, &scratch.origin));
    }
    let original = ask_original::<ETH_LEN>(skb, scratch);
    if config.is_shadow() {
        look_on(skb, scratch, original, path);
        return Ok(act::PASS);
    }
    match original {
        said::PASS => Ok(act::PASS),
        said::DROP => Ok(act::DROP),
        said::ANSWER => Ok(answer_pod(skb, scratch)),
        _ => {
            let translation = &scratch.translation;
            if scratch.origin.vnid != NO_VNID {
                skb.set_mark(mark(scratch.origin.vnid, config.masquerade_bit, layout(config)));
            }
            skb.stamp(config.stamp);
            skb.apply(&translation.rewrite)?;
            count_path(path);
            count_original(skb.frame_length(), translation);
            Ok(send(skb, &translation.way))
        }
    }
}

/// In the shadow: counts what was said of a pod's packet. What comes out of the tunnel comes by the
/// gateway device again, where it counts no second time.
#[inline(never)]
fn look_on(skb: &Skb, scratch: &Scratch, original: u32, path: Path) {
    let maps = Maps { context: skb.context() };
    match original {
        said::ANSWER => count_reason(scratch.answer.reason),
        said::TRANSLATE => {
            let flow = maps.original(&scratch.key);
            if flow.is_none_or(|flow| flow.node.get() == scratch.origin.node) {
                count_path(path);
                count_original(skb.frame_length(), &scratch.translation);
            }
        }
        _ => {}
    }
}

/// What the engine said, as a number: all that a function of a program can return.
pub mod said {
    pub const PASS: u32 = 0;
    pub const TRANSLATE: u32 = 1;
    pub const ANSWER: u32 = 2;
    /// Counted already.
    pub const DROP: u32 = 3;
    /// Of fragments from outside, which reach only tc.
    pub const KEEP: u32 = 4;
}

/// The engine, in a function of its own: its frame is not the hook's.
#[inline(never)]
pub fn ask_original<const BASE: usize>(skb: &Skb, scratch: &mut Scratch) -> u32 {
    let maps = Maps { context: skb.context() };
    said(translate_original(&At::<BASE>(*skb), &maps, scratch), scratch)
}

#[inline(never)]
fn ask_reply(skb: &Skb, scratch: &mut Scratch) -> u32 {
    let maps = Maps { context: skb.context() };
    said(translate_reply(&At::<ETH_LEN>(*skb), &maps, scratch), scratch)
}

#[inline(always)]
pub fn said(verdict: Result<Verdict, Reason>, scratch: &Scratch) -> u32 {
    match verdict {
        Ok(Verdict::Pass) => said::PASS,
        Ok(Verdict::Translate) => said::TRANSLATE,
        Ok(Verdict::Answer) => said::ANSWER,
        Ok(Verdict::Keep) => said::KEEP,
        Err(reason) => {
            count_reason(reason);
            count_dropped(scratch.translation.slot);
            said::DROP
        }
    }
}

#[inline(always)]
pub fn count_original(length: u32, translation: &Translation) {
    if let Some(counters) = slot_counters(translation.slot) {
        counters.original_packets += 1;
        counters.original_bytes += u64::from(length);
    }
}

#[inline(always)]
pub fn count_reply(length: u32, translation: &Translation) {
    if let Some(counters) = slot_counters(translation.slot) {
        counters.reply_packets += 1;
        counters.reply_bytes += u64::from(length);
    }
}

/// Leaves the packet to the stack, marked: the uplink's egress translates it.
#[inline(never)]
fn mark_for_stack(skb: &Skb, origin: &Origin) -> i32 {
    let maps = Maps { context: skb.context() };
    let Some(config) = maps.config() else { return act::DROP };
    let Some(ip) = Ipv4::read(&At::<ETH_LEN>(*skb), 0) else { return act::PASS };
    let leaves = maps.policy(origin.vnid).is_some() || config.masquerade_slot != 0;
    if origin.vnid == NO_VNID || !leaves || config.is_untouched(ip.destination) {
        return act::PASS;
    }
    skb.set_mark(mark(origin.vnid, config.masquerade_bit, layout(config)));
    if origin.node != [0; 4] {
        skb.make_ours();
    }
    act::PASS
}

#[inline(always)]
fn from_outside(skb: &Skb) -> Result<i32, Reason> {
    // A tagged frame is for its VLAN's own device, which may be an uplink too.
    if skb.vlan() != 0 {
        return Ok(act::PASS);
    }
    if !skb.is_ipv4() {
        return Ok(fence::arp::<TARGET>(skb));
    }
    skb.pull::<{ ETH_LEN + 60 }>();
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    let scratch = scratch().ok_or(Reason::NotReady)?;
    if skb.bytes::<4>(ETH_LEN + 16) == Some(config.node) {
        let received = underlay::receive(skb, config, scratch)?;
        if received != act::PASS || config.masquerade_slot == 0 {
            return Ok(received);
        }
    }
    let reply = ask_reply(skb, scratch);
    if config.is_shadow() {
        match reply {
            said::TRANSLATE => count_reply(skb.frame_length(), &scratch.translation),
            said::ANSWER => count_reason(scratch.answer.reason),
            _ => {}
        }
        return Ok(act::PASS);
    }
    match reply {
        said::PASS => Ok(act::PASS),
        said::DROP => Ok(act::DROP),
        said::ANSWER => Ok(answer_outside(skb, scratch)),
        said::KEEP => Ok(kept::hold(skb, scratch)),
        _ => {
            let is_first = scratch.ip.more_fragments && scratch.ip.fragment_offset == 0;
            if is_first && kept::release(skb, scratch) == 0 {
                return Err(Reason::Unwritable);
            }
            let translation = &scratch.translation;
            skb.apply(&translation.rewrite)?;
            count_reply(skb.frame_length(), translation);
            if translation.way.by == By::Tunnel && underlay::carries(skb, config) {
                return Ok(underlay::transmit(skb, config, &translation.way));
            }
            count_path(match translation.way.by {
                By::Link => Path::ReplyGateway,
                By::Stack => Path::ReplyStack,
                _ => Path::ReplyTunnel,
            });
            Ok(send(skb, &translation.way))
        }
    }
}

#[inline(always)]
fn to_outside(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(fence::arp::<SENDER>(skb));
    }
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    if skb.is_stamped(config.stamp) {
        return Ok(act::PASS);
    }
    skb.pull::<{ ETH_LEN + 60 }>();
    let by_mark = vnid_of_mark(skb.mark(), config.masquerade_bit, layout(config));
    let whose = if by_mark.is_some() { by_mark } else { whose(skb, config)? };
    let Some(vnid) = whose else { return Ok(of_the_node(skb, config)) };
    let Some(ip) = Ipv4::read(&At::<ETH_LEN>(*skb), 0) else { return Err(Reason::Malformed) };
    if config.is_shadow() {
        // What would be stopped is counted.
        return leaves_translated(ip.source, vnid, &maps).map(|_| act::PASS);
    }
    let stopped = |_: &Reason| {
        log::stopped(u32::from_be_bytes(ip.source), vnid);
        count_dropped(maps.policy(vnid).copied().unwrap_or(NO_SLOT));
    };
    if config.is_untouched(ip.destination)
        || leaves_translated(ip.source, vnid, &maps).inspect_err(stopped)?
    {
        return Ok(act::PASS);
    }
    let scratch = scratch().ok_or(Reason::NotReady)?;
    // Replies go back through the stack too: a stateful filter there sees both directions.
    scratch.origin = Origin { vnid, hop: Hop::Stack, ..Origin::default() };
    match ask_original::<ETH_LEN>(skb, scratch) {
        said::PASS | said::ANSWER => {
            count_dropped(scratch.translation.slot);
            Err(Reason::Untranslated)
        }
        said::DROP => Ok(act::DROP),
        _ => {
            let translation = &scratch.translation;
            skb.apply(&translation.rewrite)?;
            count_path(Path::Stack);
            count_original(skb.frame_length(), translation);
            // The link-layer header is the stack's: the packet goes on where it is, unless its
            // egress IP is another uplink's, which the stack cannot know.
            if translation.way.ifindex == skb.ifindex() {
                return Ok(act::PASS);
            }
            skb.stamp(config.stamp);
            Ok(skb.redirect_to_neighbour(translation.way.ifindex))
        }
    }
}

/// A packet of nobody's pod leaves. If it is the node's own, it has its port whoever else does.
#[inline(always)]
fn of_the_node(skb: &Skb, config: &Config) -> i32 {
    // Without a stamp what the programs masquerade looks the same.
    // Beside the node's NAT it is the node's copy of a flow that both have.
    if config.masquerade_slot != 0
        && config.phase == phase::OWN
        && config.stamp[0] != 0
        && skb.bytes::<4>(ETH_LEN + 12) == Some(config.node)
        && let Some(scratch) = scratch()
    {
        take_back(skb, scratch);
    }
    act::PASS
}

/// A function of its own for the sake of the stack.
#[inline(never)]
fn take_back(skb: &Skb, scratch: &mut Scratch) {
    let maps = Maps { context: skb.context() };
    if give_way(&At::<ETH_LEN>(*skb), &maps, scratch) {
        let port = u16::from_be_bytes(scratch.lease.egress_port);
        log::taken_back(u32::from(port), scratch.lease.protocol);
    }
}

/// A function of its own for the sake of the stack.
#[inline(never)]
pub fn send(skb: &Skb, way: &Way) -> i32 {
    counted(go(skb, way))
}

#[inline(always)]
fn go(skb: &Skb, way: &Way) -> Result<i32, Reason> {
    match way.by {
        By::Stack => Ok(act::PASS),
        By::Neighbour => Ok(skb.redirect_to_neighbour(way.ifindex)),
        By::Link => {
            skb.set_macs(way.macs)?;
            Ok(skb.redirect(way.ifindex))
        }
        By::Tunnel => {
            let maps = Maps { context: skb.context() };
            let tunnel = maps.config().ok_or(Reason::NotReady)?.tunnel;
            skb.set_macs(way.macs)?;
            skb.set_tunnel(way.vnid, way.node)?;
            skb.set_mark(0);
            Ok(skb.redirect(tunnel))
        }
    }
}

/// Turns a pod's packet into the answer to it, and sends it back where it came from.
#[inline(always)]
fn answer_pod(skb: &Skb, scratch: &Scratch) -> i32 {
    if become_answer(skb, scratch) == 0 {
        return act::DROP;
    }
    let origin = &scratch.origin;
    let by = if origin.node == [0; 4] { By::Link } else { By::Tunnel };
    let Origin { ifindex, macs, vnid, node, .. } = *origin;
    send(skb, &Way { by, ifindex, macs: turned(macs), vnid, node, entropy: 0 })
}

/// Turns a packet from outside into the answer to it, and sends it back out of the uplink.
#[inline(always)]
fn answer_outside(skb: &Skb, scratch: &Scratch) -> i32 {
    let macs = skb.macs(0);
    if become_answer(skb, scratch) == 0 {
        return act::DROP;
    }
    let Some(macs) = macs.map(turned) else { return act::DROP };
    send(skb, &Way { by: By::Link, ifindex: skb.ifindex(), macs, ..Way::default() })
}

/// The packet is dropped for the answer's reason, and counted so; what goes on is the answer, if one
/// may be sent: 1 or 0.
///
/// A function of its own for the sake of the stack: a frame holds 512 bytes.
#[inline(never)]
fn become_answer(skb: &Skb, scratch: &Scratch) -> u32 {
    count_reason(scratch.answer.reason);
    count_dropped(scratch.translation.slot);
    u32::from(write_answer(skb, scratch).is_some())
}

#[inline(always)]
fn write_answer(skb: &Skb, scratch: &Scratch) -> Option<()> {
    let (maps, answer) = (Maps { context: skb.context() }, &scratch.answer);
    let ip = Ipv4::read(&At::<ETH_LEN>(*skb), 0)?;
    if !may_answer(&maps, scratch.translation.slot) {
        return None;
    }
    let options = ip.header_len().saturating_sub(Ipv4::MIN_LEN);
    match answer.kind {
        AnswerKind::RESET => {
            let packet = answer::reset(&At::<ETH_LEN>(*skb), &ip)?;
            skb.replace(packet, options).ok()
        }
        AnswerKind { kind, code } => {
            let packet = answer::icmp_error(&At::<ETH_LEN>(*skb), &ip, answer, kind, code)?;
            skb.replace(packet, options).ok()
        }
    }
}
