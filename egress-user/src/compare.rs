//! Where a live node and a plan differ. Pure.
//!
//! What is there and not wanted, wanted and not there, or there otherwise: rules, addresses, flows
//! with their marks, groups; and which source the node gave to connections that the programs, only
//! looking on, would have given another.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{Ipv4Addr, SocketAddrV4},
};

use egress_common::{
    abi::{OriginalKey, OriginalRecord},
    mark::Layout,
};
use serde::Serialize;

use crate::{
    conntrack::{Ends, Entry, ends_of},
    import::{Words, addresses, flows},
    iptables::rules::{self, Meaning},
    ovs::text::{self, Flow, Group},
    plan::Plan,
    takeover::chain,
};

/// One thing that is not as planned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `rule/0x6f7936`, `address/10.0.0.11`, `flow/…`, `group/7`.
    pub object: String,
    /// `None`: the node has nothing of the kind.
    pub live: Option<String>,
    /// `None`: nothing of the kind is planned.
    pub planned: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, live, planned } = self;
        let told = |what: &Option<String>| what.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(f, "{object}: the node has {}, the plan {}", told(live), told(planned))
    }
}

/// All that can be compared of a node's words.
pub fn node(words: &Words, plan: &Plan, layout: Layout) -> Vec<Difference> {
    let mut all = rules_and_addresses(words, plan);
    all.extend(flows_and_groups(words, plan, layout));
    all
}

/// What decides about the source of a connection that the node's own NAT has.
pub fn rules_and_addresses(words: &Words, plan: &Plan) -> Vec<Difference> {
    let mut live: BTreeMap<String, String> = BTreeMap::new();
    for rule in rules::parse(&words.iptables) {
        if let Meaning::Snat { mark, to, .. } = rule.meaning() {
            // The first of a mark is the one that counts.
            live.entry(format!("rule/{mark:#x}")).or_insert(to.to_string());
        }
    }
    let hosted = chain::hosted(plan);
    let planned =
        hosted.iter().map(|(mark, ip)| (format!("rule/{mark:#x}"), ip.to_string())).collect();
    let mut all = differences(&live, &planned);
    all.extend(addresses_of(words, plan));
    all
}

fn addresses_of(words: &Words, plan: &Plan) -> Vec<Difference> {
    let (held, _) = addresses::parse(&words.addresses);
    let planned: BTreeSet<Ipv4Addr> = plan.addresses.iter().map(|address| address.ip).collect();
    // Without a label it cannot be told from the node's own unless it is planned.
    let live = held
        .iter()
        .filter(|address| address.label.ends_with(":eip") || planned.contains(&address.ip))
        .map(|address| (format!("address/{}", address.ip), "it".to_owned()))
        .collect();
    let planned = planned.iter().map(|ip| (format!("address/{ip}"), "it".to_owned())).collect();
    differences(&live, &planned)
}

fn flows_and_groups(words: &Words, plan: &Plan, layout: Layout) -> Vec<Difference> {
    let table = match layout {
        Layout::Old => 100,
        Layout::New => 101,
    };
    let live = text::lines_of(&words.flows, "OFPST_FLOW")
        .filter_map(|line| Flow::parse(line).ok())
        .filter(|flow| flow.on.table == table && !flows::is_fixed(flow));
    let planned = plan.flows.iter().filter_map(|line| Flow::parse(&numbered(line)).ok());
    let by_match = |flow: Flow| {
        let actions = flow.actions.join(",");
        (format!("flow/{}", flow.on), if actions.is_empty() { "drop".to_owned() } else { actions })
    };
    let mut all = differences(&live.map(by_match).collect(), &planned.map(by_match).collect());
    let live = text::lines_of(&words.groups, "OFPST_GROUP_DESC")
        .filter_map(|line| Group::parse(line).ok());
    let planned = plan.groups.iter().filter_map(|line| Group::parse(&numbered(line)).ok());
    let by_id = |group: Group| {
        // Open vSwitch keeps no order of buckets.
        let buckets: BTreeSet<String> = group.buckets.into_iter().collect();
        let buckets: Vec<String> = buckets.into_iter().collect();
        (format!("group/{}", group.id), format!("{} {}", group.kind, buckets.join(" ")))
    };
    all.extend(differences(&live.map(by_id).collect(), &planned.map(by_id).collect()));
    all
}

/// The ports' usual numbers, where the plan was made without the bridge.
fn numbered(line: &str) -> String {
    line.replace("output:vxlan0", "output:1").replace("output:tun0", "output:2")
}

fn differences(
    live: &BTreeMap<String, String>,
    planned: &BTreeMap<String, String>,
) -> Vec<Difference> {
    let objects: BTreeSet<&String> = live.keys().chain(planned.keys()).collect();
    objects
        .into_iter()
        .map(|object| Difference {
            object: object.clone(),
            live: live.get(object).cloned(),
            planned: planned.get(object).cloned(),
        })
        .filter(|difference| difference.live != difference.planned)
        .collect()
}

/// A connection that the node translated while the programs looked on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    pub vnid: u32,
    pub protocol: u8,
    pub pod: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// The source that the node gave it.
    pub got: SocketAddrV4,
    /// The source that the programs would have given it.
    pub planned: SocketAddrV4,
}

impl Seen {
    /// Whether the outside would have seen somebody else. Ports are nobody's name.
    pub fn differs(&self) -> bool {
        self.got.ip() != self.planned.ip()
    }
}

/// Of each flow that the programs decided, what the node did. What it has forgotten is left out.
pub fn traffic(decided: &[(OriginalKey, OriginalRecord)], entries: &[Entry]) -> Vec<Seen> {
    let got: BTreeMap<Ends, SocketAddrV4> =
        entries.iter().map(|entry| (entry.original, entry.seen_as)).collect();
    let end = |ip: [u8; 4], port: [u8; 2]| (Ipv4Addr::from(ip), u16::from_be_bytes(port));
    let mut seen: Vec<Seen> = decided
        .iter()
        .filter_map(|(key, flow)| {
            let (pod, remote) = (end(key.pod, key.pod_port), end(key.remote, key.remote_port));
            let ends = ends_of(key.protocol(), pod, remote);
            let (ip, port) = end(flow.egress_ip, flow.egress_port);
            Some(Seen {
                vnid: key.vnid(),
                protocol: key.protocol(),
                pod: ends.source,
                remote: ends.destination,
                got: *got.get(&ends)?,
                planned: SocketAddrV4::new(ip, port),
            })
        })
        .collect();
    seen.sort();
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Mapping,
        plan::{Action, Address, Policy},
    };

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);

    fn plan() -> Plan {
        Plan {
            node: "n".into(),
            addresses: vec![Address { ip: IP, prefix_len: Some(24), link: None, label: None }],
            policies: vec![Policy { vnid: 7, action: Action::Snat, egress_ips: vec![IP], mark: 6, mapping: Mapping::default() }],
            flows: vec!["table=101,priority=100,ip,reg0=0x7 actions=group:7".into()],
            groups: vec![
                "group_id=7,type=select,bucket=actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6->pkt_mark,output:tun0".into(),
            ],
            assignments: Vec::new(),
            conditions: Vec::new(),
        }
    }

    fn words() -> Words {
        Words {
            iptables: "*nat\n-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6 -j SNAT --to-source 10.0.0.11\n".into(),
            addresses: "2: e: <UP>\n inet 10.0.0.2/24 scope global e\n inet 10.0.0.11/24 scope global secondary e:eip\n".into(),
            flows: " table=101, priority=150,ct_state=+rpl actions=output:2\n table=101, priority=100,ip,reg0=0x7 actions=group:7\n".into(),
            groups: " group_id=7,type=select,bucket=bucket_id:0,actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6->pkt_mark,output:2\n".into(),
            ..Words::default()
        }
    }

    fn objects(words: &Words) -> Vec<String> {
        node(words, &plan(), Layout::New).into_iter().map(|found| found.object).collect()
    }

    #[test]
    fn a_node_as_planned_does_not_differ() {
        assert_eq!(objects(&words()), [""; 0]);
    }

    #[test]
    fn each_kind_of_difference_names_its_object() {
        let none = objects(&Words::default());
        let flow = "flow/table=101,priority=100,ip,reg0=0x7";
        assert_eq!(none, ["rule/0x6", "address/10.0.0.11", flow, "group/7"]);
        let words = words();
        for (of, changed) in [
            ("rule/0x6", Words { iptables: words.iptables.replace(".11", ".12"), ..words.clone() }),
            (
                "address/10.0.0.12",
                Words {
                    addresses: format!(
                        "{}inet 10.0.0.12/24 scope global secondary e:eip",
                        words.addresses
                    ),
                    ..words.clone()
                },
            ),
            (flow, Words { flows: words.flows.replace("group:7", "output:2"), ..words.clone() }),
            ("group/7", Words { groups: words.groups.replace("0x6", "0x7"), ..words.clone() }),
        ] {
            assert_eq!(objects(&changed), [of]);
        }
        let wrong = Words { iptables: words.iptables.replace(".11", ".12"), ..words };
        let told = node(&wrong, &plan(), Layout::New)[0].to_string();
        assert_eq!(told, "rule/0x6: the node has 10.0.0.12, the plan 10.0.0.11");
    }
}
