//! One IP address or CIDR range, parsed strictly and kept canonical.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use thiserror::Error;

/// An address or a CIDR range, IPv4 or IPv6 (RFC 4632, RFC 4291).
///
/// Only the canonical form is accepted: no octal or shortened IPv4, no zone id, no bits set
/// after the prefix. An IPv4-mapped IPv6 address or range (`::ffff:10.0.0.0/104`) is
/// converted to the IPv4 one (`10.0.0.0/8`).
///
/// ```
/// use keygate::Network;
///
/// let net: Network = "2001:DB8:0::/32".parse().unwrap();
/// assert_eq!(net.to_string(), "2001:db8::/32");
/// assert!(net.contains("2001:db8::1".parse().unwrap()));
/// assert_eq!("10.0.0.1/32".parse::<Network>().unwrap().to_string(), "10.0.0.1");
/// assert!("10.0.0.1/8".parse::<Network>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(IpNet);

/// The prefix of the IPv6 block that maps IPv4 addresses, `::ffff:0:0/96`.
const MAPPED_PREFIX_LEN: u8 = 96;

impl Network {
    /// Whether the network contains the address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.contains_canonical(ip.to_canonical())
    }

    /// The same for an address that is not IPv4-mapped: compares the leading bits.
    pub(crate) fn contains_canonical(&self, ip: IpAddr) -> bool {
        let prefix_len = u32::from(self.0.prefix_len());
        match (self.0.addr(), ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                (net.to_bits() ^ ip.to_bits()).leading_zeros() >= prefix_len
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                (net.to_bits() ^ ip.to_bits()).leading_zeros() >= prefix_len
            }
            _ => false,
        }
    }

    fn new(address: IpAddr, prefix_len: Option<u8>) -> Result<Self, NetworkError> {
        let (address, prefix_len) = match (address, prefix_len) {
            (IpAddr::V6(v6), None) => (v6.to_canonical(), None),
            (IpAddr::V6(v6), Some(len)) => match v6.to_ipv4_mapped() {
                Some(v4) if (MAPPED_PREFIX_LEN..=128).contains(&len) => {
                    (IpAddr::V4(v4), Some(len - MAPPED_PREFIX_LEN))
                }
                _ => (address, Some(len)),
            },
            v4 => v4,
        };
        let max = if address.is_ipv4() { 32 } else { 128 };
        let len = prefix_len.unwrap_or(max);
        let net = IpNet::new(address, len).map_err(|_| NetworkError::PrefixLength { max })?;
        if net.network() != address {
            return Err(NetworkError::HostBits { meant: Self::meant(net) });
        }
        Ok(Self(net))
    }

    /// The likely meaning of a range with bits after its prefix: the range without those
    /// bits. If that would be implausibly wide or keep nothing of the address, or for an
    /// IPv4 address with a length that is too short for its IPv6 form, it is the address
    /// alone.
    fn meant(net: IpNet) -> Self {
        let is_plausible = match net {
            IpNet::V4(net) => net.prefix_len() >= 8,
            IpNet::V6(net) => net.prefix_len() >= 16 && net.addr().to_ipv4_mapped().is_none(),
        };
        if is_plausible && !net.network().is_unspecified() {
            return Self(net.trunc());
        }
        Self::from(net.addr())
    }
}

impl From<IpAddr> for Network {
    /// The network of this address only.
    fn from(ip: IpAddr) -> Self {
        Self(ip.to_canonical().into())
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix_len) = match text.split_once('/') {
            Some((address, prefix_len)) => (address, Some(prefix_len)),
            None => (text, None),
        };
        let address = parse_address(address)?;
        let max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = prefix_len
            .map(|digits| parse_prefix_len(digits).ok_or(NetworkError::PrefixLength { max }))
            .transpose()?;
        Self::new(address, prefix_len)
    }
}

fn parse_address(text: &str) -> Result<IpAddr, NetworkError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(ip);
    }
    if text.contains('%') {
        return Err(NetworkError::ZoneId);
    }
    let looks_like_v4 = |t: &str| {
        t.split('.').count() == 4
            && t.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let leading_zero = |part: &str| part.len() > 1 && part.starts_with('0');
    if looks_like_v4(text) && text.split('.').any(leading_zero) {
        return Err(NetworkError::LeadingZero);
    }
    Err(NetworkError::NotAnAddress)
}

/// Decimal digits without sign or leading zero.
fn parse_prefix_len(digits: &str) -> Option<u8> {
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    let canonical = digits == "0" || !digits.starts_with('0');
    (plain && canonical).then(|| digits.parse().ok()).flatten()
}

/// Writes `10.0.0.0/8`, and a single address without a prefix length.
impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.prefix_len() == self.0.max_prefix_len() {
            self.0.addr().fmt(f)
        } else {
            self.0.fmt(f)
        }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// Not an IPv4 or IPv6 address; a host name, for example.
    #[error("not an IP address or CIDR range")]
    NotAnAddress,
    /// `010.0.0.1`: some programs read this as octal, others as decimal.
    #[error("IPv4 numbers must not begin with 0")]
    LeadingZero,
    /// `fe80::1%eth0`: a zone has a meaning only on one machine.
    #[error("a zone id is not allowed")]
    ZoneId,
    /// The part after `/` is not a number from 0 to `max`.
    #[error("the prefix length must be a number from 0 to {max}")]
    PrefixLength {
        /// 32 for IPv4, 128 for IPv6.
        max: u8,
    },
    /// `10.0.0.1/8`: either the address or the prefix length is a mistake.
    #[error("bits are set after the prefix; did you mean {meant}?")]
    HostBits {
        /// The range without those bits, or the address alone if that range is implausibly
        /// wide.
        meant: Network,
    },
}

/// Parses an address in the forms that proxies write: `192.0.2.1`, `192.0.2.1:80`,
/// `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
#[cfg(feature = "tower")]
pub(crate) fn parse_hop(text: &str) -> Option<IpAddr> {
    let valid_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let ip = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        let port_is_valid = port.is_empty() || port.strip_prefix(':').is_some_and(valid_port);
        port_is_valid.then(|| address.parse().ok().map(IpAddr::V6)).flatten()?
    } else if let Some((address, port)) = text.split_once(':').filter(|(a, _)| a.contains('.')) {
        let address = address.parse().ok().map(IpAddr::V4)?;
        valid_port(port).then_some(address)?
    } else {
        text.parse().ok()?
    };
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn parse(text: &str) -> Result<String, NetworkError> {
        text.parse::<Network>().map(|net| net.to_string())
    }

    #[test]
    fn texts_become_canonical() {
        for (text, canonical) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:DB8:0:0::/32", "2001:db8::/32"),
            ("::1/128", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(parse(text).as_deref(), Ok(canonical), "{text}");
        }
    }

    #[test]
    fn ambiguous_texts_are_refused_with_their_reason() {
        use NetworkError::*;
        let octal = Err(LeadingZero);
        for (text, error) in [
            ("010.0.0.1", octal.clone()),
            ("10.0.0.01/32", octal),
            ("fe80::1%eth0", Err(ZoneId)),
            ("10.0.0.0/33", Err(PrefixLength { max: 32 })),
            ("10.0.0.0/08", Err(PrefixLength { max: 32 })),
            ("10.0.0.0/+8", Err(PrefixLength { max: 32 })),
            ("10.0.0.0/", Err(PrefixLength { max: 32 })),
            ("::/129", Err(PrefixLength { max: 128 })),
            ("::ffff:10.0.0.0/129", Err(PrefixLength { max: 128 })),
            ("example.com", Err(NotAnAddress)),
            ("10.0.1", Err(NotAnAddress)),
            ("0x0a.0.0.1", Err(NotAnAddress)),
            ("", Err(NotAnAddress)),
            (" 10.0.0.1", Err(NotAnAddress)),
        ] {
            assert_eq!(parse(text), error, "{text:?}");
        }
        let host_bits = parse("10.0.0.1/8").map_err(|e| e.to_string());
        assert_eq!(
            host_bits.unwrap_err(),
            "bits are set after the prefix; did you mean 10.0.0.0/8?"
        );
    }

    #[test]
    fn no_wider_range_than_the_intended_one_is_suggested() {
        for (text, suggestion) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("192.1.1.1/24", "192.1.1.0/24"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::ffff:192.1.1.1/96", "192.1.1.1"),
            ("::ffff:192.1.1.1/99", "192.1.1.1"),
            ("::ffff:192.1.1.1/95", "192.1.1.1"),
            ("::ffff:192.1.1.1/24", "192.1.1.1"),
            ("192.1.1.1/0", "192.1.1.1"),
            ("192.1.1.1/7", "192.1.1.1"),
            ("0.0.0.1/8", "0.0.0.1"),
            ("2001:db8::1/0", "2001:db8::1"),
            ("2001:db8::1/15", "2001:db8::1"),
            ("::1/64", "::1"),
        ] {
            let meant = suggestion.parse().unwrap();
            let error = text.parse::<Network>().unwrap_err();
            assert_eq!(error, NetworkError::HostBits { meant }, "{text}");
        }
    }

    #[cfg(feature = "tower")]
    #[test]
    fn hops_parse_only_in_the_formats_that_proxies_write() {
        for (text, ip) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("192.0.2.1:80", Some("192.0.2.1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]:443", Some("2001:db8::1")),
            ("::ffff:192.0.2.1", Some("192.0.2.1")),
            ("[::ffff:192.0.2.1]:1", Some("192.0.2.1")),
            ("192.0.2.1:", None),
            ("192.0.2.1:99999", None),
            ("192.0.2.1:+80", None),
            ("[2001:db8::1", None),
            ("[2001:db8::1]x", None),
            ("[192.0.2.1]", None),
            ("unknown", None),
            ("_obf", None),
            ("", None),
        ] {
            assert_eq!(parse_hop(text), ip.map(|ip| ip.parse().unwrap()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_network_round_trips_through_its_text(ip: IpAddr, len in 0u8..=128) {
            let max = if ip.is_ipv4() { 32 } else { 128 };
            let net = IpNet::new(ip, len % (max + 1)).unwrap().trunc();
            let parsed: Network = net.to_string().parse().unwrap();
            prop_assert_eq!(parsed.to_string().parse::<Network>().unwrap(), parsed);
            prop_assert!(parsed.contains(net.addr()));
        }

        #[test]
        fn a_network_contains_the_addresses_with_its_leading_bits(
            net: IpAddr, len in 0u8..=128, other: IpAddr,
        ) {
            // A mapped network is IPv4 here, but not to `ipnet`.
            prop_assume!(net == net.to_canonical());
            let max = if net.is_ipv4() { 32 } else { 128 };
            let net = IpNet::new(net, len % (max + 1)).unwrap().trunc();
            let parsed: Network = net.to_string().parse().unwrap();
            // Also test the addresses next to the network's own address, which random input
            // rarely hits: with the last leading bit flipped, and with the bit after it
            // flipped.
            let bits = [net.prefix_len().checked_sub(1), Some(net.prefix_len())];
            let near = bits.into_iter().flatten().filter(|bit| *bit < max).map(|bit| match net.addr() {
                IpAddr::V4(ip) => IpAddr::from(Ipv4Addr::from_bits(ip.to_bits() ^ 1 << (31 - bit))),
                IpAddr::V6(ip) => IpAddr::from(Ipv6Addr::from_bits(ip.to_bits() ^ 1 << (127 - bit))),
            });
            for ip in near.chain([other]) {
                prop_assert_eq!(parsed.contains(ip), net.contains(&ip.to_canonical()));
            }
        }

        #[test]
        fn a_text_that_parses_gives_its_canonical_form(text in "[0-9a-f:./%]{0,24}|\\PC{0,12}") {
            if let Ok(net) = text.parse::<Network>() {
                prop_assert_eq!(net.to_string().parse::<Network>(), Ok(net));
            }
        }
    }
}
