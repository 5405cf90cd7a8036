//! The node's IPv4 addresses in the words of `ip addr`.
use std::net::Ipv4Addr;

use crate::cidr::{Cidr, parse_with_length};

/// One address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    pub link: String,
    /// The link's name where none was given.
    pub label: String,
}

impl Found {
    pub fn subnet(&self) -> Option<Cidr> {
        Cidr::around(self.ip, self.prefix_len)
    }
}

/// Reads `ip addr`, with `-o` or without. The error is a line that looks like an address and is none.
pub fn parse(text: &str) -> (Vec<Found>, Vec<&str>) {
    let (mut found, mut strange) = (Vec::new(), Vec::new());
    let mut link = String::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        let first = words.clone().next().unwrap_or_default();
        // `2: ens18: <…>`, or with -o `2: ens18    inet …`.
        if first.ends_with(':') && first[..first.len() - 1].parse::<u32>().is_ok() {
            let name = words.nth(1).unwrap_or_default().trim_end_matches(':');
            link = name.split('@').next().unwrap_or_default().to_owned();
        }
        if !words.any(|word| word == "inet") && first != "inet" {
            continue;
        }
        let rest = line.split("inet ").nth(1).unwrap_or_default();
        match address(rest.split('\\').next().unwrap_or_default(), &link) {
            Some(address) => found.push(address),
            None => strange.push(line),
        }
    }
    (found, strange)
}

/// `10.0.0.11/24 brd 10.0.0.255 scope global secondary ens18:eip`
fn address(text: &str, link: &str) -> Option<Found> {
    let mut words = text.split_whitespace();
    let (ip, prefix_len) = words.next().and_then(|word| match word.contains('/') {
        true => parse_with_length(word),
        false => Some((word.parse().ok()?, 32)),
    })?;
    // Flags stand between the scope and the label, which is the last word.
    let label = words.next_back().filter(|label| label.starts_with(link)).unwrap_or(link);
    (!link.is_empty()).then(|| Found {
        ip,
        prefix_len,
        link: link.to_owned(),
        label: label.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_ip_addr_are_read() {
        let long = "\
1: lo: <LOOPBACK,UP,LOWER_UP> mtu 65536 qdisc noqueue state UNKNOWN group default qlen 1000
    link/loopback 00:00:00:00:00:00 brd 00:00:00:00:00:00
    inet 127.0.0.1/8 scope host lo
       valid_lft forever preferred_lft forever
2: ens18@if5: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500 qdisc mq state UP group default qlen 1000
    link/ether 9a:2f:89:5a:ba:e2 brd ff:ff:ff:ff:ff:ff
    inet 10.0.0.2/24 brd 10.0.0.255 scope global noprefixroute ens18
    inet 10.0.0.11/24 brd 10.0.0.255 scope global secondary ens18:eip
    inet6 fe80::982f:89ff:fe5a:bae2/64 scope link
";
        let short = "\
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: ens18    inet 10.0.0.2/24 brd 10.0.0.255 scope global noprefixroute ens18\\       valid_lft forever preferred_lft forever
2: ens18    inet 10.0.0.11/24 brd 10.0.0.255 scope global secondary ens18:eip\\       valid_lft forever preferred_lft forever
";
        let (found, strange) = parse(long);
        assert_eq!(strange, [""; 0]);
        let told: Vec<String> = found
            .iter()
            .map(|a| format!("{} {}/{} {}", a.link, a.ip, a.prefix_len, a.label))
            .collect();
        assert_eq!(
            told,
            ["lo 127.0.0.1/8 lo", "ens18 10.0.0.2/24 ens18", "ens18 10.0.0.11/24 ens18:eip"]
        );
        assert_eq!(parse(short).0, found);
    }

    #[test]
    fn what_is_no_address_is_named() {
        let (found, strange) = parse("2: ens18: <UP>\n    inet 10.0.0.300/24 scope global ens18\n");
        assert_eq!((found.len(), strange), (0, vec!["inet 10.0.0.300/24 scope global ens18"]));
    }
}
