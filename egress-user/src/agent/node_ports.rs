//! Whether the node keeps off the ports that its pods are masqueraded with.
//!
//! Nothing is changed here: what the node uses is its owner's affair. Each collision is a condition
//! with the cure; until it is cured, a port that both want is the node's (the programs see to it).
use std::{collections::BTreeSet, fmt::Display, fs};

use anyhow::{Context, Result, bail};
use procfs::net::{TcpState, tcp, tcp6, udp, udp6};

use super::failed;
use crate::{
    condition::{Condition, Reason},
    config::{AgentConfig, MasqueradePorts},
    identity::Identity,
    model::Objects,
    reserved_ports::{self, RESERVED, Range, written},
};

const LOCAL: &str = "net.ipv4.ip_local_port_range";
const LOCAL_PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";

/// The ports of a node that are spoken for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Used {
    /// Which the kernel takes for sockets that ask for none.
    local: Option<Range>,
    /// But for these.
    reserved: Vec<Range>,
    /// TCP sockets that listen, and UDP sockets.
    bound: BTreeSet<u16>,
}

/// What is in the way of masquerading here.
pub(super) fn conditions(
    config: &AgentConfig,
    objects: &Objects,
    identity: &Identity,
) -> Vec<Condition> {
    if !config.masquerade {
        return Vec::new();
    }
    let MasqueradePorts { from, to } = config.masquerade_ports;
    let mut conditions = match observe() {
        Ok(used) => collisions(&(from..=to), &used),
        Err(error) => vec![failed("Agent/masqueradePorts", &error)],
    };
    if !objects.host_subnets.contains_key(&identity.name) {
        let message = format!(
            "masquerade is on, and there is no HostSubnet {}: its pods that bear no mark are \
             dropped, since nothing tells them from other nodes' pods",
            identity.name
        );
        conditions.push(Condition::new("Agent/masquerade", Reason::NoSubnet, message));
    }
    conditions
}

fn observe() -> Result<Used> {
    let local = fs::read_to_string(LOCAL_PATH).with_context(|| format!("read {LOCAL}"))?;
    // Without IPv6 the kernel has no such tables.
    let streams =
        tcp().context("read /proc/net/tcp")?.into_iter().chain(tcp6().unwrap_or_default());
    let datagrams =
        udp().context("read /proc/net/udp")?.into_iter().chain(udp6().unwrap_or_default());
    let listening = streams.filter(|socket| socket.state == TcpState::Listen);
    let bound = listening
        .map(|socket| socket.local_address.port())
        .chain(datagrams.map(|socket| socket.local_address.port()))
        .collect();
    Ok(Used { local: Some(local_range(&local)?), reserved: reserved_ports::read()?, bound })
}

/// Two numbers with space between them.
fn local_range(text: &str) -> Result<Range> {
    let numbers: Vec<u16> = text
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{LOCAL} is \"{}\"", text.trim()))?;
    let [from, to] = numbers[..] else { bail!("{LOCAL} is \"{}\"", text.trim()) };
    Ok(from..=to)
}

fn collisions(ours: &Range, used: &Used) -> Vec<Condition> {
    let Used { local, reserved, bound } = used;
    let (from, to) = (ours.start(), ours.end());
    let collision = |what: String| {
        Condition::new(
            "Agent/masqueradePorts",
            Reason::PortCollision,
            format!("{from}-{to}: {what}"),
        )
    };
    let taken_by_kernel = |port: u16| {
        local.as_ref().is_some_and(|local| local.contains(&port))
            && !reserved.iter().any(|range| range.contains(&port))
    };
    let shared: Vec<u16> = ours.clone().filter(|port| taken_by_kernel(*port)).collect();
    let mut conditions = Vec::new();
    if let (Some(first), Some(last)) = (shared.first(), shared.last()) {
        let mut spared: Vec<String> = reserved.iter().map(written).collect();
        spared.push(written(&(*first..=*last)));
        conditions.push(collision(format!(
            "the kernel takes {} of them ({first} to {last}) for the node's own connections: \
             `sysctl -w {RESERVED}={}`, or choose others",
            shared.len(),
            spared.join(",")
        )));
    }
    let bound: Vec<u16> = bound.iter().copied().filter(|port| ours.contains(port)).collect();
    if !bound.is_empty() {
        conditions.push(collision(format!(
            "sockets of this node are bound to {}: choose others, or have them bound elsewhere \
             (`ss -lntup` names their programs)",
            list(&bound)
        )));
    }
    conditions
}

/// The first few, and how many more.
fn list<T: Display>(values: &[T]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = values.iter().take(SHOWN).map(T::to_string).collect();
    match values.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ours: Range, used: &Used) -> Vec<String> {
        collisions(&ours, used).into_iter().map(|condition| condition.message).collect()
    }

    fn used(local: Range, reserved: &[Range], bound: &[u16]) -> Used {
        let reserved = reserved.to_vec();
        Used { local: Some(local), reserved, bound: bound.iter().copied().collect() }
    }

    #[test]
    fn the_defaults_collide_with_nothing() {
        let kernel = used(32768..=60999, &[], &[22, 53, 10250, 60999]);
        let MasqueradePorts { from, to } = MasqueradePorts::default();
        assert_eq!(said(from..=to, &kernel), [""; 0]);
    }

    #[test]
    fn what_the_kernel_takes_for_sockets_is_named_with_the_sysctl_that_spares_it() {
        let kernel = used(1024..=61001, &[8080..=8080, 9148..=9150], &[]);
        assert_eq!(
            said(61000..=65535, &kernel),
            ["61000-65535: the kernel takes 2 of them (61000 to 61001) for the node's own \
              connections: `sysctl -w \
              net.ipv4.ip_local_reserved_ports=8080,9148-9150,61000-61001`, or choose others"]
        );
    }

    #[test]
    fn reserved_ports_are_not_taken() {
        let kernel = used(1024..=65535, &[61000..=65535], &[]);
        assert_eq!(said(61000..=65535, &kernel), [""; 0]);
    }

    #[test]
    fn sockets_in_the_range_are_named() {
        let bound: Vec<u16> = (62000..62010).collect();
        let kernel = used(32768..=60999, &[], &bound);
        let said = said(61000..=65535, &kernel);
        assert!(said[0].contains("bound to 62000, 62001"), "{said:?}");
        assert!(said[0].contains("62007 and 2 more"), "{said:?}");
    }

    #[test]
    fn the_local_range_is_read_as_the_kernel_prints_it() {
        assert_eq!(local_range("32768\t60999\n").unwrap(), 32768..=60999);
        assert!(local_range("32768").unwrap_err().to_string().contains(LOCAL));
    }
}
