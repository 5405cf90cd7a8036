//! Packets in fragments, whole and not, in and out of order.

use egress_common::{
    testing::packet::{Datagram, End, Segment, icmp, segment, udp, udp_unchecked},
    wire::{
        protocol,
        tcp::{ACK, SYN},
    },
};

use super::Script;
use crate::oracle::{Flow, Side, What};

/// A flow whose packets come in pieces.
pub fn trains(script: &mut Script) {
    let flow = script.flow;
    let mut sequence = 1;
    if flow.protocol == protocol::TCP {
        open(script);
    } else {
        let first = script.data(20);
        script.says(Side::Pod, What::Plain, |from, to| whole(flow, Side::Pod, from, to, 0, &first));
    }
    for _ in 0..1 + script.chance.below(5) {
        let side = if script.one_in(2) { Side::Pod } else { Side::Outside };
        let mut data = script.data(300);
        data.resize(data.len() + 80, 0x5a);
        let number = if side == Side::Pod { sequence } else { 1 };
        if flow.protocol == protocol::TCP && side == Side::Outside {
            continue;
        }
        train(script, side, number, &data);
        sequence += data.len() as u32;
        // What was lost would be sent again; nobody sends on behind a gap.
        if script.steps.last().is_some_and(|step| step.what != What::Fragments) {
            return;
        }
    }
}

fn open(script: &mut Script) {
    for (side, flags, sequence, acknowledgement) in
        [(Side::Pod, SYN, 0, 0), (Side::Outside, SYN | ACK, 0, 1), (Side::Pod, ACK, 1, 1)]
    {
        script.says(side, What::Plain, |from, to| {
            let window = 64_240;
            segment(from, to, Segment { flags, sequence, acknowledgement, window, data: &[] })
        });
    }
}

/// The packet of this flow with this data.
fn whole(flow: Flow, side: Side, from: End, to: End, sequence: u32, data: &[u8]) -> Datagram {
    match flow.protocol {
        protocol::TCP => segment(
            from,
            to,
            Segment { flags: ACK, sequence, acknowledgement: 1, window: 64_240, data },
        ),
        protocol::ICMP => {
            let [high, low] = flow.port.to_be_bytes();
            let kind = if side == Side::Pod { 8 } else { 0 };
            icmp((kind, 0), from.0, to.0, [high, low, 0, 1], data)
        }
        _ if data.len().is_multiple_of(3) => udp_unchecked(from, to, data),
        _ => udp(from, to, data),
    }
}

fn train(script: &mut Script, side: Side, sequence: u32, data: &[u8]) {
    let flow = script.flow;
    script.says(side, What::Fragments, |from, to| whole(flow, side, from, to, sequence, data));
    // The packet as a whole was written down: now in pieces.
    let step = script.steps.pop().expect("a step was written");
    let packet = cut(&step.packets[0], 8 * (3 + script.chance.below(12)));
    let (what, order) = order(script, packet.len());
    let packets = order.into_iter().map(|index| packet[index].clone()).collect();
    script.sends(side, what, packets);
}

/// In which order the pieces come, and what is peculiar about it.
fn order(script: &mut Script, count: usize) -> (What, Vec<usize>) {
    let mut order: Vec<usize> = (0..count).collect();
    if count < 2 {
        return (What::Fragments, order);
    }
    match script.chance.below(12) {
        0 | 1 => {
            order.rotate_left(1 + script.chance.below(count - 1));
            (What::FragmentsShuffled, order)
        }
        2 => {
            order.reverse();
            (What::FragmentsShuffled, order)
        }
        3 => {
            order.remove(script.chance.below(count));
            (What::FragmentsMissing, order)
        }
        4 => {
            // Before the last, or a reassembler has forgotten it.
            let twice = script.chance.below(count - 1);
            order.insert(twice, twice);
            (What::FragmentsTwice, order)
        }
        _ => (What::Fragments, order),
    }
}

/// A whole packet's bytes cut into fragments of this many bytes of payload.
fn cut(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let header = usize::from(packet[0] & 15) * 4;
    let word = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    let datagram = Datagram {
        tos: packet[1],
        id: word(4),
        fragment: 0,
        ttl: packet[8],
        protocol: packet[9],
        source: [packet[12], packet[13], packet[14], packet[15]],
        destination: [packet[16], packet[17], packet[18], packet[19]],
        // Options need not be in every fragment: none here.
        options: Vec::new(),
        payload: packet[header..].to_vec(),
    };
    datagram.fragments(size).iter().map(Datagram::bytes).collect()
}
