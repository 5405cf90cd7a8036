//! What the original puts on the two nodes' bridges for the notes' first namespace, as literal lines.
//!
//! VNID 7305526 (`egress-test`), its one egress IP on `ocprouter01`.
use egress_user::ovs::Layout;
use egress_user::reconcile::flows::Desired;

/// The bucket, or the actions, that send a packet to a node; the egress node here.
pub const REMOTE: &str =
    "move:NXM_NX_REG0[]->NXM_NX_TUN_ID[0..31],set_field:10.0.0.2->tun_dst,output:1";

/// Ours on each of the nodes.
#[derive(Debug)]
pub struct Plans {
    pub source: Desired,
    pub egress: Desired,
}

/// `gateway_mac` is that of `tun0` on the egress node.
pub fn plans(layout: Layout, gateway_mac: [u8; 6]) -> Plans {
    let mac = gateway_mac.map(|byte| format!("{byte:02x}")).join(":");
    let local = format!("set_field:{mac}->eth_dst,set_field:0x6f7936->pkt_mark");
    match layout {
        Layout::Old => Plans {
            source: desired(
                &[&format!("table=100,priority=100,ip,reg0=0x6f7936,actions={REMOTE}")],
                &[],
            ),
            egress: desired(
                &[&format!(
                    "table=100,priority=100,ip,reg0=0x6f7936,actions={local},goto_table:101"
                )],
                &[],
            ),
        },
        Layout::New => Plans {
            source: desired(
                &["table=101,priority=100,ip,reg0=0x6f7936,actions=ct(commit),group:7305526"],
                &[&group("10.0.0.2")],
            ),
            egress: desired(
                &["table=101,priority=100,ip,reg0=0x6f7936,actions=group:7305526"],
                &[&format!("group_id=7305526,type=select,bucket=actions={local},output:2")],
            ),
        },
    }
}

/// A group of one bucket, towards the node.
pub fn group(node: &str) -> String {
    format!("group_id=7305526,type=select,bucket=actions={}", REMOTE.replace("10.0.0.2", node))
}

/// From lines.
///
/// # Panics
/// They are not a plan.
pub fn desired(flows: &[&str], groups: &[&str]) -> Desired {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    Desired::parse(&lines(flows), &lines(groups)).expect("the test's plan")
}
