//! Properties of the fields: what comes back is what went in, whether it was
//! inserted or written by a `replace`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::clock::Timestamp;
use crate::key::name::KeyName;
use crate::network::Network;
use crate::record::{ApiKey, Revision, Status};
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, name};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::contract::KeyStore;

/// Times keep their microseconds: a store that rounds them breaks the equality
/// that edits and tests rely on.
pub async fn times_keep_their_microseconds(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for micros in [0, 1, 499, 500, 998, 999_998] {
        comes_back(&org, with_times(&org, instant(micros))).await?;
    }
    Ok(())
}

/// The earliest, the latest and every time between: before 1970, a microsecond
/// beside a whole second, past 2038 and 2262.
pub async fn every_time_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let seconds = [-62_135_596_800, -2_208_988_800, -1, 0, 951_782_400, 2_147_483_648];
    let seconds = seconds.into_iter().chain([4_294_967_296, 9_223_372_037, 253_402_300_799]);
    let micros = seconds.flat_map(|second| [0, 1, 999_999].map(|micro| second * 1_000_000 + micro));
    for at in micros.filter_map(Timestamp::from_unix_micros) {
        comes_back(&org, with_times(&org, at)).await?;
    }
    for at in [Timestamp::MIN, Timestamp::MAX] {
        comes_back(&org, with_times(&org, at)).await?;
    }
    Ok(())
}

/// Each optional time is kept apart from the others, and a missing one stays
/// missing.
pub async fn missing_times_stay_missing(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for present in 0..8_u8 {
        let time = |bit: u8| (present & bit != 0).then(|| instant(bit.into()));
        let key =
            ApiKey { expires_at: time(1), rotated_at: time(2), last_used_at: time(4), ..org.key() };
        comes_back(&org, key).await?;
    }
    Ok(())
}

/// Names are kept exactly, in every script, composed or not, and however much
/// they look like a number, a pattern or a statement.
pub async fn names_are_kept_exactly(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let texts = [
        "x",
        "Deploy",
        "two  blanks",
        "Clé n° 1",
        "caf\u{e9}",
        "cafe\u{301}",
        "Ключ",
        "Κλειδί",
        "מפתח",
        "مفتاح",
        "می‌خواهم",
        "कुंजी",
        "กุญแจ",
        "키",
        "密钥",
        "鍵𠮷",
        "👩‍💻 🏳️‍🌈 1️⃣",
        "'; DROP TABLE keys; --",
        "\"quoted\" `back` \\slash\\",
        "%_*?[a-z]",
        "$1 :name @p ?1 {}",
        "NULL",
        "0012",
        "1e3",
        "-0.50",
        "true",
        "<b>&amp;</b>",
        "a,b;c|d\u{a0}e",
    ];
    let longest = ["🗝".repeat(100), "字".repeat(100), "x".repeat(100)];
    for text in texts.into_iter().map(str::to_owned).chain(longest) {
        comes_back(&org, ApiKey { name: name(&text)?, ..org.key() }).await?;
    }
    Ok(())
}

/// A name that was taken once is read for ever: a store reads it by
/// [`KeyName::restore`], since the rules for new names may be stricter by now.
pub async fn names_of_earlier_versions_are_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for text in ["❤\u{fe0f}\u{fe0f}", "🏴\u{e0041}", &format!("a{}", "\u{301}".repeat(40))] {
        let name = expect::made(KeyName::restore(text))?;
        comes_back(&org, ApiKey { name, ..org.key() }).await?;
    }
    Ok(())
}

/// The key prefix is kept exactly, the longest that there is included.
pub async fn key_prefixes_are_kept_exactly(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for text in ["vsp_sk_4fT9x", "a_aAbBz", "abcdefghij_klmnopqrs_tu_0Zz9A"] {
        comes_back(&org, ApiKey { key_prefix: text.to_owned(), ..org.key() }).await?;
    }
    Ok(())
}

/// Fifty networks, IPv4 and IPv6 among each other, come back in the order in
/// which they were entered.
pub async fn fifty_networks_keep_their_order(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let networks = (0..25_u8).rev().flat_map(|n| {
        let v4 = Network::from(std::net::IpAddr::from(Ipv4Addr::new(192, 0, 2, n)));
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, u16::from(n), 0, 0, 0, 0, 0);
        [Some(v4), format!("{v6}/{}", 48 + n).parse().ok()]
    });
    let allowlist: Allowlist = networks.flatten().collect();
    expect::equal("the number of networks of the suite", &allowlist.len(), &50)?;
    comes_back(&org, ApiKey { allowlist, ..org.key() }).await
}

/// The widest, the narrowest and an empty list come back; an empty one stays
/// readable, and so allows everybody.
pub async fn every_readable_allowlist_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let lists: [&[&str]; 4] =
        [&[], &["0.0.0.0/0", "::/0"], &["255.255.255.255", "::1"], &["10.0.0.0/8"]];
    for list in lists {
        let allowlist = expect::made(Allowlist::parse(list))?;
        comes_back(&org, ApiKey { allowlist, ..org.key() }).await?;
    }
    Ok(())
}

/// A list that cannot be read comes back unreadable, entry by entry. Joined
/// and split at another place, or dropped, it would let in whom it kept out.
pub async fn an_unreadable_allowlist_stays_unreadable(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let lists: [&[&str]; 16] = [
        &[""],
        &["", ""],
        &["10.0.0.0/8", "10.0.0."],
        &["192.0.2.1,192.0.2.2"],
        &["192.0.2.1, 192.0.2.2"],
        &["192.0.2.1;192.0.2.2"],
        &["192.0.2.1|192.0.2.2"],
        &["192.0.2.1 192.0.2.2"],
        &["192.0.2.1\n192.0.2.2"],
        &["192.0.2.1\t192.0.2.2"],
        &["192.0.2.1", "192.0.2.1"],
        &[" 192.0.2.1"],
        &["192.0.2.0/2 "],
        &["[\"192.0.2.1\"]"],
        &["\"", "\\", "'", "{}", "null"],
        &["bürö", "  10.0.0.300  "],
    ];
    for list in lists {
        let allowlist = Allowlist::restore(list);
        expect::holds(!allowlist.is_readable(), "an unreadable list from the suite", "another")?;
        comes_back(&org, ApiKey { allowlist, ..org.key() }).await?;
    }
    Ok(())
}

/// Revisions come back up to the largest, which a signed 32-bit column does not
/// hold.
pub async fn every_revision_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for number in [1, 2, 32_768, 65_536, 2_147_483_648, u32::MAX] {
        comes_back(&org, ApiKey { revision: Revision::new(number), ..org.key() }).await?;
    }
    Ok(())
}

/// Both statuses come back.
pub async fn every_status_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    for status in [Status::Active, Status::Revoked] {
        comes_back(&org, ApiKey { status, ..org.key() }).await?;
    }
    Ok(())
}

/// Attributes come back as they were, members that this version does not know included.
pub async fn attributes_are_kept_exactly(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    let texts = [
        "{}",
        r#"{"created_by":"Ada \u0000 \"Lovelace\" \\ 🗝","metadata":{"plan":"pro","":"{}"}}"#,
        r#"{"a later version":{"n":[1,-2.5,true,null,"x"]},"'; DROP TABLE keys; --":"\n"}"#,
    ];
    let long = format!(r#"{{"metadata":{{"long":"{}"}}}}"#, "字".repeat(10_000));
    for text in texts.into_iter().chain([&*long]) {
        let attributes = expect::made(text.parse())?;
        comes_back(&org, ApiKey { attributes, ..org.key() }).await?;
    }
    Ok(())
}

fn with_times(org: &TestOrg, at: Timestamp) -> ApiKey {
    ApiKey {
        created_at: at,
        expires_at: Some(at),
        rotated_at: Some(at),
        last_used_at: Some(at),
        ..org.key()
    }
}

/// The key comes back from `insert`; and from `replace`, as far as that writes it.
async fn comes_back(org: &TestOrg, key: ApiKey) -> Result<(), Violation> {
    org.add(key.clone()).await?;
    same_everywhere(org, &key).await?;
    let plain = org.add(org.key()).await?;
    let replaced = ApiKey {
        id: plain.id,
        digest: plain.digest,
        created_at: plain.created_at,
        last_used_at: None,
        revision: key.revision.max(plain.revision.next()),
        ..key.clone()
    };
    org.change(&plain, replaced.clone()).await?;
    same_everywhere(org, &replaced).await?;
    // The list of a later round need not hold the keys of all earlier ones.
    org.delete(&replaced).await?;
    org.delete(&key).await
}

async fn same_everywhere(org: &TestOrg, key: &ApiKey) -> Result<(), Violation> {
    expect::same_key("get", org.get(&key.id).await?.as_deref(), key)?;
    expect::found_key("find_by_digest", org.find(&key.digest).await?.as_deref(), key)?;
    let list = org.list().await?;
    let listed = list.iter().find(|listed| listed.id == key.id);
    expect::same_key("list", listed.map(AsRef::as_ref), key)
}
