//! An IPv4 network in canonical form: `10.128.0.0/14`, no bits set behind the prefix.
use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// An IPv4 network; its address has no host bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix_len: u8,
}

impl Cidr {
    /// The network that `address` is in. `None`: the prefix is longer than 32 bits.
    pub fn around(address: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        let network = Ipv4Addr::from_bits(address.to_bits() & mask(prefix_len)?);
        Some(Self { network, prefix_len })
    }

    pub fn contains(&self, address: Ipv4Addr) -> bool {
        Self::around(address, self.prefix_len) == Some(*self)
    }

    /// The network's first address.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    pub fn prefix_len(&self) -> u8 {
        self.prefix_len
    }
}

fn mask(prefix_len: u8) -> Option<u32> {
    match prefix_len {
        0 => Some(0),
        1..=32 => Some(u32::MAX << (32 - prefix_len)),
        _ => None,
    }
}

/// `ADDRESS/LENGTH`, host bits allowed.
pub fn parse_with_length(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, length) = text.split_once('/')?;
    // u8's own parser takes "+24".
    if !length.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some((address.parse().ok()?, length.parse().ok().filter(|&length| length <= 32)?))
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix_len) = parse_with_length(text)
            .ok_or_else(|| format!("\"{text}\" is not an IPv4 network such as 10.128.0.0/14"))?;
        let cidr = Self::around(address, prefix_len)
            .ok_or_else(|| format!("\"{text}\" has a prefix longer than 32 bits"))?;
        if cidr.network != address {
            return Err(format!("\"{text}\" has host bits: write {cidr}"));
        }
        Ok(cidr)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_len)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        let cidr: Cidr = "10.128.0.0/14".parse().unwrap();
        assert!(cidr.contains(Ipv4Addr::new(10, 131, 255, 255)));
        assert!(!cidr.contains(Ipv4Addr::new(10, 132, 0, 0)));
        assert!("0.0.0.0/0".parse::<Cidr>().unwrap().contains(Ipv4Addr::BROADCAST));
        assert!("10.0.0.1/32".parse::<Cidr>().unwrap().contains(Ipv4Addr::new(10, 0, 0, 1)));
    }

    #[test]
    fn host_bits_are_refused_with_the_network_that_was_meant() {
        let error = "10.128.3.0/14".parse::<Cidr>().unwrap_err();
        assert_eq!(error, "\"10.128.3.0/14\" has host bits: write 10.128.0.0/14");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0/8", "fd00::/8", "a/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
