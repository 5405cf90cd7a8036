//! The lease under which a node answers for its egress IPs: whoever is cut off from all other nodes
//! cannot know whether one of them has taken its IPs over, and must be silent about them.
//!
//! Decided from the maps alone, so that it holds when the agent is dead too. Other nodes' questions
//! (see `probe`) and the tenants' packets that they send renew the lease; a node that has never heard
//! another one has nobody to fear.
use crate::{abi::Config, state, tables::Tables};

/// Whether this node must be silent about its egress IPs.
#[inline(always)]
pub fn is_fenced<T: Tables>(tables: &T, config: &Config) -> bool {
    if config.lease == 0 {
        return false;
    }
    let heard = tables.heard();
    heard != 0 && state::age(tables.now(), heard) > config.lease
}
