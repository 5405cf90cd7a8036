//! What `egress plan` and `egress explain` show beside the bare plan.
#![expect(clippy::unwrap_used, reason = "the helpers of tests may panic as tests do")]
use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use serde_json::{Value, json};

const OBJECTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/objects.yaml");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/agent.yaml");

fn egress(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_egress")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A run directory, gone with the test.
struct RunDir(PathBuf);

impl RunDir {
    fn new(name: &str, status: &Value) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("status.json"), status.to_string()).unwrap();
        Self(path)
    }

    fn plan(&self) -> String {
        let run_dir = self.0.to_str().unwrap();
        egress(&["plan", "-f", OBJECTS, "--config", CONFIG, "--run-dir", run_dir])
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn status(node: &str) -> Value {
    json!({
        "pid": 1,
        "stopped": false,
        "node": node,
        "nodeIp": "10.0.0.2",
        "uplink": "ens18",
        "addresses": ["10.0.0.11", "10.0.0.77"],
        "granted": {"7305526": ["10.0.0.11"], "3064846": ["10.0.0.13"], "99": []},
        "attached": [],
        "tenants": [],
        "conditions": [],
    })
}

#[test]
fn the_plan_on_the_node_shows_what_would_change() {
    let text = RunDir::new("changes", &status("ocprouter01")).plan();
    for line in [
        "compared with what its agent does now",
        "\n  10.0.0.11/24  ens18:eip",
        "\n  + 10.0.0.12/24  ens18:eip",
        "\n  - 10.0.0.77\n",
        "\n  ~ 3064846 ",
        "\n  7305526 ",
        "\n  + 14640467 ",
        "\n  - 99        0x63\n",
    ] {
        assert!(text.contains(line), "{line:?}\n{text}");
    }
}

#[test]
fn the_plan_of_another_node_is_compared_with_nothing_and_says_so() {
    let text = RunDir::new("another", &status("ocpmaster01")).plan();
    assert!(text.contains("no agent of this node runs here to compare with"), "{text}");
    assert!(!text.contains("  + ") && !text.contains("  - "), "{text}");
}

#[test]
fn explain_as_json_holds_the_whole_chain() {
    let ask = |subject| {
        let text = egress(&["explain", subject, "-f", OBJECTS, CONFIG, "-o", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let node = json!({"name": "ocprouter01", "hostIP": "10.0.0.2"});
    let by_ip = ask("10.0.0.13");
    assert_eq!((&by_ip["listedBy"], &by_ip["node"]), (&json!([node]), &json!("ocprouter01")));
    assert_eq!(
        by_ip["vnids"][0],
        json!({
            "vnid": 14640467,
            "namespaces": ["egress-test2"],
            "asks": [{"egressIP": "10.0.0.13", "node": node, "usable": true, "findings": []}],
            "droppedWhole": null,
            "action": "snat",
            "egressIPs": ["10.0.0.13"],
            "mark": "0x01df6552",
            "mapping": "endpoint-dependent",
            "here": {
                "addresses": ["10.0.0.13"],
                "flows": ["table=100,priority=100,ip,reg0=0xdf6553 actions=set_field:22:3b:a9:a4:8e:0c->eth_dst,set_field:0x1df6552->pkt_mark,goto_table:101"],
                "groups": [],
            },
        })
    );
    assert_eq!(ask("gitea")["vnids"][0]["action"], "normal");
    let offline = egress(&[
        "explain",
        "egress-test",
        "-f",
        OBJECTS,
        CONFIG,
        "--offline",
        "10.0.0.2",
        "-o",
        "yaml",
    ]);
    assert!(offline.contains("reason: Offline") && offline.contains("action: drop"), "{offline}");
}
