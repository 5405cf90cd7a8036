//! The conflict probe before an address is claimed (RFC 5227 2.1), and the watch afterwards (2.4).
//!
//! All addresses are probed at once on one socket. Never probe an address that this node holds:
//! its other links may answer.
use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use anyhow::Result;
use tokio::time::{Instant, timeout_at};

use super::{Arp, Mac, socket::ArpSocket};

/// As PROBE_NUM of RFC 5227.
pub const PROBES: u32 = 3;

/// Between two probes. RFC 5227 says 1 to 2 s (PROBE_MIN, PROBE_MAX), at random because many hosts
/// may boot at once; here a tenant's traffic waits, and hosts answer within milliseconds.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(100);

/// From the last probe until the address counts as free. RFC 5227: 2 s (ANNOUNCE_WAIT).
pub const ANNOUNCE_WAIT: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupancy {
    Free,
    /// Somebody answered for the address, announced it, or probed for it too.
    TakenBy(Mac),
}

/// Asks the link who holds these addresses: 400 ms if one is free, less if all are taken.
pub async fn probe(
    socket: &ArpSocket,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Result<BTreeMap<Ipv4Addr, Occupancy>> {
    let mut found: BTreeMap<_, _> = addresses.iter().map(|ip| (*ip, Occupancy::Free)).collect();
    for nth in 1..=PROBES {
        let wait = if nth == PROBES { ANNOUNCE_WAIT } else { PROBE_INTERVAL };
        let until = Instant::now() + wait;
        for ip in free(&found) {
            socket.send(&Arp::probe(socket.mac(), ip)).await?;
        }
        while !free(&found).is_empty() {
            let Ok(conflict) = timeout_at(until, next_conflict(socket, addresses)).await else {
                break;
            };
            let (ip, mac) = conflict?;
            found.insert(ip, Occupancy::TakenBy(mac));
        }
    }
    Ok(found)
}

/// Waits until somebody else uses or probes one of these addresses. Safe to cancel.
pub async fn next_conflict(
    socket: &ArpSocket,
    addresses: &BTreeSet<Ipv4Addr>,
) -> Result<(Ipv4Addr, Mac)> {
    loop {
        let arp = socket.receive().await?;
        if let Some(ip) = arp.claimed_by_another(socket.mac())
            && addresses.contains(&ip)
        {
            return Ok((ip, arp.sender_mac));
        }
    }
}

fn free(found: &BTreeMap<Ipv4Addr, Occupancy>) -> Vec<Ipv4Addr> {
    found.iter().filter(|(_, what)| **what == Occupancy::Free).map(|(ip, _)| *ip).collect()
}
