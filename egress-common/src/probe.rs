//! "Do you carry tenants' packets?": what one node asks another through the tunnel's own port, and
//! what the programs answer there, whether or not an agent runs beside them.
//!
//! A question is VXLAN (RFC 7348) as tenants' packets are, so that what is asked is what they use;
//! what is inside is no IP, and who does not know it drops it. The answer comes back to the UDP port
//! that the question came from. A question carries a random number that only who has seen it can
//! repeat.
//!
//! Surprising: what a message says stands there twice, the second time complemented, so that the UDP
//! checksum of a question is that of its answer, whoever makes it (RFC 1624: the sum is the same).

/// Bytes of a message, from the VXLAN header on.
pub const LEN: usize = 40;

/// Where the part begins that differs between messages.
pub const SAYS: usize = 28;
/// Where the random number begins.
pub const NONCE: usize = 32;
/// Where the inner link-layer header begins.
const ETH: usize = 8;
/// Where the ethertype begins, and behind it the magic word.
pub const KIND: usize = ETH + 12;

/// For local experiments (IEEE 802, clause 9.2.3), and the magic word.
pub const MAGIC: [u8; 8] = [0x88, 0xb5, b'e', b'g', b'r', b'e', b's', b's'];

/// What a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Do you carry tenants' packets?
    Question,
    /// Yes.
    Carries,
    /// No: the agent has left in order, or not begun.
    Stopped,
}

impl Says {
    /// As it stands in a message.
    #[inline(always)]
    pub fn bytes(self) -> [u8; 4] {
        let number = match self {
            Self::Question => 1,
            Self::Carries => 2,
            Self::Stopped => 3,
        };
        [0, number, 0xff, !number]
    }

    fn read(bytes: [u8; 4]) -> Option<Self> {
        [Self::Question, Self::Carries, Self::Stopped]
            .into_iter()
            .find(|says| says.bytes() == bytes)
    }
}

/// A whole message, of VNID 0. The inner addresses: one that no bridge forwards (IEEE 802.1Q, 8.6.3),
/// and a locally administered one.
pub fn message(says: Says, nonce: [u8; 8]) -> [u8; LEN] {
    let mut message = [0; LEN];
    message[0] = 0x08;
    message[ETH..ETH + 6].copy_from_slice(&[0x01, 0x80, 0xc2, 0, 0, 0x0e]);
    message[ETH + 6..KIND].copy_from_slice(&[0x02, b'e', b'g', b'r', b'e', b's']);
    message[KIND..SAYS].copy_from_slice(&MAGIC);
    message[SAYS..NONCE].copy_from_slice(&says.bytes());
    message[NONCE..].copy_from_slice(&nonce);
    message
}

/// What a message says, and its random number. `None`: it is none of ours.
pub fn read(message: &[u8]) -> Option<(Says, [u8; 8])> {
    let message: &[u8; LEN] = message.try_into().ok()?;
    if message[0] != 0x08 || message[KIND..SAYS] != MAGIC {
        return None;
    }
    let says = Says::read(*message[SAYS..].first_chunk()?)?;
    Some((says, *message[NONCE..].first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{finish, sum};

    const NONCE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn a_message_reads_as_it_was_written_and_nothing_else_does() {
        for says in [Says::Question, Says::Carries, Says::Stopped] {
            let message = message(says, NONCE);
            assert_eq!(read(&message), Some((says, NONCE)));
            assert_eq!(read(&message[1..]), None);
            for at in (0..1).chain(KIND..super::NONCE) {
                let mut message = message;
                message[at] ^= 0x40;
                assert_eq!(read(&message), None, "byte {at}");
            }
        }
    }

    #[test]
    fn question_and_answer_have_one_checksum() {
        let of = |says| finish(sum(&message(says, NONCE)));
        assert_eq!(of(Says::Question), of(Says::Carries));
        assert_eq!(of(Says::Question), of(Says::Stopped));
    }
}
