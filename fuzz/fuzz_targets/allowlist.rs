//! Allowlists, one entry a line, against a naive reading of addresses and prefixes:
//! `cargo +nightly fuzz run allowlist -- -max_total_time=60 -dict=fuzz/dictionaries/allowlist.dict`.
//!
//! A list is taken exactly where the reference takes each entry and sees none twice;
//! it survives its texts, which are canonical; it lets in exactly the addresses that
//! the reference lets in. A list that is not taken is kept and lets nobody in.
#![no_main]

use std::net::{IpAddr, Ipv6Addr};

use keygate::error::EntryProblem;
use keygate::{Allowlist, Network};
use libfuzzer_sys::fuzz_target;

/// An entry: whether it is IPv4, its bits at the lower end, its prefix length.
type Entry = (bool, u128, u32);

fuzz_target!(|text: &str| {
    let texts: Vec<&str> = text.split('\n').collect();
    let mut expected: Vec<Entry> = Vec::new();
    let mut bad = None;
    for (index, text) in texts.iter().enumerate() {
        match entry(text.trim()) {
            Some(entry) if !expected.contains(&entry) => expected.push(entry),
            found => {
                bad = Some((index, found.is_some()));
                break;
            }
        }
    }
    match (Allowlist::parse(&texts), bad) {
        (Ok(list), None) => {
            taken(&list, &expected);
            let bare = texts.iter().all(|text| text.trim() == *text);
            assert_eq!(Allowlist::restore(&texts).is_readable(), bare, "{texts:?}");
        }
        (Err(error), Some((index, duplicate))) => {
            assert_eq!(error.index(), index, "{texts:?}");
            assert_eq!(*error.problem() == EntryProblem::Duplicate, duplicate, "{texts:?}");
            let shown = error.entry();
            assert!(shown == texts[index].trim() || shown == format!("entry {}", index + 1));
            assert!(shown.len() <= 50 && shown.bytes().all(|b| matches!(b, b' '..=b'~')));
            let kept = Allowlist::restore(&texts);
            assert!(!kept.is_readable() && !kept.is_empty());
            assert_eq!(kept.entries(), texts);
            for ip in expected.iter().flat_map(probes) {
                assert!(!kept.allows(Some(ip)));
            }
            assert!(!kept.allows(None));
        }
        (given, wanted) => panic!("{texts:?}: {given:?}, not {wanted:?}"),
    }
});

fn taken(list: &Allowlist, expected: &[Entry]) {
    let entries = list.entries();
    assert_eq!(entries.len(), expected.len());
    assert_eq!(Allowlist::parse(&entries).as_ref(), Ok(list));
    let restored = Allowlist::restore(&entries);
    assert_eq!(&restored, list);
    assert!(restored.is_readable());
    for (text, wanted) in entries.iter().zip(expected) {
        assert_eq!(text.parse::<Network>().unwrap().to_string(), *text);
        assert_eq!(entry(text), Some(*wanted));
    }
    assert!(!list.allows(None), "a text has at least one entry");
    for ip in expected.iter().flat_map(probes) {
        assert_eq!(list.allows(Some(ip)), allows(expected, ip), "{entries:?} {ip}");
    }
}

fn entry(text: &str) -> Option<Entry> {
    let (address, len) = match text.split_once('/') {
        Some((address, len)) => (address, Some(len)),
        None => (text, None),
    };
    let (mut is_v4, mut bits, mut len) = match (address.parse().ok()?, len) {
        (IpAddr::V4(ip), None) => (true, u128::from(ip.to_bits()), 32),
        (IpAddr::V6(ip), None) => (false, ip.to_bits(), 128),
        (IpAddr::V4(ip), Some(len)) => (true, u128::from(ip.to_bits()), number(len, 32)?),
        (IpAddr::V6(ip), Some(len)) => (false, ip.to_bits(), number(len, 128)?),
    };
    if !is_v4 && bits >> 32 == 0xffff && len >= 96 {
        (is_v4, bits, len) = (true, bits & 0xffff_ffff, len - 96);
    }
    let host = if is_v4 { 32 - len } else { 128 - len };
    let host_bits = (0..host).any(|bit| bits >> bit & 1 == 1);
    (!host_bits).then_some((is_v4, bits, len))
}

/// A number as it is printed, and no other spelling of it.
fn number(text: &str, max: u32) -> Option<u32> {
    (0..=max).find(|number| number.to_string() == text)
}

/// The first address, its neighbours in some bits, and all of them mapped to IPv6.
fn probes((is_v4, bits, len): &Entry) -> Vec<IpAddr> {
    let width = if *is_v4 { 32 } else { 128 };
    let edges = [0, width - 1, len.saturating_sub(1), (*len).min(width - 1)];
    let near = edges.map(|bit| bits ^ 1 << (width - 1 - bit));
    let all = near.into_iter().chain([*bits]);
    all.flat_map(|bits| match is_v4 {
        true => {
            let ip = std::net::Ipv4Addr::from_bits(bits as u32);
            [ip.into(), ip.to_ipv6_mapped().into()]
        }
        false => [Ipv6Addr::from_bits(bits).into(); 2],
    })
    .collect()
}

fn allows(entries: &[Entry], ip: IpAddr) -> bool {
    let (ip_is_v4, ip) = match ip {
        IpAddr::V4(ip) => (true, u128::from(ip.to_bits())),
        IpAddr::V6(ip) if ip.to_bits() >> 32 == 0xffff => (true, ip.to_bits() & 0xffff_ffff),
        IpAddr::V6(ip) => (false, ip.to_bits()),
    };
    entries.iter().any(|(is_v4, bits, len)| {
        let width = if *is_v4 { 32 } else { 128 };
        *is_v4 == ip_is_v4 && (0..*len).all(|n| (bits ^ ip) >> (width - 1 - n) & 1 == 0)
    })
}
