//! A rewrite, applied to bytes: what tc and XDP do with the kernel's means.
use crate::{
    checksum::{update, update_udp},
    reason::Reason,
    rewrite::{Edit, Rewrite, Writer},
    wire::{Packet, bytes},
};

/// Bytes in memory as a packet.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Packet for Bytes<'_> {
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn length(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Bytes in memory, written to.
struct BytesMut<'a>(&'a mut [u8]);

impl Writer for BytesMut<'_> {
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Result<(), Reason> {
        self.0.get_mut(offset..offset + N).ok_or(Reason::Unwritable)?.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Makes the packet what the rewrite says.
///
/// # Panics
/// If the rewrite touches a byte that is not there: the engine must not ask for it.
pub fn apply(packet: &mut [u8], rewrite: &Rewrite) {
    let write = |packet: &mut [u8], offset: usize, bytes: &[u8]| {
        packet[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    match &rewrite.edit {
        Edit::Ports(edit) if edit.checksum_offset == 0 => {}
        Edit::Ports(edit) => {
            let field =
                Bytes(packet).read(edit.checksum_offset).expect("the checksum is in the packet");
            let delta = edit.address_delta + edit.port_delta;
            let updated =
                if edit.zero_is_none { update_udp(field, delta) } else { update(field, delta) };
            write(packet, edit.checksum_offset, &updated);
            if edit.offset != 0 {
                write(packet, edit.offset, &edit.port);
            }
        }
        Edit::Error(edit) => {
            edit.apply(&mut BytesMut(packet)).expect("the edit is within the packet");
        }
    }
    write(packet, 8, &bytes(rewrite.ip));
}
