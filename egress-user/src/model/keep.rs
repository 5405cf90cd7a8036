//! What was good before and cannot be read any more stays as it was: a slip of the pen must not
//! take a tenant's policy away, which would let it out with the node's address.
use std::collections::BTreeSet;

use super::{Condition, Objects, Reason};

impl Objects {
    /// Keeps those of `before` that are refused now, or that may be among documents that cannot even
    /// be told apart. Their conditions say so.
    pub fn keep_refused(&mut self, before: &Self) {
        let illegible = self.refused().any(is_illegible);
        let refused: BTreeSet<String> =
            self.refused().map(|condition| condition.object.clone()).collect();
        if refused.is_empty() {
            return;
        }
        let mut kept = Vec::new();
        let Self { host_subnets, net_namespaces, cluster_networks, conditions: _ } = before;
        macro_rules! keep {
            ($map:ident, $kind:literal) => {
                for (name, object) in $map {
                    let full = format!(concat!($kind, "/{}"), name);
                    let lost = illegible || refused.contains(&full);
                    if lost && !self.$map.contains_key(name) {
                        self.$map.insert(name.clone(), object.clone());
                        kept.push(full);
                    }
                }
            };
        }
        keep!(host_subnets, "HostSubnet");
        keep!(net_namespaces, "NetNamespace");
        keep!(cluster_networks, "ClusterNetwork");
        for condition in &mut self.conditions {
            if condition.reason != Reason::Invalid {
                continue;
            }
            if kept.contains(&condition.object) {
                condition.message.push_str("; it stays as it was before");
            } else if is_illegible(condition) && !kept.is_empty() {
                condition.message.push_str("; what may have been in it stays as it was before");
            }
        }
    }
}

/// Whether the condition is of something whose kind or name cannot be told.
fn is_illegible(condition: &Condition) -> bool {
    let object = &condition.object;
    object.starts_with("Document/") || object.starts_with("List/") || object.contains('?')
}

#[cfg(test)]
mod tests {
    use crate::source::files::Input;

    use super::Objects;

    fn read(text: &str) -> Objects {
        let mut input = Input::default();
        input.add_text(text, "file").expect("no AgentConfig in it");
        input.objects
    }

    fn namespace(name: &str, vnid: u32) -> String {
        format!(
            "---\napiVersion: network.openshift.io/v1\nkind: NetNamespace\nmetadata: {{name: \
             {name}}}\nnetname: {name}\nnetid: {vnid}\n"
        )
    }

    /// Names and VNIDs after `before` was followed by `after`.
    fn kept(before: &str, after: &str) -> Vec<(String, u32)> {
        let mut objects = read(after);
        objects.keep_refused(&read(before));
        objects.net_namespaces.into_values().map(|object| (object.name, object.vnid)).collect()
    }

    #[test]
    fn what_is_refused_now_stays_as_it_was_and_what_is_deleted_goes() {
        let before = namespace("blue", 1) + &namespace("green", 2);
        let bad = namespace("blue", 16_777_216);
        assert_eq!(kept(&before, &bad), [("blue".into(), 1)]);
        assert_eq!(kept(&before, &namespace("red", 3)), [("red".into(), 3)]);
    }

    #[test]
    fn a_document_that_cannot_be_read_may_have_held_anything() {
        let before = namespace("blue", 1) + &namespace("green", 2);
        let after = namespace("blue", 5) + "---\n{ no yaml\n";
        assert_eq!(kept(&before, &after), [("blue".into(), 5), ("green".into(), 2)]);
    }

    #[test]
    fn the_condition_of_what_stays_says_so() {
        let mut objects = read(&namespace("blue", 16_777_216));
        objects.keep_refused(&read(&namespace("blue", 1)));
        let [condition] = &objects.conditions[..] else { panic!("{:?}", objects.conditions) };
        assert!(condition.message.ends_with("; it stays as it was before"), "{condition:?}");
    }
}
