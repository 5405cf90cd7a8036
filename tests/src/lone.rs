//! The examples' egress node without anybody around it: enough for an agent, and quickly made.
use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{netns::Netns, rig::objects::AGENT_CONFIG};

/// Its namespace, with the devices that the example's settings name.
pub fn node() -> Result<Netns> {
    let netns = Netns::alone("lone")?;
    netns.ip("link add ens18 type veth peer name far\n\
         link set far up\n\
         link set ens18 up\n\
         addr add 10.0.0.2/24 dev ens18\n\
         link add tun0 type veth peer name pods\n\
         link add vxlan_sys_4789 type vxlan external dstport 4789 nolearning\n")?;
    Ok(netns)
}

/// The example's settings, without probing, which takes seconds and has its own tests.
#[must_use]
pub fn config() -> String {
    with(AGENT_CONFIG, ("probe: true", "probe: false"))
}

/// A text with one thing changed.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn with(text: &str, (from, to): (&str, &str)) -> String {
    assert!(text.contains(from), "there is no {from}");
    text.replace(from, to)
}

/// The egress IPs on the uplink: all addresses but the node's own, sorted as text.
pub fn egress_ips(netns: &Netns) -> Result<Vec<String>> {
    let text = netns.exec("ip -j -4 addr show dev ens18")?;
    let json: Value = serde_json::from_str(&text)?;
    let list = json[0]["addr_info"].as_array().context("no addr_info")?;
    let local = |address: &Value| address["local"].as_str().map(str::to_owned);
    let mut addresses: Vec<String> =
        list.iter().filter_map(local).filter(|ip| ip != "10.0.0.2").collect();
    addresses.sort();
    Ok(addresses)
}
