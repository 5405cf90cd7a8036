//! What wakes the agent: the kernel's word that addresses, links, routes or neighbours changed.
//!
//! A change carries no decision and no data: who is woken looks for itself. Surprising: nothing is
//! read from the socket between two calls of [`Subscription::next`]. A reader that is late makes
//! the kernel drop notifications, and that is told as [`Changes::ALL`]; so memory is bounded.
use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, stream::BoxStream};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{AddressFamily, RouteNetlinkMessage},
    proto::Connection,
};

/// Between the loss of the socket and the next try.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// What has changed since the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Changes {
    pub addresses: bool,
    pub links: bool,
    /// Or the rules that choose among them.
    pub routes: bool,
    pub neighbours: bool,
}

impl Changes {
    /// Notifications were lost: look at everything.
    pub const ALL: Self = Self { addresses: true, links: true, routes: true, neighbours: true };

    const NONE: Self = Self { addresses: false, links: false, routes: false, neighbours: false };

    /// What a notification tells; a neighbour counts only for IPv4 (no bridge entries).
    fn of(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Self {
        use RouteNetlinkMessage as Told;
        let told = match payload {
            NetlinkPayload::InnerMessage(told) => told,
            NetlinkPayload::Overrun(_) => return Self::ALL,
            _ => return Self::NONE,
        };
        match told {
            Told::NewAddress(_) | Told::DelAddress(_) => Self { addresses: true, ..Self::NONE },
            Told::NewLink(_) | Told::DelLink(_) => Self { links: true, ..Self::NONE },
            Told::NewRoute(_) | Told::DelRoute(_) | Told::NewRule(_) | Told::DelRule(_) => {
                Self { routes: true, ..Self::NONE }
            }
            Told::NewNeighbour(neighbour) | Told::DelNeighbour(neighbour) => {
                Self { neighbours: neighbour.header.family == AddressFamily::Inet, ..Self::NONE }
            }
            _ => Self::NONE,
        }
    }

    fn merge(&mut self, other: Self) {
        let Self { addresses, links, routes, neighbours } = other;
        self.addresses |= addresses;
        self.links |= links;
        self.routes |= routes;
        self.neighbours |= neighbours;
    }
}

/// The notifications of the network namespace of the thread that made it.
pub struct Subscription {
    source: Option<Source>,
}

struct Source {
    connection: Connection<RouteNetlinkMessage>,
    changes: BoxStream<'static, Changes>,
    /// The connection ends with the last handle.
    _handle: Handle,
}

impl Subscription {
    /// From here on nothing is missed: subscribe first, observe then.
    pub fn open() -> Result<Self> {
        Ok(Self { source: Some(Source::open()?) })
    }

    /// Waits for the next change; what comes in a burst is told at once. Safe to cancel. A lost
    /// socket is opened anew, however long that takes, and told as [`Changes::ALL`].
    pub async fn next(&mut self) -> Changes {
        loop {
            if let Some(source) = &mut self.source {
                if let Some(changes) = source.next().await {
                    return changes;
                }
                self.source = None;
            }
            tokio::time::sleep(REOPEN_AFTER).await;
            if let Ok(source) = Source::open() {
                self.source = Some(source);
                return Changes::ALL;
            }
        }
    }
}

impl Source {
    fn open() -> Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Neigh,
        ])
        .context("subscribe to the kernel's notifications of addresses, links and routes")?;
        let changes = messages.map(|(message, _)| Changes::of(&message.payload)).boxed();
        Ok(Self { connection, changes, _handle: handle })
    }

    /// `None`: the socket is lost.
    async fn next(&mut self) -> Option<Changes> {
        poll_fn(|context| {
            // Polling the connection moves all that the socket holds into the stream.
            let lost = Pin::new(&mut self.connection).poll(context).is_ready();
            let mut changes = Changes::NONE;
            while let Poll::Ready(Some(more)) = Pin::new(&mut self.changes).poll_next(context) {
                changes.merge(more);
            }
            if changes != Changes::NONE {
                Poll::Ready(Some(changes))
            } else if lost {
                Poll::Ready(None)
            } else {
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::{address::AddressMessage, neighbour::NeighbourMessage};

    #[test]
    fn an_overrun_means_that_everything_may_have_changed() {
        assert_eq!(Changes::of(&NetlinkPayload::Overrun(vec![])), Changes::ALL);
    }

    #[test]
    fn a_bridge_entry_is_no_neighbour_of_ours() {
        let mut neighbour = NeighbourMessage::default();
        neighbour.header.family = AddressFamily::Bridge;
        let told = |neighbour| {
            Changes::of(&NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour)))
        };
        assert_eq!(told(neighbour.clone()), Changes::NONE);
        neighbour.header.family = AddressFamily::Inet;
        assert_eq!(told(neighbour), Changes { neighbours: true, ..Changes::NONE });
    }

    #[test]
    fn changes_add_up() {
        let address = RouteNetlinkMessage::DelAddress(AddressMessage::default());
        let mut changes = Changes::of(&NetlinkPayload::InnerMessage(address));
        changes.merge(Changes { links: true, ..Changes::NONE });
        assert_eq!(changes, Changes { addresses: true, links: true, ..Changes::NONE });
    }
}
