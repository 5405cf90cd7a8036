use std::fmt::Write as _;

use super::*;
use crate::{
    ovs::text::{Flow, Group},
    plan::{Facts, Health, Mode, Plan, Previous, plan},
    source::files::Input,
};

/// The origin notes' last dumps of the egress node, as they stand there.
const NOTES_RULES: &str = "\
Chain OPENSHIFT-MASQUERADE (1 references)
num  target     prot opt source               destination
1    SNAT       all  --  10.128.0.0/14        0.0.0.0/0            mark match 0x2ec40e to:10.0.0.12
2    SNAT       all  --  10.128.0.0/14        0.0.0.0/0            mark match 0x6f7936 to:10.0.0.11
3    SNAT       all  --  10.128.0.0/14        0.0.0.0/0            mark match 0x6f7936 to:10.0.0.12
4    SNAT       all  --  10.128.0.0/14        0.0.0.0/0            mark match 0x1df6552 to:10.0.0.12
5    OPENSHIFT-MASQUERADE-2  all  --  10.128.0.0/14        0.0.0.0/0            /* masquerade pod-to-external traffic */
";
const NOTES_FLOWS: &str = "\
OFPST_FLOW reply (OF1.3) (xid=0x2):
 table=100, priority=300,udp,tp_dst=4789 actions=drop
 table=100, priority=200,tcp,nw_dst=10.0.0.2,tp_dst=53 actions=output:2
 table=100, priority=200,udp,nw_dst=10.0.0.2,tp_dst=53 actions=output:2
 table=100, priority=100,ip,reg0=0x6f7936 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6f7936->pkt_mark,goto_table:101
 table=100, priority=100,ip,reg0=0xdf6553 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x1df6552->pkt_mark,goto_table:101
 table=100, priority=123,ip,reg0=0x2ec40e actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x2ec40e->pkt_mark,goto_table:101
 table=100, priority=0 actions=goto_table:101
";
/// Of its `oc get netnamespace`; the third is the one made by hand later.
const NOTES_NAMES: &str = "\
NAME                    NETID      EGRESS IPS
dbtest                  8935821    []
egress-test             7305526    [10.0.0.11]
egress-test2            14640467   [10.0.0.13]
egress-test3            3064846    []
gitea                   12235633   []
";
const ADDRESSES: &str = "\
2: ens18: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc mq state UP group default qlen 1000
    inet 10.0.0.2/24 brd 10.0.0.255 scope global noprefixroute ens18
    inet 10.0.0.11/24 brd 10.0.0.255 scope global secondary ens18
    inet 10.0.0.13/24 brd 10.0.0.255 scope global secondary ens18
    inet 10.0.0.12/24 brd 10.0.0.255 scope global secondary ens18
7: tun0: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1450 qdisc noqueue state UNKNOWN group default qlen 1000
    inet 10.130.0.1/23 brd 10.130.1.255 scope global tun0
";

fn notes() -> Words {
    Words {
        node: "ocprouter01".into(),
        iptables: NOTES_RULES.into(),
        flows: NOTES_FLOWS.into(),
        addresses: ADDRESSES.into(),
        namespaces: NOTES_NAMES.into(),
        ..Words::default()
    }
}

/// The plan of the node that was imported, made of the documents alone.
fn planned(imported: &Imported) -> Plan {
    let mut input = Input::default();
    input.add_text(&write::yaml(imported).unwrap(), "imported").unwrap();
    let Input { objects, config } = input;
    let config = config.expect("an AgentConfig");
    assert_eq!(objects.conditions, [], "what is imported is taken as it is");
    let facts = Facts {
        prefix_len: config.node.ip.and_then(|ip| ip.prefix_len),
        gateway_mac: config.gateway_mac.unwrap_or_default(),
        ..Facts::of(config.node.name.expect("a name"))
    };
    let mode = Mode {
        layout: config.compat.layout().unwrap_or(Layout::New),
        masquerade_bit: config.masquerade_bit,
        ..Mode::default()
    };
    plan(&objects, &facts, &Health::default(), &Previous::default(), &mode)
}

#[test]
fn the_notes_dumps_give_the_notes_three_namespaces() {
    let imported = import(&notes());
    let policies: Vec<String> = planned(&imported)
        .policies
        .iter()
        .map(|policy| format!("{} {:?} {:#x}", policy.vnid, policy.egress_ips, policy.mark))
        .collect();
    assert_eq!(
        policies,
        [
            "3064846 [10.0.0.12] 0x2ec40e",
            "7305526 [10.0.0.11] 0x6f7936",
            "14640467 [10.0.0.13] 0x1df6552",
        ]
    );
    assert_eq!(imported.layout, Some(Layout::Old));
    assert_eq!(imported.node.uplink.as_deref(), Some("ens18"));
    assert_eq!(imported.vxlan_port, Some(4789));
}

#[test]
fn what_was_done_by_hand_and_contradicts_itself_is_told_line_by_line() {
    let told = import(&notes()).told;
    for part in [
        "never reached: rule 3 of OPENSHIFT-MASQUERADE gives mark 0x6f7936 10.0.0.12",
        "VNID 14640467 leaves with 10.0.0.12, but NetNamespace egress-test2 asks for 10.0.0.13",
        "the flow of VNID 3064846 has priority 123",
        "no other node is known",
        "no service network is known",
    ] {
        assert!(told.iter().any(|line| line.contains(part)), "{part}: {told:#?}");
    }
    assert_eq!(told.len(), 5, "{told:#?}");
}

#[test]
fn without_the_namespaces_two_vnids_share_an_address_and_that_is_told() {
    let told = import(&Words { namespaces: String::new(), ..notes() }).told;
    let shared = "10.0.0.12 is the egress IP of VNIDs 3064846, 14640467";
    assert!(told.iter().any(|line| line.starts_with(shared)), "{told:#?}");
}

#[test]
fn rules_alone_leave_it_open_whose_a_moved_mark_is() {
    let words = Words { iptables: NOTES_RULES.into(), ..Words::default() };
    let imported = import(&words);
    let vnids: Vec<u32> = imported.tenants.keys().copied().collect();
    assert_eq!(vnids, [3_064_846, 7_305_526, 14_640_467], "bit 0, as the original's default");
    let ambiguous = |mark: &str| {
        imported.told.iter().any(|line| line.starts_with(&format!("mark {mark} is taken for VNID")))
    };
    assert!(ambiguous("0x1df6552"), "{:#?}", imported.told);
    assert!(!ambiguous("0x6f7936"), "no bit of it can have been moved");
}

#[test]
fn kube_proxys_bit_settles_it() {
    let bit = "*nat\n-A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1\nCOMMIT\n";
    let words = Words { iptables: format!("{bit}{NOTES_RULES}"), ..Words::default() };
    let told = import(&words).told;
    assert!(!told.iter().any(|line| line.contains("masquerade bit")), "{told:#?}");
}

#[test]
fn a_source_node_knows_the_way_and_not_the_address() {
    let flows = "\
 cookie=0x0, duration=505.625s, table=100, n_packets=0, n_bytes=0, priority=100,ip,reg0=0xdf6553 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1
 cookie=0x0, duration=96.343s, table=100, n_packets=0, n_bytes=0, priority=100,ip,reg0=0x6f7936 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1
";
    let words = Words { flows: flows.into(), ..Words::default() };
    let imported = import(&words);
    assert_eq!(imported.tenants, BTreeMap::new());
    let told = "VNID 14640467 leaves by 10.0.0.2: its egress IP is known there";
    assert!(imported.told.iter().any(|line| line.starts_with(told)), "{:#?}", imported.told);
    // With the namespaces it is known.
    let imported = import(&Words { namespaces: NOTES_NAMES.into(), ..words });
    let node = &imported.others[&Ipv4Addr::new(10, 0, 0, 2)];
    assert_eq!(node.egress_ips.len(), 2);
}

#[test]
fn what_is_not_understood_is_named_and_nothing_else_is_lost() {
    let mut words = notes();
    words.iptables +=
        "6    SNAT       tcp  --  10.9.0.0/16          0.0.0.0/0            to:10.0.0.9\n";
    words.flows += " table=100, priority=100,ip,reg0=0x7 actions=resubmit(,3)\n what is this\n";
    words.groups = "group_id=7,type=select,bucket=actions=controller\n".into();
    words.addresses += "    inet elsewhere scope global tun0\n";
    let imported = import(&words);
    for part in ["SNAT       tcp", "reg0=0x7", "what is this", "group_id=7", "inet elsewhere"] {
        let named = |line: &&String| line.starts_with("not understood: ") && line.contains(part);
        assert_eq!(imported.told.iter().filter(named).count(), 1, "{part}: {:#?}", imported.told);
    }
    assert_eq!(planned(&imported).policies.len(), 3);
}

/// Three tenants here and one elsewhere, as their plan would have them on this node.
fn objects() -> Input {
    let mut input = Input::default();
    let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: HostSubnet, metadata: {name: here}, host: here, hostIP: 10.0.0.2, subnet: 10.130.0.0/23, egressIPs: [10.0.0.11, 10.0.0.12, 10.0.0.13]}
- {apiVersion: v1, kind: HostSubnet, metadata: {name: node-10.0.0.3}, host: node-10.0.0.3, hostIP: 10.0.0.3, subnet: 10.128.0.0/23, egressIPs: [10.0.0.14]}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: vnid-7305526}, netname: a, netid: 7305526, egressIPs: [10.0.0.11]}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: vnid-14640467}, netname: b, netid: 14640467, egressIPs: [10.0.0.13]}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: vnid-3064846}, netname: c, netid: 3064846, egressIPs: [10.0.0.12]}
- {apiVersion: v1, kind: NetNamespace, metadata: {name: elsewhere}, netname: d, netid: 77, egressIPs: [10.0.0.14]}
";
    input.add_text(text, "objects").unwrap();
    input
}

/// A plan as the node's own tools would tell it when it is in force.
fn in_force(plan: &Plan, mode: &Mode) -> Words {
    let mut iptables = format!(
        "*nat\n-A KUBE-MARK-MASQ -j MARK --set-xmark {0:#x}/{0:#x}\n",
        1_u32 << mode.masquerade_bit
    );
    let mut addresses =
        "2: ens18: <UP> mtu 1500\n    inet 10.0.0.2/24 scope global ens18\n".to_owned();
    for address in &plan.addresses {
        let ip = address.ip;
        writeln!(addresses, "    inet {ip}/24 scope global secondary ens18:eip").unwrap();
    }
    addresses += "3: tun0: <UP> mtu 1450\n    inet 10.130.0.1/23 scope global tun0\n";
    for policy in &plan.policies {
        for ip in &policy.egress_ips {
            let mark = policy.mark;
            if plan.addresses.iter().any(|address| address.ip == *ip) {
                writeln!(iptables, "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark {mark:#x} -j SNAT --to-source {ip}").unwrap();
            }
        }
    }
    let flows = plan.flows.join("\n")
        + "\ntable=10,priority=100,tun_src=10.0.0.3 actions=goto_table:30\
           \ntable=90,priority=100,ip,nw_dst=10.128.0.0/23 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.3->tun_dst,output:1\
           \ntable=30,priority=100,ip,nw_dst=172.30.0.0/16 actions=goto_table:60\n";
    Words {
        node: "here".into(),
        iptables,
        flows,
        groups: plan.groups.join("\n"),
        addresses,
        namespaces: "elsewhere 77 [10.0.0.14]\n".into(),
    }
}

#[test]
fn a_plan_in_force_is_imported_and_planned_as_it_was() {
    for (layout, masquerade_bit) in
        [(Layout::Old, 0), (Layout::New, 0), (Layout::Old, 14), (Layout::New, 14)]
    {
        let mode = Mode { layout, masquerade_bit, ..Mode::default() };
        let facts = Facts {
            prefix_len: Some(24),
            gateway_mac: Mac([0x22, 0x3b, 0xa9, 0xa4, 0x8e, 0x0c]),
            ..Facts::of("here")
        };
        let before =
            plan(&objects().objects, &facts, &Health::default(), &Previous::default(), &mode);
        assert_eq!((before.flows.len(), before.addresses.len()), (4, 3));
        let words = in_force(&before, &mode);
        let imported = import(&words);
        assert_eq!(imported.told, [""; 0], "{layout:?} {masquerade_bit}");
        let after = planned(&imported);
        assert_eq!(after.addresses, before.addresses);
        assert_eq!(after.policies, before.policies);
        let canonical = |plan: &Plan| -> (Vec<Flow>, Vec<Group>) {
            let flows = plan.flows.iter().map(|line| Flow::parse(line).unwrap());
            (flows.collect(), plan.groups.iter().map(|line| Group::parse(line).unwrap()).collect())
        };
        assert_eq!(canonical(&after), canonical(&before), "{layout:?} {masquerade_bit}");
    }
}
