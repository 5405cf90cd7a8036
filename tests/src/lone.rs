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

/// The same node with a next hop at the far end of its uplink, which is in a second namespace where
/// nobody else sends: for whole frames. The node's MAC is that of [`crate::test_run::ETHERNET`].
pub fn wired() -> Result<(Netns, Netns)> {
    let (node, wires) = (Netns::alone("wired")?, Netns::alone("wires")?);
    node.ip(&format!(
        "link add ens18 address 02:00:00:00:00:01 type veth peer name far netns {}\n\
         link set ens18 up\naddr add 10.0.0.2/24 dev ens18\n\
         link add tun0 type veth peer name pods\nlink set tun0 up\nlink set pods up\n\
         link add vxlan_sys_4789 type vxlan external dstport 4789 nolearning udp6zerocsumrx\n\
         link set vxlan_sys_4789 up mtu 1450\n\
         route add default via 10.0.0.1 dev ens18\n\
         neigh add 10.0.0.1 lladdr 02:00:00:00:00:02 nud permanent dev ens18\n\
         neigh add 10.0.0.3 lladdr 02:00:00:00:00:02 nud permanent dev ens18\n",
        wires.name()
    ))?;
    wires.ip("link set far up\n")?;
    // XDP sends only into a veth whose far end gathers.
    wires.exec("ethtool -K far gro on")?;
    node.exec("ethtool -K ens18 tx off")?;
    node.sysctl("ipv4/ip_forward", "1")?;
    node.sysctl("ipv4/conf/all/rp_filter", "0")?;
    Ok((node, wires))
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
