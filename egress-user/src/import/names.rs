//! What `oc get netnamespace` prints: the names of VNIDs, and what they ask for.
use std::net::Ipv4Addr;

use egress_common::mark::MAX_VNID;

/// One line of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub name: String,
    pub vnid: u32,
    pub egress_ips: Vec<Ipv4Addr>,
}

/// The lines that are NetNamespaces, and those that should be.
pub fn parse(text: &str) -> (Vec<Named>, Vec<&str>) {
    let lines =
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("NAME "));
    let (mut named, mut strange) = (Vec::new(), Vec::new());
    for line in lines {
        match parse_line(line) {
            Some(namespace) => named.push(namespace),
            None => strange.push(line),
        }
    }
    (named, strange)
}

/// `egress-test             7305526    [10.0.0.11]`; later versions quote the addresses.
fn parse_line(line: &str) -> Option<Named> {
    let (names, ips) = line.split_once('[').unwrap_or((line, "]"));
    let mut words = names.split_whitespace();
    let name = words.next()?.to_owned();
    let vnid = words.next()?.parse().ok().filter(|vnid| *vnid <= MAX_VNID)?;
    if words.next().is_some() {
        return None;
    }
    let ips = ips.strip_suffix(']')?.split([' ', ',']).map(|ip| ip.trim_matches('"'));
    let egress_ips = ips.filter(|ip| !ip.is_empty()).map(str::parse).collect::<Result<_, _>>();
    Some(Named { name, vnid, egress_ips: egress_ips.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_what_is_none_is_named() {
        let text = "\
NAME                    NETID      EGRESS IPS
default                 0          []
egress-test             7305526    [10.0.0.11]
both                    7          [\"10.0.0.11\",\"10.0.0.12\"]
wrong                   16777216   []
";
        let (named, strange) = parse(text);
        let told: Vec<String> = named
            .iter()
            .map(|named| format!("{} {} {}", named.name, named.vnid, named.egress_ips.len()))
            .collect();
        assert_eq!(told, ["default 0 0", "egress-test 7305526 1", "both 7 2"]);
        assert_eq!(strange, ["wrong                   16777216   []"]);
    }
}
