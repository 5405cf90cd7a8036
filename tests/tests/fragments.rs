//! Fragments from outside, in any order, through the agent's translation.
use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result, ensure};
use egress_common::testing::packet::udp;
use egress_tests::{
    gateway::Gateway,
    rig::Rig,
    traffic::{PATIENCE, UdpServer},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

const PORT: u16 = 7000;
/// The pod's, which its tenant's first flow keeps.
const FROM: u16 = 40_000;
/// A datagram's data, and a fragment's part of it: three fragments.
const DATA: usize = 2992;
const PART: usize = 1000;

#[test]
#[ignore = "needs root"]
fn a_datagrams_fragments_reach_the_pod_in_any_order() -> Result<()> {
    let rig = Rig::up()?;
    let gateway = Gateway::start(&rig)?;
    let host = rig.outside.first().context("an outside host")?;
    let server = SocketAddrV4::new(host.ip, PORT);
    let egress_ip = rig.pod("egress-test-1").egress_ip.context("egress IP")?;
    let pod = rig
        .netns("egress-test-1")
        .run(|| UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, FROM)))??;
    pod.set_read_timeout(Some(PATIENCE))?;
    let (echo, mut answer) = (UdpServer::start(rig.netns(&host.name), server)?, [0; 4096]);
    pod.send_to(&1_u64.to_be_bytes(), server)?;
    pod.recv(&mut answer).context("receive the echo")?;
    ensure!(echo.peer(1) == Some(SocketAddrV4::new(egress_ip, FROM)), "seen as {:?}", echo.peer(1));
    let orders = [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [2, 0, 1]];
    for (id, order) in (1_u16..).zip(orders) {
        let data: Vec<u8> = (0..DATA).map(|at| (at / 8) as u8 ^ id as u8).collect();
        let datagram = udp((host.ip.octets(), PORT), (egress_ip.octets(), FROM), &data);
        let fragments = datagram.id(id).fragments(PART);
        assert_eq!(fragments.len(), order.len());
        rig.netns(&host.name).run(|| {
            order.iter().try_for_each(|part| send_raw(egress_ip, &fragments[*part].bytes()))
        })??;
        let length = pod.recv(&mut answer).with_context(|| format!("fragments as {order:?}"))?;
        assert!(answer[..length] == data, "{order:?}: {length} bytes, or others");
    }
    let status = gateway.status()?;
    let drops = &status["drops"];
    assert_eq!((&drops["fragment"], &drops["fragment_early"]), (&0.into(), &0.into()), "{drops}");
    assert_eq!(rig.untranslated()?, (0, 0));
    Ok(())
}

/// Sends a packet with its own IPv4 header.
fn send_raw(to: Ipv4Addr, packet: &[u8]) -> Result<()> {
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw)
        .context("open a raw socket")?;
    let [a, b, c, d] = to.octets();
    sendto(raw.as_raw_fd(), packet, &SockaddrIn::new(a, b, c, d, 0), MsgFlags::empty())
        .with_context(|| format!("send a fragment to {to}"))?;
    Ok(())
}
