//! ICMP echo over a raw socket, with compared payload.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd as _,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recvfrom,
            sendto, setsockopt, socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use super::{PATIENCE, pattern};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// Sends one echo request and waits for its reply. The payload is the id and 48 bytes that follow
/// from it; the identifier is the id's low 16 bits.
pub fn ping(target: Ipv4Addr, id: u64) -> Result<()> {
    let family = AddressFamily::Inet;
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)
        .context("open a raw ICMP socket")?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(100))?;
    let identifier = id.to_be_bytes()[6..].to_vec();
    let mut payload = id.to_be_bytes().to_vec();
    payload.extend(pattern::bytes(id, 0, 48));
    let request = message(ECHO_REQUEST, &identifier, &payload);
    let to = SockaddrIn::from(SocketAddrV4::new(target, 0));
    sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty())
        .with_context(|| format!("send an echo request to {target}"))?;
    // A raw socket hears the replies of everybody in the namespace, until ours comes.
    let reply = message(ECHO_REPLY, &identifier, &payload);
    let end = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    loop {
        ensure!(Instant::now() < end, "{target} did not answer the echo request {id:#x}");
        let received = match recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer) {
            Ok((received, _)) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("receive an echo reply"),
        };
        let packet = &buffer[..received];
        let header = usize::from(packet[0] & 0x0f) * 4;
        if packet.get(header..) == Some(&reply) && packet[12..16] == target.octets() {
            return Ok(());
        }
    }
}

/// An echo message, sequence number 1, with its checksum.
fn message(kind: u8, identifier: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(identifier);
    message.extend_from_slice(&[0, 1]);
    message.extend_from_slice(payload);
    let sum: u32 =
        message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}
