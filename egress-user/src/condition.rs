//! What is not as someone asked for, said of an object.
use serde::Serialize;

/// Why. The order is that of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// Another machine on the network answers for the egress IP.
    Conflict,
    /// The object was given twice.
    Duplicate,
    /// Namespaces with different VNIDs ask for the egress IP.
    DuplicateNamespace,
    /// Several nodes list the egress IP.
    DuplicateNode,
    /// The agent tried, and tries again: the message says what failed.
    Failed,
    /// No other node was heard for longer than the lease: the egress IPs here are silent.
    Fenced,
    /// The object, or a value in it, is malformed.
    Invalid,
    /// The egress IP is a node's own address.
    IsNodeIP,
    /// A setting was changed that a running agent cannot take over.
    NeedsRestart,
    /// An uplink has no address, and so no subnet.
    NoAddress,
    /// A configured device does not exist.
    NoDevice,
    /// nft is not installed, and something is less safe without it.
    NoNftables,
    /// Open vSwitch is wanted, and is not there.
    NoOpenVSwitch,
    /// The maps have no room for it.
    NoRoom,
    /// No route leads beyond an uplink's own network.
    NoRoute,
    /// The node's subnet, of which its pods are, is not known.
    NoSubnet,
    /// XDP is wanted, and cannot be had.
    NoXdp,
    /// The egress IP is outside its node's subnet.
    NotInSubnet,
    /// The egress IP's node is offline.
    Offline,
    /// The node itself may use ports that are meant for its pods alone.
    PortCollision,
    /// One node lists several egress IPs of one VNID.
    SameNodeTwice,
    /// A node that is watched answers by one way, and by another not any more.
    Silent,
    /// No node lists the egress IP.
    Unhosted,
    /// The gateway, or whoever is to bear witness, has not answered to the egress IP yet.
    Unwitnessed,
}

/// One object, one reason, one sentence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Condition {
    /// `Kind/name`.
    pub object: String,
    pub reason: Reason,
    /// What is the matter, and the cure.
    pub message: String,
}

impl Condition {
    pub fn new(object: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { object: object.into(), reason, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason::*;

    #[test]
    fn reasons_sort_as_their_names() {
        let sorted = [
            Conflict,
            Duplicate,
            DuplicateNamespace,
            DuplicateNode,
            Failed,
            Fenced,
            Invalid,
            IsNodeIP,
            NeedsRestart,
            NoAddress,
            NoDevice,
            NoNftables,
            NoOpenVSwitch,
            NoRoom,
            NoRoute,
            NoSubnet,
            NoXdp,
            NotInSubnet,
            Offline,
            PortCollision,
            SameNodeTwice,
            Silent,
            Unhosted,
            Unwitnessed,
        ];
        assert!(sorted.is_sorted());
        assert!(sorted.map(|reason| format!("{reason:?}")).is_sorted());
    }
}
