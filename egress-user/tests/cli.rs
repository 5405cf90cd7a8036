//! The command from outside: what it prints, what it says, and how it ends.
#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic as tests do")]
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

const OBJECTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/objects.yaml");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/agent.yaml");

fn egress(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_egress")).args(arguments).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn json_of(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{}", err(output));
    serde_json::from_str(&out(output)).unwrap()
}

#[track_caller]
fn fails(arguments: &[&str], message: &str) {
    let output = egress(arguments);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    assert!(err(&output).contains(message), "{}", err(&output));
    assert_eq!(out(&output), "", "nothing half done");
}

/// A directory of its own for files, gone with the test.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn add(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_plan_of_the_egress_node_of_the_notes() {
    let plan = json_of(&egress(&["plan", "-f", OBJECTS, "--config", CONFIG, "-o", "json"]), 0);
    let address = |ip| json!({"ip": ip, "prefixLen": 24, "label": "ens18:eip"});
    let policy = |vnid: u32, ip: &str, mark: &str| json!({"vnid": vnid, "action": "snat", "egressIPs": [ip], "mark": mark});
    let flow = |register, mark| {
        format!(
            "table=100,priority=100,ip,reg0={register} actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,\
             set_field:{mark}->pkt_mark,goto_table:101"
        )
    };
    let assignment = |ip, vnid: u32| json!({"egressIP": ip, "vnid": vnid, "node": "ocprouter01"});
    assert_eq!(
        plan,
        json!({
            "node": "ocprouter01",
            "addresses": [address("10.0.0.11"), address("10.0.0.12"), address("10.0.0.13")],
            "policies": [
                policy(3064846, "10.0.0.12", "0x002ec40e"),
                policy(7305526, "10.0.0.11", "0x006f7936"),
                policy(14640467, "10.0.0.13", "0x01df6552"),
            ],
            "flows": [
                flow("0x2ec40e", "0x2ec40e"),
                flow("0x6f7936", "0x6f7936"),
                flow("0xdf6553", "0x1df6552"),
            ],
            "groups": [],
            "assignments": [
                assignment("10.0.0.11", 7305526),
                assignment("10.0.0.12", 3064846),
                assignment("10.0.0.13", 14640467),
            ],
            "conditions": [],
        })
    );
}

#[test]
fn json_keeps_its_order_of_keys() {
    let text = out(&egress(&["plan", "-f", OBJECTS, "--config", CONFIG, "-o", "json"]));
    let keys = ["node", "addresses", "policies", "flows", "groups", "assignments", "conditions"];
    let places = keys.map(|key| text.find(&format!("\n  \"{key}\"")).unwrap());
    assert!(places.is_sorted());
}

#[test]
fn yaml_says_what_json_says() {
    let arguments = ["plan", "-f", OBJECTS, "--node", "ocpmaster01", "-o"];
    let json = json_of(&egress(&[&arguments[..], &["json"]].concat()), 0);
    let yaml = out(&egress(&[&arguments[..], &["yaml"]].concat()));
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), json);
}

#[test]
fn a_node_without_settings_has_neither_prefix_nor_label() {
    let plan = json_of(&egress(&["plan", "-f", OBJECTS, "--node", "ocprouter01", "-o", "json"]), 0);
    assert_eq!(plan["addresses"][0], json!({"ip": "10.0.0.11", "prefixLen": null, "label": null}));
    assert_eq!(plan["flows"][0], "table=101,priority=100,ip,reg0=0x2ec40e actions=group:3064846");
}

#[test]
fn the_flag_wins_over_the_settings() {
    let arguments = ["plan", "-f", OBJECTS, CONFIG, "--compat", "new", "-o", "json"];
    let plan = json_of(&egress(&arguments), 0);
    assert_eq!(plan["policies"][0]["mark"], "0x102e440e");
}

#[test]
fn the_table_tells_people_what_and_why() {
    let output = egress(&["plan", "-f", OBJECTS, CONFIG, "--offline", "10.0.0.2"]);
    assert_eq!(output.status.code(), Some(0));
    let text = out(&output);
    for line in [
        "10.0.0.11/24  ens18:eip",
        "7305526   0x6f7936  mark 0x006f7936  dropped",
        "NetNamespace/egress-test  Offline: node ocprouter01 (10.0.0.2), which hosts 10.0.0.11, is offline",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn a_refused_object_is_named_and_the_others_are_planned() {
    let files = Files::new("refused");
    let extra = files.add(
        "extra.yaml",
        "apiVersion: network.openshift.io/v1\nkind: NetNamespace\nmetadata: {name: big}\n\
         netname: big\nnetid: 99999999\n---\nkind: Pod\nmetadata: {name: p}\n",
    );
    let output =
        egress(&["plan", "-f", OBJECTS, "-f", &extra, "--node", "ocprouter01", "-o", "json"]);
    let plan = json_of(&output, 1);
    assert_eq!(plan["policies"].as_array().unwrap().len(), 3);
    let conditions: Vec<(&str, &str)> = plan["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (c["object"].as_str().unwrap(), c["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(conditions, [("NetNamespace/big", "Invalid"), ("Pod/p", "Invalid")]);
    for line in ["NetNamespace/big refused: netid: 99999999", "Pod/p refused: unknown kind \"Pod\""]
    {
        assert!(err(&output).contains(line), "{}", err(&output));
    }
}

#[test]
fn conditions_alone_do_not_fail() {
    let files = Files::new("conditions");
    let extra = files.add(
        "extra.yaml",
        "apiVersion: network.openshift.io/v1\nkind: NetNamespace\nmetadata: {name: more}\n\
         netname: more\nnetid: 7\negressIPs: [10.0.0.99]\n",
    );
    let plan = json_of(
        &egress(&["plan", "-f", OBJECTS, &extra, "--node", "ocprouter01", "-o", "json"]),
        0,
    );
    assert_eq!(plan["conditions"][0]["reason"], "Unhosted");
    assert_eq!(
        plan["policies"][0],
        json!({"vnid": 7, "action": "drop", "egressIPs": [], "mark": "0x01000006"})
    );
}

#[test]
fn a_directory_and_standard_input_are_read() {
    let files = Files::new("directory");
    files.add("a.yaml", &fs::read_to_string(OBJECTS).unwrap());
    files.add("b.yml", &fs::read_to_string(CONFIG).unwrap());
    files.add("notes.txt", "not: [read");
    let directory = files.0.to_str().unwrap();
    let from_directory = json_of(&egress(&["plan", "-f", directory, "-o", "json"]), 0);

    let mut child = Command::new(env!("CARGO_BIN_EXE_egress"))
        .args(["plan", "-f", "-", "--config", CONFIG, "-o", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&fs::read(OBJECTS).unwrap()).unwrap();
    let from_stdin = json_of(&child.wait_with_output().unwrap(), 0);
    assert_eq!(from_directory, from_stdin);
}

#[test]
fn assign_deals_out_and_the_output_follows() {
    let files = Files::new("assign");
    let objects = files.add(
        "objects.yaml",
        "apiVersion: network.openshift.io/v1\nkind: HostSubnet\nmetadata: {name: a}\nhost: a\n\
         hostIP: 10.0.0.2\nsubnet: 10.128.0.0/23\negressCIDRs: [10.0.0.0/24]\n---\n\
         apiVersion: network.openshift.io/v1\nkind: NetNamespace\nmetadata: {name: n}\nnetname: n\n\
         netid: 7\negressIPs: [10.0.0.9]\n",
    );
    let arguments = ["plan", "-f", &objects, "--node", "a", "-o", "json"];
    let listed = json_of(&egress(&arguments), 0);
    assert_eq!(listed["assignments"], json!([]));
    let assigned = json_of(&egress(&[&arguments[..], &["--assign"]].concat()), 0);
    assert_eq!(assigned["assignments"], json!([{"egressIP": "10.0.0.9", "vnid": 7, "node": "a"}]));
    assert_eq!(assigned["addresses"][0]["ip"], "10.0.0.9");
    assert_eq!(assigned["conditions"], json!([]));
}

#[test]
fn usage_and_settings_that_cannot_be_used_end_with_2() {
    let files = Files::new("usage");
    let bad = files.add("agent.yaml", "apiVersion: egress/v1alpha1\nkind: AgentConfig\nbit: 1\n");
    let none = files.add("none.yaml", "# nothing\n");
    fails(&["plan", "-f", OBJECTS], "no node: give --node NAME");
    fails(
        &["plan", "-f", OBJECTS, "--node", "x"],
        "--node x: no such HostSubnet; there are: ocpmaster01",
    );
    fails(
        &["plan", "-f", OBJECTS, "--node", "ocprouter01", "--offline", "10.0.0.9"],
        "--offline 10.0.0.9",
    );
    fails(&["plan", "-f", OBJECTS, "--config", &bad], "unknown field `bit`");
    fails(&["plan", "-f", OBJECTS, "--config", &none], "no AgentConfig");
    fails(&["plan", "-f", "/nonexistent", "--node", "x"], "read /nonexistent");
    fails(&["plan", "--node", "x"], "--file");
    fails(&["plan", "-f", OBJECTS, "--node", "ocprouter01", "--compat", "3.11"], "--compat");
    fails(&["vnid", "16777216"], "24 bits");
    fails(&["vnid", "0x+1"], "24 bits");
    fails(&["vnid", "1", "--masquerade-bit", "32"], "32");
    fails(&["explain", "nobody", "-f", OBJECTS, "--node", "ocprouter01"], "nobody");
}

#[test]
fn an_unwise_setting_is_a_warning() {
    let files = Files::new("warning");
    let config = files.add(
        "agent.yaml",
        "apiVersion: egress/v1alpha1\nkind: AgentConfig\ntimeouts: {udp: 30s}\n",
    );
    let output = egress(&["plan", "-f", OBJECTS, "--config", &config, "--node", "ocprouter01"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(err(&output).contains("warning: timeouts.udp: 30s is below the 120s of RFC 4787"));
}

#[test]
fn explain_gives_the_chain_of_reasons() {
    let all = ["egress-test2", "14640467", "0xdf6553", "10.0.0.13"];
    for subject in all {
        let output = egress(&["explain", subject, "-f", OBJECTS, CONFIG]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        for line in [
            "egress-test2: VNID 14640467 (0xdf6553)",
            "asks for 10.0.0.13, on node ocprouter01 (10.0.0.2)",
            "so it leaves with 10.0.0.13; mark 0x01df6552",
            "address 10.0.0.13",
            "reg0=0xdf6553 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst",
        ] {
            assert!(out(&output).contains(line), "{subject}: {line}\n{}", out(&output));
        }
    }
    let offline = egress(&["explain", "10.0.0.13", "-f", OBJECTS, CONFIG, "--offline", "10.0.0.2"]);
    assert!(out(&offline).contains("Offline: node ocprouter01 (10.0.0.2)"), "{}", out(&offline));
    assert!(out(&offline).contains("so it is dropped"), "{}", out(&offline));
    let normal = egress(&["explain", "gitea", "-f", OBJECTS, CONFIG]);
    assert!(out(&normal).contains("leaves as the node does"), "{}", out(&normal));
}

#[test]
fn vnid_converts() {
    let output = egress(&["vnid", "0x6f7936", "14640467", "0x2EC40E", "-o", "json"]);
    let row = |vnid: u32, hex, mark| json!({"vnid": vnid, "hex": hex, "mark": mark});
    assert_eq!(
        json_of(&output, 0),
        json!([
            row(7305526, "0x6f7936", "0x006f7936"),
            row(14640467, "0xdf6553", "0x01df6552"),
            row(3064846, "0x2ec40e", "0x102e440e"),
        ])
    );
    let old = egress(&["vnid", "0x2ec40e", "--compat", "old", "-o", "json"]);
    assert_eq!(json_of(&old, 0)[0]["mark"], "0x002ec40e");
    let bit = egress(&["vnid", "0x6f7936", "--masquerade-bit", "1", "-o", "json"]);
    assert_eq!(json_of(&bit, 0)[0]["mark"], "0x016f7934");
    let table = out(&egress(&["vnid", "0x2ec40e"]));
    assert!(table.contains("3064846   0x2ec40e  0x102e440e  0x002ec40e"), "{table}");
}

#[test]
fn completions_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = egress(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(out(&output).contains("explain"), "{shell}");
    }
}

#[test]
fn help_documents_the_exit_codes() {
    let help = out(&egress(&["--help"]));
    assert!(help.contains("Exit codes:") && help.contains("some objects were refused"), "{help}");
}

#[test]
fn a_laptop_imports_a_nodes_dumps_and_plans_what_was_there() {
    let files = Files::new("import");
    let iptables = files.add(
        "iptables",
        "*nat\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x1/0x1\n\
         -A OPENSHIFT-MASQUERADE -s 10.128.0.0/14 -m mark --mark 0x6f7936 -j SNAT --to-source 10.0.0.11\n\
         -A OPENSHIFT-MASQUERADE -s 10.9.0.0/16 -j SNAT --to-source 10.0.0.99\n\
         COMMIT\n",
    );
    let flows = files.add(
        "flows",
        " table=10, priority=100,tun_src=10.0.0.3 actions=goto_table:30\n \
         table=30, priority=100,ip,nw_dst=172.30.0.0/16 actions=goto_table:60\n \
         table=90, priority=100,ip,nw_dst=10.128.0.0/23 actions=move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.3->tun_dst,output:1\n \
         table=100, priority=100,ip,reg0=0x6f7936 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x6f7936->pkt_mark,goto_table:101\n",
    );
    let addresses = files.add(
        "addresses",
        "2: ens18    inet 10.0.0.2/24 scope global ens18\n\
         2: ens18    inet 10.0.0.11/24 scope global secondary ens18:eip\n\
         3: tun0    inet 10.130.0.1/23 scope global tun0\n",
    );
    let dumps = ["--iptables", &iptables, "--flows", &flows, "--addresses", &addresses];
    let output = egress(&[&["import", "--node", "ocprouter01"], &dumps[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    let told = "egress: not understood: rule 2 of OPENSHIFT-MASQUERADE in nat: `-A \
                OPENSHIFT-MASQUERADE -s 10.9.0.0/16 -j SNAT --to-source 10.0.0.99`\n";
    assert_eq!(err(&output), told, "and nothing else");
    let imported = files.add("imported.yaml", &out(&output));
    let plan = json_of(&egress(&["plan", "-f", &imported, "-o", "json"]), 0);
    assert_eq!(
        plan["addresses"],
        json!([{"ip": "10.0.0.11", "prefixLen": 24, "label": "ens18:eip"}])
    );
    assert_eq!(
        plan["flows"],
        json!([
            "table=100,priority=100,ip,reg0=0x6f7936 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,\
             set_field:0x6f7936->pkt_mark,goto_table:101"
        ])
    );
    fails(&["import", "--iptables", "/nonexistent/dump"], "read /nonexistent/dump");
}
