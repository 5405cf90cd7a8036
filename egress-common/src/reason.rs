//! Why a packet was neither translated nor passed: each reason is counted and is a metric's label.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// Append only: the number is the counter's index, the name the metric's label.
        #[repr(u32)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $($(#[$doc])* $variant = $number,)* }

        impl Reason {
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name),)*];
        }
    };
}

reasons! {
    /// The agent has not filled the configuration yet.
    NotReady = 0, "not_ready";
    /// The headers are cut short or contradict themselves.
    Malformed = 1, "malformed";
    /// The tunnel source is no node of the cluster.
    UnknownNode = 2, "unknown_node";
    /// The tenant's policy says drop: its egress IP is not usable here.
    PolicyDrop = 3, "policy_drop";
    /// The source is not in a cluster network.
    ForeignSource = 4, "foreign_source";
    /// A fragment that cannot be assigned to a flow.
    Fragment = 5, "fragment";
    /// A protocol that cannot be translated.
    Protocol = 6, "protocol";
    /// A segment or ICMP error that belongs to no flow.
    NoFlow = 7, "no_flow";
    /// The flow tables are full.
    FlowTableFull = 8, "flow_table_full";
    /// No free port towards this destination.
    PortsExhausted = 9, "ports_exhausted";
    /// The hop limit is used up.
    TtlExceeded = 10, "ttl_exceeded";
    /// A new connection from outside towards an egress IP.
    Refused = 11, "refused";
    /// A reply whose policy is gone.
    PolicyGone = 12, "policy_gone";
    /// On its way out with a source that is not its tenant's: stopped by the guard.
    Untranslated = 13, "untranslated";
    /// No route or no way to send towards the destination.
    NoRoute = 14, "no_route";
    /// The kernel refused a change of the packet.
    Unwritable = 15, "unwritable";
    /// The packet is bigger than the way allows.
    TooBig = 16, "too_big";
    /// Another pod of the tenant speaks this protocol, which has no ports, with this remote.
    ProtocolTaken = 17, "protocol_taken";
    /// The tenant has as many flows as it may have.
    FlowLimit = 18, "flow_limit";
    /// The tenant begins flows faster than it may.
    NewFlowLimit = 19, "new_flow_limit";
    /// Of a pod that leaves only with its tenant's mark, and without one.
    Unmarked = 20, "unmarked";
    /// The tenant holds as many ports for every remote as it may.
    PortLimit = 21, "port_limit";
    /// A fragment from outside that came before the first of its packet and found no room to be
    /// kept, or waited in vain.
    FragmentEarly = 22, "fragment_early";
    /// This node has heard no other for longer than its lease: its egress IPs may be elsewhere.
    Fenced = 23, "fenced";
    /// It would begin a flow while all flows are being taken over or handed back: it may come again.
    Held = 24, "held";
}

impl Reason {
    /// Whether it says no more than that the packet belongs to no flow. Where packets of others come
    /// by too, it is theirs.
    #[inline(always)]
    pub fn is_no_flow(self) -> bool {
        matches!(
            self,
            Self::Malformed
                | Self::Fragment
                | Self::Protocol
                | Self::NoFlow
                | Self::PolicyGone
                | Self::NoRoute
        )
    }

    /// Whether it was a lack of room or a limit that kept a flow from being made.
    #[inline(always)]
    pub fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::FlowTableFull
                | Self::PortsExhausted
                | Self::ProtocolTaken
                | Self::FlowLimit
                | Self::NewFlowLimit
                | Self::PortLimit
        )
    }
}

/// How many counters there are.
pub const REASON_COUNT: u32 = Reason::ALL.len() as u32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_indices_and_names_differ() {
        for (index, (reason, name)) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::ALL.iter().filter(|(_, other)| other == name).count(), 1);
        }
    }
}
