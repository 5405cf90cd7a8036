//! What the agent tells the planner: its node, its bridge, what it found on the network.
use std::{collections::BTreeSet, net::Ipv4Addr, rc::Rc};

use super::{Agent, tables};
use crate::{
    config::Mac,
    model::Objects,
    plan::{Facts, Health, Mode, OvsPorts, Plan, Previous, plan},
};

/// The plans that were made of the objects as they are. A round asks several times, and many rounds
/// ask the same.
#[derive(Debug, Default)]
pub struct Plans {
    made: Vec<(Question, Rc<Plan>)>,
}

/// All that a plan depends on, apart from the objects.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    facts: Facts,
    health: Health,
    mode: Mode,
}

impl Plans {
    /// With no conflict, with what is not probed yet, with what was found: more is not asked of one
    /// state of affairs.
    const KEPT: usize = 3;

    /// The objects changed.
    pub fn forget(&mut self) {
        self.made.clear();
    }

    fn answer(&mut self, objects: &Objects, question: Question) -> Rc<Plan> {
        let known = self.made.iter().position(|(known, _)| *known == question);
        let (question, plan) = match known {
            Some(at) => self.made.remove(at),
            None => {
                let Question { facts, health, mode } = &question;
                let plan = plan(objects, facts, health, &Previous::default(), mode);
                (question, Rc::new(plan))
            }
        };
        self.made.truncate(Self::KEPT - 1);
        self.made.insert(0, (question, Rc::clone(&plan)));
        plan
    }
}

impl Agent {
    /// The plan, with these egress IPs in conflict.
    pub(super) fn plan_without(&mut self, conflicts: &BTreeSet<Ipv4Addr>) -> Rc<Plan> {
        let ovs = self.ovs_facts.as_ref();
        let facts = Facts {
            node_ip: Some(self.identity.ip),
            prefix_len: Some(self.identity.prefix_len),
            link: Some(self.identity.uplink.name.clone()),
            uplinks: self.uplinks.facts(),
            gateway_mac: self
                .config
                .gateway_mac
                .unwrap_or_else(|| Mac(ovs.map(|facts| facts.gateway_mac).unwrap_or_default())),
            ovs_ports: ovs
                .map(|facts| OvsPorts { vxlan: facts.tunnel_port, gateway: facts.gateway_port }),
            conflicts: conflicts.clone(),
            ..Facts::of(&self.identity.name)
        };
        let mode = Mode {
            layout: tables::layout(&self.config, ovs),
            masquerade_bit: self.config.masquerade_bit,
            assign: false,
            flows: ovs.is_some(),
        };
        let question = Question { facts, health: self.health_of_nodes(), mode };
        self.plans.answer(&self.objects, question)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(conflict: u8) -> Question {
        let conflicts = BTreeSet::from([Ipv4Addr::new(10, 0, 0, conflict)]);
        Question {
            facts: Facts { conflicts, ..Facts::of("node") },
            health: Health::default(),
            mode: Mode::default(),
        }
    }

    #[test]
    fn a_question_is_answered_once_until_the_objects_change() {
        let (mut plans, objects) = (Plans::default(), Objects::default());
        let first = plans.answer(&objects, question(1));
        let other = plans.answer(&objects, question(2));
        assert!(Rc::ptr_eq(&first, &plans.answer(&objects, question(1))));
        assert!(!Rc::ptr_eq(&first, &other));
        plans.forget();
        assert!(!Rc::ptr_eq(&first, &plans.answer(&objects, question(1))));
    }

    #[test]
    fn what_was_not_asked_for_long_is_forgotten() {
        let (mut plans, objects) = (Plans::default(), Objects::default());
        let first = plans.answer(&objects, question(1));
        for conflict in 2..=4 {
            plans.answer(&objects, question(conflict));
        }
        assert_eq!(plans.made.len(), Plans::KEPT);
        assert!(!Rc::ptr_eq(&first, &plans.answer(&objects, question(1))));
    }
}
