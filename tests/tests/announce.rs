//! Announcements and conflict probes on a link with other hosts.
use std::{collections::BTreeSet, io::Read, net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result};
use egress_tests::netns::{Netns, wait_for};
use egress_user::{
    arp::{
        Arp, ETHERTYPE, Mac,
        probe::{Occupancy, next_conflict, probe},
        socket::ArpSocket,
    },
    netlink::Netlink,
    reconcile::announce::announce,
};
use socket2::{Domain, Protocol, Socket, Type};

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);
const NODE_MAC: Mac = [2, 0, 0, 0, 0, 2];
const HOST_MAC: Mac = [2, 0, 0, 0, 0, 0xca];
const DEADLINE: Duration = Duration::from_secs(10);

/// A node and another host, on one link.
struct Lan {
    node: Netns,
    host: Netns,
}

impl Lan {
    fn new() -> Result<Self> {
        let (node, host) = (Netns::alone("node")?, Netns::alone("host")?);
        let peer = host.name();
        node.exec(&format!("ip link add name ens18 type veth peer name eth0 netns {peer}"))?;
        for (netns, link, mac, address) in [
            (&node, "ens18", "02:00:00:00:00:02", "10.0.0.2/24"),
            (&host, "eth0", "02:00:00:00:00:ca", "10.0.0.202/24"),
        ] {
            netns.exec(&format!("ip link set dev {link} address {mac} up"))?;
            netns.exec(&format!("ip addr add {address} dev {link}"))?;
        }
        node.wait_up("ens18")?;
        host.wait_up("eth0")?;
        Ok(Self { node, host })
    }

    /// Runs `work` on the node with an ARP socket on its uplink.
    fn on_node<T: Send>(&self, work: impl AsyncFnOnce(ArpSocket) -> Result<T> + Send) -> Result<T> {
        self.node.block_on(|| async {
            let uplink = Netlink::open()?.link_by_name("ens18").await?;
            work(ArpSocket::open(&uplink.context("ens18 is missing")?)?).await
        })
    }
}

/// All ARP that a host hears, byte for byte.
struct Capture(Socket);

impl Capture {
    fn start(host: &Netns) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ETHERTYPE.to_be()));
        let socket = host.run(move || Socket::new(Domain::PACKET, Type::RAW, Some(protocol)))??;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(socket))
    }

    fn next(&mut self) -> Result<Vec<u8>> {
        let mut frame = [0; 2048];
        let read = self.0.read(&mut frame).context("no ARP was heard")?;
        Ok(frame[..read].to_vec())
    }
}

#[test]
#[ignore = "needs root"]
fn announcements_and_probes_are_byte_for_byte_those_of_arping() -> Result<()> {
    let lan = Lan::new()?;
    lan.node.exec("ip addr add 10.0.0.11/24 dev ens18")?;
    let mut heard = Capture::start(&lan.host)?;
    let mut arping = |arguments: &str| {
        lan.node.exec(&format!("arping -q -c 1 -w 1 -I ens18 {arguments}"))?;
        heard.next()
    };
    let theirs = [arping("-A 10.0.0.11")?, arping("-U 10.0.0.11")?, arping("-D 10.0.0.13")?];
    lan.on_node(async |socket| {
        announce(&socket, FIRST).await?;
        socket.send(&Arp::probe(socket.mac(), SECOND)).await
    })?;
    let ours = [heard.next()?, heard.next()?, heard.next()?];
    assert_eq!(ours, theirs);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_host_that_knew_the_old_owner_learns_the_new_one() -> Result<()> {
    let lan = Lan::new()?;
    // A Linux host believes nothing new within a second of the last news.
    lan.host.exec("ip ntable change name arp_cache dev eth0 locktime 0")?;
    lan.host.exec("ip neigh add 10.0.0.11 lladdr 02:00:00:00:00:99 dev eth0 nud stale")?;
    lan.on_node(async |socket| announce(&socket, FIRST).await)?;
    wait_for("the host to learn", || {
        Ok(lan.host.exec("ip neigh show 10.0.0.11")?.contains("lladdr 02:00:00:00:00:02"))
    })
}

#[test]
#[ignore = "needs root"]
fn a_probe_finds_who_holds_an_address_and_what_is_free() -> Result<()> {
    let lan = Lan::new()?;
    lan.host.exec("ip addr add 10.0.0.13/24 dev eth0")?;
    let found = lan.on_node(async |socket| probe(&socket, &[FIRST, SECOND].into()).await)?;
    assert_eq!(found, [(FIRST, Occupancy::Free), (SECOND, Occupancy::TakenBy(HOST_MAC))].into());
    // The probe itself must not have taught the host anything.
    assert!(!lan.host.exec("ip neigh show")?.contains("02:00:00:00:00:02"));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn of_two_nodes_that_probe_at_once_neither_finds_the_address_free() -> Result<()> {
    let lan = Lan::new()?;
    let addresses = BTreeSet::from([FIRST]);
    let found = lan.on_node(async |socket| {
        let rival = lan.host.block_on(|| async {
            let link = Netlink::open()?.link_by_name("eth0").await?.context("eth0 is missing")?;
            // Its probes wait in the node's socket.
            let rival = ArpSocket::open(&link)?;
            rival.send(&Arp::probe(rival.mac(), FIRST)).await
        });
        rival?;
        probe(&socket, &addresses).await
    })?;
    assert_eq!(found[&FIRST], Occupancy::TakenBy(HOST_MAC));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn somebody_who_announces_an_address_of_ours_is_noticed_on_our_link_alone() -> Result<()> {
    let lan = Lan::new()?;
    let elsewhere = Netns::alone("elsewhere")?;
    let peer = elsewhere.name();
    lan.node.exec(&format!("ip link add name other type veth peer name eth0 netns {peer}"))?;
    lan.node.exec("ip link set dev other up")?;
    elsewhere.exec("ip link set dev eth0 up")?;
    elsewhere.wait_up("eth0")?;
    elsewhere.exec("ip addr add 10.0.0.11/24 dev eth0")?;
    lan.host.exec("ip addr add 10.0.0.11/24 dev eth0")?;
    let (ip, mac) = lan.on_node(async |socket| {
        elsewhere.exec("arping -q -U -c 1 -w 1 -I eth0 10.0.0.11")?;
        lan.host.exec("arping -q -A -c 1 -w 1 -I eth0 10.0.0.202")?;
        lan.host.exec("arping -q -A -c 1 -w 1 -I eth0 10.0.0.11")?;
        // Its own announcement is none of somebody else.
        announce(&socket, FIRST).await?;
        let ours = BTreeSet::from([FIRST]);
        tokio::time::timeout(DEADLINE, next_conflict(&socket, &ours)).await?
    })?;
    assert_eq!((ip, mac), (FIRST, HOST_MAC));
    assert_ne!(mac, NODE_MAC);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_link_that_is_down_is_an_error_with_its_name() -> Result<()> {
    let lan = Lan::new()?;
    let error = lan.on_node(async |socket| {
        lan.node.exec("ip link set dev ens18 down")?;
        // The socket tells the fall of its link once, then that nothing can be sent.
        let errors = [announce(&socket, FIRST).await, announce(&socket, FIRST).await];
        Ok(errors.map(|result| result.map_err(|error| format!("{error:#}"))))
    })?;
    for error in error {
        let error = error.expect_err("the link is down");
        assert!(error.starts_with("announce 10.0.0.11: send ARP on ens18: is it up?"), "{error}");
    }
    Ok(())
}
