//! Pods behind the tunnel: where replies go, and how big they may be.
use egress_common::{
    nat::{By, Origin},
    reason::Reason,
    testing::{
        Gateway, Host, Outcome,
        gateway::{EGRESS_IP, POD, REMOTE, TENANT},
        packet::{DONT_FRAGMENT, Datagram, End, icmp, udp},
    },
};

const CLIENT: End = (POD, 5353);
const MAPPED: End = (EGRESS_IP, 5353);
const SERVER: End = (REMOTE, 53);
const SOURCE_NODE: [u8; 4] = [10, 0, 0, 3];
const MTU: u32 = 200;
/// Destination and source of a link-layer header: the gateway's, then the pod's.
const CAME_WITH: [[u8; 4]; 3] = [[2, 0, 0, 0], [0, 1, 10, 88], [10, 130, 0, 7]];
const GOES_BACK_WITH: [[u8; 4]; 3] = [[10, 88, 10, 130], [0, 7, 2, 0], [0, 0, 0, 1]];

/// A gateway with a flow of a pod behind the tunnel.
fn gateway() -> Host {
    gateway_to(SOURCE_NODE)
}

/// A gateway with a flow of a pod of that node; all zero: of this one.
fn gateway_to(node: [u8; 4]) -> Host {
    let mut host = Host::default();
    host.configure(&|config| config.tunnel_mtu = MTU);
    let origin = Origin {
        vnid: TENANT,
        node,
        ifindex: 9,
        macs: CAME_WITH.map(u32::from_ne_bytes),
        ..Origin::default()
    };
    let found = host.original(origin, &udp(CLIENT, SERVER, b"x").bytes());
    assert!(matches!(found, Outcome::Sent(_)), "{found:?}");
    host
}

fn reply(length: usize, fragment: u16) -> Datagram {
    Datagram { fragment, ..udp(SERVER, MAPPED, &vec![0; length - 28]) }
}

#[test]
fn a_reply_goes_back_through_the_tunnel_to_its_node() {
    let mut host = gateway();
    assert!(matches!(host.arrive(&reply(100, 0).bytes()), Outcome::Sent(_)));
    let way = host.scratch.translation.way;
    assert_eq!((way.by, way.vnid, way.node), (By::Tunnel, TENANT, SOURCE_NODE));
    assert_eq!(way.macs.map(u32::to_ne_bytes), GOES_BACK_WITH);
}

#[test]
fn a_reply_too_big_for_the_tunnel_is_answered_with_the_inner_mtu_if_it_forbids_fragments() {
    let mut host = gateway();
    let fits = reply(MTU as usize, DONT_FRAGMENT);
    assert!(matches!(host.arrive(&fits.bytes()), Outcome::Sent(_)));
    let big = reply(MTU as usize + 1, DONT_FRAGMENT);
    let error = icmp((3, 4), EGRESS_IP, REMOTE, [0, 0, 0, 200], &big.bytes()[..28]);
    let error = Datagram { id: 0, fragment: DONT_FRAGMENT, ..error };
    assert_eq!(host.arrive(&big.bytes()), Outcome::Answered(Reason::TooBig, error.bytes()));
    let may_be_cut = reply(MTU as usize + 1, 0);
    assert!(matches!(host.arrive(&may_be_cut.bytes()), Outcome::Sent(_)));
}

#[test]
fn a_pod_of_this_node_has_the_mtu_of_the_tunnel() {
    let mut host = gateway_to([0; 4]);
    let fits = reply(MTU as usize, DONT_FRAGMENT);
    assert!(matches!(host.arrive(&fits.bytes()), Outcome::Sent(_)));
    assert_eq!(host.scratch.translation.way.by, By::Link);
    let found = host.arrive(&reply(MTU as usize + 1, DONT_FRAGMENT).bytes());
    assert!(matches!(found, Outcome::Answered(Reason::TooBig, _)), "{found:?}");
}

#[test]
fn a_pods_address_that_moved_to_another_node_begins_a_new_flow() {
    let mut host = gateway();
    let origin = Origin { vnid: TENANT, node: [10, 0, 0, 4], ifindex: 9, ..Origin::default() };
    let found = host.original(origin, &udp(CLIENT, SERVER, b"x").bytes());
    assert!(matches!(found, Outcome::Sent(_)), "{found:?}");
    assert_eq!(host.mappings().len(), 1);
    assert!(matches!(host.arrive(&reply(100, 0).bytes()), Outcome::Sent(_)));
    assert_eq!(host.scratch.translation.way.node, [10, 0, 0, 4]);
}
