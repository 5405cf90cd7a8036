//! The flows that OpenShift SDN puts on its bridge, without egress IPs: the foreign owner's part.
//!
//! Both layouts, with the tables and priorities that a node of the cluster shows. Pods are allowed
//! to reach pods of their own VNID and of VNID 0, as the multi-tenant plugin does.
use std::net::Ipv4Addr;

use egress_user::ovs::Layout;

use super::{CLUSTER, Pod, SERVICES, Site};

const TO_TUNNEL: &str = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31]";

/// All flows of `site`'s bridge; `others` are the nodes that it has tunnels to.
pub fn flows<'a>(
    layout: Layout,
    site: &Site,
    others: impl Iterator<Item = &'a Site>,
    pods: &[Pod],
) -> Vec<String> {
    let mut flows = fixed(site);
    flows.extend(match layout {
        Layout::Old => outbound_old(site.address),
        Layout::New => outbound_new(site.address),
    });
    flows.extend(others.flat_map(of_node));
    flows.extend(pods.iter().flat_map(of_pod));
    flows
}

/// What both layouts share. A packet from another node is either a pod's that leaves here (by source)
/// or an answer to one of our pods (by destination).
fn fixed(site: &Site) -> Vec<String> {
    let (subnet, gateway) = (site.subnet(), site.gateway);
    let incoming = "move:NXM_NX_TUN_ID[0..31]->NXM_NX_REG0[],goto_table:10";
    let mut flows = vec![
        "table=0,priority=1000,ip,ct_state=-trk,actions=ct(table=0)".to_owned(),
        format!("table=0,priority=400,in_port=2,ip,nw_src={gateway},actions=goto_table:30"),
        format!(
            "table=0,priority=300,in_port=2,ip,nw_src={subnet},nw_dst={CLUSTER},actions=goto_table:25"
        ),
        "table=0,priority=250,in_port=2,ip,nw_dst=224.0.0.0/4,actions=drop".to_owned(),
        format!(
            "table=0,priority=200,in_port=1,arp,nw_src={CLUSTER},nw_dst={subnet},actions={incoming}"
        ),
        format!("table=0,priority=200,in_port=1,ip,nw_src={CLUSTER},actions={incoming}"),
        format!("table=0,priority=200,in_port=1,ip,nw_dst={CLUSTER},actions={incoming}"),
        format!(
            "table=0,priority=200,in_port=2,arp,nw_src={gateway},nw_dst={CLUSTER},actions=goto_table:30"
        ),
        "table=0,priority=200,in_port=2,ip,actions=goto_table:30".to_owned(),
        format!("table=21,priority=200,ip,nw_dst={CLUSTER},actions=ct(commit,table=30)"),
        format!("table=30,priority=300,arp,nw_dst={gateway},actions=output:2"),
        format!("table=30,priority=300,ip,nw_dst={gateway},actions=output:2"),
        format!("table=30,priority=200,arp,nw_dst={subnet},actions=goto_table:40"),
        format!("table=30,priority=200,ip,nw_dst={subnet},actions=goto_table:70"),
        format!("table=30,priority=100,arp,nw_dst={CLUSTER},actions=goto_table:50"),
        format!("table=30,priority=100,ip,nw_dst={CLUSTER},actions=goto_table:90"),
        format!("table=30,priority=100,ip,nw_dst={SERVICES},actions=goto_table:60"),
        format!("table=80,priority=300,ip,nw_src={gateway},actions=output:NXM_NX_REG2[]"),
    ];
    let rest = [
        "table=0,priority=150,in_port=1,actions=drop",
        "table=0,priority=150,in_port=2,actions=drop",
        "table=0,priority=100,arp,actions=goto_table:20",
        "table=0,priority=100,ip,actions=goto_table:20",
        "table=0,priority=0,actions=drop",
        "table=10,priority=0,actions=drop",
        "table=20,priority=0,actions=drop",
        "table=21,priority=0,actions=goto_table:30",
        "table=25,priority=0,actions=drop",
        "table=30,priority=50,in_port=1,ip,nw_dst=224.0.0.0/4,actions=goto_table:120",
        "table=30,priority=25,ip,nw_dst=224.0.0.0/4,actions=goto_table:110",
        "table=30,priority=0,arp,actions=drop",
        "table=40,priority=0,actions=drop",
        "table=50,priority=0,actions=drop",
        "table=60,priority=200,actions=output:2",
        "table=70,priority=0,actions=drop",
        "table=80,priority=200,ct_state=+rpl,actions=output:NXM_NX_REG2[]",
        "table=80,priority=200,reg0=0,actions=output:NXM_NX_REG2[]",
        "table=80,priority=0,actions=drop",
        "table=90,priority=0,actions=drop",
        "table=110,priority=0,actions=drop",
        "table=111,priority=100,actions=goto_table:120",
        "table=120,priority=0,actions=drop",
    ];
    flows.extend(rest.map(str::to_owned));
    flows
}

/// Version 7: egress IPs belong into table 100, before the network policy in table 101.
fn outbound_old(node: Ipv4Addr) -> Vec<String> {
    vec![
        "table=30,priority=0,ip,actions=goto_table:100".to_owned(),
        "table=100,priority=300,udp,udp_dst=4789,actions=drop".to_owned(),
        format!("table=100,priority=200,tcp,nw_dst={node},tcp_dst=53,actions=output:2"),
        format!("table=100,priority=200,udp,nw_dst={node},udp_dst=53,actions=output:2"),
        "table=100,priority=0,actions=goto_table:101".to_owned(),
        "table=101,priority=0,actions=output:2".to_owned(),
        "table=253,actions=note:01.07".to_owned(),
    ]
}

/// Version 13: the network policy is table 100, egress IPs belong into table 101.
fn outbound_new(node: Ipv4Addr) -> Vec<String> {
    vec![
        "table=20,priority=300,udp,udp_dst=4789,actions=drop".to_owned(),
        "table=30,priority=0,ip,actions=goto_table:99".to_owned(),
        format!("table=99,priority=200,tcp,nw_dst={node},tcp_dst=53,actions=output:2"),
        format!("table=99,priority=200,udp,nw_dst={node},udp_dst=53,actions=output:2"),
        "table=99,priority=0,actions=goto_table:100".to_owned(),
        "table=100,priority=0,actions=goto_table:101".to_owned(),
        "table=101,priority=150,ct_state=+rpl,actions=output:2".to_owned(),
        "table=101,priority=0,actions=output:2".to_owned(),
        "table=253,actions=note:01.0D".to_owned(),
    ]
}

fn of_node(node: &Site) -> [String; 3] {
    let (address, subnet) = (node.address, node.subnet());
    let tunnel = format!("{TO_TUNNEL},set_field:{address}->tun_dst,output:1");
    [
        format!("table=10,priority=100,tun_src={address},actions=goto_table:30"),
        format!("table=50,priority=100,arp,nw_dst={subnet},actions={tunnel}"),
        format!("table=90,priority=100,ip,nw_dst={subnet},actions={tunnel}"),
    ]
}

fn of_pod(pod: &Pod) -> [String; 6] {
    let Pod { port, address, vnid, mac, .. } = pod;
    let tag = format!("load:{vnid}->NXM_NX_REG0[]");
    [
        format!(
            "table=20,priority=100,in_port={port},arp,nw_src={address},arp_sha={mac},actions={tag},goto_table:21"
        ),
        format!(
            "table=20,priority=100,in_port={port},ip,nw_src={address},actions={tag},goto_table:21"
        ),
        format!("table=25,priority=100,ip,nw_src={address},actions={tag},goto_table:30"),
        format!("table=40,priority=100,arp,nw_dst={address},actions=output:{port}"),
        format!(
            "table=70,priority=100,ip,nw_dst={address},actions=load:{vnid}->NXM_NX_REG1[],load:{port}->NXM_NX_REG2[],goto_table:80"
        ),
        format!("table=80,priority=100,reg0={vnid},reg1={vnid},actions=output:NXM_NX_REG2[]"),
    ]
}

#[cfg(test)]
mod tests {
    use egress_user::ovs::text::Flow;

    use super::*;
    use crate::ovs::{EGRESS_NODE, SOURCE_NODE};

    #[test]
    fn no_two_flows_of_a_layout_have_one_match() {
        for layout in [Layout::Old, Layout::New] {
            let lines = flows(layout, &SOURCE_NODE, [&EGRESS_NODE].into_iter(), &[]);
            let mut matches: Vec<_> =
                lines.iter().map(|line| Flow::parse(line).unwrap().on).collect();
            matches.sort();
            let all = matches.len();
            matches.dedup();
            assert_eq!(matches.len(), all, "{layout:?}");
        }
    }
}
