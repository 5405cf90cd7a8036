//! Leasing an egress port: who enters the reply's half of a flow holds it.
//!
//! The pod's own port first, then a few of a full cycle from a random start. A destination towards
//! which two flows have wanted one port is crowded: its bitmap says which ports are left, so that
//! they are found up to the last one in a bounded number of tries.
use crate::{
    abi::{Claim, ReplyFlow, ReplyKey, turned},
    crowd::{self, NO_PORT},
    expiry::remaining,
    flow::{Context, Scratch, remove_reply_pair},
    mapping,
    port::Candidates,
    reason::Reason,
    state::{self, Life},
    tables::{InsertError, Step, Tables},
    wire::{protocol, tcp},
};

/// Ports that a flow tries before the bitmap is asked.
pub const WALK: u32 = 6;
/// Ports that a flow tries before it is refused.
pub const TRIES: u32 = 25;

/// A search under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    pub candidates: Candidates,
    pub tries: u32,
    pub outcome: Outcome,
    /// 1: only the port at hand will do.
    pub only: u32,
    /// What is said if none is free that would do.
    pub refusal: Reason,
    /// How far an empty bitmap has been filled.
    pub word: u32,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            candidates: Candidates::default(),
            tries: 0,
            outcome: Outcome::default(),
            only: 0,
            refusal: Reason::PortsExhausted,
            word: 0,
        }
    }
}

/// What a search has come to.
#[repr(u32)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Outcome {
    #[default]
    Searching = 0,
    Leased = 1,
    Full = 2,
    /// The only port that would do is taken.
    Taken = 3,
}

/// Leases an egress port for the flow of `scratch.key`.
#[inline(always)]
pub fn lease<T: Tables>(
    tables: &T,
    context: &Context,
    scratch: &mut Scratch,
) -> Result<(), Reason> {
    prepare(context, scratch)?;
    tables.repeat::<Try>(TRIES, scratch);
    tables.count_tries(scratch.search.tries);
    match scratch.search.outcome {
        Outcome::Leased => Ok(()),
        Outcome::Full => Err(Reason::FlowTableFull),
        Outcome::Taken | Outcome::Searching => Err(scratch.search.refusal),
    }
}

/// Where the search begins, and what is entered when it has found a port. A function of its own:
/// what it distinguishes is forgotten when the search begins, which the verifier follows once.
///
/// A stream without a flow is picked up by its ACK, so that a moved egress IP keeps it; only with
/// its own port, since any other would be a stranger's to the remote.
#[inline(never)]
fn prepare(context: &Context, scratch: &mut Scratch) -> Result<(), Reason> {
    let key = &scratch.key;
    let of_protocol = key.protocol();
    let picked_up = of_protocol == protocol::TCP && context.flags & tcp::SYN == 0;
    let shares = scratch.shares;
    // Who shares a port gets no other.
    let port = if shares == 1 { scratch.lease.egress_port } else { key.pod_port };
    if picked_up && port != key.pod_port {
        return Err(Reason::NoFlow);
    }
    let origin = scratch.origin;
    scratch.reply = ReplyFlow {
        pod: key.pod,
        pod_port: key.pod_port,
        vnid: origin.vnid,
        slot: scratch.translation.slot.into(),
        node: origin.node.into(),
        ifindex: origin.ifindex.into(),
        macs: turned(origin.macs).into(),
        tag: scratch.tag,
        life: Life::new(context.now, 0),
        shares,
        packets: 0.into(),
        bytes: 0.into(),
    };
    let mut candidates =
        Candidates::new(context.config, context.slot.vnid, of_protocol, scratch.tag);
    scratch.lease = key.reply(context.slot.egress_ip, port);
    if shares == 0 && !candidates.contains(port) {
        if picked_up {
            return Err(Reason::NoFlow);
        }
        scratch.lease.egress_port = candidates.advance();
    }
    let (only, refusal) = if picked_up {
        (1, Reason::NoFlow)
    } else if !protocol::has_ports(of_protocol) {
        (1, Reason::ProtocolTaken)
    } else {
        (u32::from(shares), Reason::PortsExhausted)
    };
    scratch.search =
        Search { candidates, tries: 0, outcome: Outcome::Searching, only, refusal, word: 0 };
    Ok(())
}

struct Try;

impl<T: Tables> Step<T> for Try {
    #[inline(always)]
    fn step(tables: &T, scratch: &mut Scratch) -> bool {
        scratch.search.tries += 1;
        let outcome = match lease_port(tables, scratch) {
            Ok(()) => Outcome::Leased,
            Err(InsertError::Full) => Outcome::Full,
            Err(InsertError::Taken) if scratch.search.only == 1 => Outcome::Taken,
            Err(InsertError::Taken) => Outcome::Searching,
        };
        scratch.search.outcome = outcome;
        if outcome == Outcome::Full || outcome == Outcome::Taken {
            return false;
        }
        let leased = outcome == Outcome::Leased;
        let mut found = NO_PORT;
        scratch.claim.key = ReplyKey { egress_port: [0, 0], ..scratch.lease };
        match tables.crowd(&scratch.claim.key) {
            Some(crowd) => {
                // Taken or leased, this one is not free any more.
                crowd.take(scratch.lease.egress_port);
                if !leased && scratch.search.tries >= WALK {
                    found = crowd.pick(scratch.tag.rotate_left(scratch.search.tries));
                }
            }
            // Only where ports are getting scarce, or a tenant could make so many bitmaps, of a
            // pair of flows each, that those of others go. What was there before it is found out
            // try by try.
            None if !leased && scratch.search.tries >= WALK => crowd::add(tables, scratch),
            None => {}
        }
        if !leased {
            // The bitmap may be wrong: what it does not know is looked at too.
            scratch.lease.egress_port = match found {
                NO_PORT => scratch.search.candidates.advance(),
                port => (port as u16).to_be_bytes(),
            };
        }
        !leased
    }
}

/// One port: free, or its holder's time is over.
#[inline(always)]
fn lease_port<T: Tables>(tables: &T, scratch: &mut Scratch) -> Result<(), InsertError> {
    match tables.insert_reply(&scratch.lease, &scratch.reply) {
        Err(InsertError::Taken) => {}
        other => return other,
    }
    if scratch.lease.is_for_any_remote() {
        mapping::end_last(tables, scratch);
    }
    let Scratch { lease, reply, other, claim, .. } = scratch;
    let (Some(holder), Some(config)) = (tables.reply(lease), tables.config()) else {
        return Err(InsertError::Taken);
    };
    let now = tables.now();
    let rested = state::age(now, holder.life.now().last_seen);
    if rested < state::shortest(config, lease.protocol as u8)
        || remaining(tables, config, lease, holder, now, other) != 0
    {
        return Err(InsertError::Taken);
    }
    // Of several that see the same expired holder one wins.
    *claim = Claim { key: *lease, tag: holder.tag };
    if !tables.claim(claim) {
        return Err(InsertError::Taken);
    }
    remove_reply_pair(tables, lease, holder, other);
    tables.insert_reply(lease, reply)
}
