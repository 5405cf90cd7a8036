//! TCP connections: all states, retransmissions, resets, and what no stack would send.

use egress_common::{
    testing::packet::{Datagram, End, Segment, segment},
    wire::tcp::{ACK, FIN, RST, SYN},
};

use super::{Script, errors};
use crate::oracle::{Side, What};

const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;
const WINDOW: u16 = 64_240;

/// The sequence numbers that pod and remote send next.
struct Talk {
    next: [u32; 2],
    /// What each has sent last, to be sent again.
    last: [Option<Said>; 2],
}

/// A segment without its ends.
#[derive(Clone)]
struct Said {
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    data: Vec<u8>,
}

impl Said {
    fn between(&self, from: End, to: End) -> Datagram {
        let Self { flags, sequence, acknowledgement, ref data } = *self;
        segment(from, to, Segment { flags, sequence, acknowledgement, window: WINDOW, data })
    }
}

/// One connection after the other on the same ports.
pub fn connection(script: &mut Script) {
    for round in 0.. {
        let mut talk = Talk {
            next: [script.chance.below(1 << 32) as u32, script.chance.below(1 << 32) as u32],
            last: [None, None],
        };
        let ended = talk.all(script, round == 0);
        if !ended || !script.one_in(3) {
            return;
        }
    }
}

impl Talk {
    /// A segment of one side, in its place.
    fn says(&mut self, script: &mut Script, from: Side, what: What, flags: u8, data: &[u8]) {
        let (me, peer) = (usize::from(from == Side::Outside), usize::from(from == Side::Pod));
        let acknowledgement = if flags & ACK == 0 { 0 } else { self.next[peer] };
        let said = Said { flags, sequence: self.next[me], acknowledgement, data: data.to_vec() };
        let counted = u32::from(flags & SYN != 0) + u32::from(flags & FIN != 0);
        self.next[me] = self.next[me].wrapping_add(data.len() as u32 + counted);
        script.says(from, what, |from, to| said.between(from, to));
        self.last[me] = Some(said);
    }

    /// Opening, talk, end. Whether it has ended for good.
    fn all(&mut self, script: &mut Script, is_first: bool) -> bool {
        use Side::{Outside, Pod};
        match script.chance.below(12) {
            0 => {
                self.says(script, Pod, What::Plain, SYN, &[]);
                self.again(script, Pod);
                self.says(script, Outside, What::Plain, SYN | ACK, &[]);
                self.again(script, Outside);
                self.says(script, Pod, What::Plain, ACK, &[]);
            }
            1 if is_first => {
                self.says(script, Pod, What::Plain, SYN, &[]);
                self.says(script, Outside, What::Simultaneous, SYN, &[]);
                for side in [Pod, Outside] {
                    let me = usize::from(side == Outside);
                    self.next[me] = self.next[me].wrapping_sub(1);
                    self.says(script, side, What::Simultaneous, SYN | ACK, &[]);
                }
                self.says(script, Pod, What::Simultaneous, ACK, &[]);
                // Conntrack loses such a connection now and then: what else may be peculiar about
                // a step is looked at in others.
                for _ in 0..script.chance.below(5) {
                    let side = if script.one_in(2) { Pod } else { Outside };
                    let data = script.data(120);
                    self.says(script, side, What::Simultaneous, ACK, &data);
                }
                return false;
            }
            2 if is_first => {
                let data = script.data(40);
                if !script.keeps_its_port() {
                    self.says(script, Pod, What::PickedUpElsewhere, ACK, &data);
                    return false;
                }
                self.says(script, Pod, What::PickedUp, ACK, &data);
                self.says(script, Outside, What::PickedUp, ACK, &[]);
            }
            3 => {
                self.says(script, Pod, What::Plain, SYN, &[]);
                self.says(script, Outside, What::Plain, RST | ACK, &[]);
                return true;
            }
            _ => {
                self.says(script, Pod, What::Plain, SYN, &[]);
                self.says(script, Outside, What::Plain, SYN | ACK, &[]);
                self.says(script, Pod, What::Plain, ACK, &[]);
            }
        }
        for _ in 0..script.chance.below(9) {
            self.goes_on(script);
        }
        self.ends(script)
    }

    fn again(&mut self, script: &mut Script, side: Side) {
        if let Some(said) = self.last[usize::from(side == Side::Outside)].clone() {
            script.says(side, What::Plain, |from, to| said.between(from, to));
        }
    }

    /// Something in the middle of a connection.
    fn goes_on(&mut self, script: &mut Script) {
        let side = if script.one_in(2) { Side::Pod } else { Side::Outside };
        let me = usize::from(side == Side::Outside);
        match script.chance.below(24) {
            0..10 => {
                let data = script.data(120);
                let flags = [ACK, ACK | PSH, ACK | URG | PSH, ACK | ECE, ACK | CWR];
                let flags = flags[script.chance.below(flags.len())];
                self.says(script, side, What::Plain, flags, &data);
            }
            10..13 => self.says(script, side, What::Plain, ACK, &[]),
            13..15 => self.again(script, side),
            // A keepalive: one byte before the next.
            15 => {
                let before = self.next[me];
                self.next[me] = before.wrapping_sub(1);
                self.says(script, side, What::Plain, ACK, &[]);
                self.next[me] = before;
            }
            16 => {
                let (before, last) = (self.next[me], self.last[me].clone());
                self.next[me] = before.wrapping_add(100_000_000);
                self.says(script, side, What::OutOfWindow, ACK, b"far away");
                (self.next[me], self.last[me]) = (before, last);
            }
            17 => {
                let flags = [0, SYN | FIN, SYN | RST, FIN, PSH, 0xff, FIN | RST];
                let flags = flags[script.chance.below(flags.len())];
                let (before, last) = (self.next, self.last[me].clone());
                self.says(script, side, What::OddFlags, flags, &[]);
                (self.next, self.last[me]) = (before, last);
            }
            18 => self.spoilt(script, side),
            19 => {
                let (before, last) = (self.next, self.last[me].clone());
                let data = script.data(20);
                self.says(script, side, What::Plain, ACK, &data);
                let ttl = script.chance.below(2) as u8;
                script.last_hop(ttl);
                (self.next, self.last[me]) = (before, last);
            }
            _ => errors::about(script),
        }
    }

    /// A segment whose checksum is wrong.
    fn spoilt(&mut self, script: &mut Script, side: Side) {
        let (before, last) = (self.next, self.last.clone());
        let received = script.received.clone();
        self.says(script, side, What::BadChecksum, ACK, b"spoilt");
        script.spoil();
        (self.next, self.last, script.received) = (before, last, received);
    }

    fn ends(&mut self, script: &mut Script) -> bool {
        use Side::{Outside, Pod};
        let (first, second) = if script.one_in(2) { (Pod, Outside) } else { (Outside, Pod) };
        match script.chance.below(8) {
            0..4 => {
                self.says(script, first, What::Plain, FIN | ACK, &[]);
                if script.one_in(2) {
                    self.says(script, second, What::Plain, ACK, &[]);
                }
                self.says(script, second, What::Plain, FIN | ACK, &[]);
                self.says(script, first, What::Plain, ACK, &[]);
                true
            }
            // One side has said all that it has to say.
            4 => {
                self.says(script, first, What::Plain, FIN | ACK, &[]);
                self.says(script, second, What::Plain, ACK, b"not yet");
                self.says(script, first, What::Plain, ACK, &[]);
                false
            }
            5 | 6 => {
                self.says(script, first, What::Plain, RST | ACK, &[]);
                if script.one_in(2) {
                    self.says(script, second, What::AfterReset, ACK, b"late");
                }
                true
            }
            _ => false,
        }
    }
}
