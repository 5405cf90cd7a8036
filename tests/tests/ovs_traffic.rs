//! Packets through both nodes' real Open vSwitch, with and without our flows.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use egress_tests::netns::wait_for;
use egress_tests::ovs::plan::plans;
use egress_tests::ovs::{Node, OUTSIDE, OvsRig, Pod};
use egress_user::ovs::Layout;
use egress_user::reconcile::flows::{self, Desired};

/// For a connection to be made, or a byte to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reconciles, and waits until packets notice.
async fn put_in_force(node: &Node, desired: &Desired) -> Result<()> {
    flows::reconcile(&node.bridge(), desired).await?;
    node.ovs.wait_for_datapath()
}

/// Counts what arrives on the gateway device from `pod`, with the mark and in all.
///
/// On the device, because the stack refuses a packet whose MAC is the other node's gateway's.
fn probe(node: &Node, pod: &Pod, mark: u32) -> Result<()> {
    let from = format!("ip saddr {} ip daddr {OUTSIDE}", pod.address);
    node.netns.nft(&format!(
        "table netdev probe\ndelete table netdev probe\ntable netdev probe {{\n\
         counter marked {{}}\ncounter total {{}}\n\
         chain in {{\ntype filter hook ingress device \"tun0\" priority 0\npolicy accept\n\
         {from} counter name total\n{from} meta mark {mark} counter name marked\n}}\n}}\n"
    ))
}

/// (marked, total)
fn seen(node: &Node) -> Result<(u64, u64)> {
    let count = |name: &str| {
        let listed = node
            .netns
            .output(Command::new("nft").args(["list", "counter", "netdev", "probe", name]))?;
        let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
        words.nth(1).and_then(|count| count.parse().ok()).context("a counter without a number")
    };
    Ok((count("marked")?, count("total")?))
}

/// `count` datagrams from the pod to the outside.
fn send(pod: &Pod, count: usize) -> Result<()> {
    pod.netns.run(|| {
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        for _ in 0..count {
            // The outside host may have said that nobody listens; that is not what we ask.
            let _ = socket.send_to(b"hello", SocketAddrV4::new(OUTSIDE, 9));
        }
        Ok(())
    })?
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_pods_packet_arrives_marked_on_the_egress_node_through_our_flows_only() -> Result<()> {
    for layout in [Layout::Old, Layout::New] {
        let rig = OvsRig::start(layout)?;
        let (source, egress) = (&rig.source, &rig.egress);
        let pod = source.pod("egress-test");
        let plans = plans(layout, egress.facts().await?.gateway_mac);

        // Without our flows: out of the source node's own gateway, unmarked, never to the other.
        probe(source, pod, 0)?;
        probe(egress, pod, 0x006f_7936)?;
        send(pod, 5)?;
        wait_for("the unmarked packets", || Ok(seen(source)? == (5, 5)))?;
        assert_eq!(seen(egress)?, (0, 0), "{layout:?}");

        // With the flow on the source node only: it arrives, without a mark.
        put_in_force(source, &plans.source).await?;
        send(pod, 5)?;
        wait_for("the tunnelled packets", || Ok(seen(egress)?.1 >= 5))?;
        assert_eq!(seen(egress)?, (0, 5), "{layout:?}");

        put_in_force(egress, &plans.egress).await?;
        send(pod, 5)?;
        wait_for("the marked packets", || Ok(seen(egress)?.1 >= 10))?;
        assert_eq!(seen(egress)?, (5, 10), "{layout:?}");
        assert_eq!(seen(source)?, (5, 5), "no other way since: {layout:?}");

        // A VNID without an egress IP goes as before.
        let normal = source.pod("dbtest");
        probe(source, normal, 0)?;
        send(normal, 5)?;
        wait_for("the normal packets", || Ok(seen(source)? == (5, 5)))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn a_local_pods_packet_is_marked_on_its_own_node() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let pod = rig.egress.pod("egress-test");
    let plans = plans(Layout::New, rig.egress.facts().await?.gateway_mac);
    probe(&rig.egress, pod, 0x006f_7936)?;
    put_in_force(&rig.egress, &plans.egress).await?;
    send(pod, 5)?;
    wait_for("the marked packets", || Ok(seen(&rig.egress)? == (5, 5)))
}

/// The kernel's own SNAT stands for the egress node's programs: this is about the rig's two ways.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn tcp_goes_through_both_nodes_and_back_with_the_egress_ip() -> Result<()> {
    const EGRESS_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
    const BYTES: usize = 200_000;
    let rig = OvsRig::start(Layout::New)?;
    let plans = plans(Layout::New, rig.egress.facts().await?.gateway_mac);
    put_in_force(&rig.egress, &plans.egress).await?;
    put_in_force(&rig.source, &plans.source).await?;
    rig.egress.netns.ip(&format!("address add {EGRESS_IP}/24 dev {}\n", Node::UPLINK))?;
    rig.egress.netns.nft(&format!(
        "table ip stand_in {{\nchain post {{\ntype nat hook postrouting priority 100\n\
         ip saddr 10.128.0.0/14 meta mark 0x6f7936 snat to {EGRESS_IP}\n}}\n}}\n"
    ))?;
    let listener = rig.outside.run(|| TcpListener::bind((OUTSIDE, 8080)))??;
    let server = thread::spawn(move || -> Result<SocketAddr> {
        let (mut stream, peer) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut received = vec![0; BYTES];
        stream.read_exact(&mut received)?;
        stream.write_all(&received)?;
        Ok(peer)
    });
    let echoed = rig.source.pod("egress-test").netns.run(|| -> Result<usize> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((OUTSIDE, 8080)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&vec![7; BYTES])?;
        let mut back = vec![0; BYTES];
        stream.read_exact(&mut back)?;
        Ok(back.iter().filter(|byte| **byte == 7).count())
    })??;
    assert_eq!(echoed, BYTES);
    assert_eq!(server.join().expect("the server ends")?.ip(), EGRESS_IP);
    Ok(())
}
