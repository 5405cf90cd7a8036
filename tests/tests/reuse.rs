//! A pod's address, a VNID or an egress IP gets another holder, under traffic, while the flows of the
//! last one are in the tables: as whom each packet leaves, and who hears the answers.
//!
//! The worst case throughout: the new holder speaks from the old one's port to the same remote, which
//! goes on talking to the old one. A third tenant, whom none of it concerns, must lose nothing.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::{DEADLINE, Gateway},
    netns::{Netns, wait_until},
    on_data_paths,
    rig::{
        DataPath, Rig,
        objects::CLUSTER_OBJECTS,
        topology::{Pod, VXLAN_PORT},
    },
    traffic::{Answer, Capture, Long, LongServer, PATIENCE, Packet, Remote, Speaker, Word},
};
use egress_user::bpf::{BPFFS, Maps, pins};

/// The remote, for datagrams and connections.
const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
/// The port that every holder speaks from.
const PORT: u16 = 40_000;
/// The egress node.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// The pod whose place others get, its address outside, and the one that its VNID gets next.
const FIRST: &str = "egress-test-1";
const FIRST_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const NEXT_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 14);
/// The other tenant's pod.
const OTHER: &str = "egress-test2-1";
const OTHER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 13);
/// The pod of the tenant that none of it concerns.
const BYSTANDER: &str = "egress-test3-1";
const BYSTANDER_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 12);
/// The speakers' numbers.
const OLD: u32 = 1;
const NEW: u32 = 2;
const THIRD: u32 = 3;
/// What counts as talk: so many words.
const WORDS: usize = 100;

// Not behind the stack: there the node's own forwarding takes replies to whoever has the address.
on_data_paths! {
    tc Tc, tunnel Tunnel, xdp Xdp: {
        a_pods_address_that_another_tenants_pod_gets
        a_vnid_that_another_namespace_gets_at_once
        a_vnid_that_another_namespace_gets_later
        an_egress_ip_that_another_tenant_gets
    }
}

/// Who may leave as whom, and hear what is said to it.
#[derive(Clone, Copy, Debug)]
struct Holder {
    speaker: u32,
    vnid: u32,
    ip: Ipv4Addr,
}

/// A rig with an agent, and all that is talked and looked at.
struct Scene<'a> {
    on: DataPath,
    rig: &'a Rig,
    gateway: Gateway<'a>,
    /// What leaves the egress node.
    outside: Capture,
    remote: Remote,
    server: LongServer,
}

/// A pod in the place of another.
struct Heir {
    speaker: Speaker,
    connection: Long,
    /// What arrives at it.
    arriving: Capture,
    _netns: Netns,
}

impl<'a> Scene<'a> {
    fn set(on: DataPath, rig: &'a Rig) -> Result<Self> {
        let far = rig.netns("far");
        Ok(Self {
            on,
            rig,
            gateway: on.gateway(rig)?,
            outside: Capture::start(rig.switch(), &rig.egress.name)?,
            remote: Remote::start(far, FAR)?,
            server: LongServer::start(far, FAR)?,
        })
    }

    fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) -> Result<()> {
        ensure!(
            wait_until(DEADLINE, condition),
            "waited in vain for {what}: {}",
            self.gateway.log()
        );
        Ok(())
    }

    /// Lets a pod speak, and open a connection from the same port, once it is answered as this.
    fn speaks(&self, netns: &Netns, number: u32, ip: Ipv4Addr) -> Result<(Speaker, Long)> {
        let speaker = Speaker::start(netns, number, PORT, FAR)?;
        self.is_answered(&speaker, ip)?;
        let connection = netns.run(|| Long::open(FAR, PORT))??;
        ensure!(*connection.seen_as().ip() == ip, "connected as {}", connection.seen_as());
        Ok((speaker, connection))
    }

    /// Waits until a speaker has talked with the remote as this.
    fn is_answered(&self, speaker: &Speaker, ip: Ipv4Addr) -> Result<()> {
        let answers = |answer: &&Answer| !answer.is_unasked() && *answer.to.ip() == ip;
        self.wait_for(&format!("answers to {ip}"), || {
            speaker.heard().iter().filter(answers).count() >= WORDS
        })
    }

    /// Starts a pod where another has ended.
    fn begins(&self, pod: &Pod, ip: Ipv4Addr) -> Result<Heir> {
        let netns = self.on.start_pod(self.rig, pod)?;
        let arriving = Capture::start(&netns, "eth0")?;
        let (speaker, connection) = self.speaks(&netns, NEW, ip)?;
        Ok(Heir { speaker, connection, arriving, _netns: netns })
    }

    /// Waits until the remote has said more to whoever has ended.
    fn goes_on_talking_to(&self, old: SocketAddrV4) -> Result<()> {
        let until = self.remote.unasked(old) + WORDS as u32;
        self.wait_for(&format!("more words to {old}"), || self.remote.unasked(old) >= until)
    }

    /// Error: the old holder's flow, or its connection's, is not in the table any more.
    fn has_old_flows(&self) -> Result<()> {
        let vnid = self.rig.pod(FIRST).vnid;
        let flows = self.gateway.beside(|| -> Result<Vec<_>> {
            let maps = Maps::open(&pins(Path::new(BPFFS)))?;
            Ok(maps.flows_original.iter().collect::<Result<_, _>>()?)
        })??;
        let old = flows
            .iter()
            .filter(|(key, flow)| key.0.vnid() == vnid && flow.0.egress_ip == FIRST_IP.octets());
        ensure!(old.count() == 2, "the old flows are gone");
        Ok(())
    }

    /// Waits until the agent has a policy for the VNID, or none.
    fn wait_for_policy(&self, vnid: u32, there: bool) -> Result<()> {
        self.wait_for(&format!("the policy, there: {there}"), || {
            self.gateway.status().is_ok_and(|status| {
                let policies = status["policies"].as_array();
                policies.is_some_and(|all| all.iter().any(|one| one["vnid"] == vnid) == there)
            })
        })
    }

    /// Plays beside the third tenant, whose every word must be answered, to its old address. Returns
    /// what left the egress node, which was of these holders and the third tenant.
    fn play(&self, holders: &[Holder], play: impl FnOnce() -> Result<()>) -> Result<Vec<Packet>> {
        let netns = self.rig.netns(BYSTANDER);
        let (stop, turns) = (AtomicBool::new(false), AtomicU32::new(0));
        let (played, talked) = thread::scope(|scope| {
            let talking = scope.spawn(|| netns.run(|| lose_nothing(&stop, &turns))?);
            let played = self
                .wait_for("the bystander", || turns.load(Ordering::Relaxed) > 10)
                .and_then(|()| play());
            stop.store(true, Ordering::Relaxed);
            let talked = talking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (played, talked.context("the tenant that is not concerned"))
        });
        // A packet that must not be there says more than what was waited for in vain.
        let packets = self.judge(holders)?;
        played.and(talked).map(|()| packets)
    }

    /// All that left the egress node, which is as it must be; and what arrived is among it.
    fn judge(&self, holders: &[Holder]) -> Result<Vec<Packet>> {
        let arrived: BTreeSet<Word> = self.remote.heard().iter().map(|(word, _)| *word).collect();
        let (mut packets, mut untranslated) = (Vec::new(), (0, 0));
        let complete = wait_until(PATIENCE, || {
            untranslated = self.rig.untranslated().unwrap_or((u64::MAX, 0));
            packets = self.outside.packets();
            let left: BTreeSet<Word> = packets.iter().filter_map(word).collect();
            let own = packets.iter().filter(|packet| is_of_the_node(packet)).count();
            arrived.is_subset(&left) && untranslated == (0, own as u64)
        });
        only(&packets, &[holders, &[bystander(self.rig)]].concat())?;
        ensure!(complete, "not captured: words, or of the untranslated {untranslated:?}");
        let paths = &self.gateway.status()?["paths"];
        let taken = self.on.counters().map(|name| paths[name].as_u64().unwrap_or_default());
        ensure!(taken.iter().all(|count| *count >= WORDS as u64), "{paths}");
        Ok(packets)
    }
}

impl Heir {
    /// It hears what is said to it, and nothing that is said to the old holder arrives.
    fn hears_only(&mut self, ip: Ipv4Addr, old: Ipv4Addr) -> Result<()> {
        self.connection.ask(1)?;
        let heard = self.speaker.heard();
        let wrong = heard.iter().find(|answer| *answer.to.ip() != ip);
        ensure!(wrong.is_none(), "the new holder hears {wrong:?}");
        let last = heard.last().copied().context("the new holder hears nothing")?;
        let is_last = |packet: &Packet| {
            packet.protocol == 17 && packet.payload.get(8..).and_then(Answer::read) == Some(last)
        };
        self.arriving.find(0, PATIENCE, is_last).context("what it hears is not captured")?;
        let names_old = |packet: &&Packet| {
            packet.source == *FAR.ip() && packet.payload.windows(4).any(|at| at == old.octets())
        };
        let arrived = self.arriving.packets();
        let wrong = arrived.iter().find(names_old);
        ensure!(wrong.is_none(), "at the new holder arrives {wrong:?}");
        Ok(())
    }
}

/// Connections and datagrams of the bystander: each word is answered before the next, and what the
/// remote says unasked comes without a gap.
fn lose_nothing(stop: &AtomicBool, turns: &AtomicU32) -> Result<()> {
    let mut connections = [Long::open(FAR, 0)?, Long::open(FAR, PORT)?];
    ensure!(connections.iter().all(|connection| *connection.seen_as().ip() == BYSTANDER_IP));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut unasked = 0;
    while !stop.load(Ordering::Relaxed) {
        let word = Word { speaker: THIRD, number: turns.fetch_add(1, Ordering::Relaxed) };
        connections.iter_mut().try_for_each(|connection| connection.ask(word.number.into()))?;
        socket.send_to(&word.to_bytes(), FAR)?;
        loop {
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).with_context(|| format!("answer to {word:?}"))?;
            let answer = Answer::read(&buffer[..length]).context("no answer")?;
            ensure!(*answer.to.ip() == BYSTANDER_IP, "{answer:?}");
            if !answer.is_unasked() {
                ensure!(answer.word == word, "{answer:?} to {word:?}");
                break;
            }
            ensure!(answer.word.number == unasked, "{answer:?} after {unasked} words");
            unasked += 1;
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Error: there is a packet that is none of these holders'.
fn only(packets: &[Packet], holders: &[Holder]) -> Result<()> {
    let stranger = packets.iter().find(|packet| !fits(packet, holders));
    ensure!(stranger.is_none(), "left the egress node: {stranger:?}");
    Ok(())
}

/// Whether what left the egress node is one of the holders', with its own address, or what the remote
/// says to one of them, on the way to its VNID.
fn fits(packet: &Packet, holders: &[Holder]) -> bool {
    if let Some((vnid, answer)) = back(packet) {
        return holders.iter().any(|holder| {
            holder.vnid == vnid && answer.is_none_or(|answer| *answer.to.ip() == holder.ip)
        });
    }
    match packet.protocol {
        6 => holders.iter().any(|holder| holder.ip == packet.source),
        17 => holders.iter().any(|holder| is_word_of(packet, *holder)),
        // An error, in the name of whom the packet inside it was sent to.
        1 => is_about(packet, packet.source) || is_of_the_node(packet),
        _ => false,
    }
}

/// Whether an ICMP error is about a packet to this address.
fn is_about(error: &Packet, ip: Ipv4Addr) -> bool {
    error.protocol == 1 && error.payload.get(24..28) == Some(&ip.octets())
}

/// Whether the node says, as any router, that an address it has given up is nobody's.
fn is_of_the_node(packet: &Packet) -> bool {
    let unreachable = packet.payload.starts_with(&[3, 1]);
    let given_up = [FIRST_IP, OTHER_IP].iter().any(|ip| is_about(packet, *ip));
    unreachable && given_up && packet.source == NODE
}

/// Whether a packet is a word of the holder, and leaves with its address.
fn is_word_of(packet: &Packet, holder: Holder) -> bool {
    packet.source == holder.ip && word(packet).is_some_and(|word| word.speaker == holder.speaker)
}

/// The word that a packet towards the remote carries.
fn word(packet: &Packet) -> Option<Word> {
    let to_far = packet.protocol == 17 && packet.destination == *FAR.ip();
    packet.payload.get(8..).filter(|_| to_far).and_then(Word::read)
}

/// Of VXLAN, the VNID that it goes to, and what the remote says in a datagram.
fn back(packet: &Packet) -> Option<(u32, Option<Answer>)> {
    let (_, VXLAN_PORT) = packet.ports? else { return None };
    let [a, b, c] = *packet.payload.get(12..)?.first_chunk()?;
    let inner = packet.payload.get(30..)?;
    let answer = inner.get(28..).filter(|_| inner[9] == 17).and_then(Answer::read);
    Some((u32::from_be_bytes([0, a, b, c]), answer))
}

/// The packets from the first on that left with this address.
fn since(packets: &[Packet], ip: Ipv4Addr) -> &[Packet] {
    let first = packets.iter().position(|packet| packet.source == ip);
    &packets[first.unwrap_or(packets.len())..]
}

fn bystander(rig: &Rig) -> Holder {
    Holder { speaker: THIRD, vnid: rig.pod(BYSTANDER).vnid, ip: BYSTANDER_IP }
}

/// The objects with the first namespace deleted.
fn deleted() -> Result<String> {
    let mut items: Vec<&str> = CLUSTER_OBJECTS.split("\n- ").collect();
    let all = items.len();
    items.retain(|item| !item.contains("name: egress-test\n"));
    ensure!(items.len() + 1 == all, "the namespace is there once");
    Ok(items.join("\n- "))
}

/// The objects with a namespace that has the first one's NetID, and another address.
fn handed_over() -> String {
    CLUSTER_OBJECTS
        .replace("name: egress-test\n", "name: successor\n")
        .replace(&FIRST_IP.to_string(), &NEXT_IP.to_string())
}

fn a_pods_address_that_another_tenants_pod_gets(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let scene = Scene::set(on, &rig)?;
    let (first, other) = (rig.pod(FIRST), rig.pod(OTHER));
    let heir = Pod { name: "heir".into(), ip: first.ip, ..other.clone() };
    let old = Holder { speaker: OLD, vnid: first.vnid, ip: FIRST_IP };
    let new = Holder { speaker: NEW, vnid: other.vnid, ip: OTHER_IP };
    scene.play(&[old, new], || {
        let (_speaker, mut connection) = scene.speaks(rig.netns(FIRST), OLD, FIRST_IP)?;
        connection.wait()?;
        rig.end_pod(first)?;
        let mut heir = scene.begins(&heir, OTHER_IP)?;
        scene.goes_on_talking_to(SocketAddrV4::new(FIRST_IP, PORT))?;
        // The old connection's word goes where the old pod was, and finds nobody.
        scene.server.speak();
        let spoken = [&[0xff; 8][..], &FIRST_IP.octets()].concat();
        let is_spoken = |packet: &Packet| {
            back(packet).is_some_and(|(vnid, _)| vnid == first.vnid)
                && packet.payload.windows(spoken.len()).any(|at| at == spoken)
        };
        scene.outside.find(0, PATIENCE, is_spoken).context("the old connection's word")?;
        scene.has_old_flows()?;
        heir.hears_only(OTHER_IP, FIRST_IP)
    })?;
    Ok(())
}

fn a_vnid_that_another_namespace_gets_at_once(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let scene = Scene::set(on, &rig)?;
    let first = rig.pod(FIRST);
    let heir = Pod { name: "heir".into(), ..first.clone() };
    let old = Holder { speaker: OLD, vnid: first.vnid, ip: FIRST_IP };
    let (left, new) = (Holder { ip: NEXT_IP, ..old }, Holder { speaker: NEW, ip: NEXT_IP, ..old });
    let packets = scene.play(&[old, left, new], || {
        let (speaker, mut connection) = scene.speaks(rig.netns(FIRST), OLD, FIRST_IP)?;
        connection.wait()?;
        // A pod of the old namespace is still there: from then on it has the new address.
        scene.gateway.write_objects(&handed_over())?;
        scene.is_answered(&speaker, NEXT_IP)?;
        rig.end_pod(first)?;
        let mut heir = scene.begins(&heir, NEXT_IP)?;
        scene.server.speak();
        scene.goes_on_talking_to(SocketAddrV4::new(FIRST_IP, PORT))?;
        heir.hears_only(NEXT_IP, FIRST_IP)
    })?;
    only(since(&packets, NEXT_IP), &[left, new, bystander(&rig)]).context("after the change")
}

fn a_vnid_that_another_namespace_gets_later(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let scene = Scene::set(on, &rig)?;
    let first = rig.pod(FIRST);
    let heir = Pod { name: "heir".into(), ..first.clone() };
    let old = Holder { speaker: OLD, vnid: first.vnid, ip: FIRST_IP };
    let new = Holder { speaker: NEW, ip: NEXT_IP, ..old };
    let packets = scene.play(&[old, new], || {
        let (_speaker, mut connection) = scene.speaks(rig.netns(FIRST), OLD, FIRST_IP)?;
        connection.wait()?;
        rig.end_pod(first)?;
        scene.gateway.write_objects(&deleted()?)?;
        scene.wait_for_policy(first.vnid, false)?;
        scene.goes_on_talking_to(SocketAddrV4::new(FIRST_IP, PORT))?;
        scene.has_old_flows()?;
        scene.gateway.write_objects(&handed_over())?;
        scene.wait_for_policy(first.vnid, true)?;
        let mut heir = scene.begins(&heir, NEXT_IP)?;
        scene.server.speak();
        scene.goes_on_talking_to(SocketAddrV4::new(FIRST_IP, PORT))?;
        heir.hears_only(NEXT_IP, FIRST_IP)
    })?;
    only(since(&packets, NEXT_IP), &[new, bystander(&rig)]).context("after the change")
}

fn an_egress_ip_that_another_tenant_gets(on: DataPath) -> Result<()> {
    let rig = on.rig()?;
    let scene = Scene::set(on, &rig)?;
    let (first, other) = (rig.pod(FIRST), rig.pod(OTHER));
    let held = SocketAddrV4::new(FIRST_IP, PORT);
    let objects = handed_over().replace(&OTHER_IP.to_string(), &FIRST_IP.to_string());
    let old = Holder { speaker: OLD, vnid: first.vnid, ip: FIRST_IP };
    let before = Holder { speaker: NEW, vnid: other.vnid, ip: OTHER_IP };
    let new = Holder { ip: FIRST_IP, ..before };
    let packets = scene.play(&[old, before, new], || {
        let (_speaker, mut connection) = scene.speaks(rig.netns(FIRST), OLD, FIRST_IP)?;
        connection.wait()?;
        rig.end_pod(first)?;
        let (speaker, _connection) = scene.speaks(rig.netns(OTHER), NEW, OTHER_IP)?;
        scene.gateway.write_objects(&objects)?;
        scene.is_answered(&speaker, FIRST_IP)?;
        scene.server.speak();
        scene.goes_on_talking_to(held)?;
        // The old flow keeps its port, so that it shows who is meant by a word.
        scene.has_old_flows()?;
        ensure!(speaker.heard().iter().all(|answer| answer.to != held), "hears the old holder's");
        Ok(())
    })?;
    let begins = packets.iter().position(|packet| is_word_of(packet, new));
    let after = &packets[begins.context("the new holder never spoke")?..];
    only(after, &[new, bystander(&rig)]).context("after the change")?;
    let to_old = |(_, answer): &(u32, Option<Answer>)| answer.is_some_and(|one| one.to == held);
    ensure!(!after.iter().filter_map(back).any(|back| to_old(&back)), "words to the old holder");
    Ok(())
}
