//! The tenants' rules: which to remove, which to put back; and the one that masquerades pods: it is
//! narrowed to the interfaces that the programs are not on. Pure.
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

/// The rules that masquerade what no tenant's rule took.
pub fn pods(rules: &[Rule]) -> Vec<Noted> {
    let masquerades =
        |rule: &&Rule| rule.chain == MASQUERADE && matches!(rule.meaning(), Meaning::PodNetwork(_));
    rules.iter().filter(masquerades).map(noted).collect()
}

/// The lines that leave these only what does not leave by the uplink. Whoever put the whole rule
/// beside the narrowed one again finds it removed.
pub fn narrowings(held: &[Rule], uplink: &str) -> Vec<String> {
    let narrowed: BTreeSet<String> = held.iter().filter_map(whole).collect();
    let lines = pods(held).into_iter().map(|Noted { chain, place, spec, .. }| {
        match narrowed.contains(&spec) {
            true => format!("-D {chain} {spec}"),
            false => format!("-R {chain} {place} ! -o {uplink} {spec}"),
        }
    });
    lines.collect()
}

/// What a narrowed rule was before.
fn whole(rule: &Rule) -> Option<String> {
    let at = rule.words.iter().position(|word| word == "!")?;
    let exception = rule.words.get(at..at + 3)?;
    (exception[1] == "-o").then_some(())?;
    let words = [&rule.words[..at], &rule.words[at + 3..]].concat();
    Some(Rule { words, ..rule.clone() }.spec())
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
    // In its place, before other rules move it.
    let mut lines: Vec<String> = held
        .iter()
        .filter_map(|rule| {
            let spec = whole(rule).filter(|spec| noted.iter().any(|note| note.spec == *spec))?;
            Some(format!("-R {} {} {spec}", rule.chain, rule.place))
        })
        .collect();
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
    fn pods_are_masqueraded_by_other_interfaces_alone_until_the_rule_is_whole_again() {
        let rules = parse(SAVED);
        let pods = pods(&rules);
        let lines = narrowings(&rules, "ens18");
        let comment = "-m comment --comment \"masquerade pod-to-external traffic\"";
        let jump = format!("{comment} -j OPENSHIFT-MASQUERADE-2");
        let whole = format!("-s 10.128.0.0/14 {jump}");
        assert_eq!(lines, [format!("-R OPENSHIFT-MASQUERADE 5 ! -o ens18 {whole}")]);
        // As iptables-save prints it, in another order of its words.
        let narrowed = format!("-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 ! -o ens18 {jump}\n");
        let held = parse(&format!("*nat\n{narrowed}COMMIT\n"));
        assert_eq!(narrowings(&held, "ens18"), [""; 0], "once is enough");
        let back = restorations(&held, &pods, &plan(&[]), &networks());
        assert_eq!(back, [format!("-R OPENSHIFT-MASQUERADE 1 {whole}")]);
        assert_eq!(restorations(&held, &[], &plan(&[]), &networks()), [""; 0], "somebody else's");
        let both = parse(&format!("*nat\n{narrowed}-A OPENSHIFT-MASQUERADE {whole}\nCOMMIT\n"));
        assert_eq!(narrowings(&both, "ens18"), [format!("-D OPENSHIFT-MASQUERADE {whole}")]);
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
