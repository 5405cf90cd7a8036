//! Our gateway: `egress run` on a node, pods behind a tunnel.

use anyhow::{Context as _, Result, ensure};

use super::{NODE, PODS, SOURCE_NODE, Side, play::Translator};
use crate::{
    gateway::Gateway,
    lone,
    netns::Netns,
    rig::objects::CLUSTER_OBJECTS,
    test_run::{ETHERNET, xdp::in_vxlan},
    traffic::RawSocket,
};

/// Before the inner packet of a VXLAN frame.
const INNER: usize = 14 + 20 + 8 + 8 + 14;

/// The agent at work.
#[derive(Debug)]
pub struct Ours<'a> {
    agent: Gateway<'a>,
    uplink: RawSocket,
}

impl<'a> Ours<'a> {
    /// Starts the agent with this `dataPath`.
    pub fn up(node: &'a Netns, wires: &Netns, data_path: &str) -> Result<Self> {
        let config = [
            ("dataPath: auto", format!("dataPath: {data_path}").as_str()),
            ("max: 1048576", "max: 131072"),
            ("tcpTransitory: 240s", "tcpTransitory: 3600s"),
            ("udp: 300s", "udp: 3600s"),
            ("icmp: 60s", "icmp: 3600s"),
        ]
        .into_iter()
        .fold(lone::config(), |text, change| lone::with(&text, change));
        let mut agent = Gateway::new(node, &config, CLUSTER_OBJECTS)?;
        agent.run_agent()?;
        let in_force = &agent.status()?["dataPath"];
        ensure!(in_force["path"] == data_path, "in force is {in_force}");
        Ok(Self { agent, uplink: RawSocket::open(wires, "far")? })
    }

    /// What `egress status` counts.
    pub fn counters(&self) -> Result<(serde_json::Value, serde_json::Value)> {
        let status = self.agent.status()?;
        Ok((status["paths"].clone(), status["drops"].clone()))
    }
}

/// The packet in a VXLAN frame for the source node, which must be of its pod's tenant.
fn unwrapped(frame: &[u8]) -> Result<Option<Vec<u8>>> {
    if frame.len() < INNER + 20
        || frame[23] != 17
        || frame[26..34] != [NODE, SOURCE_NODE].concat()
        || frame[36..38] != [0x12, 0xb5]
    {
        return Ok(None);
    }
    let vnid = u32::from_be_bytes([0, frame[46], frame[47], frame[48]]);
    let packet = &frame[INNER..];
    let pod = PODS.iter().find(|pod| packet[16..20] == pod.address);
    let pod = pod.with_context(|| format!("a reply to no pod: {packet:02x?}"))?;
    ensure!(pod.vnid == vnid, "a reply to {pod:?} through VNID {vnid}");
    Ok(Some(packet.to_vec()))
}

impl Translator for Ours<'_> {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn put_in(&mut self, from: Side, pod: usize, packet: &[u8]) -> Result<()> {
        match from {
            Side::Pod => self.uplink.send(&in_vxlan(PODS[pod].vnid, packet)),
            Side::Outside => self.uplink.send(&[&ETHERNET[..], packet].concat()),
        }
    }

    fn take_out(&mut self, found: &mut Vec<(Side, Vec<u8>)>) -> Result<()> {
        while let Some(frame) = self.uplink.receive()? {
            if frame.get(12..14) != Some(&[8, 0]) {
                continue;
            }
            match unwrapped(frame)? {
                Some(packet) => found.push((Side::Pod, packet)),
                None => found.push((Side::Outside, frame[14..].to_vec())),
            }
        }
        Ok(())
    }
}
