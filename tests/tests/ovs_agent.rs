//! The agent on real Open vSwitch, on both nodes: what the outside sees, and what the bridges hold.
use anyhow::Result;
use egress_tests::{
    netns::Netns,
    ovs::{OUTSIDE, OvsRig, agent},
    report::Witness,
};
use egress_user::ovs::Layout;

#[test]
#[ignore = "needs root"]
fn every_pod_is_seen_with_the_egress_ip_of_its_namespace_in_both_layouts() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let nodes = [&rig.egress, &rig.source];
        let [egress, source] = nodes.map(|node| Netns::open(node.netns.name()));
        let (egress, source) = (egress?, source?);
        let egress = agent::start(&rig.egress, &egress)?;
        let source = agent::start(&rig.source, &source)?;
        for row in Witness::start(rig.outside.name(), OUTSIDE)?.observe_all(&rig.talkers())? {
            assert!(row.ok, "{layout:?}: {row:?}\n{}\n{}", egress.log(), source.log());
        }
    }
    Ok(())
}
