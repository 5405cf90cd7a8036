//! Whether the uplinks' hot path runs on XDP: looked at, and mended. A VLAN's is on its device.
//!
//! The tc programs are attached in any case and share the tables, so nothing here interrupts a
//! flow: what does not go by XDP goes by tc.
use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::programs::XdpMode;

use super::wiring::{Device, InForce, Wiring};
use crate::{
    bpf::DataPlane,
    condition::{Condition, Reason},
    config::DataPath,
    netlink::{
        Link, Netlink,
        xdp::{Features, OnXdp, features, strips_tags},
    },
};

/// What the settings and the device come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Off(&'static str),
    /// Asked for, and the device cannot.
    Refused(&'static str),
    Native,
    NativeOrGeneric,
}

fn wish(wanted: DataPath, link: &Link, features: Features) -> Wish {
    let veth = link.kind.as_deref() == Some("veth");
    match wanted {
        DataPath::Stack => Wish::Off("dataPath says stack"),
        DataPath::Tunnel => Wish::Off("dataPath says tunnel"),
        DataPath::Tc => Wish::Off("dataPath says tc"),
        DataPath::Auto if veth => Wish::Off(
            "the uplink is a veth: its packets come big and without checksums, which only tc takes",
        ),
        DataPath::Auto if !features.runs() => Wish::Off("the uplink's driver has no XDP"),
        DataPath::Auto => Wish::Native,
        DataPath::Xdp if veth && !features.transmits() => Wish::Refused(
            "the far end of the veth takes no frames from XDP: switch GRO on there (ethtool -K)",
        ),
        DataPath::Xdp => Wish::NativeOrGeneric,
    }
}

/// Attaches or detaches as the settings and the devices say. What is asked for and cannot be had is
/// a condition, and tc carries the traffic. `links`: the uplinks, the one of the tunnel first.
pub async fn reconcile(
    data_plane: &mut DataPlane,
    netlink: &Netlink,
    links: &[Link],
    wanted: DataPath,
) -> (Wiring, Vec<Condition>) {
    let mut conditions = Vec::new();
    let mut devices = BTreeMap::new();
    for link in links {
        let device = link.device();
        if devices.contains_key(&device.index) {
            continue;
        }
        let tagged = links
            .iter()
            .any(|link| link.vlan.as_ref().is_some_and(|vlan| vlan.device.index == device.index));
        let (in_force, condition) = on_device(data_plane, netlink, device, tagged, wanted).await;
        conditions.extend(condition);
        // Who cannot be asked offers nothing. Asked only now: a driver may offer it to programs.
        let features = features(device.index).unwrap_or_default();
        devices.insert(device.index, Device { in_force, transmits: features.transmits() });
    }
    for name in data_plane.xdp_links() {
        if !links.iter().any(|link| link.device().name == name)
            && let Err(error) = data_plane.detach_xdp(&name)
        {
            conditions.push(Condition::new(
                format!("Device/{name}"),
                Reason::Failed,
                format!("{error:#}"),
            ));
        }
    }
    let wiring = Wiring::of(links, &devices);
    if wanted == DataPath::Xdp {
        conditions.extend(wiring.lacking());
    }
    (wiring, conditions)
}

/// What is in force on a device. `tagged`: an uplink is a VLAN on it.
async fn on_device(
    data_plane: &mut DataPlane,
    netlink: &Netlink,
    device: &Link,
    tagged: bool,
    wanted: DataPath,
) -> (InForce, Option<Condition>) {
    let name = &device.name;
    let wish = match wish(wanted, device, features(device.index).unwrap_or_default()) {
        // Whoever cannot be asked is taken to do so.
        Wish::Native | Wish::NativeOrGeneric
            if tagged && strips_tags(device.index).unwrap_or(true) =>
        {
            let why = "it takes the VLANs' tags off before XDP sees them: switch that off \
                       (ethtool -K DEVICE rxvlan off)";
            if wanted == DataPath::Xdp { Wish::Refused(why) } else { Wish::Off(why) }
        }
        wish => wish,
    };
    let mode = match wish {
        Wish::Native | Wish::NativeOrGeneric => {
            attach(data_plane, netlink, device, wish == Wish::NativeOrGeneric).await
        }
        Wish::Off(why) | Wish::Refused(why) => match data_plane.detach_xdp(name) {
            Ok(()) if matches!(wish, Wish::Refused(_)) => Err(anyhow::anyhow!(why)),
            Ok(()) => {
                let path = match wanted {
                    DataPath::Stack => "stack",
                    DataPath::Tunnel => "tunnel",
                    _ => "tc",
                };
                return (InForce::new(path, why), None);
            }
            Err(error) => Err(error),
        },
    };
    match mode {
        Ok(true) if wanted == DataPath::Auto => {
            (InForce::new("xdp", "the uplink's driver runs it"), None)
        }
        Ok(true) => (InForce::new("xdp", "dataPath says xdp"), None),
        Ok(false) => {
            (InForce::new("xdp-generic", "the driver has no XDP for this device as it is"), None)
        }
        Err(error) => {
            let why = format!("{error:#}");
            let message = format!("no XDP on {name}, tc carries the traffic: {why}");
            let condition = Condition::new(format!("Device/{name}"), Reason::NoXdp, message);
            (InForce::new("tc", why), Some(condition))
        }
    }
}

/// Whether it runs native.
async fn attach(
    data_plane: &mut DataPlane,
    netlink: &Netlink,
    uplink: &Link,
    generic_will_do: bool,
) -> Result<bool> {
    let name = &uplink.name;
    let ours = data_plane.xdp_info()?.id();
    let there = netlink.on_xdp(uplink.index).await?;
    match there {
        Some(OnXdp { program, native }) if program == ours => return Ok(native),
        Some(OnXdp { program, .. }) if !data_plane.has_xdp_link(name) => {
            anyhow::bail!("the XDP program number {program} is attached already, by somebody else")
        }
        _ => {}
    }
    match data_plane.attach_xdp(name, XdpMode::Driver) {
        Err(_) if generic_will_do => data_plane.attach_xdp(name, XdpMode::Skb)?,
        other => other?,
    }
    let there = netlink.on_xdp(uplink.index).await?;
    Ok(there.context("the kernel shows no XDP program after it was attached")?.native)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<&str>) -> Link {
        let kind = kind.map(str::to_owned);
        Link {
            index: 2,
            name: "ens18".to_owned(),
            mac: None,
            mtu: 1500,
            kind,
            up: true,
            outages: 0,
            vlan: None,
        }
    }

    #[test]
    fn auto_takes_xdp_from_a_driver_that_has_it_and_nowhere_else() {
        let (none, basic, all) = (Features(0), Features(1), Features(7));
        assert_eq!(wish(DataPath::Auto, &link(None), basic), Wish::Native);
        assert!(matches!(wish(DataPath::Auto, &link(None), none), Wish::Off(_)));
        assert!(matches!(wish(DataPath::Auto, &link(Some("veth")), all), Wish::Off(_)));
    }

    #[test]
    fn xdp_is_insisted_on_unless_the_far_end_takes_nothing() {
        let (none, basic, all) = (Features(0), Features(1), Features(7));
        assert_eq!(wish(DataPath::Xdp, &link(None), none), Wish::NativeOrGeneric);
        assert_eq!(wish(DataPath::Xdp, &link(Some("veth")), all), Wish::NativeOrGeneric);
        assert!(matches!(wish(DataPath::Xdp, &link(Some("veth")), basic), Wish::Refused(_)));
    }

    #[test]
    fn tc_and_stack_mean_no_xdp() {
        for wanted in [DataPath::Tc, DataPath::Stack] {
            assert!(matches!(wish(wanted, &link(None), Features(7)), Wish::Off(_)));
        }
    }
}
