//! What the engine needs around it: tables, a clock, chance, and the way to a next hop.
use crate::{
    abi::{
        Claim, Config, FragmentKey, FragmentOwner, MacWords, OriginalFlow, OriginalKey, Place,
        ReplyFlow, ReplyKey, Slot, Usage,
    },
    crowd::Crowd,
    flow::Scratch,
};

/// Why an entry was not inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertError {
    /// The key is there already: somebody else won.
    Taken,
    Full,
}

/// Something that is done again and again.
pub trait Step<T: Tables> {
    /// Once more? What there is to remember is in the scratch.
    fn step(tables: &T, scratch: &mut Scratch) -> bool;
}

/// The tables and the little else that decides about a packet.
///
/// References stay valid while one packet is treated. The tables are shared with other CPUs: an
/// insert that finds its key taken is an answer, not an accident.
pub trait Tables {
    fn config(&self) -> Option<&Config>;
    /// Ticks (see `abi`).
    fn now(&self) -> u32;
    fn random(&self) -> u32;

    /// The slot that a VNID's policy is in.
    fn policy(&self, vnid: u32) -> Option<&u32>;
    fn slot(&self, index: u32) -> Option<&Slot>;
    /// What the policy in a slot holds.
    fn usage(&self, index: u32) -> Option<&Usage>;
    /// The slot whose egress IP this is.
    fn egress_ip(&self, address: [u8; 4]) -> Option<&u32>;

    /// When another node was last heard, in ticks; 0: never yet.
    fn heard(&self) -> u32;
    /// Whether a tunnel source is a node of the cluster.
    fn is_node(&self, address: [u8; 4]) -> bool;

    fn original(&self, key: &OriginalKey) -> Option<&OriginalFlow>;
    fn reply(&self, key: &ReplyKey) -> Option<&ReplyFlow>;
    /// Only if the key is not there yet.
    fn insert_original(&self, key: &OriginalKey, flow: &OriginalFlow) -> Result<(), InsertError>;
    /// Only if the key is not there yet: winning here is leasing the egress port.
    fn insert_reply(&self, key: &ReplyKey, flow: &ReplyFlow) -> Result<(), InsertError>;
    /// Whether the caller is the first to claim this expired flow.
    fn claim(&self, claim: &Claim) -> bool;
    fn remove_original(&self, key: &OriginalKey);
    fn remove_reply(&self, key: &ReplyKey);

    /// Whose the fragments of a packet are, as far as it is remembered.
    fn fragment(&self, key: &FragmentKey) -> Option<&FragmentOwner>;
    /// Remembers it, or whose they are now.
    fn remember_fragment(&self, key: &FragmentKey, owner: &FragmentOwner);
    fn forget_fragment(&self, key: &FragmentKey);

    /// The bitmap of a crowded destination, whose key has port 0.
    fn crowd(&self, destination: &ReplyKey) -> Option<&Crowd>;
    /// Enters one.
    fn add_crowd(&self, destination: &ReplyKey, crowd: &Crowd);
    /// What new ones are copied from: one for each [`crate::port::kind`].
    fn empty_crowd(&self, index: u32) -> Option<&Crowd>;
    /// Counts how many ports a new flow has tried.
    fn count_tries(&self, tries: u32);

    /// One of `config.places` places of flows.
    fn place(&self, index: u32) -> Option<&Place>;

    /// Does a step until it wants no more, `times` at most. A loop of the kernel's own, which the
    /// verifier looks at once.
    fn repeat<S: Step<Self>>(&self, times: u32, scratch: &mut Scratch)
    where
        Self: Sized;

    /// Fills in the link-layer addresses towards `remote` through interface `uplink`. `false`: the
    /// sender has to ask the stack, which also resolves the neighbour.
    fn next_hop(&self, uplink: u32, source: [u8; 4], remote: [u8; 4], macs: &mut MacWords) -> bool;

    /// Whether the node, left to itself, would send a pod's packet out of interface `uplink`.
    fn routes_by(&self, uplink: u32, pod: [u8; 4], remote: [u8; 4]) -> bool;
}
