//! Over real dumps of Open vSwitch 3.1 and the lines that the planner writes.
use super::*;

const FLOWS: &str = "\
OFPST_FLOW reply (OF1.3) (xid=0x2):
 cookie=0x0, duration=0.003s, table=20, n_packets=0, n_bytes=0, priority=100,arp,in_port=3,arp_spa=10.128.0.5,arp_sha=00:00:0a:80:00:05/00:00:ff:ff:ff:ff actions=load:0x6f7936->NXM_NX_REG0[],goto_table:21
 cookie=0x0, duration=0.003s, table=21, n_packets=0, n_bytes=0, priority=200,ip,nw_dst=10.128.0.0/14 actions=ct(commit,table=30)
 cookie=0x0, duration=0.003s, table=70, n_packets=0, n_bytes=0, idle_timeout=30, actions=drop
OFPST_FLOW reply (OF1.3) (xid=0x2):
 cookie=0x0, duration=0.003s, table=100, n_packets=7, n_bytes=9, priority=200,udp,nw_dst=10.0.0.3,tp_dst=53 actions=output:2
 cookie=0x0, duration=0.003s, table=100, n_packets=0, n_bytes=0, priority=100,ip,reg0=0xdf6554 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x1df6552->pkt_mark,goto_table:101
 cookie=0x6567726573733031, duration=0.003s, table=101, n_packets=0, n_bytes=0, priority=100,ip,reg0=0x6f7936 actions=ct(commit),group:7305526
 cookie=0x0, duration=0.003s, table=253, n_packets=0, n_bytes=0, actions=note:01.0c.00.00.00.00
";

const GROUPS: &str = "\
OFPST_GROUP_DESC reply (OF1.3) (xid=0x2):
 group_id=7305526,type=select,bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1,bucket=actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.4->tun_dst,output:1
 group_id=5,type=select,bucket=bucket_id:0,weight:1,actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6f7936->pkt_mark,output:2
";

fn flow(line: &str) -> Flow {
    Flow::parse(line).unwrap()
}

#[test]
fn a_dumped_flow_equals_the_line_that_made_it() {
    let held = parse_flow_dump(FLOWS).unwrap();
    assert_eq!(held.len(), 7, "headlines are no flows");
    for (at, line) in [
        (
            0,
            "table=20,priority=100,in_port=3,arp,nw_src=10.128.0.5,\
             arp_sha=00:00:0A:80:00:05/00:00:ff:ff:ff:ff,\
             actions=load:7305526->NXM_NX_REG0[],goto_table:21",
        ),
        (1, "table=21, priority=200, ip, nw_dst=10.128.0.0/14, actions=ct(commit,table=30)"),
        (2, "table=70,actions=drop"),
        (3, "table=100,priority=200,udp,udp_dst=53,nw_dst=10.0.0.3/32,actions=2"),
        (
            4,
            "table=100,priority=100,reg0=0x00DF6554,ip,actions=set_field:22:3B:A9:A4:8E:0C->eth_dst,\
             set_field:0x01df6552->pkt_mark,goto_table:101",
        ),
        (5, "table=101,priority=100,ip,reg0=7305526,actions=ct(commit),group:7305526"),
    ] {
        assert_eq!(held[at].flow, flow(line), "{line}");
    }
}

#[test]
fn the_cookie_of_a_dumped_flow_is_read() {
    let held = parse_flow_dump(FLOWS).unwrap();
    assert_eq!(held[5].cookie, u64::from_be_bytes(*b"egress01"));
    assert_eq!(held[4].cookie, 0);
}

#[test]
fn a_flow_prints_as_the_planner_writes_it() {
    for line in [
        "table=100,priority=100,ip,reg0=0x6f7936,actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1",
        "table=101,priority=100,reg0=0x6f7936,actions=drop",
        "table=101,priority=100,ip,reg0=0x6f7936,actions=ct(commit),group:7305526",
    ] {
        assert_eq!(flow(line).to_string(), line);
    }
}

#[test]
fn dumped_groups_equal_the_lines_that_made_them() {
    let groups = parse_group_dump(GROUPS).unwrap();
    let remote = "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1";
    let other = remote.replace("0.2", "0.4");
    for line in [
        format!("group_id=7305526,type=select,bucket={remote}bucket={other}"),
        format!("group_id=7305526,type=select,bucket={remote},bucket=actions={other}"),
        groups[0].to_string(),
    ] {
        assert_eq!(groups[0], Group::parse(&line).unwrap(), "{line}");
    }
    let local = "group_id=0x5,type=select,bucket=set_field:22:3b:a9:a4:8e:0c->eth_dst,\
                 set_field:0x006f7936->pkt_mark,output:2";
    assert_eq!(groups[1], Group::parse(local).unwrap());
}

#[test]
fn groups_are_found_in_actions_and_buckets() {
    assert_eq!(
        flow("table=1,actions=ct(commit),group:7,output:1").groups().collect::<Vec<_>>(),
        [7]
    );
    assert_eq!(flow("actions=clone(group:8)").groups().collect::<Vec<_>>(), [8]);
    let group = Group::parse("group_id=1,bucket=group:9").unwrap();
    assert_eq!(group.groups().collect::<Vec<_>>(), [9]);
}

#[test]
fn the_note_tells_the_rule_version() {
    assert_eq!(rule_version(FLOWS), Some(0x0c));
    assert_eq!(rule_version("OFPST_FLOW reply (OF1.3) (xid=0x2):\n"), None);
    assert_eq!(rule_version("actions=note:zz"), None);
}

#[test]
fn a_match_names_its_vnid() {
    assert_eq!(flow("reg0=0x6f7936,actions=drop").on.vnid(), Some(7_305_526));
    assert_eq!(flow("reg0=0x1/0x1,actions=drop").on.vnid(), None);
}

#[test]
fn overlap_is_where_one_packet_could_match_both() {
    let on = |line: &str| flow(&format!("table=101,priority=100,{line},actions=drop")).on;
    let wanted = on("ip,reg0=0x5");
    for (other, expected) in [
        ("ip,reg0=0x5", true),
        ("reg0=0x5", true),
        ("tcp,reg0=0x5", true),
        ("arp,reg0=0x5", false),
        ("ip,reg0=0x6", false),
        ("ip,reg0=0x4/0x4", true),
        ("ip,reg0=0x2/0x2", false),
        ("ip,nw_dst=10.0.0.0/8", true),
        ("ct_state=+rpl", true),
    ] {
        assert_eq!(wanted.overlaps(&on(other)), expected, "{other}");
        assert_eq!(on(other).overlaps(&wanted), expected, "{other}, the other way");
    }
    let subnet = on("ip,nw_dst=10.128.0.0/14");
    assert!(subnet.overlaps(&on("ip,nw_dst=10.129.0.7")));
    assert!(!subnet.overlaps(&on("ip,nw_dst=10.132.0.0/255.255.0.0")));
    assert!(!wanted.overlaps(&flow("table=101,priority=150,ip,reg0=0x5,actions=drop").on));
    assert!(!wanted.overlaps(&flow("table=100,priority=100,ip,reg0=0x5,actions=drop").on));
}

#[test]
fn what_cannot_be_read_is_named() {
    for line in ["table=1,ip", "table=256,actions=drop", "priority=x,actions=drop"] {
        let error = Flow::parse(line).unwrap_err().to_string();
        assert!(error.contains(line), "{error}");
    }
    assert!(Flow::parse("ip,tcp,actions=drop").is_err());
    assert!(Group::parse("type=select,bucket=output:1").is_err());
    assert!(parse_flow_dump("ovs-ofctl: something else").is_err());
}

#[test]
fn a_pod_and_its_vnid_are_read_from_table_20() {
    let pod = |line: &str| Flow::parse(line).expect("a flow").pod();
    let ip = "10.128.0.5".parse().expect("an address");
    let line = "table=20,priority=100,in_port=5,ip,nw_src=10.128.0.5,\
                actions=load:0x6f7936->NXM_NX_REG0[],goto_table:21";
    assert_eq!(pod(line), Some((ip, 0x6f_7936)));
    assert_eq!(pod(&line.replace("0x6f7936", "0")), Some((ip, 0)));
    assert_eq!(pod(&line.replace(",ip,", ",arp,")), None);
    assert_eq!(pod("table=20,priority=0,actions=drop"), None);
}
