//! Flows and groups in `ovs-ofctl`'s words, brought to one canonical form that can be compared.
//!
//! Pure: text in, values out. What the planner writes (`…,actions=…`) and what a bridge dumps
//! (counters, `priority=100,ip,reg0=0x5 actions=…`) become the same value when they mean the same.
//!
//! Surprising: this is not all of `ovs-ofctl`'s grammar. What is not understood is kept as it is
//! written, so a foreign flow is never lost, at worst seen as different from a wanted one.
use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};

/// Priority of a flow that names none.
const DEFAULT_PRIORITY: u16 = 0x8000;
/// What a dump tells about a flow that is neither its match nor its actions.
const NOT_MATCHED: [&str; 12] = [
    "duration",
    "n_packets",
    "n_bytes",
    "idle_age",
    "hard_age",
    "idle_timeout",
    "hard_timeout",
    "importance",
    "send_flow_rem",
    "reset_counts",
    "no_packet_counts",
    "no_byte_counts",
];

/// Which packets a flow is for; at most one flow of a bridge has the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    pub table: u8,
    pub priority: u16,
    /// `ip`, `arp`, `udp` …; none matches every protocol.
    pub protocol: Option<String>,
    /// Field to value, both canonical.
    pub fields: BTreeMap<String, String>,
}

/// A flow without its cookie and counters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    pub on: Match,
    /// In the order of execution; empty is a drop.
    pub actions: Vec<String>,
}

/// A flow that a bridge holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub cookie: u64,
    pub flow: Flow,
}

/// A group of buckets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub id: u32,
    /// `select`, `all`, `indirect`, `ff`.
    pub kind: String,
    /// Each bucket's attributes and actions, joined by commas.
    pub buckets: Vec<String>,
}

impl Flow {
    /// Reads one flow as the planner or an operator writes it.
    ///
    /// # Errors
    /// No `actions=`, or a table or priority that is no number; the flow is named.
    pub fn parse(line: &str) -> Result<Self> {
        parse_held(line).map(|held| held.flow)
    }

    /// The pod that it is for and the VNID that it loads, as OpenShift's table 20 has them.
    pub fn pod(&self) -> Option<(Ipv4Addr, u32)> {
        if self.on.protocol.as_deref() != Some("ip") {
            return None;
        }
        let vnid = self.actions.iter().find_map(|action| {
            let value = action.strip_prefix("load:")?.strip_suffix("->NXM_NX_REG0[]")?;
            number(value)
        })?;
        Some((self.on.fields.get("nw_src")?.parse().ok()?, u32::try_from(vnid).ok()?))
    }

    /// The groups that its actions send packets to.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        self.actions.iter().flat_map(|action| groups_in(action))
    }
}

impl Match {
    /// The VNID that it selects, if it does so by register 0.
    pub fn vnid(&self) -> Option<u32> {
        number(self.fields.get("reg0")?).and_then(|value| u32::try_from(value).ok())
    }

    /// Whether some packet may match both, with equal priority: OpenFlow leaves it open which wins.
    ///
    /// In doubt (masks it cannot compute with) the answer is yes.
    pub fn overlaps(&self, other: &Match) -> bool {
        let Match { table, priority, protocol, fields } = self;
        *table == other.table
            && *priority == other.priority
            && protocols_overlap(protocol.as_deref(), other.protocol.as_deref())
            && fields.iter().all(|(name, value)| {
                other.fields.get(name).is_none_or(|theirs| values_overlap(value, theirs))
            })
    }
}

impl Group {
    /// Reads one group; buckets may follow each other with or without a comma.
    ///
    /// # Errors
    /// No `group_id=` that is a number; the group is named.
    pub fn parse(line: &str) -> Result<Self> {
        let mut parts = line.trim().split("bucket=");
        let head = parts.next().unwrap_or_default();
        let attributes: BTreeMap<_, _> =
            head.split(',').filter_map(|word| word.trim().split_once('=')).collect();
        let id = attributes
            .get("group_id")
            .and_then(|id| number(id))
            .and_then(|id| u32::try_from(id).ok())
            .with_context(|| format!("the group `{line}` has no group_id that is a number"))?;
        let kind = (*attributes.get("type").unwrap_or(&"all")).to_owned();
        Ok(Self { id, kind, buckets: parts.map(canonical_bucket).collect() })
    }

    /// The groups that its buckets send packets to.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        self.buckets.iter().flat_map(|bucket| groups_in(bucket))
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, priority, protocol, fields } = self;
        write!(f, "table={table},priority={priority}")?;
        if let Some(protocol) = protocol {
            write!(f, ",{protocol}")?;
        }
        fields.iter().try_for_each(|(name, value)| write!(f, ",{name}={value}"))
    }
}

impl Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions = self.actions.join(",");
        let actions = if actions.is_empty() { "drop" } else { &actions };
        write!(f, "{},actions={actions}", self.on)
    }
}

impl Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group_id={},type={}", self.id, self.kind)?;
        self.buckets.iter().try_for_each(|bucket| write!(f, ",bucket={bucket}"))
    }
}

/// Reads `ovs-ofctl dump-flows`; its headline comes again every few hundred flows.
///
/// # Errors
/// A line that is no flow, which is named.
pub fn parse_flow_dump(dump: &str) -> Result<Vec<Held>> {
    lines_of(dump, "OFPST_FLOW").map(parse_held).collect()
}

/// Reads `ovs-ofctl dump-groups`.
///
/// # Errors
/// A line that is no group, which is named.
pub fn parse_group_dump(dump: &str) -> Result<Vec<Group>> {
    lines_of(dump, "OFPST_GROUP_DESC").map(Group::parse).collect()
}

/// OpenShift's rule version: the second byte of the note in the dump of table 253.
pub fn rule_version(dump: &str) -> Option<u8> {
    let (_, note) = dump.split_once("actions=note:")?;
    u8::from_str_radix(note.split('.').nth(1)?, 16).ok()
}

/// Six bytes from `22:3b:a9:a4:8e:0c`.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// The lines of a dump without its headline.
pub fn lines_of<'a>(dump: &'a str, headline: &'static str) -> impl Iterator<Item = &'a str> {
    dump.lines().map(str::trim).filter(move |line| !line.is_empty() && !line.starts_with(headline))
}

fn parse_held(line: &str) -> Result<Held> {
    let (head, actions) = split_actions(line)
        .with_context(|| format!("the flow `{line}` says no actions: add `,actions=…`"))?;
    let mut cookie = 0;
    let mut on =
        Match { table: 0, priority: DEFAULT_PRIORITY, protocol: None, fields: BTreeMap::new() };
    for word in head.split([',', ' ']).filter(|word| !word.is_empty()) {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let wrong = || format!("`{word}` in the flow `{line}` is not a number in range");
        match name {
            "cookie" => cookie = number(value).with_context(wrong)?,
            "table" => on.table = small(value).with_context(wrong)?,
            "priority" => on.priority = small(value).with_context(wrong)?,
            _ if NOT_MATCHED.contains(&name) => {}
            _ if value.is_empty() => {
                ensure!(on.protocol.is_none(), "the flow `{line}` names two protocols");
                on.protocol = Some(name.to_owned());
            }
            _ => {
                on.fields.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    on.fields = canonical_fields(on.protocol.as_deref(), &on.fields);
    Ok(Held { cookie, flow: Flow { on, actions: canonical_actions(actions) } })
}

/// What stands before and after the first `actions=` that begins a word.
fn split_actions(line: &str) -> Option<(&str, &str)> {
    line.match_indices("actions=")
        .find(|(at, _)| line[..*at].is_empty() || line[..*at].ends_with([',', ' ']))
        .map(|(at, word)| (&line[..at], line[at + word.len()..].trim()))
}

/// One name for each field and one form for each value, as Open vSwitch dumps them.
fn canonical_fields(
    protocol: Option<&str>,
    fields: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let arp = protocol.is_some_and(|protocol| protocol.ends_with("arp"));
    let named = |name: &str| {
        match name {
            "eth_src" => "dl_src",
            "eth_dst" => "dl_dst",
            "eth_type" => "dl_type",
            "nw_src" | "ip_src" if arp => "arp_spa",
            "nw_dst" | "ip_dst" if arp => "arp_tpa",
            "ip_src" => "nw_src",
            "ip_dst" => "nw_dst",
            "ip_proto" => "nw_proto",
            "tcp_src" | "udp_src" | "sctp_src" => "tp_src",
            "tcp_dst" | "udp_dst" | "sctp_dst" => "tp_dst",
            "tunnel_id" => "tun_id",
            other => other,
        }
        .to_owned()
    };
    fields
        .iter()
        .map(|(name, value)| {
            let name = named(name);
            let value = canonical_value(&name, value);
            (name, value)
        })
        .collect()
}

/// A mask of ones only is left out, as in a dump.
fn canonical_value(name: &str, value: &str) -> String {
    let whole = value
        .strip_suffix("/32")
        .or_else(|| value.strip_suffix("/0xffffffff"))
        .or_else(|| value.strip_suffix("/255.255.255.255"))
        .unwrap_or(value);
    let hex = ["reg", "xreg", "pkt_mark", "ct_mark", "tun_id", "metadata", "dl_type"];
    match number(whole) {
        Some(number) if hex.iter().any(|prefix| name.starts_with(prefix)) => format!("{number:#x}"),
        Some(number) => number.to_string(),
        None => whole.to_ascii_lowercase(),
    }
}

fn canonical_bucket(bucket: &str) -> String {
    let bucket = bucket.trim().trim_end_matches(',');
    let (attributes, actions): (Vec<_>, Vec<_>) = split_at_commas(bucket).partition(|word| {
        ["weight:", "watch_port:", "watch_group:", "bucket_id:"]
            .iter()
            .any(|prefix| word.starts_with(prefix))
    });
    // The number is the switch's own, and a weight of 1 is what a bucket without one gets.
    let mut words: Vec<String> = attributes
        .into_iter()
        .filter(|word| !word.starts_with("bucket_id:") && !["weight:0", "weight:1"].contains(word))
        .map(str::to_owned)
        .collect();
    let actions = actions.join(",");
    let actions = canonical_actions(actions.strip_prefix("actions=").unwrap_or(&actions)).join(",");
    words.push(format!("actions={}", if actions.is_empty() { "drop" } else { &actions }));
    words.join(",")
}

fn canonical_actions(actions: &str) -> Vec<String> {
    split_at_commas(actions).filter(|action| *action != "drop").map(canonical_action).collect()
}

fn canonical_action(action: &str) -> String {
    if let Some(port) = number(action) {
        return format!("output:{port}");
    }
    let Some((verb, rest)) = action.split_once(':') else { return action.to_owned() };
    let (value, target) = match rest.split_once("->") {
        Some((value, target)) => (value, format!("->{target}")),
        None => (rest, String::new()),
    };
    let value = match (verb, number(value)) {
        ("set_field" | "load", Some(number)) => format!("{number:#x}"),
        (_, Some(number)) => number.to_string(),
        ("set_field", None) => value.to_ascii_lowercase(),
        _ => value.to_owned(),
    };
    format!("{verb}:{value}{target}")
}

/// The words between the commas that stand in no parentheses.
fn split_at_commas(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|word| !word.is_empty())
}

fn groups_in(action: &str) -> impl Iterator<Item = u32> {
    action.split("group:").skip(1).filter_map(|rest| {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
        rest[..digits].parse().ok()
    })
}

fn protocols_overlap(ours: Option<&str>, theirs: Option<&str>) -> bool {
    let (Some(ours), Some(theirs)) = (ours, theirs) else { return true };
    // Of the protocols that OpenShift's tables name, only `ip` holds others.
    let within =
        |outer: &str, inner: &str| outer == "ip" && ["tcp", "udp", "icmp", "sctp"].contains(&inner);
    ours == theirs || within(ours, theirs) || within(theirs, ours)
}

fn values_overlap(ours: &str, theirs: &str) -> bool {
    if ours == theirs {
        return true;
    }
    match (masked(ours), masked(theirs)) {
        (Some((a, a_mask)), Some((b, b_mask))) => (a ^ b) & a_mask & b_mask == 0,
        _ => ours.contains('/') || theirs.contains('/') || ours.contains(['+', '-']),
    }
}

/// A value and its mask, of a number or an IPv4 address.
fn masked(text: &str) -> Option<(u64, u64)> {
    let (value, mask) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    if let Ok(address) = value.parse::<Ipv4Addr>() {
        let all = u64::from(u32::MAX);
        let mask = match mask {
            None => all,
            Some(mask) => match mask.parse::<Ipv4Addr>() {
                Ok(mask) => u64::from(u32::from(mask)),
                Err(_) => all & (all << 32_u32.checked_sub(mask.parse().ok()?)?),
            },
        };
        return Some((u64::from(u32::from(address)), mask));
    }
    Some((number(value)?, mask.map_or(Some(u64::MAX), number)?))
}

fn small<T: TryFrom<u64>>(text: &str) -> Option<T> {
    T::try_from(number(text)?).ok()
}

/// A decimal or hexadecimal number, whole.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
