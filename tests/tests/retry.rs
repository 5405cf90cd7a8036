//! What fails is tried again, ever more rarely, until its cause is gone; the rest goes on meanwhile.
use std::{
    fs,
    io::Read as _,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    netns::{Netns, wait_until},
    ovs::{OvsRig, agent},
};
use egress_user::{
    ovs::{Layout, text},
    reconcile::flows::COOKIE,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// In the place of a bridge's management socket: notes when a tool comes, and hangs up. The agent's
/// own connection, by which it notices changes, greets in as few bytes as there can be.
struct DeafBridge {
    socket: PathBuf,
    aside: PathBuf,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl DeafBridge {
    fn instead_of(socket: &Path) -> Result<Self> {
        let aside = socket.with_extension("aside");
        fs::rename(socket, &aside).with_context(|| format!("move {}", socket.display()))?;
        let listener = UnixListener::bind(socket).context("listen in the bridge's place")?;
        let calls = Arc::<Mutex<Vec<Instant>>>::default();
        let noted = Arc::clone(&calls);
        // It ends with the test.
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut greeting = [0; 16];
                let greeted = stream
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .and_then(|()| stream.read_exact(&mut greeting));
                if greeted.is_err() {
                    continue;
                }
                noted.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            }
        });
        Ok(Self { socket: socket.to_owned(), aside, calls })
    }

    /// When somebody came, those of one try as one.
    fn tries(&self) -> Vec<Instant> {
        let mut tries: Vec<Instant> = Vec::new();
        for call in self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if tries
                .last()
                .is_none_or(|last| call.duration_since(*last) > Duration::from_millis(400))
            {
                tries.push(*call);
            }
        }
        tries
    }

    fn give_back(&self) -> Result<()> {
        fs::rename(&self.aside, &self.socket).context("put the bridge's socket back")
    }
}

#[test]
#[ignore = "needs root"]
fn a_bridge_that_does_not_answer_is_tried_again_ever_more_rarely_and_the_rest_goes_on() -> Result<()>
{
    let rig = OvsRig::start(Layout::New)?;
    let netns = Netns::open(rig.egress.netns.name())?;
    let gateway = agent::start(&rig.egress, &netns)?;
    let bridge = DeafBridge::instead_of(&rig.egress.ovs.rundir().join("br0.mgmt"))?;
    // Two namespaces ask for another IP than before: the bridge's flow stays, its group too, and the
    // third asks for none any more, so that its flow has to go.
    let objects = agent::objects()
        .replace("\"10.0.0.11\"", "\"10.0.0.21\"")
        .replace("egressIPs: [\"10.0.0.13\"]", "egressIPs: []");
    gateway.write_objects(&objects)?;
    let told = || gateway.log().contains("Agent/ovs Failed");
    ensure!(wait_until(DEADLINE, told), "nothing is told: {}", gateway.log());
    let uplink = || netns.output(std::process::Command::new("ip").args(["addr"]));
    let claimed = || uplink().is_ok_and(|shown| shown.contains("10.0.0.21/"));
    ensure!(wait_until(DEADLINE, claimed), "the address waits for the bridge: {}", gateway.log());
    // In 1 s, 2 s and 4 s, of which a quarter may be taken off.
    ensure!(wait_until(DEADLINE, || bridge.tries().len() >= 4), "{:?}", bridge.tries());
    let tries = bridge.tries();
    let waits: Vec<Duration> = tries.windows(2).map(|two| two[1] - two[0]).collect();
    let last = waits.len() - 1;
    ensure!(waits[last] > Duration::from_millis(1400), "it does not let go: {waits:?}");
    ensure!(waits[last] > waits[0], "not more rarely: {waits:?}");
    bridge.give_back()?;
    let followed = || {
        let dump = rig.egress.ovs.ofctl("dump-flows", &[]).unwrap_or_default();
        let held = text::parse_flow_dump(&dump).unwrap_or_default();
        held.iter().filter(|held| held.cookie == COOKIE).count() == 2
    };
    ensure!(wait_until(DEADLINE, followed), "never tried again: {}", gateway.log());
    let well = || {
        gateway.status().is_ok_and(|status| !status["conditions"].to_string().contains("Agent/ovs"))
    };
    ensure!(wait_until(DEADLINE, well), "the condition stays: {:?}", gateway.status()?);
    Ok(())
}
