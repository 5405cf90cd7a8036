//! What is replaced: the mark, `iptables -t nat ... -m mark --mark M -j SNAT --to-source IP`, the
//! refusal of new connections to an egress IP, and conntrack under it, as OpenShift sets them up.

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr, process::Command};

use anyhow::Result;

use super::{NODE, PODS, Side, play::Translator};
use crate::{
    netns::{self, Netns},
    traffic::RawSocket,
};

const CLUSTER: &str = "10.128.0.0/14";
/// The node's devices, and those at the far ends, destination first.
const TO_NODE: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
/// Timeouts that nothing in a trace lives to see, in seconds, of what conntrack keeps time of.
const TIMEOUTS: [&str; 16] = [
    "tcp_timeout_close",
    "tcp_timeout_close_wait",
    "tcp_timeout_fin_wait",
    "tcp_timeout_last_ack",
    "tcp_timeout_max_retrans",
    "tcp_timeout_syn_recv",
    "tcp_timeout_syn_sent",
    "tcp_timeout_time_wait",
    "tcp_timeout_unacknowledged",
    "udp_timeout",
    "udp_timeout_stream",
    "icmp_timeout",
    "gre_timeout",
    "gre_timeout_stream",
    "sctp_timeout_closed",
    "sctp_timeout_cookie_wait",
];

/// A node with iptables.
#[derive(Debug)]
pub struct Kernel {
    uplink: RawSocket,
    pods: RawSocket,
    _node: Netns,
    _wires: Netns,
}

impl Kernel {
    /// Sets the node up.
    pub fn up() -> Result<Self> {
        let (node, wires) = (Netns::alone("nf")?, Netns::alone("nf-wires")?);
        let mut batch = format!(
            "link add ens18 address 02:00:00:00:00:01 type veth peer name far netns {wires}\n\
             link add tun0 address 02:00:00:00:00:01 type veth peer name pods netns {wires}\n\
             link set ens18 up\nlink set tun0 up\n\
             addr add {}/24 dev ens18\naddr add 10.130.0.1/23 dev tun0\n\
             route add {CLUSTER} dev tun0\nroute add default via 10.0.0.1 dev ens18\n\
             neigh add 10.0.0.1 lladdr 02:00:00:00:00:02 nud permanent dev ens18\n",
            Ipv4Addr::from(NODE),
            wires = wires.name(),
        );
        let egress_ips: BTreeSet<_> = PODS.iter().map(|pod| (pod.egress_ip, pod.vnid)).collect();
        for (egress_ip, _) in &egress_ips {
            writeln!(batch, "addr add {}/24 dev ens18", Ipv4Addr::from(*egress_ip))?;
        }
        for pod in PODS {
            let address = Ipv4Addr::from(pod.address);
            writeln!(batch, "neigh add {address} lladdr 02:00:00:00:00:02 nud permanent dev tun0")?;
        }
        node.ip(&batch)?;
        wires.ip("link set far up\nlink set pods up\n")?;
        for device in ["ens18", "tun0"] {
            node.exec(&format!("ethtool -K {device} tx off"))?;
        }
        let filter = rules(&egress_ips)?;
        let mut restore = Command::new("iptables-legacy-restore");
        node.run(|| netns::run(&mut restore, &filter))??;
        for (key, value) in [
            ("ipv4/ip_forward", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv4/icmp_msgs_per_sec", "1000000"),
        ] {
            node.sysctl(key, value)?;
        }
        for timeout in TIMEOUTS {
            node.sysctl(&format!("netfilter/nf_conntrack_{timeout}"), "3600")?;
        }
        let (uplink, pods) = (RawSocket::open(&wires, "far")?, RawSocket::open(&wires, "pods")?);
        Ok(Self { uplink, pods, _node: node, _wires: wires })
    }
}

/// The rules, as `iptables-restore` takes them; a mark is the VNID here.
fn rules(egress_ips: &BTreeSet<([u8; 4], u32)>) -> Result<String> {
    let mut rules = "*mangle\n".to_owned();
    for pod in PODS {
        let (address, mark) = (Ipv4Addr::from(pod.address), pod.vnid);
        writeln!(rules, "-A PREROUTING -i tun0 -s {address} -j MARK --set-mark {mark:#x}")?;
    }
    rules += "COMMIT\n*nat\n";
    for (egress_ip, mark) in egress_ips {
        let address = Ipv4Addr::from(*egress_ip);
        let matches = format!("-s {CLUSTER} -m mark --mark {mark:#x}");
        writeln!(rules, "-A POSTROUTING {matches} -j SNAT --to-source {address}")?;
    }
    rules += "COMMIT\n*filter\n";
    for (egress_ip, _) in egress_ips {
        let address = Ipv4Addr::from(*egress_ip);
        writeln!(rules, "-A INPUT -d {address} -m conntrack --ctstate NEW -j REJECT")?;
    }
    Ok(rules + "COMMIT\n")
}

impl Translator for Kernel {
    fn name(&self) -> &'static str {
        "nf_nat"
    }

    fn put_in(&mut self, from: Side, _pod: usize, packet: &[u8]) -> Result<()> {
        let frame = [&TO_NODE[..], &[8, 0], packet].concat();
        match from {
            Side::Pod => self.pods.send(&frame),
            Side::Outside => self.uplink.send(&frame),
        }
    }

    fn take_out(&mut self, found: &mut Vec<(Side, Vec<u8>)>) -> Result<()> {
        for (side, wire) in [(Side::Pod, &mut self.pods), (Side::Outside, &mut self.uplink)] {
            while let Some(frame) = wire.receive()? {
                if frame.get(12..14) == Some(&[8, 0]) {
                    found.push((side, frame[14..].to_vec()));
                }
            }
        }
        Ok(())
    }
}
