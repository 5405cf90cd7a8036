//! How the program on XDP sees the uplinks: by which device and VLAN frames come, and how they get out
//! of each. Pure: from what runs, and what the devices can do.
//!
//! VXLAN comes by the first uplink, so XDP sends from that one's device to where an egress IP lives;
//! answers come there, and are sent out of the first uplink. Each hop from one device to another
//! needs a driver that takes frames from XDP; without it tc does that direction.
use std::collections::BTreeMap;

use egress_common::abi::{Arrival, Wire, xdp_send};
use serde::{Deserialize, Serialize};

use crate::{
    condition::{Condition, Reason},
    netlink::Link,
};

/// The data path in force on an uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// `xdp`, `xdp-generic`, `tc`, `tunnel` or `stack`.
    pub path: String,
    pub why: String,
}

impl InForce {
    pub fn new(path: &str, why: impl Into<String>) -> Self {
        Self { path: path.to_owned(), why: why.into() }
    }

    fn is_xdp(&self) -> bool {
        self.path.starts_with("xdp")
    }
}

/// A device, with what was found on it.
#[derive(Debug)]
pub struct Device {
    pub in_force: InForce,
    /// It takes frames from XDP of other devices.
    pub transmits: bool,
}

/// What the uplinks come to.
#[derive(Debug, Default)]
pub struct Wiring {
    /// By the uplink's name.
    pub in_force: BTreeMap<String, InForce>,
    /// By the uplink's name.
    pub wires: BTreeMap<String, Wire>,
    /// The further uplinks whose answers XDP can send on, by where they come from.
    pub arrivals: BTreeMap<Arrival, u32>,
    /// What XDP does not do although it runs, by the uplink's name.
    lacking: BTreeMap<String, String>,
}

impl Wiring {
    /// `devices`: by the number of the interface.
    pub(super) fn of(links: &[Link], devices: &BTreeMap<u32, Device>) -> Self {
        let mut wiring = Self::default();
        let Some((first, below)) =
            links.first().and_then(|link| Some((link, devices.get(&link.device().index)?)))
        else {
            return wiring;
        };
        for link in links {
            let Some(device) = devices.get(&link.device().index) else { continue };
            let same = link.device().index == first.device().index;
            let vlan = link.vlan.as_ref().map_or(0, |vlan| vlan.id);
            let send = match (below.in_force.is_xdp(), same) {
                (true, true) if !link.device().is_veth() => xdp_send::BACK,
                (true, _) if device.transmits => xdp_send::REDIRECT,
                _ => xdp_send::NONE,
            };
            let wire = Wire { device: link.device().index, vlan, send, pad: 0 };
            wiring.wires.insert(link.name.clone(), wire);
            let is_first = link.index == first.index;
            let answers = device.in_force.is_xdp() && (same || below.transmits);
            if answers && !is_first {
                let arrival = Arrival { device: wire.device, vlan: u32::from(vlan) };
                wiring.arrivals.insert(arrival, link.index);
            }
            let mut in_force = device.in_force.clone();
            if below.in_force.is_xdp() && device.in_force.is_xdp() && !is_first {
                if let Some(lacking) = lacking(link, first, send != xdp_send::NONE, answers) {
                    in_force.why = format!("{}; {lacking}", in_force.why);
                    wiring.lacking.insert(link.name.clone(), lacking);
                }
            } else if device.in_force.is_xdp() && !is_first {
                let why = format!("{}, by which the tunnel goes, is not on XDP", first.name);
                in_force = InForce::new("tc", why);
            }
            wiring.in_force.insert(link.name.clone(), in_force);
        }
        wiring
    }

    /// What of XDP cannot be had, where it runs.
    pub(super) fn lacking(&self) -> impl Iterator<Item = Condition> {
        self.lacking.iter().map(|(name, lacking)| {
            let message = format!("XDP serves {name} in part only: {lacking}");
            Condition::new(format!("Device/{name}"), Reason::NoXdp, message)
        })
    }
}

fn lacking(link: &Link, first: &Link, sends: bool, answers: bool) -> Option<String> {
    let takes_none = |device: &Link| {
        format!("{} takes no frames from XDP of another device", device.device().name)
    };
    let out = (!sends).then(|| format!("what leaves goes by tc: {}", takes_none(link)));
    let back = (!answers).then(|| format!("answers go by tc: {}", takes_none(first)));
    match (out, back) {
        (Some(out), Some(back)) => Some(format!("{out}; {back}")),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Vlan;

    fn link(index: u32, name: &str, kind: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mac: None,
            mtu: 1500,
            kind: kind.map(str::to_owned),
            up: true,
            outages: 0,
            vlan: None,
        }
    }

    fn vlan(index: u32, id: u16, device: &Link) -> Link {
        let vlan = Vlan { id, device: device.clone() };
        let name = format!("{}.{id}", device.name);
        Link { vlan: Some(Box::new(vlan)), ..link(index, &name, Some("vlan")) }
    }

    fn device(path: &str, transmits: bool) -> Device {
        Device { in_force: InForce::new(path, "test"), transmits }
    }

    fn sends(wiring: &Wiring) -> Vec<(u32, u16, u8)> {
        wiring.wires.values().map(|wire| (wire.device, wire.vlan, wire.send)).collect()
    }

    #[test]
    fn one_uplink_sends_back_and_a_veth_redirects() {
        for (kind, send) in [(None, xdp_send::BACK), (Some("veth"), xdp_send::REDIRECT)] {
            let devices = BTreeMap::from([(2, device("xdp", true))]);
            let wiring = Wiring::of(&[link(2, "eth0", kind)], &devices);
            assert_eq!((sends(&wiring), wiring.arrivals.len()), (vec![(2, 0, send)], 0));
        }
    }

    #[test]
    fn vlans_of_one_device_send_back_out_of_it_with_their_tags() {
        let eth0 = link(2, "eth0", None);
        let devices = BTreeMap::from([(2, device("xdp", false))]);
        let wiring = Wiring::of(&[vlan(3, 10, &eth0), vlan(4, 100, &eth0)], &devices);
        assert_eq!(sends(&wiring), [(2, 10, xdp_send::BACK), (2, 100, xdp_send::BACK)]);
        assert_eq!(wiring.arrivals, BTreeMap::from([(Arrival { device: 2, vlan: 100 }, 4)]));
        assert_eq!(wiring.lacking.len(), 0);
    }

    #[test]
    fn between_two_devices_each_direction_needs_one_that_takes_frames() {
        let links = [link(2, "eth0", None), link(3, "eth1", None)];
        for (first, further) in [(true, true), (true, false), (false, true), (false, false)] {
            let devices = BTreeMap::from([(2, device("xdp", first)), (3, device("xdp", further))]);
            let wiring = Wiring::of(&links, &devices);
            let send = if further { xdp_send::REDIRECT } else { xdp_send::NONE };
            assert_eq!(wiring.wires["eth1"].send, send);
            assert_eq!(wiring.arrivals.len(), usize::from(first));
            let told = &wiring.in_force["eth1"].why;
            assert_eq!(told.contains("what leaves goes by tc: eth1 takes no frames"), !further);
            assert_eq!(told.contains("answers go by tc: eth0 takes no frames"), !first);
            assert_eq!(wiring.lacking().count(), usize::from(!(first && further)));
        }
    }

    #[test]
    fn without_xdp_on_the_tunnels_uplink_nothing_goes_by_it() {
        let links = [link(2, "eth0", None), link(3, "eth1", None)];
        let devices = BTreeMap::from([(2, device("tc", true)), (3, device("xdp", true))]);
        let wiring = Wiring::of(&links, &devices);
        assert!(sends(&wiring).iter().all(|(_, _, send)| *send == xdp_send::NONE));
        assert_eq!(wiring.in_force["eth1"].path, "tc");
    }
}
