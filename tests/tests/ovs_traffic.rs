//! Packets through both nodes' real Open vSwitch, with and without our flows.
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use egress_tests::netns::wait_for;
use egress_tests::ovs::plan::{desired, plans};
use egress_tests::ovs::{Node, OUTSIDE, OvsRig, Pod};
use egress_tests::traffic::{Capture, Packet};
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

/// Each the last byte of an address outside.
const REMOTES: RangeInclusive<u8> = 1..=200;

/// One datagram from the pod to each remote, and the VNI that it left the node with: what is not TCP goes
/// by its addresses.
fn ways(rig: &OvsRig, pod: &Pod) -> Result<BTreeMap<u8, u32>> {
    let capture = Capture::start(&rig.switch, rig.source.site.name)?;
    pod.netns.run(|| -> Result<()> {
        let socket = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        for remote in REMOTES {
            socket.send_to(b"hello", (Ipv4Addr::new(198, 51, 100, remote), 9))?;
        }
        Ok(())
    })??;
    // Behind the outer UDP header: VXLAN's, Ethernet's, and IP's, which ends with the remote.
    let way = |packet: &Packet| {
        let (vxlan, inner) = packet.payload.get(8..)?.split_first_chunk::<8>()?;
        let [.., a, b, c, _] = *vxlan;
        Some((*inner.get(33)?, u32::from_be_bytes([0, a, b, c])))
    };
    let mut ways = BTreeMap::new();
    wait_for("all datagrams to leave the node", || {
        ways = capture.packets().iter().filter_map(way).collect();
        Ok(REMOTES.into_iter().all(|remote| ways.contains_key(&remote)))
    })?;
    Ok(ways)
}

/// What an offline node's bucket relies on: the switch chooses by the number of buckets.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root"]
async fn of_a_bucket_that_leads_elsewhere_only_the_share_moves() -> Result<()> {
    let rig = OvsRig::start(Layout::New)?;
    let pod = rig.source.pod("egress-test");
    // All to one node, told apart by the VNI.
    let to =
        |vni: u32| format!("bucket=actions=set_field:{vni}->tun_id,set_field:10.0.0.2->tun_dst");
    let [a, b, c] = [1, 2, 3].map(|vni| to(vni) + ",output:1");
    let group =
        |id: u32, buckets: &[&str]| format!("group_id={id},type=select,{}", buckets.join(","));
    let flow = "table=101,priority=100,ip,reg0=0x6f7936,actions=group:7305526";
    put_in_force(&rig.source, &desired(&[flow], &[&group(7_305_526, &[&a, &b, &c])])).await?;
    let before = ways(&rig, pod)?;
    for vni in 1..=3 {
        let share = before.values().filter(|way| **way == vni).count();
        ensure!(share > 20, "{share} of 200 by {vni}");
    }
    let elsewhere = "table=103,priority=100,ip,reg0=0x6f7936,actions=group:24082742";
    let [all, others] = [
        group(7_305_526, &[&a, "bucket=actions=resubmit(,103)", &c]),
        group(24_082_742, &[&a, &c]),
    ];
    put_in_force(&rig.source, &desired(&[flow, elsewhere], &[&all, &others])).await?;
    for (remote, way) in ways(&rig, pod)? {
        ensure!(way != 2, "{remote} goes where nobody is");
        let was = before[&remote];
        ensure!(was == 2 || was == way, "{remote}: {was} and {way}");
    }
    // As the original has it, and why the bucket stays.
    put_in_force(&rig.source, &desired(&[flow], &[&group(7_305_526, &[&a, &c])])).await?;
    let dealt_out = ways(&rig, pod)?;
    ensure!(dealt_out.iter().any(|(remote, way)| before[remote] != 2 && before[remote] != *way));
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
