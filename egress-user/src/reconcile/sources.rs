//! The maps of the source side: whose pods are where, and which nodes host their
//! egress IPs.
use std::{collections::BTreeMap, fmt::Debug, net::Ipv4Addr, path::Path};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use egress_common::spread::EgressNodes;

use crate::bpf::Plain;

/// What the maps shall hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Device number to VNID.
    pub devices: BTreeMap<u32, u32>,
    /// Pod address to VNID.
    pub pods: BTreeMap<Ipv4Addr, u32>,
    /// VNID to the other nodes that host its egress IPs.
    pub egress_nodes: BTreeMap<u32, EgressNodes>,
}

/// The pinned maps.
pub struct Maps {
    devices: Kept<u32, u32>,
    pods: Kept<[u8; 4], u32>,
    egress_nodes: Kept<u32, Plain<EgressNodes>>,
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
            devices: Kept::new(open("pod_devices")?.try_into()?),
            pods: Kept::new(open("pods")?.try_into()?),
            egress_nodes: Kept::new(open("egress_nodes")?.try_into()?),
        })
    }

    /// The next [`reconcile`] reads the maps: else it compares with what it read or wrote last.
    pub fn forget(&mut self) {
        self.devices.held = None;
        self.pods.held = None;
        self.egress_nodes.held = None;
    }
}

/// Makes them so; returns how many entries changed. The way out before those who take it.
pub fn reconcile(maps: &mut Maps, desired: &Desired) -> Result<usize> {
    let Desired { devices, pods, egress_nodes } = desired;
    let egress_nodes = egress_nodes.iter().map(|(vnid, nodes)| (*vnid, Plain(*nodes))).collect();
    let pods = pods.iter().map(|(ip, vnid)| (ip.octets(), *vnid)).collect();
    Ok(maps.egress_nodes.settle(egress_nodes).context("fill the map egress_nodes")?
        + maps.pods.settle(pods).context("fill the map pods")?
        + maps.devices.settle(devices.clone()).context("fill the map pod_devices")?)
}

/// A map, and what it held when it was last read or written: nobody else writes it.
struct Kept<K, V> {
    map: HashMap<MapData, K, V>,
    held: Option<BTreeMap<K, V>>,
}

impl<K, V> Kept<K, V>
where
    K: aya::Pod + Ord + Debug,
    V: aya::Pod + PartialEq,
{
    fn new(map: HashMap<MapData, K, V>) -> Self {
        Self { map, held: None }
    }

    fn settle(&mut self, desired: BTreeMap<K, V>) -> Result<usize> {
        // What fails leaves it open what the map holds.
        let observed = match self.held.take() {
            Some(held) => held,
            None => self.map.iter().collect::<Result<_, _>>()?,
        };
        let mut changed = 0;
        for (key, value) in desired.iter().filter(|(key, value)| observed.get(key) != Some(value)) {
            self.map.insert(key, value, 0).with_context(|| format!("enter {key:?}"))?;
            changed += 1;
        }
        for key in observed.keys().filter(|key| !desired.contains_key(key)) {
            self.map.remove(key).with_context(|| format!("remove {key:?}"))?;
            changed += 1;
        }
        self.held = Some(desired);
        Ok(changed)
    }
}
