//! The other nodes: whom this one watches, what is made of it, and what is told.
use std::{net::Ipv4Addr, time::SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Agent;
use crate::{
    condition::{Condition, Reason},
    config::AgentConfig,
    health::{
        Known, Patience, Voice, gateway_of,
        watch::{Findings, Targets},
    },
    identity::Identity,
    model::{HostSubnet, Objects},
    plan::Health,
    reconcile::maps,
};

/// A watched node, for `egress status` and for the next agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeHealth {
    pub name: String,
    pub ip: Ipv4Addr,
    /// `online`, `offline`, `returning`: offline, and answers again.
    pub state: String,
    /// Of being online or not.
    pub since: String,
    /// It is or was offline or drained.
    #[serde(default)]
    pub left: bool,
    /// By the probe: `answers`, `silent`, `unknown` (has never answered), `stopped`, `not asked`.
    pub probe: String,
    /// By TCP port 9 of its gateway: the same.
    pub gateway: String,
}

/// Whom to watch: every other node that hosts egress IPs, or may be given some.
pub fn watched<'a>(
    objects: &'a Objects,
    identity: &Identity,
) -> impl Iterator<Item = &'a HostSubnet> {
    let own = identity.ip;
    let nodes = objects.host_subnets.values().filter(move |node| node.host_ip != own);
    nodes.filter(|node| !node.egress_ips.is_empty() || !node.egress_cidrs.is_empty())
}

/// Whom to ask, and how.
pub fn targets(config: &AgentConfig, objects: &Objects, identity: &Identity) -> Targets {
    let health = &config.health;
    Targets {
        from: identity.ip,
        port: config.tunnel.port,
        interval: health.interval,
        able: identity.uplink.up,
        patience: Patience {
            misses: health.misses,
            hold_down: health.hold_down,
            gateway_interval: health.gateway_interval,
        },
        nodes: watched(objects, identity)
            .map(|node| (node.host_ip, gateway_of(node.subnet)))
            .collect(),
        draining: watched(objects, identity)
            .filter(|node| node.draining)
            .map(|node| node.host_ip)
            .collect(),
    }
}

impl Agent {
    /// Lets the watch know whom the objects name now.
    pub(super) fn watch_nodes(&self) {
        self.health.set(targets(&self.config, &self.objects, &self.identity));
    }

    /// Whether the programs keep silent about this node's egress IPs.
    pub(super) fn is_fenced(&self) -> bool {
        maps::is_fenced(&self.maps).unwrap_or(false)
    }

    /// What the planner is told of the other nodes.
    pub(super) fn health_of_nodes(&self) -> Health {
        let findings = self.health.findings();
        let offline = findings.iter().filter(|(_, (known, _))| known.offline);
        let left = findings.iter().filter(|(_, (known, _))| known.left);
        Health {
            offline: offline.map(|(node, _)| *node).collect(),
            left: left.map(|(node, _)| *node).collect(),
        }
    }

    /// The watched nodes, by name.
    pub(super) fn node_health(&self) -> Vec<NodeHealth> {
        named(&self.health.findings(), &self.objects)
            .map(|(node, known, since)| NodeHealth {
                name: node.name.clone(),
                ip: node.host_ip,
                state: match (known.offline, known.returning) {
                    (false, _) => "online",
                    (true, false) => "offline",
                    (true, true) => "returning",
                }
                .to_owned(),
                since: text(since),
                left: known.left,
                probe: if known.stopped { "stopped" } else { word(known.probe) }.to_owned(),
                gateway: word(known.gateway).to_owned(),
            })
            .collect()
    }

    /// Who is offline, and who is heard by one way only.
    pub(super) fn health_conditions(&mut self) -> Vec<Condition> {
        self.fenced = self.is_fenced();
        let fenced = self.fenced.then(|| {
            let message = format!(
                "no other node was heard for {:?} (health.lease): this node is silent about its \
                 egress IPs until it hears one; look at its cable and at the agents of the others",
                self.config.health.lease
            );
            Condition::new("Agent/lease", Reason::Fenced, message)
        });
        let hold_down = self.config.health.hold_down;
        let port = self.config.tunnel.port;
        let findings = self.health.findings();
        named(&findings, &self.objects)
            .filter_map(|(node, known, since)| {
                let ip = node.host_ip;
                let (reason, verdict) = if known.offline {
                    (Reason::Offline, format!("{ip} is offline since {}", text(since)))
                } else if [known.probe, known.gateway].contains(&Voice::Silent) {
                    (Reason::Silent, format!("{ip} answers by one way only, and stays in use"))
                } else {
                    return None;
                };
                let probe = match known.probe {
                    _ if known.stopped => "says that its agent has stopped",
                    Voice::NotAsked => "could not be asked",
                    Voice::Answers => "answers",
                    Voice::Silent => "does not answer any more",
                    Voice::Unknown => "has never answered",
                };
                let gateway = match known.gateway {
                    Voice::NotAsked => "was not tried",
                    Voice::Answers => "answers",
                    Voice::Silent => "does not answer any more",
                    Voice::Unknown => "has never answered",
                };
                let back = if known.returning && !known.stopped {
                    format!("; it answers again, and counts after {hold_down:?} of that")
                } else {
                    String::new()
                };
                let message = format!(
                    "{verdict}: the probe through its tunnel (UDP {port}) {probe}; TCP port 9 of \
                     its gateway {} {gateway}{back}",
                    gateway_of(node.subnet)
                );
                Some(Condition::new(format!("HostSubnet/{}", node.name), reason, message))
            })
            .chain(fenced)
            .collect()
    }
}

/// Findings with the objects they are about.
fn named<'a>(
    findings: &'a Findings,
    objects: &'a Objects,
) -> impl Iterator<Item = (&'a HostSubnet, Known, SystemTime)> {
    objects.host_subnets.values().filter_map(|node| {
        let (known, since) = findings.get(&node.host_ip)?;
        Some((node, *known, *since))
    })
}

fn word(voice: Voice) -> &'static str {
    match voice {
        Voice::NotAsked => "not asked",
        Voice::Answers => "answers",
        Voice::Silent => "silent",
        Voice::Unknown => "unknown",
    }
}

/// As RFC 3339 has it, to the second.
fn text(time: SystemTime) -> String {
    Timestamp::try_from(time).map(|time| format!("{time:.0}")).unwrap_or_default()
}

/// What a predecessor found: who was offline is so until it answers, and who has left stays
/// known for it.
pub fn before(nodes: &[NodeHealth]) -> Findings {
    let known = |node: &NodeHealth| Known {
        offline: node.state != "online",
        returning: false,
        left: node.left,
        stopped: false,
        probe: Voice::NotAsked,
        gateway: Voice::NotAsked,
    };
    let since = |node: &NodeHealth| node.since.parse::<Timestamp>().map(SystemTime::from);
    let found = nodes
        .iter()
        .map(|node| (node.ip, (known(node), since(node).unwrap_or_else(|_| SystemTime::now()))));
    found.filter(|(_, (known, _))| known.offline || known.left).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_of_a_node_holds_for_the_next_agent_since_the_same_second() {
        let ip = Ipv4Addr::new(10, 0, 0, 2);
        let node = |state: &str, left| NodeHealth {
            name: "a".into(),
            ip,
            state: state.into(),
            since: "2026-01-02T03:04:05Z".into(),
            left,
            probe: "silent".into(),
            gateway: "silent".into(),
        };
        for (state, offline, left) in
            [("returning", true, false), ("offline", true, true), ("online", false, true)]
        {
            let (known, since) = before(&[node(state, left)])[&ip];
            assert_eq!((known.offline, known.left), (offline, left), "{state}");
            assert_eq!(text(since), "2026-01-02T03:04:05Z");
        }
        assert!(before(&[node("online", false)]).is_empty());
    }
}
