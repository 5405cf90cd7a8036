//! The ports that the kernel takes for no socket by itself: `net.ipv4.ip_local_reserved_ports` of the
//! network namespace (kernel documentation, networking/ip-sysctl). A program may still bind to them.
use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::Read as _,
    ops::RangeInclusive,
    os::unix::fs::FileExt as _,
};

use anyhow::{Context, Result};

/// The setting's name.
pub const RESERVED: &str = "net.ipv4.ip_local_reserved_ports";
const PATH: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
/// The kernel reads a page less a byte of one call.
const CALL: usize = 4000;

/// From the first to the last.
pub type Range = RangeInclusive<u16>;

/// What is reserved now.
///
/// # Errors
/// The setting cannot be read.
pub fn read() -> Result<Vec<Range>> {
    // All of it comes with the first call, and nothing with the second.
    let mut text = vec![0; 6 * usize::from(u16::MAX)];
    let length = File::open(PATH).and_then(|mut file| file.read(&mut text));
    text.truncate(length.with_context(|| format!("read {RESERVED}"))?);
    ranges(&String::from_utf8_lossy(&text))
}

/// Those of them that are not reserved.
///
/// # Errors
/// As [`read`].
pub fn missing(ports: &BTreeSet<u16>) -> Result<BTreeSet<u16>> {
    let held = read()?;
    let is_held = |port: &u16| held.iter().any(|range| range.contains(port));
    Ok(ports.iter().copied().filter(|port| !is_held(port)).collect())
}

/// Reserves these too.
///
/// # Errors
/// The setting cannot be written.
pub fn add(ports: &BTreeSet<u16>) -> Result<()> {
    write(ports, 1)
}

/// Reserves these no longer.
///
/// # Errors
/// The setting cannot be read or written.
pub fn remove(ports: &BTreeSet<u16>) -> Result<()> {
    let kept = read()?.into_iter().flatten().filter(|port| !ports.contains(port)).collect();
    write(&kept, 0)
}

/// At the offset 0 the kernel replaces what it has, anywhere else it adds.
fn write(ports: &BTreeSet<u16>, mut offset: u64) -> Result<()> {
    let what = || format!("write {RESERVED}");
    let file = OpenOptions::new().write(true).open(PATH).with_context(what)?;
    for text in calls(ports, offset == 0) {
        file.write_all_at(text.as_bytes(), offset).with_context(what)?;
        offset = 1;
    }
    Ok(())
}

/// The texts that say it, of one call each; one with no port if `always`.
fn calls(ports: &BTreeSet<u16>, always: bool) -> Vec<String> {
    let mut calls = Vec::new();
    let mut text = String::new();
    for range in joined(ports) {
        if text.len() > CALL {
            calls.push(std::mem::take(&mut text));
        }
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(&written(&range));
    }
    if !text.is_empty() || always && calls.is_empty() {
        calls.push(text + "\n");
    }
    calls
}

/// Neighbours in one range.
fn joined(ports: &BTreeSet<u16>) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some(last) if last.end() + 1 == *port => *last = *last.start()..=*port,
            _ => ranges.push(*port..=*port),
        }
    }
    ranges
}

/// `8080,9148-9150`, or nothing.
fn ranges(text: &str) -> Result<Vec<Range>> {
    let range = |word: &str| -> Result<Range> {
        let (from, to) = word.split_once('-').unwrap_or((word, word));
        Ok(from.parse()?..=to.parse()?)
    };
    let words = text.trim().split(',').filter(|word| !word.is_empty());
    words.map(|word| range(word).with_context(|| format!("{RESERVED} has \"{word}\""))).collect()
}

/// As the setting is written.
pub fn written(range: &Range) -> String {
    let (from, to) = (range.start(), range.end());
    if from == to { from.to_string() } else { format!("{from}-{to}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_kernel_prints_them() {
        assert_eq!(ranges("\n").unwrap(), []);
        assert_eq!(ranges("1,5-7\n").unwrap(), [1..=1, 5..=7]);
        assert!(ranges("x").unwrap_err().to_string().contains(RESERVED));
    }

    #[test]
    fn neighbours_are_written_as_one_range_and_nothing_as_an_empty_line() {
        assert_eq!(calls(&BTreeSet::from([5, 6, 7, 65535]), false), ["5-7,65535\n"]);
        assert_eq!(calls(&BTreeSet::new(), false), [""; 0]);
        assert_eq!(calls(&BTreeSet::new(), true), ["\n"]);
    }

    #[test]
    fn no_call_is_longer_than_the_kernel_reads() {
        let ports: BTreeSet<u16> = (1..=65535).step_by(2).collect();
        let calls = calls(&ports, true);
        assert!(calls.iter().all(|text| text.len() < 4095), "{}", calls[0].len());
        let read: Vec<u16> =
            calls.iter().flat_map(|text| ranges(text).unwrap()).flatten().collect();
        assert_eq!(read, ports.into_iter().collect::<Vec<_>>());
    }
}
