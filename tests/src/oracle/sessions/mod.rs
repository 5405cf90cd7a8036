//! What a session does, from its first packet to its last.

mod datagrams;
mod errors;
mod fragments;
mod odd;
mod protocols;
mod tcp;

use egress_common::{
    testing::packet::{DONT_FRAGMENT, Datagram, End},
    wire::protocol,
};

use super::{Flow, PODS, Side, Step, What};
use crate::mutation::Chance;

/// All steps of the session of this number.
#[must_use]
pub fn steps(mut chance: Chance, session: u32) -> Vec<Step> {
    let kind = chance.below(100);
    match kind {
        0..42 => each(chance, session, protocol::TCP, tcp::connection),
        42..58 => each(chance, session, protocol::UDP, datagrams::conversation),
        58..66 => each(chance, session, protocol::ICMP, datagrams::echoes),
        66..80 => {
            let protocols = [protocol::UDP, protocol::UDP, protocol::ICMP, protocol::TCP];
            let of_protocol = protocols[chance.below(protocols.len())];
            each(chance, session, of_protocol, fragments::trains)
        }
        80..86 => protocols::exchange(chance, session),
        86..92 => each(chance, session, protocol::TCP, odd::strays),
        _ => each(chance, session, protocol::UDP, odd::garbage),
    }
}

/// The script of one flow; of every sixth session two, whose pods want the same port.
fn each(mut chance: Chance, session: u32, of_protocol: u8, write: fn(&mut Script)) -> Vec<Step> {
    let tenant = chance.below(3) * 2;
    let first = chance.below(2);
    let flow = Flow {
        pod: tenant + first,
        port: if chance.below(40) == 0 {
            1 + (session % 1023) as u16
        } else {
            1024 + (session * 7 % 60_000) as u16
        },
        remote: remote(session),
        remote_port: match of_protocol {
            protocol::ICMP => 0,
            _ => [53, 80, 443, 7000][chance.below(4)],
        },
        protocol: of_protocol,
    };
    if chance.below(6) != 0 {
        return Script::written(&mut chance, session, flow, false, write);
    }
    let second = Flow { pod: tenant + 1 - first, ..flow };
    let mut scripts =
        [flow, second].map(|flow| Script::written(&mut chance, session, flow, true, write));
    scripts.iter_mut().for_each(|steps| steps.reverse());
    let mut steps = Vec::new();
    while scripts.iter().any(|script| !script.is_empty()) {
        steps.extend(scripts[chance.below(2)].pop());
    }
    steps
}

/// A remote of eight sessions, whose ports differ.
fn remote(session: u32) -> [u8; 4] {
    let [_, a, b, c] = (session / 8).to_be_bytes();
    [100, 64 + (a & 0x3f), b, c]
}

/// The steps of one flow as they are written down.
struct Script<'a> {
    chance: &'a mut Chance,
    session: u32,
    flow: Flow,
    steps: Vec<Step>,
    /// The flow's last packet of each direction, as its receiver sees it: the outside's, the pod's.
    received: [Option<Datagram>; 2],
    /// The identification of the next packet: they must differ while fragments are about.
    id: u16,
    /// Whether another pod wants the same port.
    is_contested: bool,
}

impl<'a> Script<'a> {
    fn written(
        chance: &'a mut Chance,
        session: u32,
        flow: Flow,
        is_contested: bool,
        write: fn(&mut Script),
    ) -> Vec<Step> {
        let id = chance.below(1 << 16) as u16;
        let (steps, received) = (Vec::new(), [None, None]);
        let mut script = Script { chance, session, flow, steps, received, id, is_contested };
        write(&mut script);
        script.steps
    }

    /// Whether our gateway gives the flow its own port for certain.
    fn keeps_its_port(&self) -> bool {
        !self.is_contested && !self.flow.has_low_port()
    }

    /// One in `n`.
    fn one_in(&mut self, n: usize) -> bool {
        self.chance.below(n) == 0
    }

    /// Up to `most` bytes of data.
    fn data(&mut self, most: usize) -> Vec<u8> {
        let length = self.chance.below(most + 1);
        (0..length).map(|_| self.chance.below(256) as u8).collect()
    }

    /// A packet of the flow, made for two ends: what is sent, and what is received if all goes well.
    fn says(&mut self, from: Side, what: What, make: impl Fn(End, End) -> Datagram) {
        let flow = self.flow;
        let (sent, received) = match from {
            Side::Pod => (make(flow.client(), flow.server()), make(flow.mapped(), flow.server())),
            Side::Outside => {
                (make(flow.server(), flow.mapped()), make(flow.server(), flow.client()))
            }
        };
        let (sent, received) = self.dressed(sent, received);
        self.received[usize::from(from == Side::Outside)] = Some(received);
        self.sends(from, what, vec![sent.bytes()]);
    }

    /// The same headers' decoration for both.
    fn dressed(&mut self, mut sent: Datagram, mut received: Datagram) -> (Datagram, Datagram) {
        let tos = [0, 0, 0, 0xb8, 0x02, 0x20][self.chance.below(6)];
        let ttl = [64, 64, 128, 255, 2 + self.chance.below(60) as u8][self.chance.below(5)];
        let fragment = if self.one_in(2) { DONT_FRAGMENT } else { 0 };
        // No operation, and a router alert, which nobody listens to.
        let options = match self.chance.below(16) {
            0 => vec![1; 4 * (1 + self.chance.below(10))],
            1 => vec![0x94, 4, 0, 0],
            _ => Vec::new(),
        };
        self.id = self.id.wrapping_add(1).max(1);
        for packet in [&mut sent, &mut received] {
            (packet.tos, packet.ttl, packet.id) = (tos, ttl, self.id);
            packet.fragment = fragment;
            packet.options.clone_from(&options);
        }
        (sent, received)
    }

    /// Packets as they are, in one step.
    fn sends(&mut self, from: Side, what: What, packets: Vec<Vec<u8>>) {
        self.sends_by(from, self.flow.pod, what, packets);
    }

    /// The same, by another pod than the flow's.
    fn sends_by(&mut self, from: Side, pod: usize, what: What, packets: Vec<Vec<u8>>) {
        let what = match what {
            What::Plain if self.flow.has_low_port() => What::LowPort,
            what => what,
        };
        let (session, flow) = (self.session, self.flow);
        self.steps.push(Step { session, flow, from, pod, what, packets });
    }

    /// A pod of another tenant.
    fn stranger(&mut self) -> usize {
        let tenant = (self.flow.pod / 2 + 1 + self.chance.below(2)) % 3;
        let pod = tenant * 2 + self.chance.below(2);
        debug_assert!(PODS[pod].vnid != PODS[self.flow.pod].vnid);
        pod
    }
}

impl Flow {
    /// Whether our gateway may not keep its port.
    fn has_low_port(&self) -> bool {
        self.has_port() && self.protocol != protocol::ICMP && self.port < 1024
    }
}
