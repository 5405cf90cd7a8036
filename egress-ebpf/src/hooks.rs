//! What each tc hook does with a packet: ask the engine, do what it says, count.
use aya_ebpf::programs::TcContext;
use egress_common::{
    abi::{Path, StackOrigin, StackOriginKey, data_path},
    answer,
    mark::{mark, vnid_of_mark},
    nat::{
        Answer, AnswerKind, Origin, Translation, Verdict, Way, leaves_translated,
        translate_original, translate_reply,
    },
    reason::Reason,
    rewrite::Hop,
    tables::Tables,
    wire::Ipv4,
};

use crate::{
    maps::{
        Maps, count_path, count_reason, is_node, may_answer, remember_origin, slot_counters,
        stack_origin, vnid_of_pod,
    },
    tc::{Skb, act, layout},
};

/// A packet out of the tunnel device.
#[inline(always)]
pub fn tunnel_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    verdict_of(&skb, from_tunnel(&skb))
}

/// A packet of a pod of this node, or of any pod that OVS hands to the node.
#[inline(always)]
pub fn gateway_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    verdict_of(&skb, from_gateway(&skb))
}

/// A packet from outside.
#[inline(always)]
pub fn uplink_ingress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    verdict_of(&skb, from_outside(&skb))
}

/// The last guard, and the translation of what came through the stack.
#[inline(always)]
pub fn uplink_egress(context: &TcContext) -> i32 {
    let skb = Skb::new(context);
    verdict_of(&skb, to_outside(&skb))
}

/// What is counted where: a drop by its reason.
#[inline(always)]
fn verdict_of(_skb: &Skb, result: Result<i32, Reason>) -> i32 {
    match result {
        Ok(action) => action,
        Err(reason) => {
            count_reason(reason);
            act::DROP
        }
    }
}

#[inline(always)]
fn from_tunnel(skb: &Skb) -> Result<i32, Reason> {
    let Some((vnid, node)) = skb.tunnel_source() else { return Ok(act::PASS) };
    if !is_node(node) {
        return Err(Reason::UnknownNode);
    }
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    let macs = skb.macs_back().ok_or(Reason::Malformed)?;
    send_original(skb, &Origin { vnid, node, ifindex: skb.ifindex(), macs }, Path::Tunnel)
}

#[inline(always)]
fn from_gateway(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    skb.pull();
    let Some(vnid) = vnid_of(skb) else { return Ok(act::PASS) };
    let macs = skb.macs_back().ok_or(Reason::Malformed)?;
    let origin = Origin { vnid, node: [0; 4], ifindex: skb.ifindex(), macs };
    send_original(skb, &origin, Path::Gateway)
}

/// The tenant of a packet without a tunnel: by its mark, else by its pod's address.
#[inline(always)]
fn vnid_of(skb: &Skb) -> Option<u32> {
    let maps = Maps { context: skb.context() };
    let config = maps.config()?;
    match skb.mark() {
        0 => vnid_of_pod(Ipv4::read(skb, 0)?.source),
        value => vnid_of_mark(value, config.masquerade_bit, layout(config)),
    }
}

#[inline(always)]
fn send_original(skb: &Skb, origin: &Origin, path: Path) -> Result<i32, Reason> {
    skb.pull();
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    if config.data_path == data_path::STACK {
        return mark_for_stack(skb, origin, &maps);
    }
    match translate_original(skb, skb.length(), origin, Hop::Program, &maps)? {
        Verdict::Pass => Ok(act::PASS),
        Verdict::Answer(answer) => answer_pod(skb, &answer, origin),
        Verdict::Translate(translation) => {
            skb.set_mark(mark(origin.vnid, config.masquerade_bit, layout(config)));
            skb.apply(&translation.rewrite)?;
            count_path(path);
            count_original(skb, &translation);
            send(skb, translation.way)
        }
    }
}

#[inline(always)]
fn count_original(skb: &Skb, translation: &Translation) {
    if let Some(counters) = slot_counters(translation.slot) {
        counters.original_packets += 1;
        counters.original_bytes += skb.length();
    }
}

/// Leaves the packet to the stack, marked: the uplink's egress translates it.
#[inline(always)]
fn mark_for_stack(skb: &Skb, origin: &Origin, maps: &Maps) -> Result<i32, Reason> {
    let config = maps.config().ok_or(Reason::NotReady)?;
    let Some(ip) = Ipv4::read(skb, 0) else { return Ok(act::PASS) };
    if maps.policy(origin.vnid).is_none() || config.is_untouched(ip.destination) {
        return Ok(act::PASS);
    }
    let key = StackOriginKey { pod: ip.source, vnid: origin.vnid };
    let Origin { node, ifindex, macs, .. } = *origin;
    remember_origin(&key, &StackOrigin { node, ifindex, macs });
    skb.set_mark(mark(origin.vnid, config.masquerade_bit, layout(config)));
    if node != [0; 4] {
        skb.make_ours();
    }
    Ok(act::PASS)
}

#[inline(always)]
fn from_outside(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    skb.pull();
    let maps = Maps { context: skb.context() };
    match translate_reply(skb, skb.length(), &maps)? {
        Verdict::Pass => Ok(act::PASS),
        Verdict::Answer(answer) => answer_outside(skb, &answer),
        Verdict::Translate(translation) => {
            skb.apply(&translation.rewrite)?;
            count_path(match translation.way {
                Way::Device { .. } => Path::ReplyGateway,
                _ => Path::ReplyTunnel,
            });
            if let Some(counters) = slot_counters(translation.slot) {
                counters.reply_packets += 1;
                counters.reply_bytes += skb.length();
            }
            send(skb, translation.way)
        }
    }
}

#[inline(always)]
fn to_outside(skb: &Skb) -> Result<i32, Reason> {
    if !skb.is_ipv4() {
        return Ok(act::PASS);
    }
    skb.pull();
    let Some(vnid) = vnid_of(skb) else { return Ok(act::PASS) };
    let maps = Maps { context: skb.context() };
    let config = maps.config().ok_or(Reason::NotReady)?;
    let Some(ip) = Ipv4::read(skb, 0) else { return Err(Reason::Malformed) };
    if config.is_untouched(ip.destination) || leaves_translated(ip.source, vnid, &maps)? {
        return Ok(act::PASS);
    }
    let key = StackOriginKey { pod: ip.source, vnid };
    let known =
        stack_origin(&key).unwrap_or(StackOrigin { node: [0; 4], ifindex: 0, macs: [0; 3] });
    let StackOrigin { node, ifindex, macs } = known;
    let origin = Origin { vnid, node, ifindex, macs };
    match translate_original(skb, skb.length(), &origin, Hop::Stack, &maps)? {
        Verdict::Pass | Verdict::Answer(_) => Err(Reason::Untranslated),
        Verdict::Translate(translation) => {
            skb.apply(&translation.rewrite)?;
            count_path(Path::Stack);
            count_original(skb, &translation);
            // The link-layer header is the stack's: the packet goes on where it is.
            Ok(act::PASS)
        }
    }
}

#[inline(always)]
fn send(skb: &Skb, way: Way) -> Result<i32, Reason> {
    match way {
        Way::Uplink { ifindex, macs: Some(macs) } => {
            skb.set_macs(macs)?;
            Ok(skb.redirect(ifindex))
        }
        Way::Uplink { ifindex, macs: None } => Ok(skb.redirect_to_neighbour(ifindex)),
        Way::Tunnel { vnid, node, macs } => {
            let maps = Maps { context: skb.context() };
            let tunnel = maps.config().ok_or(Reason::NotReady)?.tunnel;
            skb.set_macs(macs)?;
            skb.set_tunnel(vnid, node)?;
            skb.set_mark(0);
            Ok(skb.redirect(tunnel))
        }
        Way::Device { ifindex, macs } => {
            skb.set_macs(macs)?;
            Ok(skb.redirect(ifindex))
        }
        Way::Stack => Ok(act::PASS),
    }
}

/// Turns a pod's packet into the answer to it, and sends it back where it came from.
#[inline(always)]
fn answer_pod(skb: &Skb, answer: &Answer, origin: &Origin) -> Result<i32, Reason> {
    become_answer(skb, answer)?;
    let way = if origin.node == [0; 4] {
        Way::Device { ifindex: origin.ifindex, macs: origin.macs }
    } else {
        Way::Tunnel { vnid: origin.vnid, node: origin.node, macs: origin.macs }
    };
    send(skb, way)
}

/// Turns a packet from outside into the answer to it, and sends it back out of the uplink.
#[inline(always)]
fn answer_outside(skb: &Skb, answer: &Answer) -> Result<i32, Reason> {
    let macs = skb.macs_back().ok_or(answer.reason)?;
    become_answer(skb, answer)?;
    send(skb, Way::Device { ifindex: skb.ifindex(), macs })
}

/// The packet is dropped for the answer's reason, and counted so; what goes on is the answer.
///
/// A function of its own for the sake of the stack: a frame holds 512 bytes.
#[inline(never)]
fn become_answer(skb: &Skb, answer: &Answer) -> Result<(), Reason> {
    let maps = Maps { context: skb.context() };
    let ip = Ipv4::read(skb, 0).ok_or(Reason::Malformed)?;
    if !may_answer(maps.now()) {
        return Err(answer.reason);
    }
    match answer.kind {
        AnswerKind::Reset => {
            let packet = answer::reset(skb, &ip).ok_or(answer.reason)?;
            skb.replace(packet)?;
        }
        AnswerKind::Icmp { kind, code } => {
            let packet = answer::icmp_error(skb, &ip, answer.from, kind, code, [0; 4])
                .ok_or(answer.reason)?;
            skb.replace(packet)?;
        }
    }
    count_reason(answer.reason);
    Ok(())
}
