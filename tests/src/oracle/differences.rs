//! In what the two gateways may differ: each class with its name, the steps it may appear on, and
//! what both must have done. docs/nat-oracle.md says why.

use super::{
    NODE, PODS, Side, Step, What,
    seen::{Answer, Seen},
    translated::{leaked, translated},
};

/// A class of differences.
pub struct Class {
    pub name: &'static str,
    on: &'static [What],
    ours: Done,
    theirs: Done,
}

type Done = fn(&Step, &[Seen]) -> bool;

impl Class {
    /// Whether a step's difference is of this class.
    #[must_use]
    pub fn holds(&self, step: &Step, ours: &[Seen], theirs: &[Seen]) -> bool {
        self.on.contains(&step.what) && (self.ours)(step, ours) && (self.theirs)(step, theirs)
    }
}

const fn class(name: &'static str, on: &'static [What], ours: Done, theirs: Done) -> Class {
    Class { name, on, ours, theirs }
}

/// All classes, in the order of the document's table.
pub const CLASSES: &[Class] = &[
    class("untracked_from_a_pod", &UNTRACKED, translates, leaks),
    class("untracked_from_outside", &UNTRACKED, comes_in, ends_at_the_node),
    class("stray_from_a_pod", &[What::StrayFromPod, What::ErrorAboutNone], nothing, leaks),
    class("malformed_from_a_pod", &[What::BadTransport], nothing, leaks),
    class("foreign_source", &[What::ForeignSource], nothing, leaks),
    class("error_of_another_tenant", &[What::ErrorOfAnother], nothing, leaves),
    class("other_icmp_from_a_pod", &[What::OtherIcmp], nothing, leaves_or_leaks),
    class("other_icmp_from_outside", &[What::OtherIcmp], nothing, refuses),
    class("tcp_refused_by_reset", &[What::StrayFromOutside], resets, refuses),
    class("picked_up_with_its_own_port", &[What::PickedUpElsewhere], nothing, leaves),
    class("protocol_taken_is_told", &[What::ProtocolTaken], prohibits, nothing_or_leaks),
    class("sctp_has_ports_there", &[What::ProtocolTaken], prohibits, leaves),
    class("checksum_of_dccp_and_udp_lite", &[What::Summed], crosses, spoils_or_does_not_know),
    class("time_exceeded_from_the_node", &[What::LastHop], exceeded_at_the_node, exceeded),
    class("incomplete_fragments", &[What::FragmentsMissing], only_fragments, nothing),
    class("no_place_for_fragments", &[What::FragmentsShuffled], only_fragments, delivers),
];

/// What conntrack calls invalid.
const UNTRACKED: [What; 5] =
    [What::OutOfWindow, What::OddFlags, What::BadChecksum, What::BadTransport, What::Simultaneous];

fn nothing(_: &Step, seen: &[Seen]) -> bool {
    seen.is_empty()
}

fn nothing_or_leaks(step: &Step, seen: &[Seen]) -> bool {
    seen.is_empty() || leaks(step, seen)
}

/// A pod's packet leaves as it should.
fn translates(step: &Step, seen: &[Seen]) -> bool {
    step.from == Side::Pod && seen == translated(step)
}

/// A reply reaches its pod as it should.
fn comes_in(step: &Step, seen: &[Seen]) -> bool {
    step.from == Side::Outside && seen == translated(step)
}

/// A pod's packet leaves with the address that it came with.
fn leaks(step: &Step, seen: &[Seen]) -> bool {
    step.from == Side::Pod && seen == leaked(step)
}

/// One packet leaves with the tenant's address.
fn leaves(step: &Step, seen: &[Seen]) -> bool {
    let egress_ip = PODS[step.flow.pod].egress_ip;
    step.from == Side::Pod
        && matches!(seen, [one @ Seen::Crossed(Side::Outside, _)] if one.source() == Some(egress_ip))
}

fn leaves_or_leaks(step: &Step, seen: &[Seen]) -> bool {
    leaves(step, seen) || leaks(step, seen)
}

fn crosses(step: &Step, seen: &[Seen]) -> bool {
    seen == translated(step)
}

fn spoils_or_does_not_know(step: &Step, seen: &[Seen]) -> bool {
    crosses_with_a_wrong_checksum(step, seen) || leaks(step, seen) || refuses(step, seen)
}

/// Rightly translated but for the checksum that covers the addresses, which is as it was.
fn crosses_with_a_wrong_checksum(step: &Step, seen: &[Seen]) -> bool {
    let [Seen::Crossed(side, packet)] = seen else { return false };
    let [right @ Seen::Crossed(..)] = &translated(step)[..] else { return false };
    let field = usize::from(packet[0] & 15) * 4 + 6;
    let mut mended = packet.clone();
    if let Seen::Crossed(_, right) = right {
        mended[field..field + 2].copy_from_slice(&right[field..field + 2]);
    }
    step.packets[0][field..field + 2] == packet[field..field + 2]
        && Seen::Crossed(*side, mended) == *right
}

/// One whole packet reaches the pod.
fn delivers(step: &Step, seen: &[Seen]) -> bool {
    step.from == Side::Outside
        && matches!(seen, [Seen::Crossed(Side::Pod, packet)] if !super::reassembly::is_fragment(packet))
}

/// What conntrack does not know goes to the node itself, which says nothing or resets it.
fn ends_at_the_node(_: &Step, seen: &[Seen]) -> bool {
    matches!(seen, [] | [Seen::Reset(Side::Outside, _)])
}

fn resets(_: &Step, seen: &[Seen]) -> bool {
    matches!(seen, [Seen::Reset(Side::Outside, _)])
}

/// An ICMP error of this type and code to this side, from this address.
fn says(seen: &[Seen], to: Side, (kind, code): (u8, u8), from: [u8; 4]) -> bool {
    matches!(seen, [Seen::Answered(side, answer @ Answer { .. })]
        if *side == to && (answer.kind, answer.code, answer.from) == (kind, code, from))
}

fn refuses(step: &Step, seen: &[Seen]) -> bool {
    says(seen, Side::Outside, (3, 3), PODS[step.flow.pod].egress_ip)
}

fn prohibits(_: &Step, seen: &[Seen]) -> bool {
    says(seen, Side::Pod, (3, 13), NODE)
}

fn exceeded_at_the_node(_: &Step, seen: &[Seen]) -> bool {
    says(seen, Side::Pod, (11, 0), NODE)
}

/// From the address of the device that leads to the pods.
fn exceeded(_: &Step, seen: &[Seen]) -> bool {
    says(seen, Side::Pod, (11, 0), [10, 130, 0, 1])
}

/// Some of the fragments that were sent, each as it should be.
fn only_fragments(step: &Step, seen: &[Seen]) -> bool {
    let all = translated(step);
    seen.iter().all(|one| all.contains(one))
}
