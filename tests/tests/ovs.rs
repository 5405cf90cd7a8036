//! Our flows on real Open vSwitch, beside OpenShift's.
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::ovs::OvsRig;
use egress_tests::ovs::plan::{REMOTE, desired, group, plans};
use egress_user::ovs::watch::Counts;
use egress_user::ovs::{Layout, Ovs, Presence, text};
use egress_user::reconcile::flows::{self, COOKIE, Change, ConflictKind, Desired, Outcome};
use tokio::time::timeout;

const VNID: u32 = 7_305_526;
/// What is promised to be repaired within a second gets more on a busy machine.
const REPAIR: Duration = Duration::from_secs(10);

/// The bridge's flows that are not ours, sorted.
async fn foreign(ovs: &Ovs) -> Result<Vec<String>> {
    let held = ovs.flows().await?.into_iter().filter(|held| held.cookie != COOKIE);
    let mut lines: Vec<_> = held.map(|held| held.flow.to_string()).collect();
    lines.sort();
    Ok(lines)
}

/// The bridge's flows that are ours, as lines.
async fn ours(ovs: &Ovs) -> Result<Vec<String>> {
    let held = ovs.flows().await?.into_iter().filter(|held| held.cookie == COOKIE);
    Ok(held.map(|held| held.flow.to_string()).collect())
}

async fn groups(ovs: &Ovs) -> Result<Vec<String>> {
    Ok(ovs.groups().await?.iter().map(ToString::to_string).collect())
}

/// Does what the agent does: waits until something is other than `expected`, then reconciles.
async fn repair(ovs: &Ovs, desired: &Desired, expected: Option<Counts>) -> Result<Outcome> {
    let mut watch = ovs.watch(COOKIE);
    timeout(REPAIR, watch.differs_from(expected)).await.context("nothing was noticed")?;
    flows::reconcile(ovs, desired).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn facts_are_read_from_the_bridge_in_both_layouts() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        for node in [&rig.source, &rig.egress] {
            let facts = node.facts().await?;
            assert_eq!((facts.tunnel_port, facts.gateway_port), (1, 2));
            assert_eq!(facts.layout(), Some(layout));
            let shown = node.netns.output(Command::new("ip").args(["link", "show", "tun0"]))?;
            let mac = facts.gateway_mac.map(|byte| format!("{byte:02x}")).join(":");
            ensure!(shown.contains(&mac), "{mac} is not tun0's: {shown}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_bundle_is_read_back_equal_and_a_second_run_changes_nothing() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let plans = plans(layout, rig.egress.facts().await?.gateway_mac);
        for (node, plan) in [(&rig.source, &plans.source), (&rig.egress, &plans.egress)] {
            let ovs = node.bridge();
            let before = foreign(&ovs).await?;
            let first = flows::reconcile(&ovs, plan).await?;
            assert_eq!((first.conflicts, first.held.ours), (vec![], 1), "{layout:?}");
            assert_eq!(first.change.add_flows.len(), 1);
            let second = flows::reconcile(&ovs, plan).await?;
            assert_eq!((second.change, second.conflicts), (Change::default(), vec![]));
            assert_eq!(ovs.watch(COOKIE).count().await?, first.held);
            assert_eq!(foreign(&ovs).await?, before, "foreign flows are as they were");
            flows::cleanup(&ovs).await?;
            assert_eq!((ours(&ovs).await?, groups(&ovs).await?), (vec![], vec![]));
            assert_eq!(foreign(&ovs).await?, before, "after the cleanup too");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn the_flows_beside_a_drained_node_are_read_back_equal() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let ovs = rig.source.bridge();
    let [to, other] = ["10.0.0.2", "10.0.0.4"]
        .map(|node| REMOTE.replace("10.0.0.2", node).rsplit_once(',').map(|(to, _)| to.to_owned()));
    let (to, other) = to.zip(other).context("the actions end with an output")?;
    let on = |priority, also: &str| format!("table=101,priority={priority},{also}ip,reg0=0x6f7936");
    let marking = "ct(commit,exec(move:NXM_NX_TUN_IPV4_DST[]->NXM_NX_CT_MARK[]))";
    let plan = desired(
        &[
            &format!("{} actions=group:7305526", on(100, "")),
            &format!("{} actions=group:24082742", on(101, "ct_state=+new+trk,")),
            &format!("{} actions={to},goto_table:102", on(102, "ct_mark=0xa000002,")),
            &format!("{} actions={other},goto_table:102", on(102, "ct_mark=0xa000004,")),
            &format!("table=102,priority=100,ip,reg0=0x6f7936 actions={marking},output:1"),
        ],
        &[
            &format!(
                "group_id=7305526,type=select,bucket=actions={to},resubmit(,102),\
                 bucket=actions={other},resubmit(,102)"
            ),
            &format!("group_id=24082742,type=select,bucket=actions={other},resubmit(,102)"),
        ],
    );
    let first = flows::reconcile(&ovs, &plan).await?;
    assert_eq!((first.conflicts, first.held.ours), (vec![], 5));
    let second = flows::reconcile(&ovs, &plan).await?;
    assert_eq!(second.change, Change::default());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_group_is_replaced_with_its_flows_in_one_bundle() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let ovs = rig.source.bridge();
    let flow = "table=101,priority=100,ip,reg0=0x6f7936,actions=ct(commit),group:7305526";
    let drop = "table=101,priority=100,reg0=0x6f7936,actions=drop";
    flows::reconcile(&ovs, &desired(&[flow], &[&group("10.0.0.2")])).await?;

    let moved = flows::reconcile(&ovs, &desired(&[flow], &[&group("10.0.0.4")])).await?;
    assert_eq!(moved.change.modify_groups.len(), 1);
    assert_eq!(groups(&ovs).await?, [group("10.0.0.4")]);
    assert_eq!(ours(&ovs).await?, [flow]);

    flows::reconcile(&ovs, &desired(&[drop], &[])).await?;
    assert_eq!((ours(&ovs).await?, groups(&ovs).await?), (vec![drop.to_owned()], vec![]));

    // The second line is refused, so the first must not be there either.
    let bad = "group add group_id=7,type=all,bucket=actions=output:1\n\
               flow add table=101,priority=7,actions=group:8\n";
    let error = format!("{:#}", ovs.commit(bad).await.unwrap_err());
    ensure!(error.contains("BAD_OUT_GROUP"), "the bridge's reason is in the error: {error}");
    assert_eq!(groups(&ovs).await?, Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_flush_is_noticed_and_repaired() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let ovs = rig.source.bridge();
    let plan = plans(Layout::New, [0; 6]).source;
    let held = flows::reconcile(&ovs, &plan).await?.held;
    let whole = (ours(&ovs).await?, groups(&ovs).await?);
    for flush in [vec!["del-flows"], vec!["del-groups"], vec!["del-flows", "table=101"]] {
        rig.source.ovs.ofctl(flush[0], &flush[1..])?;
        assert_eq!(ours(&ovs).await?, Vec::<String>::new(), "{flush:?}");
        let repaired = repair(&ovs, &plan, Some(held)).await?;
        assert_eq!(repaired.held.ours, held.ours);
        assert_eq!((ours(&ovs).await?, groups(&ovs).await?), whole, "after {flush:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_restart_is_noticed_and_repaired() -> Result<()> {
    let mut rig = OvsRig::start(Layout::New)?;
    let ovs = rig.source.bridge();
    let plan = plans(Layout::New, [0; 6]).source;
    let held = flows::reconcile(&ovs, &plan).await?.held;
    let whole = (ours(&ovs).await?, groups(&ovs).await?);

    let mut watch = ovs.watch(COOKIE);
    assert_eq!(watch.count().await?, held);
    rig.source.ovs.kill_switch()?;
    assert_eq!(timeout(REPAIR, watch.differs_from(Some(held))).await?, None);
    let error = format!("{:#}", flows::reconcile(&ovs, &plan).await.unwrap_err());
    ensure!(error.contains("bridge br0") && error.contains("br0.mgmt"), "{error}");

    rig.source.restart_switch()?;
    assert_eq!(timeout(REPAIR, watch.differs_from(None)).await?, Some(Counts::default()));
    rig.settle()?;
    assert_eq!(flows::reconcile(&ovs, &plan).await?.held, held);
    assert_eq!((ours(&ovs).await?, groups(&ovs).await?), whole);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn an_egress_flow_of_openshift_is_a_conflict_and_stays() -> Result<()> {
    let rig = OvsRig::start(Layout::Old)?;
    let ovs = rig.source.bridge();
    let theirs = "table=100,priority=100,ip,reg0=0x6f7936,actions=output:2";
    rig.source.ovs.load("br0", &[theirs.to_owned()])?;
    let before = foreign(&ovs).await?;
    let other = "table=100,priority=100,ip,reg0=0xdf6553,actions=output:1";
    let plan = desired(
        &[&format!("table=100,priority=100,ip,reg0=0x6f7936,actions={REMOTE}"), other],
        &[],
    );
    let outcome = flows::reconcile(&ovs, &plan).await?;
    assert_eq!(outcome.conflicts.len(), 1);
    let conflict = &outcome.conflicts[0];
    assert_eq!((conflict.vnid, conflict.kind), (Some(VNID), ConflictKind::SameMatch));
    assert_eq!(conflict.foreign, theirs);
    assert_eq!(foreign(&ovs).await?, before);
    assert_eq!((outcome.held.ours, ours(&ovs).await?), (1, vec![other.to_owned()]));
    assert_eq!(ovs.watch(COOKIE).count().await?, outcome.held);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_missing_bridge_and_a_dead_switch_are_told_apart() -> Result<()> {
    let mut rig = OvsRig::start(Layout::New)?;
    let other = Ovs::at(rig.source.ovs.rundir(), "br9", "tun0");
    let Presence::Absent(why) = other.presence().await? else { anyhow::bail!("br9 is there") };
    ensure!(why.contains("no bridge br9"), "{why}");
    rig.source.ovs.kill_switch()?;
    let error = format!("{:#}", rig.source.bridge().presence().await.unwrap_err());
    ensure!(error.contains("bridge br0"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn five_thousand_groups_and_flows_fit_into_one_bundle_and_are_read_back() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let ovs = rig.source.bridge();
    let lines = |vnids: std::ops::Range<u32>| -> (Vec<String>, Vec<String>) {
        vnids
            .map(|vnid| {
                (
                    format!(
                        "table=101,priority=100,ip,reg0={vnid:#x},actions=ct(commit),group:{vnid}"
                    ),
                    format!("group_id={vnid},type=select,bucket=actions={REMOTE}"),
                )
            })
            .unzip()
    };
    let (many, their_groups) = lines(1000..6000);
    let plan = Desired::parse(&many, &their_groups)?;
    assert_eq!(flows::reconcile(&ovs, &plan).await?.held.ours, 5000);
    assert!(flows::reconcile(&ovs, &plan).await?.change.is_empty());
    assert_eq!(ovs.watch(COOKIE).count().await?.ours, 5000);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn the_openshift_flows_read_back_as_they_were_written() -> Result<()> {
    let rig = OvsRig::start(Layout::Old)?;
    let dump = rig.source.ovs.ofctl("dump-flows", &["table=100"])?;
    let lines: Vec<_> =
        text::parse_flow_dump(&dump)?.iter().map(|held| held.flow.to_string()).collect();
    assert_eq!(
        lines,
        [
            "table=100,priority=300,udp,tp_dst=4789,actions=drop",
            "table=100,priority=200,tcp,nw_dst=10.0.0.3,tp_dst=53,actions=output:2",
            "table=100,priority=200,udp,nw_dst=10.0.0.3,tp_dst=53,actions=output:2",
            "table=100,priority=0,actions=goto_table:101",
        ]
    );
    Ok(())
}
