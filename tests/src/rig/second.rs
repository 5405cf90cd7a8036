//! A second network towards the outside, for a rig that stands: the egress node's further uplink.
//!
//! ```text
//!   ocprouter01 ens18 ---- switch ---- outside (10.0.0.1) -- far (198.51.100.10)
//!               ens19 ---- switch2 --- beyond (192.0.2.1, and 203.0.113.10 behind itself)
//! ```
//!
//! With a VLAN, both ends are VLAN devices: on the first network's switch, which carries the tagged
//! frames, or on the second's.

use std::{collections::BTreeSet, net::Ipv4Addr};

use anyhow::{Context as _, Result};

use super::{Rig, objects, topology::UPLINK};
use crate::netns::Netns;

/// The device of the second network, on the egress node.
pub const SECOND: &str = "ens19";
/// The egress node's address there, in a /24.
pub const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The host on the network, which is the gateway too.
pub const BEYOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// What only that gateway leads to.
pub const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// An egress IP of this network.
pub const EGRESS_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);

/// How the second network is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wire {
    /// By a device of its own.
    Device,
    /// By this VLAN on the first uplink's device.
    Vlan(u16),
    /// By this VLAN on a device of its own.
    DeviceVlan(u16),
}

/// The second network. Dropping it removes its host; the node's device goes with the rig.
#[derive(Debug)]
pub struct Second {
    /// The host on the network.
    pub beyond: Netns,
    /// The egress node's uplink there.
    pub uplink: String,
}

/// Whether this kernel has VLAN devices.
pub fn has_vlans() -> Result<bool> {
    let netns = Netns::alone("vlans")?;
    netns.ip("link add eth0 type veth peer name far")?;
    Ok(netns.ip("link add link eth0 name eth0.1 type vlan id 1").is_ok())
}

impl Second {
    /// Builds the network. The node has an address there and no route beyond it.
    pub fn up(rig: &Rig, wire: Wire) -> Result<Self> {
        let beyond = Netns::create(&format!("{}beyond", rig.prefix()))?;
        let (node, switch) = (rig.netns(&rig.egress.name), rig.switch());
        let (device, bridge) = match wire {
            Wire::Vlan(_) => (UPLINK, "switch"),
            Wire::Device | Wire::DeviceVlan(_) => (SECOND, "switch2"),
        };
        if device == SECOND {
            switch.ip("link add switch2 type bridge mcast_snooping 0\nlink set switch2 up\n")?;
            node.ip(&format!(
                "link add {SECOND} type veth peer name {SECOND} netns {}\n\
                 link set {SECOND} up\n",
                switch.name()
            ))?;
            switch.ip(&format!("link set {SECOND} master switch2 up\n"))?;
        }
        beyond.ip(&format!(
            "link add eth0 type veth peer name beyond netns {}\nlink set eth0 up\n\
             addr add {FAR}/32 dev lo\n",
            switch.name()
        ))?;
        switch.ip(&format!("link set beyond master {bridge} up\n"))?;
        let (uplink, host) = match wire {
            Wire::Device => (device.to_owned(), "eth0".to_owned()),
            Wire::Vlan(id) | Wire::DeviceVlan(id) => {
                let names = [format!("{device}.{id}"), format!("eth0.{id}")];
                for (netns, below, name) in
                    [(node, device, &names[0]), (&beyond, "eth0", &names[1])]
                {
                    netns.ip(&format!(
                        "link add link {below} name {name} type vlan id {id}\nlink set {name} up\n"
                    ))?;
                }
                let [uplink, host] = names;
                (uplink, host)
            }
        };
        node.ip(&format!("addr add {NODE}/24 dev {uplink}\n"))?;
        beyond.ip(&format!("addr add {BEYOND}/24 dev {host}\n"))?;
        Ok(Self { beyond, uplink })
    }

    /// The usual way beyond: a table of its own for who comes from this network.
    pub fn add_route(&self, rig: &Rig) -> Result<()> {
        rig.netns(&rig.egress.name).ip(&format!(
            "rule add from 192.0.2.0/24 iif lo lookup 100\n\
             route add default via {BEYOND} dev {} table 100\n",
            self.uplink
        ))
    }

    /// The examples' settings with this uplink, without probing, and another data path.
    #[must_use]
    pub fn config(&self, data_path: &str) -> String {
        objects::AGENT_CONFIG
            .replace("uplinks: []", &format!("uplinks: [{}]", self.uplink))
            .replace("probe: true", "probe: false")
            .replace("dataPath: auto", &format!("dataPath: {data_path}"))
    }

    /// The examples' objects, with the egress IP of one namespace on this network.
    #[must_use]
    pub fn objects(egress_ip: Ipv4Addr) -> String {
        objects::CLUSTER_OBJECTS.replace(&egress_ip.to_string(), &EGRESS_IP.to_string())
    }
}

/// The egress IPs that a device of the node carries, by their label.
pub fn labelled(netns: &Netns, device: &str) -> Result<BTreeSet<String>> {
    let text = netns.exec(&format!("ip -j -4 addr show dev {device}"))?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let list = json[0]["addr_info"].as_array().context("no addr_info")?;
    let label = format!("{device}:eip");
    let ours = list.iter().filter(|address| address["label"] == label.as_str());
    Ok(ours.filter_map(|address| address["local"].as_str().map(str::to_owned)).collect())
}
