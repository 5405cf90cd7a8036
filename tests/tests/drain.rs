//! `egress drain` and `egress move` under traffic: what runs goes on, what begins goes elsewhere first.
use std::{
    io::{Read as _, Write as _, copy},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command},
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::{Gateway, OBJECTS},
    netns::wait_for,
    rig::{
        topology::UPLINK,
        trio::{EGRESS, SPREAD, SourceSide, TENANTS, Tenant, Trio},
    },
    traffic::{Download, PATIENCE, TcpServer, UdpServer, exchange_many},
};
use egress_user::ovs::Layout;

/// The tenant with one egress IP, which is on the first egress node, and its pod.
const SINGLE: &Tenant = &TENANTS[1];
const SINGLE_POD: &str = "egress-test2-1";
const SPREAD_POD: &str = "egress-test-1";
const REMOTES: u8 = 20;

/// A TCP connection of the single tenant that lasts; the far host sends back what it is sent.
struct Stream {
    near: TcpStream,
    far: Ipv4Addr,
}

impl Stream {
    fn open(rig: &Trio) -> Result<Self> {
        let listener = rig.netns("far").run(|| TcpListener::bind(SINGLE.far()))??;
        let near = rig.netns(SINGLE_POD).run(|| TcpStream::connect(SINGLE.far()))??;
        near.set_read_timeout(Some(PATIENCE))?;
        let (far, peer) = listener.accept()?;
        // Ends with the connection.
        thread::spawn(move || copy(&mut &far, &mut &far));
        let std::net::IpAddr::V4(far) = peer.ip() else { anyhow::bail!("{peer} is no IPv4") };
        Ok(Self { near, far })
    }

    fn goes_on(&mut self) -> Result<()> {
        let mut answer = [0; 4];
        self.near.write_all(b"more").context("send in the lasting stream")?;
        self.near.read_exact(&mut answer).context("hear in the lasting stream")?;
        ensure!(&answer == b"more", "{answer:?}");
        Ok(())
    }
}

/// Servers at many addresses that the spread tenant talks to.
struct Remotes<'a> {
    rig: &'a Trio,
    servers: Vec<UdpServer>,
    asked: AtomicU64,
}

impl<'a> Remotes<'a> {
    fn start(rig: &'a Trio) -> Result<Self> {
        let far = rig.netns("far");
        let remotes = rig.remotes(SPREAD, REMOTES)?;
        let servers = remotes.iter().map(|remote| UdpServer::start(far, *remote));
        Ok(Self { rig, servers: servers.collect::<Result<_>>()?, asked: AtomicU64::new(0) })
    }

    /// A new flow to each.
    fn sockets(&self) -> Result<Vec<UdpSocket>> {
        let socket = |server: &UdpServer| -> Result<UdpSocket> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(server.address())?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        };
        let netns = self.rig.netns(SPREAD_POD);
        netns.run(|| self.servers.iter().map(socket).collect::<Result<Vec<_>>>())?
    }

    /// The egress IPs that these flows, one to each, are seen with now.
    fn seen(&self, sockets: &[UdpSocket]) -> Result<Vec<Ipv4Addr>> {
        let exchange = |(socket, server): (&UdpSocket, &UdpServer)| {
            let id = self.asked.fetch_add(1, Ordering::Relaxed);
            socket.send(&id.to_be_bytes())?;
            let mut answer = [0; 9];
            let length = socket.recv(&mut answer).context("hear the echo of a flow")?;
            ensure!(answer[..length] == id.to_be_bytes(), "the echo of another datagram");
            server.peer(id).map(|peer| *peer.ip()).context("an echo of what never came")
        };
        sockets.iter().zip(&self.servers).map(exchange).collect()
    }
}

fn holds(rig: &Trio, node: &str, ip: Ipv4Addr) -> Result<bool> {
    let mut show = Command::new("ip");
    show.args(["-o", "-4", "addr", "show", "dev", UPLINK]);
    Ok(rig.netns(node).output(&mut show)?.contains(&format!(" {ip}/")))
}

fn no_leaks(rig: &Trio) -> Result<()> {
    let leaks = rig.leaks()?;
    ensure!(leaks.values().all(|packets| *packets == 0), "{leaks:?}");
    Ok(())
}

/// Does it to the file of each agent.
fn everywhere(agents: &[Gateway<'_>], arguments: &[&str]) -> Result<()> {
    for agent in agents {
        let output = agent.egress(&[arguments, &["-f", OBJECTS]].concat())?;
        ensure!(output.status.success(), "egress {arguments:?}: {output:?}");
    }
    Ok(())
}

const DRAIN: [&str; 6] = ["drain", EGRESS[0], "--to", EGRESS[1], "-f", OBJECTS];

/// With so much time that it does not end.
fn begin_to_drain(agents: &[Gateway<'_>]) -> Result<Vec<Child>> {
    let begin = |agent: &Gateway<'_>| agent.begin(&[&DRAIN[..], &["--for", "1h"]].concat());
    agents.iter().map(begin).collect()
}

#[test]
#[ignore = "needs root"]
fn a_moved_egress_ip_keeps_its_tcp_connections() -> Result<()> {
    for side in [SourceSide::Plain, SourceSide::OpenVSwitch(Layout::New)] {
        let rig = Trio::up(side)?;
        let agents = rig.agents("")?;
        let ip = SINGLE.on(0).context("an egress IP on the first node")?;
        let mut stream = Stream::open(&rig)?;
        assert_eq!(stream.far, ip, "{side:?}");
        stream.goes_on()?;
        everywhere(&agents, &["move", &ip.to_string(), EGRESS[1]])?;
        wait_for("the egress IP to move", || {
            Ok(!holds(&rig, EGRESS[0], ip)? && holds(&rig, EGRESS[1], ip)?)
        })?;
        stream.goes_on().with_context(|| agents[2].log())?;
        no_leaks(&rig)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_drained_node_keeps_what_runs_for_a_time_and_gets_nothing_new() -> Result<()> {
    let rig = Trio::up(SourceSide::OpenVSwitch(Layout::New))?;
    let agents = rig.agents("")?;
    let remotes = Remotes::start(&rig)?;
    let mut stream = Stream::open(&rig)?;
    let [here, there] = [0, 1].map(|place| SPREAD.on(place));
    let (here, there) = here.zip(there).context("an egress IP on each node")?;
    let running = remotes.sockets()?;
    let before = remotes.seen(&running)?;
    ensure!(before.contains(&here) && before.contains(&there), "{before:?}");

    // Killed before its time is over, it leaves a marked node.
    let mut drains = begin_to_drain(&agents)?;
    wait_for("new flows to go elsewhere", || {
        Ok(remotes.seen(&remotes.sockets()?)?.iter().all(|ip| *ip == there))
    })?;
    assert_eq!(remotes.seen(&running)?, before, "what runs stays where it is");
    let begun = remotes.sockets()?;
    let elsewhere = remotes.seen(&begun)?;
    stream.goes_on()?;
    for drain in &mut drains {
        drain.kill()?;
        drain.wait()?;
    }

    // The spread tenant's other IP is there already, and cannot share a node with this one.
    for agent in &agents {
        let output = agent.egress(&[&DRAIN[..], &["--for", "0s"]].concat())?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(said.contains("10.0.0.11 stays on node ocprouter01"), "{output:?}");
    }
    let ip = SINGLE.on(0).context("an egress IP on the first node")?;
    wait_for("the egress IP to move", || {
        Ok(!holds(&rig, EGRESS[0], ip)? && holds(&rig, EGRESS[1], ip)?)
    })?;
    stream.goes_on().with_context(|| agents[2].log())?;

    everywhere(&agents, &["undrain", EGRESS[0]])?;
    wait_for("new flows to come back", || Ok(remotes.seen(&remotes.sockets()?)?.contains(&here)))?;
    let seen = [remotes.seen(&running)?, remotes.seen(&begun)?];
    assert_eq!(seen, [before, elsewhere], "what runs stays where it is, once more");
    no_leaks(&rig)
}

#[test]
#[ignore = "needs root"]
fn without_open_vswitch_connections_stay_at_a_drained_node_and_none_begin_there() -> Result<()> {
    let rig = Trio::up(SourceSide::Plain)?;
    let agents = rig.agents("")?;
    let pod = rig.netns(SPREAD_POD);
    let server = TcpServer::start(rig.netns("far"), SPREAD.far())?;
    let way = |id| server.peer(id).map(|peer| *peer.ip()).context("it never arrived");
    let here = SPREAD.on(0).context("an egress IP on the first node")?;
    let mut downloads = Vec::new();
    for id in 0..40 {
        let mut download = pod.run(|| Download::start(SPREAD.far(), id, 16 << 20))??;
        download.read(1 << 20)?;
        downloads.push(download);
    }
    let before: Vec<Ipv4Addr> = (0..40).map(way).collect::<Result<_>>()?;
    ensure!(before.contains(&here), "{before:?}");
    let mut next = 1000;
    let mut new_ones = || -> Result<Vec<Ipv4Addr>> {
        next += 32;
        exchange_many(pod, SPREAD.far(), next..next + 32, 4, 64)?;
        (next..next + 32).map(way).collect()
    };
    let drains = begin_to_drain(&agents)?;
    wait_for("new connections to go elsewhere", || Ok(!new_ones()?.contains(&here)))?;
    for download in downloads {
        download.finish().with_context(|| agents[0].log())?;
    }
    for mut drain in drains {
        drain.kill()?;
        drain.wait()?;
    }
    everywhere(&agents, &["undrain", EGRESS[0]])?;
    wait_for("new connections to come back", || Ok(new_ones()?.contains(&here)))?;
    no_leaks(&rig)
}
