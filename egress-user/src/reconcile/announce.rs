//! When the egress IPs are announced, and the announcing.
//!
//! The schedule is pure: it is told the time, sends nothing and sleeps not. [`announce`] is the
//! dull hand. Both forms are sent each time, the reply and then the request: some switches and
//! hosts learn from only one of them. The refresh never ends, because switches forget an address
//! sooner than the gateway's ARP cache does.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::arp::{Arp, socket::ArpSocket};

/// How often an address is announced; the keys of AgentConfig's `announce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnnounceSettings {
    /// Announcements of a newly claimed address.
    pub burst: u32,
    /// Between the announcements of a burst.
    pub interval: Duration,
    /// Between announcements after the burst; zero: none.
    pub refresh: Duration,
    /// After the burst, so many more at the same interval while nobody has borne witness; 0: none.
    pub insist: u32,
}

impl Default for AnnounceSettings {
    fn default() -> Self {
        Self {
            burst: 3,
            interval: Duration::from_secs(1),
            refresh: Duration::from_secs(60),
            insist: 0,
        }
    }
}

/// Which address is announced when.
#[derive(Debug)]
pub struct Schedule {
    settings: AnnounceSettings,
    held: BTreeMap<Ipv4Addr, Turn>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    /// Left of the burst.
    left: u32,
    /// Left after it, while there is no witness.
    more: u32,
    /// Somebody has answered to us as the owner.
    witnessed: bool,
    /// `None`: never again.
    next: Option<Instant>,
}

/// What a moment asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Due {
    /// To announce now, in order.
    pub addresses: Vec<Ipv4Addr>,
    /// Ask again at this time; `None`: not before something changes.
    pub wake: Option<Instant>,
}

impl Schedule {
    pub fn new(settings: AnnounceSettings) -> Self {
        Self { settings, held: BTreeMap::new() }
    }

    /// Other settings from each address' next turn on.
    pub fn set(&mut self, settings: AnnounceSettings) {
        self.settings = settings;
    }

    /// These addresses are held from now on: a new one begins its burst at once, one that is gone
    /// is not announced again, all others keep their turn.
    pub fn hold(&mut self, addresses: &BTreeSet<Ipv4Addr>, now: Instant) {
        self.held.retain(|ip, _| addresses.contains(ip));
        for ip in addresses {
            self.held.entry(*ip).or_insert(self.settings.first_turn(now));
        }
    }

    /// Begins a held address' burst anew: it was added again, or the link was away, or somebody
    /// else announced it.
    pub fn restart(&mut self, ip: Ipv4Addr, now: Instant) {
        if let Some(turn) = self.held.get_mut(&ip) {
            *turn = self.settings.first_turn(now);
        }
    }

    /// Somebody has answered to us as the owner of a held address: nothing is left to insist on.
    pub fn witness(&mut self, ip: Ipv4Addr) {
        if let Some(turn) = self.held.get_mut(&ip) {
            turn.witnessed = true;
        }
    }

    /// Whether nobody has, since the address was claimed or the link was away.
    pub fn lacks_witness(&self, ip: Ipv4Addr) -> bool {
        self.held.get(&ip).is_some_and(|turn| !turn.witnessed)
    }

    /// The addresses that lack a witness although their burst is over.
    pub fn unwitnessed(&self) -> Vec<Ipv4Addr> {
        let late = self.held.iter().filter(|(_, turn)| turn.left == 0 && !turn.witnessed);
        late.map(|(ip, _)| *ip).collect()
    }

    /// What is to be announced now; counts as done. What was missed is not made up for.
    pub fn due(&mut self, now: Instant) -> Due {
        let mut addresses = Vec::new();
        for (ip, turn) in &mut self.held {
            if turn.next.is_some_and(|next| next <= now) {
                addresses.push(*ip);
                *turn = self.settings.turn_after(*turn, now);
            }
        }
        Due { addresses, wake: self.held.values().filter_map(|turn| turn.next).min() }
    }
}

impl AnnounceSettings {
    fn first_turn(&self, now: Instant) -> Turn {
        let turn = Turn { left: self.burst, more: self.insist, witnessed: false, next: Some(now) };
        if self.burst > 0 { turn } else { self.refreshing(turn, now) }
    }

    fn turn_after(&self, turn: Turn, now: Instant) -> Turn {
        let soon = Some(now + self.interval);
        match turn {
            Turn { left: 2.., .. } => Turn { left: turn.left - 1, next: soon, ..turn },
            Turn { more: 1.., witnessed: false, .. } => {
                Turn { left: 0, more: turn.more - 1, next: soon, ..turn }
            }
            _ => self.refreshing(turn, now),
        }
    }

    fn refreshing(&self, turn: Turn, now: Instant) -> Turn {
        let next = (!self.refresh.is_zero()).then(|| now + self.refresh);
        Turn { left: 0, more: 0, next, ..turn }
    }
}

/// Announces one address in both forms.
pub async fn announce(socket: &ArpSocket, ip: Ipv4Addr) -> Result<()> {
    for arp in
        [Arp::announcement_reply(socket.mac(), ip), Arp::announcement_request(socket.mac(), ip)]
    {
        socket.send(&arp).await.with_context(|| format!("announce {ip}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);
    const A_SECOND: Duration = Duration::from_secs(1);

    fn schedule(held: &[Ipv4Addr], now: Instant) -> Schedule {
        let mut schedule = Schedule::new(AnnounceSettings::default());
        schedule.hold(&held.iter().copied().collect(), now);
        schedule
    }

    /// Runs from wake to wake: seconds since the start, and what was sent.
    fn run(schedule: &mut Schedule, start: Instant, turns: usize) -> Vec<(u64, Vec<Ipv4Addr>)> {
        let mut now = start;
        let mut log = Vec::new();
        for _ in 0..turns {
            let due = schedule.due(now);
            log.push((now.duration_since(start).as_secs(), due.addresses));
            let Some(wake) = due.wake else { break };
            now = wake;
        }
        log
    }

    #[test]
    fn a_new_address_gets_its_burst_and_then_a_refresh_every_minute() {
        let start = Instant::now();
        let log = run(&mut schedule(&[FIRST], start), start, 5);
        assert_eq!(log, [0, 1, 2, 62, 122].map(|second| (second, vec![FIRST])));
    }

    #[test]
    fn asking_twice_at_one_time_announces_once() {
        let start = Instant::now();
        let mut schedule = schedule(&[FIRST], start);
        assert_eq!(schedule.due(start).addresses, [FIRST]);
        let wake = Some(start + A_SECOND);
        assert_eq!(schedule.due(start), Due { addresses: vec![], wake });
    }

    #[test]
    fn holding_the_same_addresses_again_changes_nothing() {
        let start = Instant::now();
        let mut schedule = schedule(&[FIRST], start);
        schedule.due(start);
        schedule.hold(&BTreeSet::from([FIRST, OTHER]), start);
        assert_eq!(schedule.due(start).addresses, [OTHER]);
    }

    #[test]
    fn a_released_address_is_never_announced_again() {
        let start = Instant::now();
        let mut schedule = schedule(&[FIRST], start);
        schedule.hold(&BTreeSet::new(), start);
        assert_eq!(schedule.due(start), Due { addresses: vec![], wake: None });
        schedule.restart(FIRST, start);
        assert_eq!(schedule.due(start), Due { addresses: vec![], wake: None });
    }

    #[test]
    fn a_restart_begins_the_burst_anew() {
        let start = Instant::now();
        let mut schedule = schedule(&[FIRST], start);
        run(&mut schedule, start, 3);
        let later = start + 10 * A_SECOND;
        assert!(schedule.due(later).addresses.is_empty());
        schedule.restart(FIRST, later);
        let log = run(&mut schedule, later, 4);
        assert_eq!(log, [0, 1, 2, 62].map(|second| (second, vec![FIRST])));
    }

    #[test]
    fn what_a_long_sleep_missed_is_not_made_up_for() {
        let start = Instant::now();
        let mut schedule = schedule(&[FIRST], start);
        schedule.due(start);
        let much_later = start + 3600 * A_SECOND;
        let wake = Some(much_later + A_SECOND);
        assert_eq!(schedule.due(much_later), Due { addresses: vec![FIRST], wake });
    }

    #[test]
    fn without_refresh_the_burst_is_all_and_without_burst_the_refresh() {
        let start = Instant::now();
        let default = AnnounceSettings::default();
        let mut schedule = Schedule::new(AnnounceSettings { refresh: Duration::ZERO, ..default });
        schedule.hold(&BTreeSet::from([FIRST]), start);
        let log = run(&mut schedule, start, 9);
        assert_eq!(log, [0, 1, 2].map(|second| (second, vec![FIRST])));

        let mut schedule = Schedule::new(AnnounceSettings { burst: 0, ..default });
        schedule.hold(&BTreeSet::from([FIRST]), start);
        let log = run(&mut schedule, start, 3);
        assert_eq!(log, [(0, vec![]), (60, vec![FIRST]), (120, vec![FIRST])]);
    }

    #[test]
    fn who_lacks_a_witness_goes_on_at_the_same_pace_until_there_is_one_or_enough() {
        let start = Instant::now();
        let settings = AnnounceSettings { insist: 4, ..AnnounceSettings::default() };
        let mut held = Schedule::new(settings);
        held.hold(&BTreeSet::from([FIRST]), start);
        let log = run(&mut held, start, 9);
        assert_eq!(log, [0, 1, 2, 3, 4, 5, 6, 66, 126].map(|second| (second, vec![FIRST])));
        assert_eq!(held.unwitnessed(), [FIRST]);

        held.restart(FIRST, start);
        run(&mut held, start, 4);
        held.witness(FIRST);
        assert!(held.unwitnessed().is_empty());
        // The turn that is due already, and then the refresh.
        let log = run(&mut held, start + 4 * A_SECOND, 2);
        assert_eq!(log, [0, 60].map(|second| (second, vec![FIRST])));
        // A link that was away leaves nothing proven.
        held.restart(FIRST, start);
        assert!(held.lacks_witness(FIRST));
    }
}
