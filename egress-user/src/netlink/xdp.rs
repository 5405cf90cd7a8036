//! XDP on a link: what is attached, asked of rtnetlink, and what the driver can do, asked of the
//! generic netlink family `netdev` (Linux 6.3; `Documentation/netlink/specs/netdev.yaml`).
use std::{io::Read as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use futures_util::TryStreamExt as _;
use nix::errno::Errno;
use rtnetlink::packet_route::link::{LinkAttribute, LinkXdp, XdpAttached};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Netlink, cause, errno};

/// An XDP program on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnXdp {
    /// The kernel's number of the program.
    pub program: u32,
    /// Run by the driver, not by the stack.
    pub native: bool,
}

/// What a driver can do with XDP: the kernel's `netdev_xdp_act` bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Runs a program: `NETDEV_XDP_ACT_BASIC`.
    pub fn runs(self) -> bool {
        self.0 & 1 != 0
    }

    /// Takes frames to send from a program: `NETDEV_XDP_ACT_NDO_XMIT`. A veth says so only while
    /// its far end can receive them (GRO on, or a program of its own).
    pub fn transmits(self) -> bool {
        self.0 & 4 != 0
    }
}

impl Netlink {
    /// The program that is attached, if there is one.
    pub async fn on_xdp(&self, link: u32) -> Result<Option<OnXdp>> {
        let answer = self.handle.link().get().match_index(link).execute().try_next().await;
        let message = match answer {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => None,
            other => other
                .map_err(cause)
                .with_context(|| format!("ask the kernel for link number {link}"))?,
        };
        let (mut program, mut native) = (None, false);
        for attribute in message.iter().flat_map(|message| &message.attributes) {
            let LinkAttribute::Xdp(xdp) = attribute else { continue };
            for attribute in xdp {
                match attribute {
                    LinkXdp::ProgId(id) => program = Some(*id),
                    LinkXdp::Attached(mode) => native = *mode != XdpAttached::SocketBuffer,
                    _ => {}
                }
            }
        }
        Ok(program.map(|program| OnXdp { program, native }))
    }
}

const NETLINK_GENERIC: i32 = 16;
const AF_NETLINK: i32 = 16;
const PATIENCE: Duration = Duration::from_secs(2);
/// Generic netlink's own family.
const CONTROL: u16 = 16;
const NLMSG_ERROR: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 1 << 15;
const HEADERS: usize = 16 + 4;

/// What the driver of a link can do, asked in this thread's network namespace.
pub fn features(link: u32) -> Result<Features> {
    let what = || format!("ask what link number {link} can do with XDP");
    let socket = generic_socket().with_context(what)?;
    // CTRL_CMD_GETFAMILY by CTRL_ATTR_FAMILY_NAME; the answer is CTRL_ATTR_FAMILY_ID.
    let family = ask(&socket, CONTROL, 3, (2, b"netdev\0"), 1).with_context(what)?;
    let family = u16::from_ne_bytes(first(&family).with_context(what)?);
    // NETDEV_CMD_DEV_GET by NETDEV_A_DEV_IFINDEX; the answer is NETDEV_A_DEV_XDP_FEATURES.
    let bits = ask(&socket, family, 1, (1, &link.to_ne_bytes()), 3).with_context(what)?;
    Ok(Features(u64::from_ne_bytes(first(&bits).with_context(what)?)))
}

/// Whether a link's driver takes a VLAN's tag out of a frame before a program on XDP sees it, asked
/// in this thread's network namespace (`Documentation/netlink/specs/ethtool.yaml`).
pub fn strips_tags(link: u32) -> Result<bool> {
    let what = || format!("ask for the features of link number {link}");
    let socket = generic_socket().with_context(what)?;
    let family = ask(&socket, CONTROL, 3, (2, b"ethtool\0"), 1).with_context(what)?;
    let family = u16::from_ne_bytes(first(&family).with_context(what)?);
    // ETHTOOL_A_HEADER_DEV_INDEX in ETHTOOL_A_FEATURES_HEADER; ETHTOOL_MSG_FEATURES_GET; the answer
    // is ETHTOOL_A_FEATURES_ACTIVE, with the name of each feature that is on.
    let header = [8_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat();
    let header = [header, link.to_ne_bytes().to_vec()].concat();
    let active = ask(&socket, family, 11, (NESTED | 1, &header), NESTED | 4).with_context(what)?;
    let name = b"rx-vlan-hw-parse\0";
    Ok(active.windows(name.len()).any(|window| window == name))
}

fn generic_socket() -> Result<Socket> {
    let protocol = Some(Protocol::from(NETLINK_GENERIC));
    let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, protocol)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// One command with one attribute; the value of one attribute of the answer.
fn ask(
    mut socket: &Socket,
    family: u16,
    command: u8,
    (kind, value): (u16, &[u8]),
    wanted: u16,
) -> Result<Vec<u8>> {
    let padded = value.len().next_multiple_of(4);
    let mut request = Vec::new();
    request.extend((HEADERS as u32 + 4 + padded as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    // NLM_F_REQUEST; sequence and port are of no use here.
    request.extend(1_u16.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(HEADERS + 4 + padded, 0);
    socket.send(&request)?;
    let mut answer = vec![0; 32 << 10];
    let length = socket.read(&mut answer)?;
    answer.truncate(length);
    let kind = u16::from_ne_bytes(first(answer.get(4..).unwrap_or_default())?);
    if kind == NLMSG_ERROR {
        let code = i32::from_ne_bytes(first(answer.get(16..).unwrap_or_default())?);
        bail!(Errno::from_raw(code.saturating_abs()));
    }
    attribute(answer.get(HEADERS..).unwrap_or_default(), wanted)
        .map(<[u8]>::to_vec)
        .context("the kernel's answer lacks what was asked for")
}

/// The value of the first attribute of this kind.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(first(rest).ok()?));
        let kind = u16::from_ne_bytes(first(rest.get(2..)?).ok()?);
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn first<const N: usize>(bytes: &[u8]) -> Result<[u8; N]> {
    bytes
        .get(..N)
        .and_then(|bytes| bytes.try_into().ok())
        .context("the kernel's answer is cut short")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_one_that_needs_padding() {
        let text = [6_u16.to_ne_bytes(), 1_u16.to_ne_bytes(), [7, 7], [0, 0]].concat();
        let number = [[8, 0], 3_u16.to_ne_bytes(), [1, 2], [3, 4]].concat();
        let both = [text, number].concat();
        assert_eq!(attribute(&both, 3), Some([1, 2, 3, 4].as_slice()));
        assert_eq!(attribute(&both, 1), Some([7, 7].as_slice()));
        assert_eq!(attribute(&both, 2), None);
        assert_eq!(attribute(&both[..11], 3), None);
    }
}
