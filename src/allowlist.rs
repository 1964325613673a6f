//! The addresses from which a key may be used.

use std::fmt;
use std::net::IpAddr;

use smallvec::SmallVec;
use thiserror::Error;

use crate::network::{Network, NetworkError};

/// The addresses from which a key may be used, canonical and without duplicates. An empty
/// list allows every address.
///
/// ```
/// use keygate::Allowlist;
///
/// let list = Allowlist::parse(["10.0.0.0/8", "2001:db8::1"])?;
/// assert!(list.allows(Some("10.1.2.3".parse().unwrap())));
/// assert!(!list.allows(Some("192.0.2.1".parse().unwrap())));
/// assert!(!list.allows(None), "an unknown address is not on the list");
/// # Ok::<(), keygate::error::AllowlistError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Allowlist(Entries);

/// How many networks are stored inline, which saves a memory access per request.
const INLINE: usize = 4;

#[derive(Clone, PartialEq, Eq)]
enum Entries {
    Networks(SmallVec<[Network; INLINE]>),
    /// Stored entries that could not be read. The list allows no address.
    Unreadable(Box<[String]>),
}

impl Default for Entries {
    fn default() -> Self {
        Self::Networks(SmallVec::new())
    }
}

impl Allowlist {
    /// Parses a list entered by a person. White space around an entry is dropped. Fails at
    /// the first entry that is not a [`Network`] or is already on the list.
    pub fn parse<T: AsRef<str>>(
        entries: impl IntoIterator<Item = T>,
    ) -> Result<Self, AllowlistError> {
        Self::read(entries, str::trim)
    }

    fn read<T: AsRef<str>>(
        entries: impl IntoIterator<Item = T>,
        text_of: fn(&str) -> &str,
    ) -> Result<Self, AllowlistError> {
        let mut networks: SmallVec<[Network; INLINE]> = SmallVec::new();
        for (index, entry) in entries.into_iter().enumerate() {
            networks.push(Self::entry(index, text_of(entry.as_ref()), &networks)?);
        }
        Ok(Self(Entries::Networks(networks)))
    }

    /// Reads the entry at this place, after the others.
    pub(crate) fn entry(
        index: usize,
        text: &str,
        others: &[Network],
    ) -> Result<Network, AllowlistError> {
        let refuse = |problem| AllowlistError::new(index, text, problem);
        let network = text.parse().map_err(|problem| refuse(EntryProblem::Invalid(problem)))?;
        if others.contains(&network) {
            return Err(refuse(EntryProblem::Duplicate));
        }
        Ok(network)
    }

    /// Reads a stored list. This never fails: a list that does not parse is kept unchanged
    /// and allows *no address*, so that a damaged list refuses requests, and its owner can
    /// see and repair it. White space counts as damage here: `10.0.0.1 ` may have been
    /// `10.0.0.13`.
    ///
    /// ```
    /// use keygate::Allowlist;
    ///
    /// let damaged = Allowlist::restore(["10.0.0.0/8", "10.0.0."]);
    /// assert!(!damaged.is_readable());
    /// assert!(!damaged.allows(Some("10.0.0.1".parse().unwrap())));
    /// ```
    pub fn restore<T: AsRef<str>>(entries: impl IntoIterator<Item = T>) -> Self {
        let entries: Vec<T> = entries.into_iter().collect();
        Self::read(&entries, |text| text).unwrap_or_else(|_| {
            let as_they_are = entries.iter().map(|entry| entry.as_ref().to_owned());
            Self(Entries::Unreadable(as_they_are.collect()))
        })
    }

    /// Whether a request from this address may pass. `None` (unknown address) passes only
    /// if the list is empty.
    pub fn allows(&self, ip: Option<IpAddr>) -> bool {
        match (&self.0, ip) {
            (Entries::Unreadable(_), _) => false,
            (Entries::Networks(networks), _) if networks.is_empty() => true,
            (Entries::Networks(networks), Some(ip)) => {
                let ip = ip.to_canonical();
                networks.iter().any(|net| net.contains_canonical(ip))
            }
            (Entries::Networks(_), None) => false,
        }
    }

    /// Whether the list is readable; `false` after [`Allowlist::restore`] of a damaged
    /// list.
    pub fn is_readable(&self) -> bool {
        matches!(self.0, Entries::Networks(_))
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        match &self.0 {
            Entries::Networks(networks) => networks.len(),
            Entries::Unreadable(entries) => entries.len(),
        }
    }

    /// Whether there are no entries, so that every address is allowed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entries as texts, in the order in which they were entered. A store keeps these
    /// and passes them to [`Allowlist::restore`].
    pub fn entries(&self) -> Vec<String> {
        match &self.0 {
            Entries::Networks(networks) => networks.iter().map(Network::to_string).collect(),
            Entries::Unreadable(entries) => entries.to_vec(),
        }
    }
}

impl FromIterator<Network> for Allowlist {
    /// Collects networks, without duplicates.
    fn from_iter<I: IntoIterator<Item = Network>>(networks: I) -> Self {
        let mut list: SmallVec<[Network; INLINE]> = SmallVec::new();
        for network in networks {
            if !list.contains(&network) {
                list.push(network);
            }
        }
        Self(Entries::Networks(list))
    }
}

impl fmt::Debug for Allowlist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Entries::Networks(networks) => f.debug_list().entries(networks.iter()).finish(),
            Entries::Unreadable(_) => f.write_str("[unreadable]"),
        }
    }
}

/// The invalid entry of an allowlist.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{entry}: {problem}")]
pub struct AllowlistError {
    index: usize,
    entry: String,
    problem: EntryProblem,
}

impl AllowlistError {
    /// No address is longer, and none has as many letters and digits in a row as an API
    /// key, with or without its prefix. This way a key pasted into the wrong field does not
    /// appear in the error.
    const LONGEST_ADDRESS: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/128".len();
    const LONGEST_RUN: usize = 24;

    fn new(index: usize, text: &str, problem: EntryProblem) -> Self {
        let printable = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        let runs = text.split(|c: char| !c.is_ascii_alphanumeric()).map(str::len);
        let is_short = text.len() <= Self::LONGEST_ADDRESS && runs.max() <= Some(Self::LONGEST_RUN);
        let entry = if printable && is_short {
            text.to_owned()
        } else {
            format!("entry {}", index.saturating_add(1))
        };
        Self { index, entry, problem }
    }

    /// The entry's position, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The entry itself, or `entry <position from 1>` for a text that is certainly not an
    /// address.
    pub fn entry(&self) -> &str {
        &self.entry
    }

    /// What is wrong with the entry.
    pub fn problem(&self) -> &EntryProblem {
        &self.problem
    }
}

/// What is wrong with an allowlist entry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryProblem {
    /// It is not an address or range.
    #[error(transparent)]
    Invalid(NetworkError),
    /// It is a duplicate, perhaps in another spelling.
    #[error("already on the list")]
    Duplicate,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn case_15_mapped_ipv4_is_ipv4_on_both_sides() {
        let list = Allowlist::parse(["10.0.0.0/8"]).unwrap();
        assert!(list.allows(ip("::ffff:10.0.0.1")));
        let mapped = Allowlist::parse(["::ffff:10.0.0.0/104"]).unwrap();
        assert_eq!(mapped, list);
        assert!(mapped.allows(ip("10.0.0.1")) && !mapped.allows(ip("11.0.0.1")));
    }

    #[test]
    fn case_16_refused_entries_are_named() {
        for entry in ["10.0.0.0/33", "010.0.0.1", "10.0.0.1/8", "fe80::1%eth0", "example.com"] {
            let error = Allowlist::parse(["192.0.2.1", entry]).unwrap_err();
            assert_eq!((error.index(), error.entry()), (1, entry));
            assert!(error.to_string().starts_with(entry), "{error}");
        }
    }

    #[test]
    fn case_17_a_stored_list_that_does_not_parse_allows_no_address() {
        for damaged in [
            &["10.0.0.0/8", "?"][..],
            &[""],
            &["10.0.0.1", "10.0.0.1/32"],
            &["10.0.0.0/1 "],
            &["\n10.0.0.1"],
            &["\u{2028}0.0.0.0/0"],
        ] {
            let list = Allowlist::restore(damaged);
            assert!(!list.allows(ip("10.0.0.1")) && !list.allows(None));
            assert_eq!(list.entries(), damaged);
        }
    }

    #[test]
    fn duplicates_are_found_across_spellings() {
        let error = Allowlist::parse(["10.0.0.1", "::ffff:10.0.0.1"]).unwrap_err();
        assert_eq!(error.to_string(), "::ffff:10.0.0.1: already on the list");
    }

    #[test]
    fn an_entry_that_cannot_be_an_address_is_named_by_position_only() {
        let key = format!("vsp_sk_{}", "a".repeat(48));
        for secret in [key.as_str(), &key[7..], &key[7..40]] {
            let error = Allowlist::parse([secret]).unwrap_err();
            assert_eq!(error.to_string(), "entry 1: not an IP address or CIDR range");
        }
        assert_eq!(Allowlist::parse([""]).unwrap_err().entry(), "entry 1");
    }

    proptest! {
        #[test]
        fn a_list_survives_being_stored(ips in proptest::collection::vec(any::<IpAddr>(), 0..50)) {
            let list: Allowlist = ips.iter().copied().map(Network::from).collect();
            let restored = Allowlist::restore(list.entries());
            prop_assert_eq!(&restored, &list);
            prop_assert!(ips.iter().all(|ip| restored.allows(Some(*ip))));
        }
    }
}
