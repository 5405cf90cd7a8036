//! A packet socket that sends and hears ARP on one link.
//!
//! Two tricks keep it free of unsafe code. A `sockaddr_ll` cannot be made safely, but `getifaddrs`
//! hands out the one of each interface, ready to bind to. And tokio knows no packet sockets, but a
//! `UnixDatagram` made of any descriptor is a plain send(2) and recv(2) with readiness.
use std::{
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixDatagram as StdDatagram,
    },
};

use anyhow::{Context, Result, bail, ensure};
use nix::{ifaddrs::getifaddrs, sys::socket::bind};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::UnixDatagram;

use super::{Arp, ETHERTYPE, Mac};
use crate::netlink::Link;

/// Sends and hears ARP on one link of the network namespace of the thread that opened it.
pub struct ArpSocket {
    socket: UnixDatagram,
    link: String,
    index: u32,
    mac: Mac,
}

impl ArpSocket {
    /// Needs CAP_NET_RAW and a link with an Ethernet address; inside a tokio runtime.
    pub fn open(link: &Link) -> Result<Self> {
        let name = &link.name;
        let Some(mac) = link.mac else {
            bail!("{name} has no Ethernet address: nothing can be announced on it");
        };
        let socket = bound(link).with_context(|| format!("open an ARP socket on {name}"))?;
        Ok(Self { socket, link: name.clone(), index: link.index, mac })
    }

    /// The Ethernet address of the link when the socket was opened.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Whether the link is still the one it was opened on, with the same address.
    pub fn fits(&self, link: &Link) -> bool {
        link.index == self.index && link.mac == Some(self.mac)
    }

    /// Forgets what was heard so far: it was said before we asked, and leaves no room for answers.
    /// A new socket would do the same, but binding one takes the kernel some 20 ms.
    pub fn forget(&self) {
        let socket = SockRef::from(&self.socket);
        // More than the socket holds: others may go on talking meanwhile.
        for _ in 0..4096 {
            if (&*socket).read(&mut [0; 64]).is_err() {
                break;
            }
        }
    }

    /// Broadcasts the packet. Error: the link is down or gone.
    pub async fn send(&self, arp: &Arp) -> Result<()> {
        let frame = arp.to_frame();
        let sent = self.socket.send(&frame).await;
        let sent = sent.with_context(|| format!("send ARP on {}: is it up?", self.link))?;
        ensure!(sent == frame.len(), "{} took only {sent} bytes of an ARP packet", self.link);
        Ok(())
    }

    /// All ARP packets for IPv4 that have come and were not received yet. Never waits.
    pub fn waiting(&self) -> Vec<Arp> {
        let mut frame = [0; 64];
        let mut heard = Vec::new();
        while let Ok(read) = self.socket.try_recv(&mut frame) {
            heard.extend(frame.get(..read).and_then(Arp::parse));
        }
        heard
    }

    /// The next ARP packet of others; what is not ARP for IPv4 is skipped. Safe to cancel.
    /// Error: the link went down or away.
    pub async fn receive(&self) -> Result<Arp> {
        let mut frame = [0; 64];
        loop {
            let read = self.socket.recv(&mut frame).await;
            let read = read.with_context(|| format!("hear ARP on {}", self.link))?;
            if let Some(arp) = frame.get(..read).and_then(Arp::parse) {
                return Ok(arp);
            }
        }
    }
}

fn bound(link: &Link) -> io::Result<UnixDatagram> {
    let protocol = Protocol::from(i32::from(ETHERTYPE.to_be()));
    let mut socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), Some(protocol))?;
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == link.name)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .filter(|address| address.ifindex() == link.index as usize)
        .ok_or_else(|| io::Error::new(ErrorKind::NotFound, "the link is gone or renamed"))?;
    // The protocol in that address is 0, which leaves the socket with its own.
    bind(socket.as_raw_fd(), &address)?;
    // Before it was bound, the socket heard every link.
    while socket.read(&mut [0; 64]).is_ok() {}
    UnixDatagram::from_std(StdDatagram::from(OwnedFd::from(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_ethernet_address_is_refused_by_name() {
        let tun = Link {
            index: 7,
            name: "tun7".into(),
            mac: None,
            mtu: 1500,
            kind: Some("tun".into()),
            up: true,
            outages: 0,
            vlan: None,
        };
        let error = ArpSocket::open(&tun).err().unwrap();
        assert!(error.to_string().starts_with("tun7 has no Ethernet address"));
    }
}
