//! Bytes that follow from an id and a position: both ends know them, and a byte of another exchange,
//! or of another place in the stream, does not match.
//!
//! A stream is one long block of noise over and over, from a place that the id chooses: copied and
//! compared as slices, so that tests without optimisation spend their time in the kernel.

use std::{
    io::{self, Read, Write},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};

const CHUNK: usize = 64 * 1024;
/// No multiple of any buffer's size, so that a lost or doubled buffer shows.
const NOISE: usize = 1_000_003;

/// The bytes of stream `id` from `position`, at most [`CHUNK`] of them.
pub fn bytes(id: u64, position: u64, length: usize) -> &'static [u8] {
    static NOISE_BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE_BLOCK.get_or_init(|| {
        // Longer by a chunk than its period, so that every chunk is one slice.
        let mut noise: Vec<u8> = (0..).flat_map(|at| mix(at).to_le_bytes()).take(NOISE).collect();
        noise.extend_from_within(..CHUNK);
        noise
    });
    let period = NOISE as u64;
    let start = (mix(id) % period + position % period) % period;
    let start = usize::try_from(start).unwrap_or_default();
    &noise[start..start + length.min(CHUNK)]
}

/// Writes the first `length` bytes of a stream.
pub fn write(to: &mut impl Write, id: u64, length: u64) -> io::Result<()> {
    let mut position = 0;
    while position < length {
        let chunk = bytes(id, position, chunk(length - position));
        to.write_all(chunk)?;
        position += chunk.len() as u64;
    }
    to.flush()
}

/// Reads and compares `length` bytes of a stream from `position`.
pub fn expect(from: &mut impl Read, id: u64, mut position: u64, mut length: u64) -> Result<()> {
    let mut buffer = vec![0; chunk(length)];
    while length > 0 {
        let wanted = bytes(id, position, chunk(length));
        let got = &mut buffer[..wanted.len()];
        from.read_exact(got).with_context(|| format!("read on after {position} bytes"))?;
        if got != wanted {
            let differs = got.iter().zip(wanted).position(|(got, wanted)| got != wanted);
            let at = position + differs.unwrap_or_default() as u64;
            bail!("byte {at} of exchange {id:#x} is not the one sent");
        }
        position += wanted.len() as u64;
        length -= wanted.len() as u64;
    }
    Ok(())
}

fn chunk(left: u64) -> usize {
    usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
}

/// The finaliser of splitmix64: neighbouring inputs give unrelated outputs.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_matches_itself_and_no_other() {
        let mut stream = Vec::new();
        write(&mut stream, 7, 200_001).unwrap();
        assert_eq!(stream.len(), 200_001);
        expect(&mut stream.as_slice(), 7, 0, 200_001).unwrap();
        expect(&mut &stream[80_000..], 7, 80_000, 120_001).unwrap();
        assert!(expect(&mut stream.as_slice(), 8, 0, 200_001).is_err());
        assert!(expect(&mut &stream[1..], 7, 0, 1000).is_err());
        assert!(expect(&mut &stream[CHUNK..], 7, 0, 1000).is_err());
    }

    #[test]
    fn a_flipped_bit_is_named_by_its_place() {
        let mut stream = Vec::new();
        write(&mut stream, 7, 100_000).unwrap();
        stream[70_123] ^= 1;
        let error = expect(&mut stream.as_slice(), 7, 0, 100_000).unwrap_err();
        assert_eq!(error.to_string(), "byte 70123 of exchange 0x7 is not the one sent");
    }
}
