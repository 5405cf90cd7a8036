//! The far end of a veth pair: whole frames in, whole frames out.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
        setsockopt, socket,
        sockopt::{Mark, RcvBufForce},
    },
};

use crate::netns::Netns;

/// `PACKET_OUTGOING` of linux/if_packet.h: a frame this end sent itself.
const OUTGOING: u8 = 4;

/// One device of a namespace where nobody else sends.
#[derive(Debug)]
pub struct RawSocket {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl RawSocket {
    /// Opens the device.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        let socket = netns
            .run(|| open(device))?
            .with_context(|| format!("open {device} in {}", netns.name()))?;
        Ok(Self { socket, buffer: vec![0; 1 << 16] })
    }

    /// Sends a frame; a veth's other end has got it, and mostly what follows from it has happened,
    /// when this returns.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map(drop)
            .with_context(|| format!("send {} bytes", frame.len()))
    }

    /// The same, with this mark; what the sender's own namespace does with it sees the mark. What a
    /// program on the device's way out drops is sent, too.
    pub fn send_marked(&self, frame: &[u8], mark: u32) -> Result<()> {
        setsockopt(&self.socket, Mark, &mark).context("set the mark")?;
        match send(self.socket.as_raw_fd(), frame, MsgFlags::empty()) {
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("send {} bytes", frame.len())),
        }
    }

    /// The next frame that has come, if there is one.
    pub fn receive(&mut self) -> Result<Option<&[u8]>> {
        loop {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut self.buffer) {
                Ok((length, from)) => {
                    if from.is_none_or(|from| from.pkttype() != OUTGOING) {
                        return Ok(Some(&self.buffer[..length]));
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("receive a frame"),
            }
        }
    }
}

fn open(device: &str) -> Result<OwnedFd> {
    let address = getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .context("the device has no link-layer address")?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let wire = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)
        .context("open a packet socket")?;
    setsockopt(&wire, RcvBufForce, &(8 << 20)).context("enlarge the packet socket's buffer")?;
    bind(wire.as_raw_fd(), &address).context("bind the packet socket")?;
    Ok(wire)
}
