//! The maps of the source side: whose pods are where, and which node hosts their egress IP.
use std::{collections::BTreeMap, fmt::Debug, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};

/// What the maps shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Device number to VNID.
    pub devices: BTreeMap<u32, u32>,
    /// Pod address to VNID.
    pub pods: BTreeMap<Ipv4Addr, u32>,
    /// VNID to the other node that hosts its egress IP.
    pub egress_nodes: BTreeMap<u32, Ipv4Addr>,
}

/// The pinned maps.
pub struct Maps {
    devices: HashMap<MapData, u32, u32>,
    pods: HashMap<MapData, [u8; 4], u32>,
    egress_nodes: HashMap<MapData, u32, [u8; 4]>,
}

impl Maps {
    /// Opens the maps that are pinned below `pins`.
    pub fn open(pins: &Path) -> Result<Self> {
        let open = |name: &str| {
            let pin = pins.join("maps").join(name);
            MapData::from_pin(&pin)
                .map(Map::HashMap)
                .with_context(|| format!("open the pinned map {}", pin.display()))
        };
        Ok(Self {
            devices: open("pod_devices")?.try_into()?,
            pods: open("pods")?.try_into()?,
            egress_nodes: open("egress_nodes")?.try_into()?,
        })
    }
}

/// Makes them so; returns how many entries changed. The way out before those who take it.
pub fn reconcile(maps: &mut Maps, desired: &Desired) -> Result<usize> {
    let Desired { devices, pods, egress_nodes } = desired;
    let egress_nodes = egress_nodes.iter().map(|(vnid, node)| (*vnid, node.octets())).collect();
    let pods = pods.iter().map(|(ip, vnid)| (ip.octets(), *vnid)).collect();
    Ok(settle(&mut maps.egress_nodes, &egress_nodes).context("fill the map egress_nodes")?
        + settle(&mut maps.pods, &pods).context("fill the map pods")?
        + settle(&mut maps.devices, devices).context("fill the map pod_devices")?)
}

fn settle<K, V>(map: &mut HashMap<MapData, K, V>, desired: &BTreeMap<K, V>) -> Result<usize>
where
    K: aya::Pod + Ord + Debug,
    V: aya::Pod + PartialEq,
{
    let observed: BTreeMap<K, V> = map.iter().collect::<Result<_, _>>()?;
    let mut changed = 0;
    for (key, value) in desired.iter().filter(|(key, value)| observed.get(key) != Some(value)) {
        map.insert(key, value, 0).with_context(|| format!("enter {key:?}"))?;
        changed += 1;
    }
    for key in observed.keys().filter(|key| !desired.contains_key(key)) {
        map.remove(key).with_context(|| format!("remove {key:?}"))?;
        changed += 1;
    }
    Ok(changed)
}
