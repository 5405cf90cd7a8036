//! Network namespaces that a run of the tests forgot on the host.
use std::{collections::BTreeSet, fs, path::Path};

/// Where `ip netns` keeps the names.
const DIRECTORY: &str = "/run/netns";

/// Every namespace of the project has a name that starts so and holds its owner's process id.
const PREFIX: &str = "eg";

/// The names of the project's namespaces that are there now.
pub fn namespaces() -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return BTreeSet::new(); // made by the first `ip netns add`
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

/// What came since `before` and whose owner is gone. A living owner is another run.
pub fn since(before: &BTreeSet<String>) -> Vec<String> {
    forgotten(before, namespaces(), |pid| Path::new("/proc").join(pid).is_dir())
}

fn forgotten(
    before: &BTreeSet<String>,
    now: BTreeSet<String>,
    lives: impl Fn(&str) -> bool,
) -> Vec<String> {
    let owned = |name: &str| {
        name.split(|c: char| !c.is_ascii_digit()).any(|pid| !pid.is_empty() && lives(pid))
    };
    now.into_iter().filter(|name| !before.contains(name) && !owned(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_forgotten_if_it_is_new_and_its_owner_is_gone() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            forgotten(
                &set(&["eg-10-old"]),
                set(&["eg-10-old", "eg-20-pod1", "eg-30-pod1", "eg-hand"]),
                |pid| pid == "20"
            ),
            ["eg-30-pod1", "eg-hand"]
        );
    }
}
