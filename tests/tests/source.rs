//! A source node without Open vSwitch, with an agent in place of the rig's own tunnels: from the
//! pods' devices to the node that hosts their egress IPs, and back.
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    netns::wait_until,
    report::{Protocol, Witness},
    rig::{
        Rig, objects,
        topology::{CLUSTER_NETWORK, GATEWAY, SERVICE_NETWORK, TUNNEL, UPLINK, VXLAN_PORT},
    },
    traffic::{TcpServer, exchange_many},
};

const FAR: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 10), 7000);
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

fn config(rig: &Rig, pods: &str) -> String {
    let (name, ip) = (&rig.source.name, rig.source.ip);
    format!(
        "apiVersion: egress/v1alpha1\n\
         kind: AgentConfig\n\
         node: {{name: {name}, ip: {ip}, uplink: {UPLINK}}}\n\
         tunnel: {{device: {TUNNEL}, port: {VXLAN_PORT}}}\n\
         gateway: {GATEWAY}\n\
         clusterNetworks: [{CLUSTER_NETWORK}]\n\
         serviceNetworks: [{SERVICE_NETWORK}]\n\
         compat: old\n\
         ovs: {{enabled: false}}\n\
         pods: [{pods}]\n"
    )
}

/// The agent of the source node, each pod known by its device.
fn source_agent(rig: &Rig) -> Result<Gateway<'_>> {
    let pods: Vec<String> = rig
        .pods
        .iter()
        .filter(|pod| pod.node == rig.source.name)
        .map(|pod| format!("{{device: {}, vnid: {}}}", pod.name, pod.vnid))
        .collect();
    let config = config(rig, &pods.join(", "));
    let mut agent = Gateway::new(rig.netns(&rig.source.name), &config, objects::CLUSTER_OBJECTS)?;
    agent.run_agent()?;
    Ok(agent)
}

#[test]
#[ignore = "needs root"]
fn pods_of_a_plain_linux_node_leave_with_their_egress_ips() -> Result<()> {
    let rig = Rig::up()?;
    let egress = Gateway::start(&rig)?;
    rig.make_source_plain()?;
    let source = source_agent(&rig)?;
    for host in &rig.outside {
        let mut witness = Witness::start(rig.netns(&host.name).name(), host.ip)?;
        for pod in &rig.talkers() {
            for protocol in Protocol::ALL {
                let row = witness.observe(pod, protocol)?;
                assert!(row.ok, "{row:?} at {}\n{}\n{}", host.name, source.log(), egress.log());
            }
        }
    }
    let server = TcpServer::start(rig.netns("far"), FAR)?;
    exchange_many(rig.netns("egress-test-1"), FAR, 0..50, 4, 1 << 20)?;
    let expected = rig.pod("egress-test-1").egress_ip;
    ensure!(server.peers().iter().all(|peer| Some(*peer.ip()) == expected));
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_tenant_whose_egress_ip_nobody_hosts_is_dropped_on_its_node() -> Result<()> {
    let rig = Rig::up()?;
    let _egress = Gateway::start(&rig)?;
    rig.make_source_plain()?;
    let source = source_agent(&rig)?;
    let pod = rig.talker(rig.pod("egress-test-1"));
    let mut witness = Witness::start(rig.netns("far").name(), *FAR.ip())?;
    ensure!(witness.observe(&pod, Protocol::Udp)?.ok, "{}", source.log());
    // The node that hosted it does not list it any more; the namespace still asks for it.
    let objects = objects::CLUSTER_OBJECTS.replacen("  - 10.0.0.11\n", "", 1);
    source.write_objects(&objects)?;
    let dropped = || -> Result<u64> {
        let output = source.egress(&["status", "-o", "json"])?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        status["drops"]["policy_drop"].as_u64().context("no counter of drops")
    };
    let before = dropped()?;
    let noticed = wait_until(DEADLINE, || source.log().contains("Unhosted"));
    ensure!(noticed, "{}", source.log());
    for protocol in Protocol::ALL {
        let row = witness.observe(&pod, protocol)?;
        assert_eq!(row.seen, None, "{row:?}");
    }
    ensure!(dropped()? >= before + 3, "not counted");
    Ok(())
}

/// Tenants that share a device are told apart by their pods' addresses.
#[test]
#[ignore = "needs root"]
fn a_pod_behind_the_gateway_device_is_known_by_its_address() -> Result<()> {
    let rig = Rig::up()?;
    let _egress = Gateway::start(&rig)?;
    rig.make_source_plain()?;
    // The gateway's bridge takes the pod in, and answers it as its gateway.
    let (pod, node) = (rig.pod("egress-test-1"), rig.netns(&rig.source.name));
    node.ip(&format!(
        "link set {} nomaster\nlink set {} master {GATEWAY}\nroute del {}/32\n",
        pod.name, pod.name, pod.ip
    ))?;
    let config = config(&rig, &format!("{{ip: {}, vnid: {}}}", pod.ip, pod.vnid));
    let mut source = Gateway::new(node, &config, objects::CLUSTER_OBJECTS)?;
    source.run_agent()?;
    let mut witness = Witness::start(rig.netns("far").name(), *FAR.ip())?;
    for name in ["egress-test-1", "gitea-1"] {
        for protocol in Protocol::ALL {
            let row = witness.observe(&rig.talker(rig.pod(name)), protocol)?;
            assert!(row.ok, "{row:?}\n{}", source.log());
        }
    }
    Ok(())
}
