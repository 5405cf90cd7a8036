//! What a reconciler has to change: the difference of two sets.
use std::collections::BTreeSet;

/// The change that turns an observed set into the desired one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change<T> {
    pub add: Vec<T>,
    pub remove: Vec<T>,
}

impl<T> Change<T> {
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// In order; nothing that is in both sets is touched.
pub fn diff<T: Ord + Clone>(desired: &BTreeSet<T>, observed: &BTreeSet<T>) -> Change<T> {
    Change {
        add: desired.difference(observed).cloned().collect(),
        remove: observed.difference(desired).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_both_sets_is_left_alone() {
        let change = diff(&BTreeSet::from([1, 2]), &BTreeSet::from([2, 3]));
        assert_eq!(change, Change { add: vec![1], remove: vec![3] });
    }

    #[test]
    fn a_second_round_changes_nothing() {
        let desired = BTreeSet::from([1, 2]);
        assert!(diff(&desired, &desired).is_empty());
    }
}
