//! The tenants' rules: which to remove, which to put back. Pure.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::journal::Noted;
use crate::{
    cidr::Cidr,
    iptables::rules::{MASQUERADE, Meaning, Rule, parse},
    plan::{Action, Plan},
};

/// The tenants' rules of a node.
pub fn tenants(rules: &[Rule]) -> Vec<Noted> {
    rules.iter().filter(|rule| rule.meaning().is_tenants()).map(noted).collect()
}

fn noted(rule: &Rule) -> Noted {
    let Rule { table, chain, place, .. } = rule;
    Noted { table: table.clone(), chain: chain.clone(), place: *place, spec: rule.spec() }
}

/// The lines that remove these rules.
pub fn removals(rules: &[Noted]) -> Vec<String> {
    rules.iter().map(|Noted { chain, spec, .. }| format!("-D {chain} {spec}")).collect()
}

/// The lines that put back what is missing: of what was there, the rules of the tenants that leave
/// here with the same address still; and such as the original would have made for those that came
/// since, before all others as it does.
pub fn restorations(
    held: &[Rule],
    noted: &[Noted],
    plan: &Plan,
    networks: &BTreeSet<Cidr>,
) -> Vec<String> {
    let wanted = hosted(plan);
    let there: BTreeSet<(&str, String)> =
        held.iter().map(|rule| (rule.chain.as_str(), rule.spec())).collect();
    let mut lines = Vec::new();
    let mut covered = BTreeSet::new();
    for note in noted {
        let Noted { chain, place, spec, .. } = note;
        let mark = match meaning(note) {
            Meaning::Snat { mark, to, .. } if wanted.get(&mark) == Some(&to) => mark,
            Meaning::ClusterMasquerade { mark, .. } if wanted.contains_key(&mark) => mark,
            _ => continue,
        };
        covered.insert(mark);
        if !there.contains(&(chain.as_str(), spec.clone())) {
            // In their order each finds its place again.
            lines.push(format!("-I {chain} {place} {spec}"));
        }
    }
    for (mark, ip) in wanted.iter().filter(|(mark, _)| !covered.contains(*mark)) {
        for network in networks {
            let spec = format!("-s {network} -m mark --mark {mark:#x} -j SNAT --to-source {ip}");
            if !there.contains(&(MASQUERADE, spec.clone())) {
                lines.push(format!("-I {MASQUERADE} 1 {spec}"));
            }
        }
    }
    lines
}

fn meaning(Noted { table, chain, spec, .. }: &Noted) -> Meaning {
    let read = parse(&format!("*{table}\n-A {chain} {spec}\n"));
    read.first().map_or(Meaning::Unknown, Rule::meaning)
}

/// The egress IP on this node of each mark.
pub fn hosted(plan: &Plan) -> BTreeMap<u32, Ipv4Addr> {
    let here: BTreeSet<Ipv4Addr> = plan.addresses.iter().map(|address| address.ip).collect();
    plan.policies
        .iter()
        .filter(|policy| policy.action == Action::Snat)
        .filter_map(|policy| {
            let ip = policy.egress_ips.iter().find(|ip| here.contains(ip))?;
            Some((policy.mark, *ip))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Mapping,
        plan::{Address, Policy},
    };

    const SAVED: &str = "*nat
-A OPENSHIFT-MASQUERADE -m mark --mark 0x1/0x1 -j RETURN
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -d 10.128.0.0/14 -m mark --mark 0x6 -j MASQUERADE
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6 -j SNAT --to-source 10.0.0.11
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x8 -j SNAT --to-source 10.0.0.12
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m comment --comment \"masquerade pod-to-external traffic\" -j OPENSHIFT-MASQUERADE-2
COMMIT
";

    fn plan(tenants: &[(u32, u8)]) -> Plan {
        let ip = |last: &u8| Ipv4Addr::new(10, 0, 0, *last);
        Plan {
            node: "n".into(),
            addresses: tenants
                .iter()
                .map(|(_, last)| Address {
                    ip: ip(last),
                    prefix_len: None,
                    link: None,
                    label: None,
                })
                .collect(),
            policies: tenants
                .iter()
                .map(|(mark, last)| Policy {
                    vnid: *mark,
                    action: Action::Snat,
                    egress_ips: vec![ip(last)],
                    mark: *mark,
                    mapping: Mapping::default(),
                })
                .collect(),
            flows: Vec::new(),
            groups: Vec::new(),
            assignments: Vec::new(),
            conditions: Vec::new(),
        }
    }

    fn networks() -> BTreeSet<Cidr> {
        BTreeSet::from(["10.128.0.0/14".parse().expect("a network")])
    }

    #[test]
    fn only_what_is_one_tenants_goes() {
        let removed = removals(&tenants(&parse(SAVED)));
        assert_eq!(removed.len(), 3, "{removed:?}");
        assert!(
            removed.iter().all(|line| line.contains("--mark 0x6") || line.contains("--mark 0x8"))
        );
    }

    #[test]
    fn what_was_removed_comes_back_in_its_place_once() {
        let rules = parse(SAVED);
        let noted = tenants(&rules);
        let gone: Vec<Rule> =
            rules.iter().filter(|rule| !rule.meaning().is_tenants()).cloned().collect();
        let plan = plan(&[(6, 11), (8, 12)]);
        let lines = restorations(&gone, &noted, &plan, &networks());
        let places: Vec<&str> =
            lines.iter().map(|line| &line[..line.find(" -s").unwrap()]).collect();
        assert_eq!(
            places,
            ["-I OPENSHIFT-MASQUERADE 2", "-I OPENSHIFT-MASQUERADE 3", "-I OPENSHIFT-MASQUERADE 4"]
        );
        assert_eq!(restorations(&rules, &noted, &plan, &networks()), [""; 0], "all is there");
    }

    #[test]
    fn who_came_meanwhile_gets_a_rule_and_who_left_gets_none_back() {
        let noted = tenants(&parse(SAVED));
        let lines = restorations(&[], &noted, &plan(&[(8, 13), (9, 11)]), &networks());
        assert_eq!(
            lines,
            [
                "-I OPENSHIFT-MASQUERADE 1 -s 10.128.0.0/14 -m mark --mark 0x8 -j SNAT --to-source 10.0.0.13",
                "-I OPENSHIFT-MASQUERADE 1 -s 10.128.0.0/14 -m mark --mark 0x9 -j SNAT --to-source 10.0.0.11",
            ]
        );
    }
}
