//! The case table: each story is a sentence about a gateway, and shows it.
//!
//! A story builds the whole packet that it expects, with checksums over all of it, and asks for the
//! flows. It takes for granted that it is told to a gateway fresh from [`super::gateway`].
use crate::{
    reason::Reason,
    testing::{
        gateway::{Gateway, NODE, Outcome, TENANT},
        packet::{DONT_FRAGMENT, Datagram, icmp},
    },
};

mod errors;
mod fragments;
mod guard;
mod lifetime;
mod limits;
mod mapping;
mod masquerade;
mod phases;
mod ports;
mod protocols;
mod tcp;
mod udp_echo;

/// A sentence and its proof.
pub type Story = (&'static str, fn(&mut dyn Gateway));

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        /// This chapter of the case table.
        pub const STORIES: &[$crate::testing::stories::Story] =
            &[$((stringify!($name), $name)),*];
    };
}
use stories;

/// The whole case table.
pub fn all() -> impl Iterator<Item = Story> {
    [
        tcp::STORIES,
        udp_echo::STORIES,
        ports::STORIES,
        lifetime::STORIES,
        errors::STORIES,
        guard::STORIES,
        protocols::STORIES,
        fragments::STORIES,
        limits::STORIES,
        mapping::STORIES,
        masquerade::STORIES,
        phases::STORIES,
    ]
    .into_iter()
    .flatten()
    .copied()
}

/// Tells every story to a new gateway. Every one that fails is named before the panic.
pub fn tell<G: Gateway>(gateway: impl FnMut() -> G) {
    tell_but(&[], gateway);
}

/// The same without some, which cannot be told to gateways of this kind.
pub fn tell_but<G: Gateway>(but: &[&str], mut gateway: impl FnMut() -> G) {
    let told = all().filter(|(sentence, _)| !but.contains(sentence)).map(|(sentence, story)| {
        let mut gateway = gateway();
        let proof = std::panic::AssertUnwindSafe(|| story(&mut gateway));
        (sentence, std::panic::catch_unwind(proof).is_ok())
    });
    let (good, bad): (Vec<_>, Vec<_>) = told.partition(|(_, held)| *held);
    assert!(bad.is_empty(), "{} stories hold, these do not: {bad:#?}", good.len());
    assert!(!good.is_empty(), "there are stories");
}

impl dyn Gateway + '_ {
    /// A packet of the tenant's pod leaves as `expected`, one hop on.
    #[track_caller]
    fn pod_sends(&mut self, packet: &Datagram, expected: &Datagram) {
        let expected = expected.clone().ttl(packet.ttl - 1);
        same(self.leave_pod(TENANT, &packet.bytes()), Outcome::Sent(expected.bytes()));
    }

    /// A packet of the tenant's pod is dropped.
    #[track_caller]
    fn pod_is_refused(&mut self, packet: &Datagram, reason: Reason) {
        same(self.leave_pod(TENANT, &packet.bytes()), Outcome::Dropped(reason));
    }

    /// A packet of the tenant's pod is dropped, and the pod is told so by the node (ICMP 3/13).
    #[track_caller]
    fn pod_is_prohibited(&mut self, packet: &Datagram, reason: Reason) {
        let mut quoted = packet.bytes();
        quoted.truncate(packet.header().len() + 8);
        let error = icmp((3, 13), NODE, packet.source, [0; 4], &quoted);
        let error = Datagram { id: 0, fragment: DONT_FRAGMENT, ..error };
        same(self.leave_pod(TENANT, &packet.bytes()), Outcome::Answered(reason, error.bytes()));
    }

    /// A packet from outside goes back to the pod as `expected`, one hop on.
    #[track_caller]
    fn remote_sends(&mut self, packet: &Datagram, expected: &Datagram) {
        let expected = expected.clone().ttl(packet.ttl - 1);
        same(self.arrive(&packet.bytes()), Outcome::Sent(expected.bytes()));
    }

    /// A fragment from outside is kept.
    #[track_caller]
    fn remote_is_kept(&mut self, packet: &Datagram) {
        same(self.arrive(&packet.bytes()), Outcome::Kept);
    }

    /// A packet from outside is dropped.
    #[track_caller]
    fn remote_is_refused(&mut self, packet: &Datagram, reason: Reason) {
        same(self.arrive(&packet.bytes()), Outcome::Dropped(reason));
    }

    /// The egress port of the only flow that began at this port of a pod.
    #[track_caller]
    fn egress_port(&self, pod: ([u8; 4], u16)) -> u16 {
        let flows: Vec<_> = self.mappings().into_iter().filter(|flow| flow.pod == pod).collect();
        assert_eq!(flows.len(), 1, "one flow of {pod:?}: {flows:?}");
        flows[0].egress.1
    }
}

/// Compares, and shows packets as bytes in hexadecimal where they differ.
#[track_caller]
fn same(found: Outcome, expected: Outcome) {
    assert!(found == expected, "\n   found {}\nexpected {}", show(&found), show(&expected));
}

fn show(outcome: &Outcome) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match outcome {
        Outcome::Sent(bytes) => format!("sent {}", hex(bytes)),
        Outcome::Answered(reason, bytes) => format!("answered {reason:?} {}", hex(bytes)),
        other => format!("{other:?}"),
    }
}
