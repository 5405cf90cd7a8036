//! Real traffic: servers that record who they saw, clients that compare every byte, and captures.
//!
//! An exchange carries an id of the caller's choice, so that a server can say from which address
//! *that* exchange came, whatever the ports became on the way. Clients and servers are plain blocking
//! sockets: call a client inside [`crate::netns::Netns::run`]; a server enters its namespace itself.

mod capture;
mod icmp;
mod long;
mod pattern;
mod raw;
mod talk;
mod tcp;
mod udp;

use std::time::Duration;

pub use capture::{Capture, Packet};
pub use icmp::ping;
pub use long::{Long, LongServer, keep_asking};
pub use raw::RawSocket;
pub use talk::{Answer, Remote, Speaker, Word};
pub use tcp::{Download, TcpServer, exchange_many, tcp_exchange};
pub use udp::{UdpServer, udp_exchange};

/// How long a client waits for the other side before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(5);
