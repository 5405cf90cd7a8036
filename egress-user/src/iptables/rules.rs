//! The original's rules in the words of `iptables-save` and `iptables -L -n`, and what they mean.
//!
//! Pure: text in, values out. Both forms become the same words, those of `iptables-save`.
//!
//! Surprising: only what the original writes is given a meaning. A rule with one more condition is
//! another rule, and is said to be unknown rather than taken for what it looks like.
use std::{collections::BTreeMap, net::Ipv4Addr};

use crate::cidr::Cidr;

/// The chain that the egress IPs' source NAT is in.
pub const MASQUERADE: &str = "OPENSHIFT-MASQUERADE";
/// The chain where new connections to egress IPs are refused.
const FIREWALL_ALLOW: &str = "OPENSHIFT-FIREWALL-ALLOW";

/// One rule, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub table: String,
    pub chain: String,
    /// In its chain, from 1.
    pub place: u32,
    /// What stands behind the chain's name; a quoted text is one word, without its quotes.
    pub words: Vec<String>,
    /// As it was read.
    pub line: String,
}

/// What a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// A tenant's packets to the outside leave with `to`.
    Snat {
        mark: u32,
        source: Cidr,
        to: Ipv4Addr,
    },
    /// A tenant's packets to pods behind a service leave with the node's address (4.8 and later).
    ClusterMasquerade {
        mark: u32,
        network: Cidr,
    },
    /// New connections to an egress IP are refused.
    Refuse {
        egress_ip: Ipv4Addr,
    },
    /// What kube-proxy marked is left to it: its bit.
    MasqueradeBit(u8),
    /// What no rule before it took of this pod network leaves with the node's address.
    PodNetwork(Cidr),
    /// Known, and not about egress IPs.
    Other,
    Unknown,
}

impl Meaning {
    /// Whether it is there for one tenant, and goes with it.
    pub fn is_tenants(&self) -> bool {
        matches!(self, Self::Snat { .. } | Self::ClusterMasquerade { .. })
    }
}

/// Reads `iptables-save`, or `iptables -L -n` of one table (`nat` unless a chain tells otherwise).
pub fn parse(text: &str) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut place = Place { table: "nat".to_owned(), chain: String::new(), count: BTreeMap::new() };
    for line in text.lines().map(str::trim) {
        let words = split(line);
        let mut words = words.iter().map(String::as_str);
        match words.next() {
            None | Some("COMMIT" | "num" | "target") => {}
            Some(first) if first.starts_with(['#', ':']) => {}
            Some(first) if first.starts_with('*') => place.table = first[1..].to_owned(),
            Some("Chain") => place.enter(words.next().unwrap_or_default()),
            Some("-A") => {
                place.chain = words.next().unwrap_or_default().to_owned();
                rules.push(place.rule(words.map(str::to_owned).collect(), line));
            }
            Some(first) => {
                let numbered = first.bytes().all(|digit| digit.is_ascii_digit());
                let target = if numbered { words.next().unwrap_or_default() } else { first };
                rules.push(place.rule(listed(target, &words.collect::<Vec<_>>()), line));
            }
        }
    }
    rules
}

/// Where the reading is.
struct Place {
    table: String,
    chain: String,
    count: BTreeMap<(String, String), u32>,
}

impl Place {
    /// A listing does not name its table: these chains tell.
    fn enter(&mut self, chain: &str) {
        self.chain = chain.to_owned();
        let is_filter = chain.starts_with("OPENSHIFT-FIREWALL") || chain == "INPUT";
        self.table = if is_filter { "filter" } else { "nat" }.to_owned();
    }

    fn rule(&mut self, words: Vec<String>, line: &str) -> Rule {
        // What was cut out of a listing: the only chain that such a line can be of use in.
        if self.chain.is_empty() {
            self.chain = MASQUERADE.to_owned();
        }
        let count = self.count.entry((self.table.clone(), self.chain.clone())).or_default();
        *count += 1;
        let (table, chain) = (self.table.clone(), self.chain.clone());
        Rule { table, chain, place: *count, words, line: line.to_owned() }
    }
}

/// Words between blanks; double quotes hold blanks.
fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted, mut begun, mut escaped) = (String::new(), false, false, false);
    for letter in line.chars() {
        match letter {
            _ if escaped => {
                word.push(letter);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            ' ' | '\t' if !quoted => {
                if begun || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            _ => word.push(letter),
        }
    }
    if begun || !word.is_empty() {
        words.push(word);
    }
    words
}

/// A listing's columns (protocol, options, source, destination, then words) as `iptables-save`'s.
fn listed(target: &str, columns: &[&str]) -> Vec<String> {
    let [protocol, _, source, destination, rest @ ..] = columns else {
        return [target].iter().chain(columns).map(|word| (*word).to_owned()).collect();
    };
    let mut words = Vec::new();
    for (option, value) in [("-s", source), ("-d", destination)] {
        if *value != "0.0.0.0/0" {
            words.extend([option.to_owned(), (*value).to_owned()]);
        }
    }
    if !["all", "0"].contains(protocol) {
        words.extend(["-p".to_owned(), (*protocol).to_owned()]);
    }
    let mut rest = rest.iter();
    let mut last = Vec::new();
    while let Some(word) = rest.next() {
        let mut next = |option: &str| {
            vec![option.to_owned(), rest.next().map_or(String::new(), |word| (*word).to_owned())]
        };
        match *word {
            "mark" => {
                let mut pair = next("--mark");
                if pair[1] == "match" {
                    pair = next("--mark");
                }
                words.extend(pair);
            }
            "ctstate" => words.extend(next("--ctstate")),
            "reject-with" => last.extend(next("--reject-with")),
            "/*" => rest.by_ref().take_while(|word| **word != "*/").for_each(drop),
            word => match word.strip_prefix("to:") {
                Some(to) => last.extend(["--to-source".to_owned(), to.to_owned()]),
                None => words.push(word.to_owned()),
            },
        }
    }
    words.extend(["-j".to_owned(), target.to_owned()]);
    words.extend(last);
    words
}

impl Rule {
    pub fn meaning(&self) -> Meaning {
        let Some(options) = Options::read(&self.words) else { return self.of_others() };
        options.meaning(self).unwrap_or_else(|| self.of_others())
    }

    /// Rules with a meaning that is not looked into: those of kube-proxy and of the firewall.
    fn of_others(&self) -> Meaning {
        let target = self.target().unwrap_or_default();
        let translates = ["SNAT", "MASQUERADE", "NETMAP"].contains(&target);
        let concerns = match self.table.as_str() {
            "nat" => {
                self.chain == "POSTROUTING" && !target.starts_with("KUBE-")
                    || self.chain.starts_with(MASQUERADE)
                    || translates && !self.chain.starts_with("KUBE-")
            }
            "filter" => self.chain == FIREWALL_ALLOW && target != "ACCEPT",
            _ => false,
        };
        if concerns { Meaning::Unknown } else { Meaning::Other }
    }

    fn target(&self) -> Option<&str> {
        let at = self.words.iter().position(|word| word == "-j")?;
        self.words.get(at + 1).map(String::as_str)
    }

    /// The rule as `iptables-restore` takes it behind `-D CHAIN` or `-I CHAIN PLACE`.
    pub fn spec(&self) -> String {
        let quoted = |word: &String| match word.contains([' ', '"']) || word.is_empty() {
            true => format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"")),
            false => word.clone(),
        };
        self.words.iter().map(quoted).collect::<Vec<_>>().join(" ")
    }
}

/// The conditions and the target of a rule, as far as the original uses them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options<'a> {
    source: Option<&'a str>,
    destination: Option<&'a str>,
    mark: Option<&'a str>,
    state: Option<&'a str>,
    target: &'a str,
    to: Option<&'a str>,
    set: Option<&'a str>,
}

impl<'a> Options<'a> {
    /// `None`: it has a word that the original's do not have.
    fn read(words: &'a [String]) -> Option<Self> {
        let mut options = Self::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            let value = words.next()?;
            match word {
                "-s" => options.source = Some(value),
                "-d" => options.destination = Some(value),
                "--mark" => options.mark = Some(value),
                "--ctstate" => options.state = Some(value),
                "-j" => options.target = value,
                "--to-source" => options.to = Some(value),
                "--set-xmark" | "--or-mark" => options.set = Some(value),
                "-m" if ["mark", "comment", "conntrack"].contains(&value) => {}
                "--comment" | "--reject-with" => {}
                _ => return None,
            }
        }
        Some(options)
    }

    fn meaning(&self, rule: &Rule) -> Option<Meaning> {
        let Self { source, destination, mark, state, target, to, set } = *self;
        let known = match (rule.table.as_str(), rule.chain.as_str(), target) {
            ("nat", MASQUERADE, "SNAT") if destination.is_none() && state.is_none() => {
                Meaning::Snat {
                    mark: whole_mark(mark?)?,
                    source: source?.parse().ok()?,
                    to: to?.parse().ok()?,
                }
            }
            ("nat", MASQUERADE, "MASQUERADE") if mark.is_some() && source == destination => {
                let network = source?.parse().ok()?;
                Meaning::ClusterMasquerade { mark: whole_mark(mark?)?, network }
            }
            ("nat", MASQUERADE, "RETURN") if source.is_none() && destination.is_none() => {
                Meaning::MasqueradeBit(bit(mark?)?)
            }
            ("nat", "KUBE-MARK-MASQ", "MARK") => Meaning::MasqueradeBit(bit(set?)?),
            ("nat", MASQUERADE, "OPENSHIFT-MASQUERADE-2" | "MASQUERADE")
                if mark.is_none() && destination.is_none() =>
            {
                Meaning::PodNetwork(source?.parse().ok()?)
            }
            ("nat", "OPENSHIFT-MASQUERADE-2", "RETURN") if source.is_none() && mark.is_none() => {
                Meaning::PodNetwork(destination?.parse().ok()?)
            }
            ("nat", "OPENSHIFT-MASQUERADE-2", "MASQUERADE")
                if *self == Self { target, ..Self::default() } =>
            {
                Meaning::Other
            }
            ("nat", "POSTROUTING", MASQUERADE) => Meaning::Other,
            ("filter", FIREWALL_ALLOW, "REJECT") if state == Some("NEW") && source.is_none() => {
                Meaning::Refuse { egress_ip: address(destination?)? }
            }
            _ => return None,
        };
        Some(known)
    }
}

/// A mark that is compared as a whole.
fn whole_mark(text: &str) -> Option<u32> {
    number(text.strip_suffix("/0xffffffff").unwrap_or(text))
}

/// The only bit of `0x1/0x1`.
fn bit(text: &str) -> Option<u8> {
    let (value, mask) = text.split_once('/').unwrap_or((text, text));
    let (value, mask) = (number(value)?, number(mask)?);
    (value == mask && value.count_ones() == 1).then_some(value.trailing_zeros() as u8)
}

fn address(text: &str) -> Option<Ipv4Addr> {
    text.strip_suffix("/32").unwrap_or(text).parse().ok()
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meanings(text: &str) -> Vec<Meaning> {
        parse(text).iter().map(Rule::meaning).collect()
    }

    fn cidr(text: &str) -> Cidr {
        text.parse().expect("a network")
    }

    #[test]
    fn a_saved_rule_and_a_listed_one_mean_the_same() {
        let saved = "*nat\n-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6f7936 -j SNAT --to-source 10.0.0.11\nCOMMIT";
        let listed = "Chain OPENSHIFT-MASQUERADE (1 references)\n\
             num  target     prot opt source               destination\n\
             1    SNAT       all  --  10.128.0.0/14        0.0.0.0/0            mark match 0x6f7936 to:10.0.0.11";
        let expected = Meaning::Snat {
            mark: 0x6f7936,
            source: cidr("10.128.0.0/14"),
            to: Ipv4Addr::new(10, 0, 0, 11),
        };
        assert_eq!(meanings(saved), std::slice::from_ref(&expected));
        assert_eq!(meanings(listed), [expected]);
        assert_eq!(
            parse(saved)[0].spec(),
            parse(listed)[0].spec().replace("--mark", "-m mark --mark")
        );
    }

    #[test]
    fn the_chains_of_a_4_x_node_are_understood_whole() {
        let text = "\
*nat
:OPENSHIFT-MASQUERADE - [0:0]
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment \"rules for masquerading OpenShift traffic\" -j OPENSHIFT-MASQUERADE
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1
-A KUBE-POSTROUTING -m mark ! --mark 0x1/0x1 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A OPENSHIFT-MASQUERADE -m mark --mark 0x1/0x1 -j RETURN
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -d 10.128.0.0/14 -m mark --mark 0x102e440e -j MASQUERADE
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x102e440e -j SNAT --to-source 10.0.0.12
-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m comment --comment \"masquerade pod-to-external traffic\" -j OPENSHIFT-MASQUERADE-2
-A OPENSHIFT-MASQUERADE-2 -d 10.128.0.0/14 -m comment --comment \"masquerade pod-to-external traffic\" -j RETURN
-A OPENSHIFT-MASQUERADE-2 -m comment --comment \"masquerade pod-to-external traffic\" -j MASQUERADE
COMMIT
*filter
-A INPUT -j KUBE-FIREWALL
-A OPENSHIFT-FIREWALL-ALLOW -p udp -m udp --dport 4789 -m comment --comment \"VXLAN incoming\" -j ACCEPT
-A OPENSHIFT-FIREWALL-ALLOW -d 10.0.0.12/32 -m conntrack --ctstate NEW -j REJECT --reject-with icmp-port-unreachable
-A OPENSHIFT-FIREWALL-FORWARD -s 10.128.0.0/14 -m conntrack --ctstate INVALID -j DROP
COMMIT
";
        let network = cidr("10.128.0.0/14");
        assert_eq!(
            meanings(text),
            [
                Meaning::Other,
                Meaning::Other,
                Meaning::MasqueradeBit(0),
                Meaning::Other,
                Meaning::Other,
                Meaning::MasqueradeBit(0),
                Meaning::ClusterMasquerade { mark: 0x102e_440e, network },
                Meaning::Snat {
                    mark: 0x102e_440e,
                    source: network,
                    to: Ipv4Addr::new(10, 0, 0, 12)
                },
                Meaning::PodNetwork(network),
                Meaning::PodNetwork(network),
                Meaning::Other,
                Meaning::Other,
                Meaning::Other,
                Meaning::Refuse { egress_ip: Ipv4Addr::new(10, 0, 0, 12) },
                Meaning::Other,
            ]
        );
    }

    #[test]
    fn one_more_condition_makes_a_rule_unknown() {
        for rule in [
            "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -d 192.0.2.0/24 -m mark --mark 0x6f7936 -j SNAT --to-source 10.0.0.11",
            "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -p tcp -m mark --mark 0x6f7936 -j SNAT --to-source 10.0.0.11",
            "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6f7936/0xff -j SNAT --to-source 10.0.0.11",
            "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark ! --mark 0x6f7936 -j SNAT --to-source 10.0.0.11",
            "-A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6f7936 -j SNAT --to-source 10.0.0.11-10.0.0.14",
            "-A POSTROUTING -s 10.1.0.0/16 -j MASQUERADE",
            "-A DOCKER -s 172.17.0.0/16 -j SNAT --to-source 10.0.0.9",
        ] {
            assert_eq!(meanings(rule), [Meaning::Unknown], "{rule}");
        }
    }

    #[test]
    fn a_rule_is_written_again_as_it_was_saved() {
        let spec = "-s 10.128.0.0/14 -m comment --comment \"a \\\"b\\\" c\" -m mark --mark 0x1 -j SNAT --to-source 10.0.0.11";
        let rules = parse(&format!("*nat\n-A X -j RETURN\n-A X {spec}"));
        assert_eq!(rules[1].spec(), spec);
        assert_eq!((rules[1].chain.as_str(), rules[1].place), ("X", 2));
    }
}
