//! UDP and echo: questions and answers, with and without checksums, and errors about them.

use egress_common::testing::packet::{icmp, udp, udp_unchecked};

use super::{Script, errors};
use crate::oracle::{Side, What};

/// Datagrams to and fro.
pub fn conversation(script: &mut Script) {
    // Towards a low port, which the pods' mapping is here and not there, it would be two packets.
    if script.one_in(10) && !script.flow.has_low_port() {
        script.says(Side::Outside, What::StrayFromOutside, |from, to| udp(from, to, b"first"));
        script.received = [None, None];
    }
    for turn in 0..2 + script.chance.below(10) {
        let side = if turn == 0 || script.one_in(2) { Side::Pod } else { Side::Outside };
        let data = script.data(90);
        match script.chance.below(16) {
            0..3 => script.says(side, What::Plain, |from, to| udp_unchecked(from, to, &data)),
            3..6 if turn != 0 => errors::about(script),
            6 if turn != 0 => {
                let received = script.received.clone();
                script.says(side, What::BadChecksum, |from, to| udp(from, to, b"spoilt"));
                script.spoil();
                script.received = received;
            }
            7 if turn != 0 => {
                let received = script.received.clone();
                script.says(side, What::Plain, |from, to| udp(from, to, &data));
                let ttl = script.chance.below(2) as u8;
                script.last_hop(ttl);
                script.received = received;
            }
            _ => script.says(side, What::Plain, |from, to| udp(from, to, &data)),
        }
    }
}

/// Echo requests and their answers.
pub fn echoes(script: &mut Script) {
    let id = script.flow.port;
    for turn in 0..2 + script.chance.below(6) {
        let data = script.data(64);
        let [sequence, low] = (turn as u16).to_be_bytes();
        let [high_id, low_id] = id.to_be_bytes();
        let rest = [high_id, low_id, sequence, low];
        script.says(Side::Pod, What::Plain, |from, to| icmp((8, 0), from.0, to.0, rest, &data));
        if script.one_in(3) {
            errors::about(script);
        }
        if !script.one_in(4) {
            script.says(Side::Outside, What::Plain, |from, to| {
                icmp((0, 0), from.0, to.0, rest, &data)
            });
        }
        if script.one_in(12) {
            script.says(Side::Outside, What::BadChecksum, |from, to| {
                icmp((0, 0), from.0, to.0, rest, b"spoilt")
            });
            script.spoil();
            script.received = [None, None];
        }
    }
}
