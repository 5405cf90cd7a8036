//! Whether another node answers: the pure part. It is told what was heard and what time it is.
//!
//! Two ways of asking. The *probe* goes through the tunnel's port and is answered by the programs of
//! a node that runs us (`egress_common::probe`). The *gateway* test is the original's: a TCP
//! connection to port 9 of the node's SDN gateway, refused or not. Time passes in turns; a turn in
//! which nothing was heard by a way is a miss of that way. A node is offline when each way by which it
//! was asked has missed so many turns *one after the other* (three misses in a year are none: the
//! original adds them up), or when it says itself that it has stopped. One silent way alone is told,
//! and changes nothing: the way may be what is broken.
//!
//! A lost packet is no miss: a question that is not answered soon is put again within its turn, and by
//! the other way too. [`watch`] does the asking.
pub mod watch;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

/// How patient we are; keys of AgentConfig's `health`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub misses: u32,
    pub hold_down: Duration,
    pub gateway_interval: Duration,
}

/// What one way of asking brought in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Not asked, or the question cannot leave this node.
    NotAsked,
    Nothing,
    Answer,
}

/// What a turn brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    pub probe: Heard,
    pub gateway: Heard,
    /// It answered the probe, and said that it does not carry tenants' packets.
    pub stopped: bool,
}

/// One way of asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Way {
    asked: bool,
    /// It has answered by this way before: silence means something.
    known: bool,
    /// One after the other.
    misses: u32,
}

/// What is to be told of a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    NotAsked,
    Answers,
    /// It has answered before.
    Silent,
    /// It has never answered.
    Unknown,
}

impl Way {
    fn note(&mut self, heard: Heard) {
        match heard {
            Heard::NotAsked => {}
            Heard::Nothing => {
                self.asked = true;
                self.misses = self.misses.saturating_add(1);
            }
            Heard::Answer => *self = Self { asked: true, known: true, misses: 0 },
        }
    }

    fn voice(&self, limit: u32) -> Voice {
        match (self.asked, self.misses >= limit, self.known) {
            (false, ..) => Voice::NotAsked,
            (_, false, _) => Voice::Answers,
            (_, true, true) => Voice::Silent,
            (_, true, false) => Voice::Unknown,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Online,
    Offline,
    /// It answers again, without a miss since then.
    Returning(Instant),
}

/// A node that is watched. Until it has been silent for long enough it counts as online.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    state: State,
    left: bool,
    stopped: bool,
    probe: Way,
    gateway: Way,
    /// When the gateway is tried again, if all is well.
    gateway_due: Option<Instant>,
}

/// What is known of a node, as far as anybody else cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    pub offline: bool,
    /// Offline, but answering.
    pub returning: bool,
    /// It is or was offline or drained: connections had to leave it, or stay away.
    pub left: bool,
    /// It says so itself.
    pub stopped: bool,
    pub probe: Voice,
    pub gateway: Voice,
}

impl Peer {
    /// A node not asked yet; `offline` is what a predecessor found.
    pub fn new(offline: bool) -> Self {
        Self {
            state: if offline { State::Offline } else { State::Online },
            left: offline,
            stopped: false,
            probe: Way::default(),
            gateway: Way::default(),
            gateway_due: None,
        }
    }

    /// It is drained, or a predecessor knew that connections had to leave it.
    pub fn leave(&mut self) {
        self.left = true;
    }

    /// Whether the gateway is tried in the turn that begins now. The calm rate is the original's;
    /// once a try was missed, or the node does not count, every turn.
    pub fn wants_gateway(&self, now: Instant, patience: &Patience) -> bool {
        let undecided = (1..patience.misses).contains(&self.gateway.misses);
        undecided || self.state != State::Online || self.gateway_due.is_none_or(|due| due <= now)
    }

    /// Whether a question that is not answered soon is put again, and by the other way too: not to
    /// who never answers the probe, nor to who is known to be gone.
    pub fn insists(&self, patience: &Patience) -> bool {
        let may_answer = self.probe.known || self.probe.misses < patience.misses;
        self.state != State::Offline && may_answer
    }

    /// Whether nothing is heard of it, and it need not be bothered more than once in a turn.
    pub fn is_gone(&self) -> bool {
        self.state == State::Offline
    }

    /// A turn is over.
    pub fn turn(&mut self, turn: Turn, now: Instant, patience: &Patience) {
        self.probe.note(turn.probe);
        self.gateway.note(turn.gateway);
        if self.gateway_due.is_none_or(|due| due <= now) {
            self.gateway_due = Some(now + patience.gateway_interval);
        }
        if turn.probe == Heard::Answer {
            self.stopped = turn.stopped;
        }
        let answered = !self.stopped && [turn.probe, turn.gateway].contains(&Heard::Answer);
        self.state = match self.state {
            _ if self.stopped => State::Offline,
            State::Online if self.is_silent(patience) => State::Offline,
            State::Online => State::Online,
            _ if !answered => State::Offline,
            State::Offline => State::Returning(now),
            State::Returning(since) if now.duration_since(since) >= patience.hold_down => {
                State::Online
            }
            State::Returning(since) => State::Returning(since),
        };
        self.left |= self.state != State::Online;
    }

    /// By each way that it was asked, for long enough.
    fn is_silent(&self, patience: &Patience) -> bool {
        let asked: Vec<&Way> =
            [&self.probe, &self.gateway].into_iter().filter(|way| way.asked).collect();
        !asked.is_empty() && asked.iter().all(|way| way.misses >= patience.misses)
    }

    pub fn known(&self, patience: &Patience) -> Known {
        Known {
            offline: self.state != State::Online,
            returning: matches!(self.state, State::Returning(_)),
            left: self.left,
            stopped: self.stopped,
            probe: self.probe.voice(patience.misses),
            gateway: self.gateway.voice(patience.misses),
        }
    }
}

/// The address of a node's SDN gateway: the first of its pods' subnet.
pub fn gateway_of(subnet: crate::cidr::Cidr) -> Ipv4Addr {
    Ipv4Addr::from_bits(subnet.network().to_bits() | 1)
}

#[cfg(test)]
mod tests;
