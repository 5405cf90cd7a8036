//! The two ends of real connections: a pod on another node, and an external host.
//!
//! ```text
//! pod 10.130.0.0 -- net: VXLAN as 100.64.0.3 ==> uplink (node) ==> net: router -- outside
//! ```
//!
//! The namespace `net` plays source node and router, so it works too: its cost is in every
//! variant's figure alike, and ratios are flatter than those of the generator's workloads.
use anyhow::Result;
use egress_common::bench::{EGRESS_BASE, POD_BASE, REMOTE_BASE, vnid};

use super::{
    net::Netns,
    rig::{
        MAC_NET_GW, MAC_TUNNEL, MAC_UP, NODE, NODE_PREFIX, ROUTER, SOURCE_NODE, UPLINK, dotted, mac,
    },
};

const MAC_POD: [u8; 6] = [0x0a, 0x58, 10, 130, 0, 0];
const MAC_TO_POD: [u8; 6] = [2, 0, 0, 0, 0, 0x31];
const MAC_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0, 0x42];
const MAC_TO_OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0, 0x41];

/// The namespaces where the sockets live.
#[derive(Debug)]
pub struct Ends {
    pub pod: Netns,
    pub outside: Netns,
}

impl Ends {
    /// Makes both and joins them to `net`, the far end of the node's uplink.
    pub fn new(prefix: &str, net: &Netns) -> Result<Self> {
        let pod = Netns::new(format!("{prefix}-pod"))?;
        let outside = Netns::new(format!("{prefix}-out"))?;
        let pair = |outer: &str, outer_mac, netns: &Netns, inner_mac| {
            format!(
                "link add {outer} address {} type veth peer name eth0 address {} netns {}",
                mac(outer_mac),
                mac(inner_mac),
                netns.name()
            )
        };
        let node = dotted(NODE);
        let pod_address = dotted(POD_BASE.to_be_bytes());
        net.ip(&[
            format!("addr add {}/{NODE_PREFIX} dev net-up", dotted(SOURCE_NODE)),
            format!("addr add {}/{NODE_PREFIX} dev net-up", dotted(ROUTER)),
            format!("neigh add {node} lladdr {} nud permanent dev net-up", mac(MAC_UP)),
            format!("route add {}/11 via {node} dev net-up", dotted(EGRESS_BASE.to_be_bytes())),
            format!(
                "link add vxlan0 address {} type vxlan id {} local {} remote {node} dev net-up \
                 dstport 4789 nolearning",
                mac(MAC_NET_GW),
                vnid(0),
                dotted(SOURCE_NODE)
            ),
            "link set vxlan0 up mtu 1450".to_owned(),
            pair("to-pod", MAC_TO_POD, &pod, MAC_POD),
            "link set to-pod up mtu 1450".to_owned(),
            pair("to-out", MAC_TO_OUTSIDE, &outside, MAC_OUTSIDE),
            "link set to-out up".to_owned(),
            format!("neigh add {pod_address} lladdr {} nud permanent dev to-pod", mac(MAC_POD)),
            format!("route add {pod_address}/32 dev to-pod"),
            format!("neigh add 10.128.0.1 lladdr {} nud permanent dev vxlan0", mac(MAC_TUNNEL)),
            "route add default via 10.128.0.1 dev vxlan0 onlink table 100".to_owned(),
            "rule add iif to-pod lookup 100".to_owned(),
            format!("neigh add 10.128.0.2 lladdr {} nud permanent dev to-out", mac(MAC_OUTSIDE)),
            format!(
                "route add {}/15 via 10.128.0.2 dev to-out onlink",
                dotted(REMOTE_BASE.to_be_bytes())
            ),
        ])?;
        for key in ["all", "default", "net-up", "vxlan0", "to-pod", "to-out"] {
            net.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
            net.sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
        }
        net.sysctl("net/ipv4/ip_forward", "1")?;
        // The receiver of frames that the node sends from XDP needs it, as the node's own ends do.
        net.run(&["ethtool", "-K", "net-up", "gro", "on"])?;
        let end = |netns: &Netns, gateway_mac, local: String, mtu: u32| {
            netns.ip(&[
                format!("link set eth0 up mtu {mtu}"),
                local,
                format!("neigh add 10.128.0.1 lladdr {} nud permanent dev eth0", mac(gateway_mac)),
                "route add default via 10.128.0.1 dev eth0 onlink".to_owned(),
            ])
        };
        end(&pod, MAC_TO_POD, format!("addr add {pod_address}/32 dev eth0"), 1450)?;
        let all = format!("route add local {}/15 dev lo", dotted(REMOTE_BASE.to_be_bytes()));
        end(&outside, MAC_TO_OUTSIDE, all, 1500)?;
        Ok(Self { pod, outside })
    }

    /// Whether the sockets' interfaces leave checksums and segmentation for later, and whether the
    /// uplink's two ends (`node`'s and `net`'s) hand each other whole packets. If not, the uplink is as a
    /// network card is: what goes over it is segments, which GRO joins where they arrive. (A veth does so
    /// only if its far end has no TSO.)
    pub fn offload(&self, node: &Netns, net: &Netns, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        for netns in [&self.pod, &self.outside] {
            netns.run(&["ethtool", "-K", "eth0", "tx", state, "tso", state, "gso", state])?;
        }
        for (netns, device) in [(node, UPLINK), (net, "net-up")] {
            netns.run(&["ethtool", "-K", device, "tso", state])?;
        }
        Ok(())
    }
}
