//! Whole frames out of a device, as they are given.

use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::{
    ifaddrs::getifaddrs,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket},
};

use crate::netns::Netns;

/// Sends frames out of one device.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Out of a device of the namespace.
    pub fn open(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| {
            let address = getifaddrs()?
                .filter(|interface| interface.interface_name == device)
                .find_map(|interface| interface.address?.as_link_addr().copied())
                .with_context(|| format!("{device} has no link-layer address"))?;
            let raw = socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), None)?;
            bind(raw.as_raw_fd(), &address)?;
            Ok(Self(raw))
        })?
    }

    /// Error: the device refuses it as no frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::empty()).context("send a frame").map(drop)
    }
}
