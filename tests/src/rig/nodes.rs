//! How the nodes carry their pods' packets, with the kernel's own means in place of Open vSwitch.
//!
//! The source node has a bridge and a VXLAN device for each VNID. No device of such a bridge has
//! the gateway's MAC, so what a pod sends to its gateway is flooded into the tunnel: the egress node
//! gets it with the MAC of the source node's `tun0`, as from OpenShift's flow `tun_dst, output:1`.
//! Only the tenant without policy has the gateway on its bridge, and leaves by its own node.
//!
//! The egress node has one `external` VXLAN device, in a bridge with the local pods and a veth end of
//! `tun0`. nftables rules on the ingress of bridge ports stand for the flows that set a MAC or a mark:
//! that is after tc, where Open vSwitch takes its packets too. What the node or a local pod sends to
//! a remote pod is routed into the tunnel, a route for each pod.

use std::{collections::BTreeMap, fmt::Write as _, net::Ipv4Addr, path::Path, process::Command};

use anyhow::{Result, bail};

use super::topology::{
    CLUSTER_NETWORK, GATEWAY, Node, Outside, POD_MTU, Pod, SERVICE_NETWORK, TUNNEL, UPLINK,
    VXLAN_PORT,
};
use crate::netns::{Netns, run};

/// The bridge of the egress node, where Open vSwitch has br0.
const BRIDGE: &str = "pods";
/// The bridge's end of [`GATEWAY`].
const GATEWAY_PORT: &str = "tun0-port";

/// The switch, the host on the uplink's network and the one behind it.
pub fn outside(switch: &Netns, hosts: [&Outside; 2], [router, beyond]: [&Netns; 2]) -> Result<()> {
    let [near, far] = hosts;
    switch.ip("link add switch type bridge mcast_snooping 0\nlink set switch up\n")?;
    router.sysctl("ipv4/ip_forward", "1")?;
    router.ip(&format!(
        "link add eth0 type veth peer name {} netns {}\n\
         link add eth1 type veth peer name eth0 netns {}\n\
         addr add {}/24 dev eth0\n\
         addr add 198.51.100.1/24 dev eth1\n\
         link set eth0 up\n\
         link set eth1 up\n",
        near.name,
        switch.name(),
        beyond.name(),
        near.ip
    ))?;
    switch.ip(&format!("link set {} master switch up\n", near.name))?;
    beyond.ip(&format!(
        "addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via 198.51.100.1\n",
        far.ip
    ))
}

/// Connects a node to the switch, with its address and the normal way out.
pub fn connect(node: &Node, netns: &Netns, switch: &Netns, router: &str) -> Result<()> {
    let Node { name, ip, mac, .. } = node;
    let switch_name = switch.name();
    for (key, value) in [("ip_forward", "1"), ("conf/all/rp_filter", "0")] {
        netns.sysctl(&format!("ipv4/{key}"), value)?;
    }
    netns.sysctl("ipv4/conf/default/rp_filter", "0")?;
    // Where the kernel has br_netfilter, it would masquerade what only crosses a bridge.
    if Path::new("/proc/sys/net/bridge").exists() {
        netns.sysctl("bridge/bridge-nf-call-iptables", "0")?;
    }
    netns.ip(&format!(
        "link add {UPLINK} address {mac} type veth peer name {name} netns {switch_name}\n\
         addr add {ip}/24 dev {UPLINK}\n\
         link set {UPLINK} up\n\
         route add default via {router} dev {UPLINK}\n"
    ))?;
    switch.ip(&format!("link set {name} master switch up\n"))?;
    // OPENSHIFT-MASQUERADE-2: what a pod sends to the outside leaves with the node's address.
    netns.nft(&format!(
        "table ip nat {{\n\
           chain egress-ips {{}}\n\
           chain postrouting {{\n\
             type nat hook postrouting priority srcnat\n\
             ip saddr {CLUSTER_NETWORK} ip daddr != {CLUSTER_NETWORK} jump egress-ips\n\
             ip saddr {CLUSTER_NETWORK} ip daddr != {CLUSTER_NETWORK} masquerade\n\
           }}\n\
         }}\n"
    ))
}

/// The tenants of the source node: bridges, tunnels, and its gateway device.
pub fn source(node: &Node, netns: &Netns, egress: &Node, pods: &[Pod]) -> Result<()> {
    tenants(node, netns, pods)?;
    let mut batch = String::new();
    for pod in one_of_each(node, pods) {
        let (vnid, bridge) = (pod.vnid, source_bridge(pod));
        writeln!(
            batch,
            "link add vx{vnid} type vxlan id {vnid} local {} remote {} dstport {VXLAN_PORT} nolearning\n\
             link set vx{vnid} master {bridge} up",
            node.ip, egress.ip
        )?;
    }
    netns.ip(&batch)
}

/// Takes each tenant's tunnel of the source node away.
pub fn without_tunnels(node: &Node, netns: &Netns, pods: &[Pod]) -> Result<()> {
    let tunnels = one_of_each(node, pods).into_iter();
    netns.ip(&tunnels.map(|pod| format!("link del vx{}\n", pod.vnid)).collect::<String>())
}

/// A bridge for each tenant of the source node; that of the tenant without policy is its gateway
/// device.
pub fn tenants(node: &Node, netns: &Netns, pods: &[Pod]) -> Result<()> {
    let mut batch = String::new();
    for pod in one_of_each(node, pods) {
        let bridge = source_bridge(pod);
        writeln!(
            batch,
            "link add {bridge} mtu {POD_MTU} type bridge mcast_snooping 0\n\
             link set {bridge} up"
        )?;
        if bridge == GATEWAY {
            writeln!(
                batch,
                "link set {bridge} address {}\naddr add {}/23 dev {bridge}",
                node.gateway_mac, node.gateway
            )?;
        }
    }
    netns.ip(&batch)
}

/// One tunnel device for all tenants of the source node, and routes to their pods: all that a
/// plain Linux node has.
pub fn one_tunnel(node: &Node, netns: &Netns, pods: &[Pod]) -> Result<()> {
    let mut batch = format!(
        "link add {TUNNEL} type vxlan external dstport {VXLAN_PORT} nolearning udp6zerocsumrx\n\
         link set {TUNNEL} up\n"
    );
    for pod in pods.iter().filter(|pod| pod.node == node.name && pod.egress_ip.is_some()) {
        let (ip, mac, bridge) = (pod.ip, pod.mac(), source_bridge(pod));
        writeln!(
            batch,
            "route add {ip}/32 dev {bridge}\n\
             neigh add {ip} lladdr {mac} dev {bridge} nud permanent"
        )?;
    }
    netns.ip(&batch)
}

/// Lets a node's own stack reach another node's gateway, at this MAC, through the tunnel as VNID 0.
pub fn reach_gateway(netns: &Netns, node: &Node, other: &Node, mac: &str) -> Result<()> {
    netns.ip(&format!(
        "route add {to}/32 encap ip id 0 src {} dst {} dev {TUNNEL} src {} mtu {POD_MTU}\n\
         neigh add {to} lladdr {mac} dev {TUNNEL} nud permanent\n",
        node.ip,
        other.ip,
        node.gateway,
        to = other.gateway
    ))
}

/// A pod of each tenant on the node.
fn one_of_each<'a>(node: &Node, pods: &'a [Pod]) -> Vec<&'a Pod> {
    let mut tenants: Vec<&Pod> = pods.iter().filter(|pod| pod.node == node.name).collect();
    tenants.sort_by_key(|pod| pod.vnid);
    tenants.dedup_by_key(|pod| pod.vnid);
    tenants
}

/// The bridge of a pod on the source node. Without policy it is the gateway device itself.
fn source_bridge(pod: &Pod) -> String {
    match pod.egress_ip {
        Some(_) => format!("br{}", pod.vnid),
        None => GATEWAY.into(),
    }
}

/// The tunnel device, the gateway device and the flows of the egress node.
pub fn egress(node: &Node, netns: &Netns, source: &Node, pods: &[Pod]) -> Result<()> {
    let Node { gateway, gateway_mac, .. } = node;
    // The device has the attributes Open vSwitch gives it.
    let mut batch = format!(
        "link add {BRIDGE} mtu {POD_MTU} type bridge mcast_snooping 0\n\
         link set {BRIDGE} up\n\
         link add {TUNNEL} type vxlan external dstport {VXLAN_PORT} nolearning udp6zerocsumrx\n\
         link set {TUNNEL} master {BRIDGE} up\n\
         link set {TUNNEL} type bridge_slave learning off flood off mcast_flood off bcast_flood off\n\
         link add {GATEWAY} mtu {POD_MTU} address {gateway_mac} type veth peer name {GATEWAY_PORT} \
         mtu {POD_MTU}\n\
         link set {GATEWAY_PORT} master {BRIDGE} up\n\
         link set {GATEWAY} up\n\
         addr add {gateway}/23 dev {GATEWAY}\n\
         route add {CLUSTER_NETWORK} dev {GATEWAY}\n"
    );
    for pod in pods.iter().filter(|pod| pod.node == source.name) {
        batch.push_str(&way_to_pod(node, source, pod));
    }
    netns.ip(&batch)?;
    // The bridge is no host: without this the kernel answers on it for the gateway's address, and
    // a local pod's packets reach the stack without ever passing the gateway device.
    netns.sysctl(&format!("ipv4/conf/{BRIDGE}/arp_ignore"), "8")?;
    let entry = format!("fdb add {gateway_mac} dev {GATEWAY_PORT} master static");
    netns.output(Command::new("bridge").args(entry.split(' ')))?;
    netns.nft(&format!(
        "table netdev flows {{\n\
           chain tunnel {{\n\
             type filter hook ingress device {TUNNEL} priority 0\n\
             ether daddr {} ether daddr set {gateway_mac}\n\
           }}\n\
         }}\n",
        source.gateway_mac
    ))
}

/// The egress node's way to a pod of the source node, in place of any other to its address.
pub fn way_to_pod(node: &Node, source: &Node, pod: &Pod) -> String {
    format!(
        "route replace {pod_ip}/32 encap ip id {} src {} dst {} dev {TUNNEL} src {} mtu {POD_MTU}\n\
         neigh replace {pod_ip} lladdr {} dev {TUNNEL} nud permanent\n",
        pod.vnid,
        node.ip,
        source.ip,
        node.gateway,
        pod.mac(),
        pod_ip = pod.ip
    )
}

/// Connects a pod to the source node, the first of all `nodes`.
pub fn source_pod(
    pod: &Pod,
    netns: &Netns,
    nodes: &[&Node],
    on: &Netns,
    all: &[Pod],
) -> Result<()> {
    let [node, ..] = nodes else { bail!("{} has no node", pod.name) };
    connect_pod(pod, netns, node, on, &source_bridge(pod))?;
    // Open vSwitch answers for the gateways and for pods of other nodes; here nobody would. Who gets
    // packets at once may have asked already.
    let mut batch = format!("route add {CLUSTER_NETWORK} dev eth0\n");
    for Node { gateway, gateway_mac, .. } in nodes {
        writeln!(batch, "neigh replace {gateway} lladdr {gateway_mac} dev eth0 nud permanent")?;
    }
    for peer in all.iter().filter(|peer| peer.vnid == pod.vnid && peer.node != pod.node) {
        writeln!(batch, "neigh replace {} lladdr {} dev eth0 nud permanent", peer.ip, peer.mac())?;
    }
    netns.ip(&batch)
}

/// Connects a pod to the egress node. Its packets to the outside get their mark, as from Open
/// vSwitch's `set_field:MARK->pkt_mark,output:tun0`.
pub fn egress_pod(pod: &Pod, netns: &Netns, node: &Node, on: &Netns) -> Result<()> {
    connect_pod(pod, netns, node, on, BRIDGE)?;
    if pod.egress_ip.is_none() {
        return Ok(());
    }
    on.nft(&format!(
        "table netdev flows {{\n\
           chain {name} {{\n\
             type filter hook ingress device {name} priority 0\n\
             ip daddr != {{ {CLUSTER_NETWORK}, {SERVICE_NETWORK} }} meta mark set {mark:#x}\n\
           }}\n\
         }}\n",
        name = pod.name,
        mark = pod.mark()
    ))
}

fn connect_pod(pod: &Pod, netns: &Netns, node: &Node, on: &Netns, bridge: &str) -> Result<()> {
    let Pod { name, ip, .. } = pod;
    on.ip(&format!(
        "link add {name} mtu {POD_MTU} type veth peer name eth0 mtu {POD_MTU} address {} netns {}\n\
         link set {name} master {bridge} up\n",
        pod.mac(),
        netns.name()
    ))?;
    netns.ip(&format!(
        "addr add {ip}/23 dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n",
        node.gateway
    ))
}

/// Lets the kernel do what the agent does: the egress IPs on the uplink, marks on what comes out of
/// the tunnel, and OPENSHIFT-MASQUERADE's SNAT by mark. For comparison.
pub fn kernel_snat(netns: &Netns, pods: &[Pod]) -> Result<()> {
    let mut rules = String::new();
    for (mark, ip) in claim(netns, pods)? {
        writeln!(rules, "add rule ip nat egress-ips meta mark {mark:#x} snat to {ip}")?;
    }
    netns.nft(&rules)
}

/// As [`kernel_snat`], with the original's own chain in iptables.
pub fn openshift_snat(netns: &Netns, pods: &[Pod]) -> Result<()> {
    // A table of the same name that iptables did not make is closed to it.
    netns.nft("delete table ip nat")?;
    let mut rules = String::new();
    for (mark, ip) in claim(netns, pods)? {
        writeln!(
            rules,
            "-A OPENSHIFT-MASQUERADE -s {CLUSTER_NETWORK} -m mark --mark {mark:#x} -j SNAT \
             --to-source {ip}"
        )?;
    }
    let comment = "-m comment --comment \"masquerade pod-to-external traffic\"";
    let script = format!(
        "*nat\n\
         :OPENSHIFT-MASQUERADE - [0:0]\n\
         :OPENSHIFT-MASQUERADE-2 - [0:0]\n\
         -A POSTROUTING -m comment --comment \"rules for masquerading OpenShift traffic\" \
         -j OPENSHIFT-MASQUERADE\n\
         -A OPENSHIFT-MASQUERADE -m mark --mark 0x1/0x1 -j RETURN\n\
         {rules}\
         -A OPENSHIFT-MASQUERADE -s {CLUSTER_NETWORK} {comment} -j OPENSHIFT-MASQUERADE-2\n\
         -A OPENSHIFT-MASQUERADE-2 -d {CLUSTER_NETWORK} {comment} -j RETURN\n\
         -A OPENSHIFT-MASQUERADE-2 {comment} -j MASQUERADE\n\
         COMMIT\n"
    );
    netns.run(|| run(&mut Command::new("iptables-restore"), &script))?.map(drop)
}

/// Marks what comes out of the tunnel, and puts the egress IPs on the uplink as the original does:
/// each with its mark. nftables cannot read the tunnel's VNID here, so a mark follows from the pod's
/// address.
fn claim(netns: &Netns, pods: &[Pod]) -> Result<BTreeMap<u32, Ipv4Addr>> {
    let mut claimed = BTreeMap::new();
    let mut rules = String::new();
    for pod in pods {
        let Some(egress_ip) = pod.egress_ip else { continue };
        let (ip, mark) = (pod.ip, pod.mark());
        writeln!(
            rules,
            "add rule netdev flows tunnel ip saddr {ip} ip daddr != {{ {CLUSTER_NETWORK}, \
             {SERVICE_NETWORK} }} meta mark set {mark:#x}"
        )?;
        claimed.insert(mark, egress_ip);
    }
    let addresses: String = claimed
        .values()
        .map(|ip| format!("addr add {ip}/24 dev {UPLINK} label {UPLINK}:eip\n"))
        .collect();
    netns.ip(&addresses)?;
    netns.nft(&rules)?;
    Ok(claimed)
}
