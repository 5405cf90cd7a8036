//! `egress add` and `egress del` from outside: the file before and after, and what they say.
#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic as tests do")]
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

const OBJECTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/objects.yaml");

/// A directory with an objects file, gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str, objects: &str) -> Self {
        let place = Self(
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id())),
        );
        fs::create_dir_all(&place.0).unwrap();
        if !objects.is_empty() {
            fs::write(place.file(), objects).unwrap();
        }
        place
    }

    fn file(&self) -> PathBuf {
        self.0.join("objects.yaml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap_or_default()
    }

    fn egress(&self, arguments: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_egress"))
            .args(arguments.split_whitespace())
            .arg("-f")
            .arg(self.file())
            .arg("--run-dir")
            .arg(&self.0)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn does(&self, arguments: &str) {
        let output = self.egress(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    }

    /// It ends so, says so, and leaves the file as it was.
    #[track_caller]
    fn refuses(&self, arguments: &str, code: i32, message: &str) {
        let before = self.text();
        let output = self.egress(arguments);
        assert_eq!(output.status.code(), Some(code), "{}", err(&output));
        assert!(err(&output).contains(message), "{}", err(&output));
        assert_eq!(self.text(), before, "the file was changed");
    }

    /// The egress IPs of each VNID, as the planner of the node sees them.
    fn policies(&self, node: &str) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_egress"))
            .args(["plan", "-o", "json", "--node", node, "-f"])
            .arg(self.file())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["policies"].clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

const NODE: &str = "\
# The egress node.
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: ocprouter01}
host: ocprouter01
hostIP: 10.0.0.2
subnet: 10.130.0.0/23
---
# Not touched by anything here.
apiVersion: network.openshift.io/v1
kind: ClusterNetwork
metadata: {name: default}
clusterNetworks: [{CIDR: 10.128.0.0/14}]
";
const ADD: &str = "add --vnid 0x2EC40E --egress-ip 10.0.0.12 --egress-node 10.0.0.2";

#[test]
fn one_command_does_what_the_notes_do_by_hand() {
    let place = Place::new("one-command", NODE);
    place.does(ADD);
    assert_eq!(
        place.policies("ocprouter01"),
        serde_json::json!([
            {"vnid": 3064846, "action": "snat", "egressIPs": ["10.0.0.12"], "mark": "0x102e440e"}
        ])
    );
    assert!(place.text().contains("# Not touched by anything here."), "{}", place.text());
    assert!(!place.0.join("objects.yaml.new").exists());
}

#[test]
fn adding_twice_changes_nothing_and_says_so() {
    let place = Place::new("twice", NODE);
    place.does(ADD);
    let (text, output) = (place.text(), place.egress(ADD));
    assert_eq!((output.status.code(), place.text()), (Some(0), text));
    assert!(err(&output).contains("says so already"), "{}", err(&output));
}

#[test]
fn what_was_added_and_deleted_leaves_the_objects_as_they_were() {
    for (name, objects) in
        [("there-and-back", NODE), ("list", &fs::read_to_string(OBJECTS).unwrap())]
    {
        let place = Place::new(name, objects);
        let before = place.policies("ocprouter01");
        let add = "add --vnid 4711 --egress-ip 10.0.0.44 --egress-node ocprouter01";
        place.does(add);
        assert_ne!(place.policies("ocprouter01"), before, "{name}");
        let added = place.text();
        place.does("del --vnid 4711");
        assert_eq!(place.policies("ocprouter01"), before, "{name}");
        assert!(!place.text().contains("4711"), "{name}: {}", place.text());
        place.does(add);
        assert_eq!(place.text(), added, "{name}: another order");
    }
}

#[test]
fn an_added_ip_joins_the_namespace_that_has_the_vnid() {
    let place = Place::new("joins", &fs::read_to_string(OBJECTS).unwrap());
    let text = place.text();
    let gitea = "12235633";
    assert!(text.contains(gitea));
    place.does(&format!("add --vnid {gitea} --egress-ip 10.0.0.44 --egress-node ocprouter01"));
    assert!(!place.text().contains("vnid-"), "{}", place.text());
    place.does(&format!("del --vnid {gitea} --egress-ip 10.0.0.44 --egress-node 10.0.0.2"));
    assert!(place.text().contains(gitea), "a namespace of somebody else was removed");
}

#[test]
fn a_first_node_can_be_made_in_a_file_that_is_not_there_yet() {
    let place = Place::new("first", "");
    place.refuses(ADD, 1, "knows none");
    place.does(&format!("{ADD} --node-name gw --node-subnet 10.130.0.0/23"));
    assert_eq!(place.policies("gw")[0]["egressIPs"][0], "10.0.0.12");
}

#[test]
fn what_contradicts_the_objects_is_refused_by_name_and_nothing_is_changed() {
    let place = Place::new("refused", &fs::read_to_string(OBJECTS).unwrap());
    let add = "add --egress-node ocprouter01";
    for (arguments, code, message) in [
        (format!("{add} --vnid 0x1000000 --egress-ip 10.0.0.50"), 2, "24 bits"),
        (format!("{add} --vnid 7 --egress-ip 10.0.0.500"), 2, "10.0.0.500"),
        (format!("{add} --vnid 7 --egress-ip 10.0.0.11"), 1, "asked for by namespaces egress-test"),
        (format!("{add} --vnid 7 --egress-ip 10.0.0.3"), 1, "the address of node ocpmaster01"),
        (format!("{add} --vnid 7305526 --egress-ip 10.0.0.50"), 1, "spread them over nodes"),
        (
            "add --vnid 7 --egress-ip 10.0.0.50 --egress-node 10.0.0.9".into(),
            1,
            "node 10.0.0.9 is unknown",
        ),
        (
            "add --vnid 7305526 --egress-ip 10.0.0.11 --egress-node ocpmaster01".into(),
            1,
            "is listed by nodes ocpmaster01, ocprouter01: leave it to one",
        ),
        ("del --vnid 7".into(), 1, "VNID 7 has no egress IP"),
        ("del --vnid 7305526 --egress-ip 10.0.0.13".into(), 1, "not the egress IP 10.0.0.13"),
        ("del --vnid 7305526 --egress-node ocpmaster01".into(), 1, "on node ocpmaster01"),
    ] {
        place.refuses(&arguments, code, message);
    }
}

#[test]
fn without_an_agent_waiting_ends_with_3_and_the_file_is_written() {
    let place = Place::new("waiting", NODE);
    let output = place.egress(&format!("{ADD} --wait 0"));
    assert_eq!(output.status.code(), Some(3));
    let said = "written, but not in force: no agent that runs has left word in";
    assert!(err(&output).contains(said), "{}", err(&output));
    assert_eq!(place.policies("ocprouter01")[0]["vnid"], 3064846);
}

#[test]
fn edits_at_the_same_time_lose_nothing() {
    let place = Place::new("at-once", NODE);
    std::thread::scope(|scope| {
        for number in 1..=8 {
            let place = &place;
            scope.spawn(move || {
                place.does(&format!(
                    "add --vnid {number} --egress-ip 10.0.0.{} --egress-node ocprouter01",
                    50 + number
                ));
            });
        }
    });
    assert_eq!(place.policies("ocprouter01").as_array().unwrap().len(), 8);
}

#[test]
fn a_file_that_cannot_be_parsed_is_left_alone() {
    let place = Place::new("broken", "kind: [HostSubnet\n");
    place.refuses(ADD, 2, "correct it first");
}

const TWO: &str = "\
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: a}
host: a
hostIP: 10.0.0.1
subnet: 10.128.0.0/23
egressIPs: [10.0.0.11, 10.0.0.12, 10.0.0.19]
---
apiVersion: network.openshift.io/v1
kind: HostSubnet
metadata: {name: b}
host: b
hostIP: 10.0.0.2
subnet: 10.130.0.0/23
egressCIDRs: [10.0.0.0/28]
---
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: n1}
netname: n1
netid: 41
egressIPs: [10.0.0.11]
---
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: n2}
netname: n2
netid: 42
egressIPs: [10.0.0.12]
---
apiVersion: network.openshift.io/v1
kind: NetNamespace
metadata: {name: n3}
netname: n3
netid: 43
egressIPs: [10.0.0.19]
";

impl Place {
    /// The egress IPs' last bytes on the node.
    fn hosted(&self, node: &str) -> Vec<u8> {
        let output = Command::new(env!("CARGO_BIN_EXE_egress"))
            .args(["plan", "-o", "json", "--node", node, "-f"])
            .arg(self.file())
            .output()
            .unwrap();
        let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
        let addresses = plan["addresses"].as_array().unwrap().iter();
        let ips = addresses.map(|a| a["ip"].as_str().unwrap().rsplit('.').next().unwrap().parse());
        ips.map(Result::unwrap).collect()
    }
}

#[test]
fn an_egress_ip_moves_with_one_command() {
    let place = Place::new("move", TWO);
    place.does("move 10.0.0.12 b");
    assert_eq!((place.hosted("a"), place.hosted("b")), (vec![11, 19], vec![12]));
    place.does("move 10.0.0.12 10.0.0.1");
    assert_eq!((place.hosted("a"), place.hosted("b")), (vec![11, 12, 19], vec![]));
}

#[test]
fn a_move_that_cannot_be_is_refused_and_nothing_is_changed() {
    let place = Place::new("move-refused", TWO);
    place.refuses("move 10.0.0.12 c", 1, "node c is unknown");
    place.refuses("move 10.0.0.77 b", 1, "hosts 10.0.0.77: `egress add` gives it to a VNID");
    place.does("add --vnid 41 --egress-ip 10.0.0.13 --egress-node b");
    place.refuses("move 10.0.0.11 b", 1, "spread them over nodes");
}

#[test]
fn a_drained_node_gives_away_what_finds_a_place_and_says_what_does_not() {
    let place = Place::new("drain", TWO);
    let output = place.egress("drain a --for 0s");
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let said = "10.0.0.19 stays on node a: no other node has egressCIDRs and room for it";
    assert!(err(&output).contains(said), "{}", err(&output));
    assert_eq!((place.hosted("a"), place.hosted("b")), (vec![19], vec![11, 12]));
    assert!(place.text().contains("egress/draining"), "{}", place.text());
    place.does("drain a --for 0s --to b");
    assert_eq!((place.hosted("a"), place.hosted("b")), (vec![], vec![11, 12, 19]));
    place.does("undrain a");
    assert!(!place.text().contains("egress/draining"), "{}", place.text());
}

#[test]
fn draining_what_is_not_there_is_refused() {
    let place = Place::new("drain-refused", TWO);
    place.refuses("drain c", 1, "node c is unknown");
    place.refuses("drain a --to c", 1, "node c is unknown");
    place.refuses("drain a --to 10.0.0.1", 1, "is the node that is drained");
    place.refuses("drain a --for soon", 2, "use a time such as 300ms");
    place.refuses("undrain c", 1, "node c is unknown");
}

#[test]
fn a_drained_node_keeps_its_ips_for_the_time_that_it_was_given() {
    let place = Place::new("drain-waits", TWO);
    std::thread::scope(|scope| {
        let drain = scope.spawn(|| place.egress("drain a --for 2s --to b"));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !place.text().contains("egress/draining") {
            assert!(std::time::Instant::now() < deadline, "never marked");
            std::thread::yield_now();
        }
        assert_eq!(place.hosted("a"), [11, 12, 19], "moved at once");
        assert_eq!(drain.join().unwrap().status.code(), Some(0));
    });
    assert_eq!((place.hosted("a"), place.hosted("b")), (vec![], vec![11, 12, 19]));
}
