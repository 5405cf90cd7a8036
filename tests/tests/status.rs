//! What `egress status` tells is what is there, and `egress cleanup` leaves nothing of it.
use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use egress_tests::{
    gateway::Gateway,
    lone::{config, egress_ips, node},
    rig::objects::CLUSTER_OBJECTS,
};
use egress_user::bpf::BPFFS;
use serde_json::{Value, json};

const ALL: [&str; 3] = ["10.0.0.11", "10.0.0.12", "10.0.0.13"];

/// `egress status -o json`: its exit code and what it printed.
fn status(gateway: &Gateway<'_>) -> Result<(Option<i32>, Value)> {
    let output = gateway.egress(&["status", "-o", "json"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), serde_json::from_slice(&output.stdout).context(said)?))
}

/// How many programs the kernel runs at the uplink, both ways.
fn programs_at_uplink(gateway: &Gateway<'_>) -> Result<usize> {
    gateway.beside(|| {
        [TcAttachType::Ingress, TcAttachType::Egress].into_iter().try_fold(0, |sum, direction| {
            Ok(sum + SchedClassifier::query_tcx("ens18", direction)?.1.len())
        })
    })?
}

fn actions(status: &Value) -> Vec<&Value> {
    status["policies"].as_array().into_iter().flatten().map(|policy| &policy["action"]).collect()
}

#[test]
#[ignore = "needs root"]
fn status_agrees_with_what_is_there_after_a_kill_and_a_restart() -> Result<()> {
    let netns = node()?;
    let mut gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    let (code, first) = status(&gateway)?;
    assert_eq!((code, &first["agent"]["running"]), (Some(0), &json!(true)));
    gateway.kill()?;
    let (code, orphaned) = status(&gateway)?;
    let agent = json!({"pid": first["agent"]["pid"], "running": false, "stopped": false});
    assert_eq!((code, &orphaned["agent"]), (Some(3), &agent));
    netns.exec("ip addr del 10.0.0.12/24 dev ens18")?;
    assert_eq!(status(&gateway)?.1["missing"], json!(["10.0.0.12"]));

    gateway.run_agent()?;
    let (code, second) = status(&gateway)?;
    assert_eq!(code, Some(0));
    assert_ne!(second["agent"]["pid"], first["agent"]["pid"]);
    assert_eq!((&second["addresses"], &second["missing"]), (&json!(ALL), &json!([])));
    assert_eq!(egress_ips(&netns)?, ALL);
    let attached = second["attached"].as_array().context("attached")?;
    assert_eq!(attached.len(), 4);
    assert!(attached.iter().all(|place| place["attached"] == true), "{attached:?}");
    assert_eq!(programs_at_uplink(&gateway)?, 2, "one each way, the predecessor's links");
    assert_eq!(actions(&second), ["snat"; 3]);
    assert_eq!(second["policies"][0]["namespaces"], json!(["egress-test3"]));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn after_a_stop_status_tells_what_stays_and_why_nothing_passes() -> Result<()> {
    let netns = node()?;
    let mut gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    gateway.stop()?;
    let (code, told) = status(&gateway)?;
    assert_eq!((code, &told["agent"]["stopped"]), (Some(3), &json!(true)));
    assert_eq!((&told["addresses"], actions(&told)), (&json!([]), vec![&json!("drop"); 3]));
    assert_eq!(programs_at_uplink(&gateway)?, 2);
    let table = gateway.egress(&["status"])?;
    assert!(String::from_utf8_lossy(&table.stdout).contains("stopped; its programs drop"));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn cleanup_leaves_nothing_and_says_what_it_removed() -> Result<()> {
    let netns = node()?;
    let mut gateway = Gateway::running(&netns, &config(), CLUSTER_OBJECTS)?;
    gateway.kill()?;
    assert_eq!(programs_at_uplink(&gateway)?, 2);
    let cleanup = gateway.egress(&["cleanup"])?;
    assert_eq!(cleanup.status.code(), Some(0), "{cleanup:?}");
    let said = String::from_utf8_lossy(&cleanup.stdout).into_owned();
    for ip in ALL {
        assert!(said.contains(&format!("released {ip} on ens18\n")), "{said}");
    }
    for place in [
        "uplink_egress from ens18",
        "uplink_ingress from ens18",
        "gateway_ingress from tun0",
        "tunnel_ingress from vxlan_sys_4789",
    ] {
        assert!(said.contains(&format!("detached {place}\n")), "{said}");
    }
    assert_eq!(egress_ips(&netns)?, [""; 0]);
    assert_eq!(programs_at_uplink(&gateway)?, 0);
    let (pinned, left) = gateway.beside(|| {
        (Path::new(BPFFS).join("egress").exists(), fs::read_dir("/run/egress").map(Iterator::count))
    })?;
    assert_eq!((pinned, left?), (false, 0));
    let again = gateway.egress(&["cleanup"])?;
    assert_eq!(String::from_utf8_lossy(&again.stdout), "nothing of egress was here\n");
    let told = gateway.egress(&["status"])?;
    assert_eq!(told.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&told.stderr).contains("no agent has left word"), "{told:?}");
    Ok(())
}
