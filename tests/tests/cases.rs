//! The engine's case table, told to the programs in the running kernel.
use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use aya::programs::XdpMode;
use egress_common::testing::{
    Gateway, checks,
    gateway::{EGRESS_IP, NODE, OTHER_EGRESS_IP, OTHER_TENANT, POD, REMOTE, TENANT},
    packet::{DONT_FRAGMENT, Segment, echo, icmp, segment, tcp, udp},
    stories,
};
use egress_tests::{
    mutation::{Chance, mend},
    netns::Netns,
    test_run::{
        Programs,
        live::{Entry, Node},
        xdp::{Vlans, XdpGateway, action, in_vxlan},
    },
};
use egress_user::bpf::{BPFFS, DataPlane, Sizes};

const SIZES: Sizes = Sizes { flows: 1024, policies: 64 };
/// Of the header before a packet.
const ETH_LEN: usize = 14;

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_the_programs_on_tc() -> Result<()> {
    with_uplink("cases", |uplink| {
        let programs = Programs::new(DataPlane::load(Path::new(BPFFS), SIZES)?, uplink)?;
        stories::tell(|| programs.fresh().expect("a fresh gateway"));
        Ok(())
    })
}

/// A namespace with an uplink by which every remote is known: XDP sends nowhere else.
fn with_uplink<T: Send>(label: &str, work: impl FnOnce(u32) -> Result<T> + Send) -> Result<T> {
    let netns = Netns::alone(label)?;
    netns.ip(&format!(
        "link add uplink type veth peer name far\nlink set uplink up\nlink set far up\n\
         addr add {}/24 dev uplink\nroute add default via 10.0.0.1 dev uplink\n\
         neigh add 10.0.0.1 lladdr 02:00:00:00:00:99 nud permanent dev uplink\n",
        std::net::Ipv4Addr::from(NODE)
    ))?;
    netns.sysctl("ipv4/ip_forward", "1")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || work(nix::net::if_::if_nametoindex("uplink")?))?
}

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_the_program_on_xdp_with_tc_behind_it() -> Result<()> {
    with_uplink("cases-xdp", |uplink| {
        let programs = Programs::new(DataPlane::load(Path::new(BPFFS), SIZES)?, uplink)?;
        let untagged = Vlans::default();
        let mut before = XdpGateway::new(programs.fresh()?, untagged)?.sent();
        for vlans in [
            untagged,
            Vlans { of_tunnel: 0, of_egress_ips: 100 },
            Vlans { of_tunnel: 10, of_egress_ips: 0 },
            Vlans { of_tunnel: 10, of_egress_ips: 100 },
        ] {
            let fresh = || XdpGateway::new(programs.fresh()?, vlans);
            stories::tell(|| fresh().expect("a fresh gateway"));
            let sent = fresh()?.sent();
            let (originals, replies) = (sent.0 - before.0, sent.1 - before.1);
            println!("sent on XDP with {vlans:?}: {originals} originals, {replies} replies");
            assert!(originals > 50 && replies > 30, "the stories were told to XDP");
            before = sent;
        }
        Ok(())
    })
}

#[test]
#[ignore = "needs root"]
fn a_drop_is_counted_for_its_tenant_whichever_way_it_went() -> Result<()> {
    let netns = Netns::alone("drops")?;
    let mounts = netns.private_mounts()?;
    netns.run_in(&mounts, || -> Result<()> {
        let programs = Programs::new(DataPlane::load(Path::new(BPFFS), SIZES)?, 1)?;
        let mut gateway = programs.fresh()?;
        let (client, server) = ((POD, 40001), (REMOTE, 443));
        let before = (gateway.dropped(TENANT)?, gateway.dropped(OTHER_TENANT)?);
        // A foreign source, a stray FIN, a connection from outside, and one that the guard stops.
        gateway.leave_pod(TENANT, &tcp((NODE, 1), server, 2).bytes());
        gateway.leave_pod(TENANT, &tcp(client, server, 1).bytes());
        gateway.arrive(&tcp(server, (EGRESS_IP, 80), 2).bytes());
        gateway.leave_stack(TENANT, &tcp((OTHER_EGRESS_IP, 1), server, 16).bytes());
        gateway.leave_pod(OTHER_TENANT, &tcp(client, server, 2).bytes());
        let after = (gateway.dropped(TENANT)?, gateway.dropped(OTHER_TENANT)?);
        assert_eq!((after.0 - before.0, after.1 - before.1), (4, 0));
        Ok(())
    })?
}

/// Tells all stories to programs that are attached, in real frames.
fn told_live(entry: Entry, on_xdp: bool) -> Result<()> {
    let node = Node::make()?;
    let mounts = node.node.private_mounts()?;
    node.node.run_in(&mounts, || -> Result<()> {
        let mut programs = DataPlane::load(Path::new(BPFFS), SIZES)?;
        if on_xdp {
            programs.attach_xdp("ens18", XdpMode::Driver)?;
        }
        let gateways = node.gateways(programs, entry)?;
        // Here the stack forwards nothing: what it is to carry on does not come out.
        let by_the_stack = ["fragments_to_the_node_are_the_nodes_unless_their_first_was_ours"];
        stories::tell_but(&by_the_stack, || gateways.fresh().expect("a fresh gateway"));
        Ok(())
    })?
}

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_frames_through_the_tunnel() -> Result<()> {
    told_live(Entry::Tunnel, false)
}

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_frames_through_the_tunnel_on_xdp() -> Result<()> {
    told_live(Entry::Tunnel, true)
}

#[test]
#[ignore = "needs root"]
fn every_story_holds_for_frames_of_the_gateway_device() -> Result<()> {
    told_live(Entry::Gateway, false)
}

/// As many as the issue of a gateway's robustness asks for.
const MUTANTS: u32 = 1_000_000;

#[test]
#[ignore = "needs root"]
fn a_mutated_frame_is_sent_right_or_passed_as_it_came_or_dropped() -> Result<()> {
    with_uplink("mutants", |uplink| {
        let programs = Programs::new(DataPlane::load(Path::new(BPFFS), SIZES)?, uplink)?;
        let mut gateway = XdpGateway::new(programs.fresh()?, Vlans::default())?;
        let frames = well_formed(&mut gateway);
        let mut chance = Chance(0x9e37_79b9_7f4a_7c15);
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        for _ in 0..MUTANTS {
            let mut frame = frames[chance.below(frames.len())].clone();
            let in_tunnel = frame[30..34] == NODE;
            chance.mutate(&mut frame);
            if chance.below(4) != 0 {
                mend(&mut frame, if in_tunnel { 64 } else { ETH_LEN });
            }
            let (said, out) = gateway.frame(&frame)?;
            *seen.entry(said).or_default() += 1;
            match said {
                action::DROP => {}
                action::PASS => assert_eq!(out, frame, "changed and passed"),
                action::TX | action::REDIRECT => check_sent(&frame, &out),
                other => panic!("{other} for {frame:02x?}"),
            }
        }
        println!("{seen:?}");
        assert_eq!(seen.len(), 3, "all of dropped, passed and sent: {seen:?}");
        Ok(())
    })
}

/// Frames that XDP treats: both directions, every protocol, and errors.
fn well_formed(gateway: &mut XdpGateway) -> Vec<Vec<u8>> {
    let (client, server) = ((POD, 40001), (REMOTE, 443));
    let mapped = (EGRESS_IP, 40001);
    let flags = |flags| Segment { flags, ..Segment::default() };
    let out = [
        segment(client, server, flags(2)),
        segment(client, server, flags(16)),
        udp(client, server, b"payload"),
        echo(8, POD, REMOTE, 7),
    ];
    let back = [
        tcp(server, mapped, 18),
        udp(server, mapped, b"payload").fragment(DONT_FRAGMENT),
        echo(0, REMOTE, EGRESS_IP, 7),
        icmp((3, 1), REMOTE, EGRESS_IP, [0; 4], &udp(mapped, server, b"payload").bytes()),
    ];
    let mut frames: Vec<_> = out.iter().map(|packet| in_vxlan(TENANT, &packet.bytes())).collect();
    let ethernet = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frames.extend(back.iter().map(|packet| [&ethernet[..], &packet.bytes()].concat()));
    for packet in &out {
        gateway.leave_pod(TENANT, &packet.bytes());
    }
    for frame in &frames {
        let (said, _) = gateway.frame(frame).expect("run the program");
        assert!([action::TX, action::REDIRECT].contains(&said), "{said} for {frame:02x?}");
    }
    frames
}

/// A pod's packet leaves with its tenant's address, a reply goes to a pod through the tunnel; what
/// came with right checksums leaves with right checksums.
fn check_sent(frame: &[u8], out: &[u8]) {
    let to_node = frame[30..34] == NODE;
    let (before, after) = if to_node {
        assert_eq!(out[26..30], egress_ip(&frame[46..49]), "the wrong source: {frame:02x?}");
        assert_eq!(out.len() + 50, frame.len());
        (&frame[64..], &out[ETH_LEN..])
    } else {
        assert_eq!(out[26..30], NODE, "the tunnel's source: {frame:02x?}");
        // A mutant may have begun a flow of another pod; never of no pod, or of another tenant.
        assert_eq!((out[80], out[81] & 0xfc), (10, 128), "to no pod: {frame:02x?}");
        assert_eq!(frame[30..34], egress_ip(&out[46..49]), "to another tenant: {frame:02x?}");
        assert_eq!(out.len(), frame.len() + 50);
        checks::checksums(&out[ETH_LEN..]).expect("the outer headers");
        (&frame[ETH_LEN..], &out[64..])
    };
    if checks::checksums(before).is_ok() {
        checks::checksums(after).unwrap_or_else(|which| panic!("{which}: {frame:02x?}"));
    }
}

/// What a VNID as it stands in a VXLAN header has.
fn egress_ip(vnid: &[u8]) -> [u8; 4] {
    match u32::from_be_bytes([0, vnid[0], vnid[1], vnid[2]]) {
        TENANT => EGRESS_IP,
        OTHER_TENANT => OTHER_EGRESS_IP,
        vnid => panic!("VNID {vnid:#x} has no egress IP"),
    }
}
