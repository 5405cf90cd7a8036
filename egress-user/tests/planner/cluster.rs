//! Builds clusters from documents, and plans them.
use std::{collections::BTreeMap, net::Ipv4Addr};

use egress_common::mark::Layout;
use egress_user::{
    condition::Reason,
    model::{self, Objects},
    plan::{Action, Facts, Health, Mode, Plan, Policy, Previous, plan},
};
use serde_json::{Value, json};

/// A cluster, and how it is looked at. `plan` plans it as told and with its documents in reverse,
/// which must be the same.
#[derive(Debug, Clone)]
pub struct Cluster {
    documents: Vec<Value>,
    pub facts: BTreeMap<String, Facts>,
    pub health: Health,
    pub previous: Previous,
    pub mode: Mode,
}

pub fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub fn ips(texts: &[&str]) -> Vec<Ipv4Addr> {
    texts.iter().map(|text| ip(text)).collect()
}

impl Cluster {
    pub fn new(layout: Layout) -> Self {
        Self {
            documents: Vec::new(),
            facts: BTreeMap::new(),
            health: Health::default(),
            previous: Previous::default(),
            mode: Mode { layout, ..Mode::default() },
        }
    }

    /// A node in 10.0.0.0/24; an earlier one of that name is replaced, as by an update.
    pub fn node(self, name: &str, host_ip: &str, egress_ips: &[&str]) -> Self {
        self.automatic_node(name, host_ip, egress_ips, &[])
    }

    pub fn automatic_node(
        mut self,
        name: &str,
        host_ip: &str,
        egress_ips: &[&str],
        egress_cidrs: &[&str],
    ) -> Self {
        let facts = Facts { prefix_len: Some(24), link: Some("ens18".into()), ..Facts::of(name) };
        self.facts.insert(name.into(), facts);
        self.update(json!({
            "apiVersion": "network.openshift.io/v1",
            "kind": "HostSubnet",
            "metadata": {"name": name},
            "host": name,
            "hostIP": host_ip,
            "subnet": "10.128.0.0/23",
            "egressIPs": egress_ips,
            "egressCIDRs": egress_cidrs,
        }))
    }

    /// A namespace; an earlier one of that name is replaced, as by an update.
    pub fn namespace(self, name: &str, vnid: u32, egress_ips: &[&str]) -> Self {
        self.update(json!({
            "apiVersion": "network.openshift.io/v1",
            "kind": "NetNamespace",
            "metadata": {"name": name},
            "netname": name,
            "netid": vnid,
            "egressIPs": egress_ips,
        }))
    }

    pub fn update(mut self, document: Value) -> Self {
        let name = model::object_name(&document);
        self.documents.retain(|old| model::object_name(old) != name);
        self.documents.push(document);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.documents.retain(|document| document["metadata"]["name"] != name);
        self
    }

    pub fn offline(mut self, host_ip: &str) -> Self {
        self.health.offline.insert(ip(host_ip));
        self
    }

    /// It was offline or drained before.
    pub fn left(mut self, host_ip: &str) -> Self {
        self.health.left.insert(ip(host_ip));
        self
    }

    pub fn draining(self, node: &str) -> Self {
        self.annotate_node(node, json!({"egress/draining": "true"}))
    }

    /// Not drained any more.
    pub fn settled(self, node: &str) -> Self {
        self.annotate_node(node, json!({}))
    }

    fn annotate_node(mut self, node: &str, annotations: Value) -> Self {
        let name = format!("HostSubnet/{node}");
        let documents = &mut self.documents;
        let found = documents.iter_mut().find(|document| model::object_name(document) == name);
        found.expect("has the node")["metadata"]["annotations"] = annotations;
        self
    }

    pub fn conflict(mut self, node: &str, egress_ip: &str) -> Self {
        self.facts.get_mut(node).unwrap().conflicts.insert(ip(egress_ip));
        self
    }

    pub fn assigned(mut self) -> Self {
        self.mode.assign = true;
        self
    }

    pub fn objects(&self) -> Objects {
        objects(self.documents.iter())
    }

    pub fn plan(&self, node: &str) -> Plan {
        let Self { documents, facts, health, previous, mode } = self;
        let facts = &facts[node];
        let forth = plan(&objects(documents.iter()), facts, health, previous, mode);
        let back = plan(&objects(documents.iter().rev()), facts, health, previous, mode);
        assert_eq!(forth, back, "the order of events must not matter");
        forth
    }

    /// The policy of a VNID, which must be the same on every node.
    pub fn policy(&self, vnid: u32) -> Policy {
        let policies: Vec<Policy> =
            self.facts.keys().map(|node| self.plan(node).policy(vnid)).collect();
        assert!(policies.iter().all(|policy| *policy == policies[0]), "{policies:?}");
        policies[0].clone()
    }

    /// The egress IPs on each node.
    pub fn hosted(&self) -> BTreeMap<&str, Vec<Ipv4Addr>> {
        self.facts.keys().map(|node| (node.as_str(), self.plan(node).ips())).collect()
    }
}

fn objects<'a>(documents: impl Iterator<Item = &'a Value>) -> Objects {
    let mut objects = Objects::default();
    for document in documents {
        objects.insert(model::parse(document).unwrap());
    }
    objects
}

/// What tests ask a plan.
pub trait Ask {
    fn policy(&self, vnid: u32) -> Policy;
    fn ips(&self) -> Vec<Ipv4Addr>;
    fn reasons(&self) -> Vec<(&str, Reason)>;
}

impl Ask for Plan {
    fn policy(&self, vnid: u32) -> Policy {
        self.policies.iter().find(|policy| policy.vnid == vnid).expect("has a policy").clone()
    }

    fn ips(&self) -> Vec<Ipv4Addr> {
        self.addresses.iter().map(|address| address.ip).collect()
    }

    fn reasons(&self) -> Vec<(&str, Reason)> {
        self.conditions.iter().map(|c| (c.object.as_str(), c.reason)).collect()
    }
}

pub fn is_drop(policy: &Policy) -> bool {
    policy.action == Action::Drop && policy.egress_ips.is_empty()
}
