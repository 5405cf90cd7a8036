//! The pure part: what is to do for what was seen. The bridge is a list of lines here.
use super::*;
use crate::ovs::text::parse_flow_dump;

const REMOTE: &str =
    "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1";
const FLOW: &str = "table=101,priority=100,ip,reg0=0x6f7936,actions=ct(commit),group:7305526";
const DROP: &str = "table=101,priority=100,reg0=0x6f7936,actions=drop";

fn group(node: &str) -> String {
    format!("group_id=7305526,type=select,bucket=actions={}", REMOTE.replace("10.0.0.2", node))
}

fn desired(flows: &[&str], groups: &[String]) -> Desired {
    let flows: Vec<_> = flows.iter().map(|line| (*line).to_owned()).collect();
    Desired::parse(&flows, groups).unwrap()
}

fn bridge(ours: &[&str], foreign: &[&str], groups: &[String]) -> Observed {
    let held = |cookie| move |line: &&str| Held { cookie, flow: Flow::parse(line).unwrap() };
    Observed::new(
        ours.iter().map(held(COOKIE)).chain(foreign.iter().map(held(0))).collect(),
        groups.iter().map(|line| Group::parse(line).unwrap()).collect(),
    )
}

/// What a bridge holds after the bundle, which is read like Open vSwitch reads it.
fn after(observed: &Observed, bundle: &str) -> Observed {
    let mut next = observed.clone();
    for line in bundle.lines() {
        let (verb, rest) = line.split_at(line.match_indices(' ').nth(1).unwrap().0);
        match verb {
            "group add" | "group modify" => {
                let group = Group::parse(rest).unwrap();
                assert_eq!(next.groups.contains_key(&group.id), verb == "group modify", "{line}");
                next.groups.insert(group.id, group);
            }
            "flow add" => {
                let (cookie, flow) = rest.trim().split_once(',').unwrap();
                assert_eq!(cookie, "cookie=0x6567726573733031");
                let flow = Flow::parse(flow).unwrap();
                assert!(flow.groups().all(|id| next.groups.contains_key(&id)), "{line}");
                next.flows.retain(|held| held.flow.on != flow.on);
                next.flows.push(Held { cookie: COOKIE, flow });
            }
            "flow delete_strict" => {
                let on = rest.trim().strip_prefix("cookie=0x6567726573733031/-1,").unwrap();
                let on = Flow::parse(&format!("{on},actions=drop")).unwrap().on;
                next.flows.retain(|held| held.cookie != COOKIE || held.flow.on != on);
            }
            "group delete" => {
                let id = Group::parse(rest).unwrap().id;
                next.groups.remove(&id);
                next.flows.retain(|held| held.flow.groups().all(|used| used != id));
            }
            _ => panic!("{line}"),
        }
    }
    next
}

#[test]
fn an_empty_bridge_gets_the_group_before_the_flow() {
    let Outcome { change, conflicts, .. } =
        difference(&desired(&[FLOW], &[group("10.0.0.2")]), &bridge(&[], &[], &[]));
    assert_eq!(conflicts, []);
    assert_eq!(
        change.bundle(),
        format!("group add {}\nflow add cookie=0x6567726573733031,{FLOW}\n", group("10.0.0.2"))
    );
}

#[test]
fn every_change_ends_in_the_desired_state_and_a_second_one_is_empty() {
    let foreign = ["table=101,priority=0,actions=output:2", "table=9,actions=group:9"];
    let wants = [
        desired(&[], &[]),
        desired(&[DROP], &[]),
        desired(&[FLOW], &[group("10.0.0.2")]),
        desired(&[FLOW], &[group("10.0.0.4")]),
        desired(&["table=100,priority=100,ip,reg0=0x6f7936,actions=output:1"], &[]),
        desired(&["table=100,priority=100,ip,reg0=0x6f7936,actions=output:2"], &[]),
    ];
    for from in &wants {
        for to in &wants {
            let empty = bridge(&[], &foreign, &["group_id=9,type=all".to_owned()]);
            let before = after(&empty, &difference(from, &empty).change.bundle());
            let change = difference(to, &before).change;
            let now = after(&after(&before, &change.bundle()), &change.farewell());
            assert_eq!(now.ours(), to.flows.iter().collect(), "{change:?}");
            assert_eq!(now.foreign().count(), 2, "foreign flows stay: {change:?}");
            assert_eq!(now.groups.len(), 1 + to.groups.len(), "{change:?}");
            let second = difference(to, &now);
            assert_eq!((second.change, second.conflicts), (Change::default(), vec![]));
            assert_eq!(second.held.ours as usize, to.flows.len());
        }
    }
}

#[test]
fn a_changed_group_is_modified_in_place() {
    let observed = bridge(&[FLOW], &[], &[group("10.0.0.2")]);
    let Outcome { change, .. } = difference(&desired(&[FLOW], &[group("10.0.0.4")]), &observed);
    assert_eq!(change.bundle(), format!("group modify {}\n", group("10.0.0.4")));
}

#[test]
fn a_group_that_nobody_needs_any_more_outlives_the_bundle() {
    let observed = bridge(&[FLOW], &[], &[group("10.0.0.2")]);
    let Outcome { change, .. } = difference(&desired(&[DROP], &[]), &observed);
    assert_eq!(after(&observed, &change.bundle()).groups, observed.groups);
    assert_eq!(change.farewell(), "group delete group_id=7305526\n");
}

#[test]
fn no_prefix_of_a_bundle_leaves_the_vnid_without_a_flow() {
    let states = [desired(&[DROP], &[]), desired(&[FLOW], &[group("10.0.0.2")])];
    for (from, to) in [(&states[0], &states[1]), (&states[1], &states[0])] {
        let empty = bridge(&[], &[], &[]);
        let before = after(&empty, &difference(from, &empty).change.bundle());
        let bundle = difference(to, &before).change.bundle();
        let lines: Vec<_> = bundle.lines().collect();
        for length in 0..=lines.len() {
            let now = after(&before, &lines[..length].join("\n"));
            assert!(!now.ours().is_empty(), "after {:?}", &lines[..length]);
        }
    }
}

#[test]
fn a_foreign_flow_of_the_same_match_is_a_conflict_and_is_not_replaced() {
    let foreign = "table=101,priority=100,ip,reg0=0x6f7936,actions=group:1";
    let other = "table=101,priority=100,reg0=0x5,actions=drop";
    let Outcome { change, conflicts, .. } = difference(
        &desired(&[FLOW, other], &[group("10.0.0.2")]),
        &bridge(&[], &[foreign], &["group_id=1,type=all".to_owned()]),
    );
    assert_eq!(
        conflicts,
        [Conflict {
            vnid: Some(7_305_526),
            kind: ConflictKind::SameMatch,
            wanted: FLOW.to_owned(),
            foreign: foreign.to_owned()
        }]
    );
    let expected = Change { add_flows: vec![Flow::parse(other).unwrap()], ..Change::default() };
    assert_eq!(change, expected, "the other object goes on");
}

#[test]
fn a_foreign_flow_that_does_the_same_is_told_apart() {
    let Outcome { change, conflicts, held } =
        difference(&desired(&[DROP], &[]), &bridge(&[], &[DROP], &[]));
    assert_eq!((conflicts[0].kind, held.ours), (ConflictKind::AlreadyThere, 0));
    assert!(change.is_empty(), "{change:?}");
    let grouped = difference(
        &desired(&[FLOW], &[group("10.0.0.2")]),
        &bridge(&[], &[FLOW], &[group("10.0.0.2")]),
    );
    assert_eq!(grouped.conflicts[0].kind, ConflictKind::SameMatch, "its group is foreign too");
    assert!(grouped.change.is_empty(), "{:?}", grouped.change);
}

#[test]
fn a_flow_of_ours_that_a_foreign_one_replaced_is_given_up() {
    let foreign = "table=101,priority=100,reg0=0x6f7936,actions=output:2";
    let Outcome { change, conflicts, held } =
        difference(&desired(&[DROP], &[]), &bridge(&[], &[foreign], &[]));
    assert_eq!((conflicts[0].kind, held.ours), (ConflictKind::SameMatch, 0));
    assert!(change.is_empty(), "{change:?}");
}

#[test]
fn a_foreign_flow_that_only_overlaps_does_not_open_the_way_for_the_rest() {
    let Outcome { change, conflicts, held } =
        difference(&desired(&[FLOW], &[group("10.0.0.2")]), &bridge(&[], &[DROP], &[]));
    assert_eq!((conflicts[0].kind, held.ours), (ConflictKind::Overlap, 1));
    assert_eq!(change.add_flows, [Flow::parse(FLOW).unwrap()]);
}

#[test]
fn a_group_that_a_foreign_flow_uses_is_never_touched_and_ours_drops() {
    let foreign = "table=7,priority=1,actions=group:7305526";
    let Outcome { change, conflicts, held } = difference(
        &desired(&[FLOW], &[group("10.0.0.2")]),
        &bridge(&[], &[foreign], &[group("10.0.0.9")]),
    );
    assert_eq!((conflicts[0].kind, held.ours), (ConflictKind::Group, 1));
    assert_eq!(conflicts[0].foreign, foreign);
    assert_eq!(
        change.bundle(),
        "flow add cookie=0x6567726573733031,table=101,priority=100,ip,reg0=0x6f7936,actions=drop\n"
    );
    let Outcome { change, .. } =
        difference(&desired(&[], &[]), &bridge(&[FLOW], &[foreign], &[group("10.0.0.2")]));
    assert_eq!((change.remove_flows.len(), change.remove_groups), (1, vec![]));
}

#[test]
fn a_group_left_by_a_flush_is_found_again() {
    let want = desired(&[FLOW], &[group("10.0.0.2")]);
    let same = difference(&want, &bridge(&[], &[], &[group("10.0.0.2")])).change;
    assert!(same.add_groups.is_empty() && same.modify_groups.is_empty(), "{same:?}");
    assert_eq!(same.add_flows.len(), 1);
    let other = difference(&want, &bridge(&[], &[], &[group("10.0.0.9")])).change;
    assert_eq!((other.add_groups.len(), other.modify_groups.len()), (0, 1));
}

#[test]
fn a_group_that_nobody_uses_and_nobody_wants_stays() {
    let Outcome { change, .. } =
        difference(&desired(&[], &[]), &bridge(&[], &[], &[group("10.0.0.2")]));
    assert!(change.is_empty(), "{change:?}");
}

#[test]
fn a_plan_that_contradicts_itself_is_refused() {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    assert!(Desired::parse(&lines(&[FLOW]), &[]).is_err(), "no group");
    let twice = lines(&["reg0=1,actions=drop", "reg0=0x1,actions=output:2"]);
    assert!(Desired::parse(&twice, &[]).is_err(), "two flows of one match");
}

#[test]
fn what_the_bridge_holds_is_ours_and_the_pods_table() {
    let dump = "\
 cookie=0x0, table=20, n_packets=7, priority=100,ip,in_port=5,nw_src=10.128.0.11 actions=load:0x6f7936->NXM_NX_REG0[],goto_table:21
 cookie=0x0, table=25, n_packets=7, priority=100,ip,nw_src=10.128.0.13 actions=load:0x7->NXM_NX_REG0[],goto_table:30
 cookie=0x0, table=20, n_packets=0, priority=0 actions=drop
";
    let observed = Observed::new(parse_flow_dump(dump).unwrap(), Vec::new());
    let Outcome { held, .. } = difference(&desired(&[DROP], &[]), &observed);
    assert_eq!(held, Counts { ours: 1, of_pods: 2 });
}
