//! Deals out egressCIDRs over files of objects, and writes where each egress IP lives into them.
//!
//! What the files say is the previous placement, and the decision is `plan`'s: a second call changes
//! nothing. The files are locked from the reading to the writing, so that no edit by hand is lost.
use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{
    edit::Edit,
    files::{Input, files_of, text_of},
};
use crate::plan::{Health, Previous, allocate};

/// Returns what changed, a sentence for each node.
///
/// # Errors
/// A file cannot be read or written, somebody else edits it, or an object in one is refused: who
/// does not know all that is asked for must not take places away.
pub fn deal_out(paths: &[PathBuf], health: &Health) -> Result<Vec<String>> {
    let mut edits = Vec::new();
    for path in paths {
        for file in files_of(path)? {
            if text_of(&file)?.contains("egressCIDRs") {
                edits.push(Edit::open_now(&file)?);
            }
        }
    }
    let input = Input::read(paths)?;
    if let Some(refused) = input.objects.refused().next() {
        bail!("deal out egressCIDRs: {}: {}", refused.object, refused.message);
    }
    let after = allocate(&input.objects, health, &Previous::default());
    let mut changes = Vec::new();
    for node in after.host_subnets.values() {
        let mut before = input.objects.host_subnets[&node.name].egress_ips.clone();
        before.sort();
        if before == node.egress_ips || node.egress_cidrs.is_empty() {
            continue;
        }
        changes
            .push(format!("node {} hosts {:?}, no longer {before:?}", node.name, node.egress_ips));
        edits.iter_mut().for_each(|edit| edit.host(&node.name, &node.egress_ips));
    }
    for edit in &edits {
        edit.commit()?;
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path};

    use super::*;

    const OBJECTS: &str = "\
# The routers.
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: a}
host: a
hostIP: 10.0.0.2
subnet: 10.130.0.0/23
egressCIDRs: [10.0.0.0/24]
---
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: b}
host: b
hostIP: 10.0.0.3
subnet: 10.130.2.0/23
egressCIDRs: [10.0.0.0/24]
---
# By hand.
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: c}
host: c
hostIP: 10.0.0.4
subnet: 10.130.4.0/23
egressIPs: [10.0.0.99]
---
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: blue}
netname: blue
netid: 1
egressIPs: [10.0.0.11, 10.0.0.12]
---
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: green}
netname: green
netid: 2
egressIPs: [10.0.0.13]
";

    /// A file of its own for a test.
    struct File(PathBuf);

    impl File {
        fn new(name: &str) -> Self {
            let name = format!("egress-{name}-{}.yaml", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, OBJECTS).unwrap();
            Self(path)
        }

        fn deal_out(&self, offline: &[u8]) -> Result<usize> {
            let offline = offline.iter().map(|number| Ipv4Addr::new(10, 0, 0, *number)).collect();
            Ok(deal_out(std::slice::from_ref(&self.0), &Health { offline, ..Health::default() })?
                .len())
        }

        /// Last bytes of the egress IPs by node.
        fn places(&self) -> BTreeMap<String, Vec<u8>> {
            let input = Input::read(std::slice::from_ref(&self.0)).unwrap();
            let nodes = input.objects.host_subnets.into_values();
            let last = |ip: Ipv4Addr| ip.octets()[3];
            nodes.map(|node| (node.name, node.egress_ips.into_iter().map(last).collect())).collect()
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            for path in [self.0.clone(), Path::new(&format!("{}.lock", self.0.display())).into()] {
                let _ = fs::remove_file(path);
            }
        }
    }

    fn places(a: &[u8], b: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let all = [("a", a), ("b", b), ("c", &[99])];
        all.map(|(name, ips)| (name.to_owned(), ips.to_vec())).into()
    }

    #[test]
    fn egress_ips_are_dealt_out_once_and_one_tenants_go_to_different_nodes() {
        let file = File::new("deal");
        assert_eq!(file.deal_out(&[]).unwrap(), 2);
        assert_eq!(file.places(), places(&[12, 13], &[11]));
        let text = fs::read_to_string(&file.0).unwrap();
        assert!(text.contains("# By hand."), "{text}");
        assert_eq!(file.deal_out(&[]).unwrap(), 0, "the second time");
        assert_eq!(fs::read_to_string(&file.0).unwrap(), text);
    }

    #[test]
    fn an_offline_nodes_egress_ips_move_and_what_lives_elsewhere_stays() {
        let file = File::new("offline");
        file.deal_out(&[]).unwrap();
        // The other node has one of blue's already.
        assert_eq!(file.deal_out(&[2]).unwrap(), 2);
        assert_eq!(file.places(), places(&[], &[11, 13]));
        file.deal_out(&[]).unwrap();
        assert_eq!(file.places(), places(&[12], &[11, 13]), "it came back");
    }

    #[test]
    fn while_an_object_is_refused_all_stays_where_it_is() {
        let file = File::new("refused");
        file.deal_out(&[]).unwrap();
        let text = fs::read_to_string(&file.0).unwrap().replace("netid: 2", "netid: -2");
        fs::write(&file.0, &text).unwrap();
        let error = format!("{:#}", file.deal_out(&[2]).unwrap_err());
        assert!(error.contains("NetNamespace/green"), "{error}");
        assert_eq!(fs::read_to_string(&file.0).unwrap(), text);
    }

    #[test]
    fn a_file_that_is_being_edited_is_not_waited_for() {
        let file = File::new("edited");
        let edit = Edit::open(&file.0).unwrap();
        assert!(file.deal_out(&[]).is_err());
        drop(edit);
        assert_eq!(file.deal_out(&[]).unwrap(), 2);
    }
}
