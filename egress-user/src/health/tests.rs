use proptest::prelude::*;

use super::{Heard::*, *};

const TURN: Duration = Duration::from_millis(200);
const PATIENCE: Patience = Patience {
    misses: 3,
    hold_down: Duration::from_secs(3),
    gateway_interval: Duration::from_secs(5),
};

fn both(heard: Heard) -> Turn {
    Turn { probe: heard, gateway: heard, stopped: false }
}

fn probe(heard: Heard) -> Turn {
    Turn { probe: heard, gateway: NotAsked, stopped: false }
}

/// Whether the node is offline after each turn.
fn after(peer: &mut Peer, turns: impl IntoIterator<Item = Turn>) -> Vec<bool> {
    let start = Instant::now();
    let turns = turns.into_iter().zip(0..);
    turns
        .map(|(turn, nth)| {
            peer.turn(turn, start + TURN * nth, &PATIENCE);
            peer.known(&PATIENCE).offline
        })
        .collect()
}

/// Defect B3 of the original: three isolated misses, ever, made a node offline.
#[test]
fn misses_that_are_not_one_after_the_other_do_not_add_up() {
    let turns = (0..3000).map(|nth| both(if nth % 3 == 0 { Answer } else { Nothing }));
    assert!(after(&mut Peer::new(false), turns).iter().all(|offline| !offline));
}

#[test]
fn the_third_miss_in_a_row_by_all_ways_is_offline() {
    let mut peer = Peer::new(false);
    let turns = [both(Answer), both(Nothing), both(Nothing), both(Nothing)];
    assert_eq!(after(&mut peer, turns), [false, false, false, true]);
    assert!(peer.known(&PATIENCE).left);
}

#[test]
fn one_silent_way_is_told_and_is_no_dead_node() {
    let mut peer = Peer::new(false);
    let gateway_alone = Turn { probe: Nothing, gateway: Answer, stopped: false };
    let turns = [both(Answer)].into_iter().chain([gateway_alone; 100]);
    assert!(after(&mut peer, turns).iter().all(|offline| !offline));
    let known = peer.known(&PATIENCE);
    assert_eq!((known.probe, known.gateway), (Voice::Silent, Voice::Answers));
}

#[test]
fn who_never_answers_a_probe_is_judged_by_its_gateway() {
    let mut peer = Peer::new(false);
    let foreign = |gateway| Turn { probe: Nothing, gateway, stopped: false };
    let turns = [foreign(Answer), foreign(NotAsked), foreign(NotAsked), foreign(NotAsked)];
    assert_eq!(after(&mut peer, turns), [false; 4]);
    assert_eq!(peer.known(&PATIENCE).probe, Voice::Unknown);
    assert!(!peer.insists(&PATIENCE));
    assert_eq!(after(&mut peer, [foreign(Nothing); 3]), [false, false, true]);
}

#[test]
fn where_no_gateway_can_be_asked_the_probe_alone_decides() {
    let mut peer = Peer::new(false);
    let turns = [Answer, Nothing, Nothing, Nothing].map(probe);
    assert_eq!(after(&mut peer, turns), [false, false, false, true]);
}

#[test]
fn who_says_that_it_has_stopped_is_offline_at_once_though_its_gateway_answers() {
    let mut peer = Peer::new(false);
    let stopped = Turn { stopped: true, ..both(Answer) };
    assert_eq!(after(&mut peer, [both(Answer), stopped]), [false, true]);
    // Silence afterwards is no return.
    let gateway_alone = Turn { probe: Nothing, gateway: Answer, stopped: false };
    assert!(after(&mut peer, [gateway_alone; 30]).iter().all(|offline| *offline));
}

#[test]
fn a_node_that_answers_again_counts_after_the_hold_down_without_a_miss() {
    let mut peer = Peer::new(true);
    assert!(peer.known(&PATIENCE).offline, "what a predecessor found counts");
    let offline = after(&mut peer, [probe(Answer); 17]);
    assert_eq!(offline.iter().filter(|offline| **offline).count(), 15, "3 s are 15 turns");
    assert!(peer.known(&PATIENCE).left, "for good");

    let mut peer = Peer::new(true);
    let turns = (0..100).map(|nth| probe(if nth % 10 == 9 { Nothing } else { Answer }));
    assert!(after(&mut peer, turns).iter().all(|offline| *offline), "a miss begins it anew");
}

#[test]
fn the_gateway_is_tried_rarely_while_all_is_well_and_every_turn_after_a_miss() {
    let mut peer = Peer::new(false);
    let start = Instant::now();
    assert!(peer.wants_gateway(start, &PATIENCE));
    peer.turn(both(Answer), start, &PATIENCE);
    assert!(!peer.wants_gateway(start + TURN, &PATIENCE));
    assert!(peer.wants_gateway(start + PATIENCE.gateway_interval, &PATIENCE));
    peer.turn(both(Nothing), start + TURN, &PATIENCE);
    assert!(peer.wants_gateway(start + TURN, &PATIENCE));
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let heard = || prop_oneof![Just(NotAsked), Just(Nothing), Just(Answer)];
    let turn = (heard(), heard(), proptest::bool::weighted(0.05));
    proptest::collection::vec(
        turn.prop_map(|(probe, gateway, stopped)| Turn { probe, gateway, stopped }),
        1..200,
    )
}

proptest! {
    /// Whatever is heard: a node becomes offline only by a word of its own or after so many misses
    /// in a row, and comes back only after the hold-down.
    #[test]
    fn nobody_is_condemned_in_haste_nor_pardoned(turns in turns()) {
        let mut peer = Peer::new(false);
        let start = Instant::now();
        let (mut probe_misses, mut gateway_misses, mut quiet) = (0, 0, 0);
        let (mut probe_asked, mut gateway_asked, mut stopped) = (false, false, false);
        for (nth, turn) in turns.into_iter().enumerate() {
            let before = peer.known(&PATIENCE).offline;
            peer.turn(turn, start + TURN * nth as u32, &PATIENCE);
            let offline = peer.known(&PATIENCE).offline;
            for (heard, misses, asked) in [
                (turn.probe, &mut probe_misses, &mut probe_asked),
                (turn.gateway, &mut gateway_misses, &mut gateway_asked),
            ] {
                match heard {
                    NotAsked => {}
                    Nothing => (*misses, *asked) = (*misses + 1, true),
                    Answer => (*misses, *asked) = (0, true),
                }
            }
            if turn.probe == Answer {
                stopped = turn.stopped;
            }
            let answered = !stopped && (turn.probe == Answer || turn.gateway == Answer);
            quiet = if answered { quiet + 1 } else { 0 };
            if offline && !before {
                let silent = (!probe_asked || probe_misses >= 3)
                    && (!gateway_asked || gateway_misses >= 3);
                prop_assert!(stopped || silent);
            }
            if before && !offline {
                prop_assert!(quiet >= 15, "after {} turns", quiet);
            }
            prop_assert!(!stopped || offline);
        }
    }
}
