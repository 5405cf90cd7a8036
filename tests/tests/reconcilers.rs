//! The hands that fill maps and attach programs: a second run changes nothing, and one failing
//! object does not stop the others. Addresses and flows have their own (addresses.rs, ovs.rs).
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::Path,
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};
use egress_common::spread::EgressNodes;
use egress_tests::netns::{Netns, wait_until};
use egress_user::{
    bpf::{BPFFS, DataPlane, Hook, Sizes, pins},
    reconcile::{
        attachments::{self, Outcome, Place},
        sources::{self, Desired, Maps},
    },
};

const SIZES: Sizes = Sizes { flows: 1024, policies: 64 };

/// Runs a closure with freshly made maps and programs, where `left` and `right` are devices.
fn with_data_plane(work: impl FnOnce(&mut DataPlane) -> Result<()> + Send) -> Result<()> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let netns = Netns::create(&format!("eg{}-{count}-hands", process::id()))?;
    netns.ip("link add left type veth peer name right\n")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || work(&mut DataPlane::load(Path::new(BPFFS), SIZES)?))?
}

/// Counts what was ever attached and detached there.
fn revision(device: &str, direction: TcAttachType) -> Result<u64> {
    Ok(SchedClassifier::query_tcx(device, direction)?.0)
}

fn attached(outcomes: impl IntoIterator<Item = (Place, Outcome)>) -> BTreeMap<Place, &'static str> {
    let name = |outcome| match outcome {
        Outcome::Attached => "attached",
        Outcome::Present => "present",
        Outcome::Failed(_) => "failed",
    };
    outcomes.into_iter().map(|(place, outcome)| (place, name(outcome))).collect()
}

#[test]
#[ignore = "needs root"]
fn programs_are_attached_once_and_a_missing_device_does_not_stop_the_others() -> Result<()> {
    with_data_plane(|data_plane| {
        let place = |hook, device: &str| (hook, device.to_owned());
        let places = [
            place(Hook::UplinkEgress, "left"),
            place(Hook::UplinkIngress, "gone"),
            place(Hook::UplinkIngress, "left"),
            place(Hook::PodIngress, "right"),
        ];
        let found = |outcomes, expected| {
            let mut all: BTreeMap<_, _> =
                places.iter().map(|place| (place.clone(), expected)).collect();
            all.insert(places[1].clone(), "failed");
            assert_eq!(attached(outcomes), all);
        };
        found(attachments::reconcile(data_plane, &places), "attached");
        let before = [TcAttachType::Ingress, TcAttachType::Egress]
            .map(|direction| revision("left", direction).ok());
        found(attachments::reconcile(data_plane, &places), "present");
        let after = [TcAttachType::Ingress, TcAttachType::Egress]
            .map(|direction| revision("left", direction).ok());
        assert_eq!(after, before, "the second run changed something");

        // What is wanted no more is detached, and nothing else.
        assert_eq!(data_plane.detach_all_but(&places[..3])?, ["pod_ingress-right"]);
        assert_eq!(data_plane.detach_all_but(&places[..3])?, [""; 0]);
        // The kernel ends a link a moment after its last reference.
        let mut still = || data_plane.is_attached(Hook::PodIngress, "right").unwrap_or(true);
        assert!(wait_until(Duration::from_secs(10), || !still()), "it runs on");
        assert!(data_plane.is_attached(Hook::UplinkEgress, "left")?);
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn the_source_sides_maps_are_written_once_and_follow() -> Result<()> {
    with_data_plane(|_| {
        let mut maps = Maps::open(&pins(Path::new(BPFFS)))?;
        let to = |number| EgressNodes::of([[10, 0, 0, 2], [10, 0, 0, number]], false, 0);
        let mut desired = Desired {
            devices: BTreeMap::from([(7, 42), (8, 43)]),
            pods: BTreeMap::from([(Ipv4Addr::new(10, 128, 0, 11), 44)]),
            egress_nodes: BTreeMap::from([(42, to(3)), (44, to(3))]),
        };
        assert_eq!(sources::reconcile(&mut maps, &desired)?, 5);
        assert_eq!(sources::reconcile(&mut maps, &desired)?, 0, "the second run");
        maps.forget();
        assert_eq!(
            sources::reconcile(&mut maps, &desired)?,
            0,
            "they do not hold what was written"
        );
        desired.devices.remove(&7);
        desired.egress_nodes.insert(42, to(4));
        assert_eq!(sources::reconcile(&mut maps, &desired)?, 2);
        assert_eq!(sources::reconcile(&mut maps, &Desired::default())?, 4);
        Ok(())
    })
}
