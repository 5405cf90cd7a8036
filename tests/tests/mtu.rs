//! Packets too big for their way, on every data path: who sent them learns what fits, at once.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::wait_until,
    rig::{
        Rig,
        topology::{POD_MTU, UPLINK},
    },
    traffic::{Capture, PATIENCE, TcpServer, tcp_exchange},
};
use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::IpMtu},
};

const DATA_PATHS: [&str; 4] = ["tc", "xdp", "tunnel", "stack"];
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
/// A pod behind the tunnel, and one of the egress node, of another tenant.
const TUNNELLED: &str = "egress-test2-1";
const LOCAL: &str = "egress-test-3";
/// What the hosts' links carry.
const LINK_MTU: u16 = 1500;
/// What a narrow place carries.
const NARROW: u16 = 1400;

fn rig(data_path: &str) -> Result<Rig> {
    let rig = Rig::up()?;
    if data_path == "xdp" {
        rig.take_xdp_frames()?;
        rig.send_whole_frames()?;
    }
    Ok(rig)
}

/// The data of a UDP datagram whose packet has this size.
fn datagram(size: u16) -> Vec<u8> {
    (0..size - 28).map(|at| (at / 8) as u8).collect()
}

/// Connected sockets of a pod and of the far host, which have talked once.
struct Talk {
    pod: UdpSocket,
    far: UdpSocket,
}

impl Talk {
    fn start(rig: &Rig, pod: &str) -> Result<Self> {
        let far = rig.netns("far").run(|| UdpSocket::bind(FAR))??;
        let egress_ip = rig.pod(pod).egress_ip.context("an egress IP")?;
        let pod = rig.netns(pod).run(|| -> Result<_> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(FAR)?;
            Ok(socket)
        })??;
        for socket in [&pod, &far] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        pod.send(b"hello")?;
        let (_, peer) = far.recv_from(&mut [0; 8]).context("receive the pod's first datagram")?;
        ensure!(peer.ip() == egress_ip, "seen as {peer}");
        far.connect(peer)?;
        Ok(Self { pod, far })
    }
}

/// Waits until the path's MTU, as the socket knows it, is this. The socket has been told so by an
/// error too, which its next call would return.
fn learns(socket: &UdpSocket, mtu: u16) -> Result<()> {
    let known = || getsockopt(socket, IpMtu);
    wait_until(PATIENCE, || known().is_ok_and(|known| known == i32::from(mtu)));
    let known = known()?;
    ensure!(known == i32::from(mtu), "the socket knows an MTU of {known}, not {mtu}");
    let mut told = None;
    wait_until(PATIENCE, || {
        told = socket.take_error().ok().flatten().and_then(|error| error.raw_os_error());
        told.is_some()
    });
    ensure!(told == Some(Errno::EMSGSIZE as i32), "the socket was told {told:?}");
    Ok(())
}

/// A datagram of this size comes whole from one socket to the other.
fn arrives(from: &UdpSocket, to: &UdpSocket, size: u16) -> Result<()> {
    let sent = datagram(size);
    from.send(&sent).with_context(|| format!("send {size} bytes"))?;
    let mut got = vec![0; usize::from(LINK_MTU) * 2];
    let length = to.recv(&mut got).with_context(|| format!("receive {size} bytes"))?;
    ensure!(got[..length] == sent, "of {size} bytes {length} came, or others");
    Ok(())
}

/// What the gateway has dropped, and why.
fn drops(gateway: &Gateway<'_>) -> String {
    gateway.status().map_or_else(|error| format!("{error:#}"), |status| status["drops"].to_string())
}

/// Packets "fragmentation needed" from this address in the capture.
fn told_by(capture: &Capture, address: Ipv4Addr) -> usize {
    let tells = |payload: &[u8]| payload.starts_with(&[3, 4]);
    let packets = capture.packets();
    packets
        .iter()
        .filter(|it| it.source == address && it.protocol == 1 && tells(&it.payload))
        .count()
}

#[test]
#[ignore = "needs root"]
fn who_answers_a_pod_learns_the_tunnels_mtu_by_one_packet_from_the_egress_ip() -> Result<()> {
    for data_path in DATA_PATHS {
        let rig = rig(data_path)?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        for pod in [TUNNELLED, LOCAL] {
            let on = || format!("{pod} on {data_path}: {}", drops(&gateway));
            let capture = Capture::start(rig.netns("far"), "eth0")?;
            let Talk { pod: socket, far } = Talk::start(&rig, pod).with_context(on)?;
            ensure!(getsockopt(&far, IpMtu)? == i32::from(LINK_MTU));
            far.send(&datagram(LINK_MTU))?;
            learns(&far, POD_MTU).with_context(on)?;
            arrives(&far, &socket, POD_MTU).with_context(on)?;
            let egress_ip = rig.pod(pod).egress_ip.context("an egress IP")?;
            // The capture may come later than what it captures.
            wait_until(PATIENCE, || told_by(&capture, egress_ip) > 0);
            assert_eq!(told_by(&capture, egress_ip), 1, "{}", on());
            // What is bigger its sender now cuts by itself.
            arrives(&far, &socket, LINK_MTU).with_context(on)?;
        }
        assert_eq!(rig.untranslated()?, (0, 0), "{data_path}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_learns_the_mtu_of_a_narrow_uplink() -> Result<()> {
    for data_path in DATA_PATHS {
        let rig = rig(data_path)?;
        rig.netns(&rig.egress.name).ip(&format!("link set {UPLINK} mtu {NARROW}\n"))?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        let on = || format!("on {data_path}: {}", drops(&gateway));
        let Talk { pod, far } = Talk::start(&rig, LOCAL).with_context(on)?;
        pod.send(&datagram(POD_MTU))?;
        learns(&pod, NARROW).with_context(on)?;
        arrives(&pod, &far, NARROW).with_context(on)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_learns_the_mtu_of_a_narrow_place_beyond_the_uplink() -> Result<()> {
    for data_path in DATA_PATHS {
        let rig = rig(data_path)?;
        narrow_beyond(&rig)?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        for pod in [TUNNELLED, LOCAL] {
            let on = || format!("{pod} on {data_path}: {}", drops(&gateway));
            let Talk { pod: socket, far } = Talk::start(&rig, pod).with_context(on)?;
            socket.send(&datagram(POD_MTU))?;
            learns(&socket, NARROW).with_context(on)?;
            arrives(&socket, &far, NARROW).with_context(on)?;
        }
        assert_eq!(rig.untranslated()?, (0, 0), "{data_path}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn tcp_learns_the_mtu_that_neither_side_has_announced() -> Result<()> {
    for data_path in DATA_PATHS {
        let rig = rig(data_path)?;
        narrow_beyond(&rig)?;
        let gateway = Gateway::start_on(&rig, data_path)?;
        let _server = TcpServer::start(rig.netns("far"), FAR)?;
        for pod in [TUNNELLED, LOCAL] {
            let on = || format!("{pod} on {data_path}: {}", drops(&gateway));
            // The pod claims to take what only its peer's link carries.
            let netns = rig.netns(pod);
            let node =
                [&rig.source, &rig.egress].into_iter().find(|it| it.name == rig.pod(pod).node);
            let gateway = node.context("the pod's node")?.gateway;
            netns.ip(&format!("route change default via {gateway} advmss 1460\n"))?;
            netns.run(|| tcp_exchange(FAR, 1, 1 << 20))?.with_context(on)?;
        }
        assert_eq!(rig.untranslated()?, (0, 0), "{data_path}");
    }
    Ok(())
}

/// The router towards the far host has a narrow way on, which none of its links shows.
fn narrow_beyond(rig: &Rig) -> Result<()> {
    let route = format!("route add {}/32 dev eth1 mtu lock {NARROW}\n", FAR.ip());
    rig.netns("outside").ip(&route)
}
