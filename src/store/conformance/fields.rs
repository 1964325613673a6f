//! Properties of the fields of a key: they come back as they were written, by `insert`
//! and by `replace`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::allowlist::Allowlist;
use crate::key::name::KeyName;
use crate::network::Network;
use crate::record::{ApiKey, Revision, Status};
use crate::runtime::clock::Timestamp;
use crate::store::conformance::expect;
use crate::store::conformance::fixtures::{TestOrg, name};
use crate::store::conformance::fresh::instant;
use crate::store::conformance::violation::Violation;
use crate::store::key_store::KeyStore;

const NAMES: &[&str] = &[
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

/// Entries that cannot be read. Some look like two entries in one.
const UNREADABLE: &[&[&str]] = &[
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

const ATTRIBUTES: &[&str] = &[
    "{}",
    r#"{"created_by":"Ada \u0000 \"Lovelace\" \\ 🗝","metadata":{"plan":"pro","":"{}"}}"#,
    r#"{"a later version":{"n":[1,-2.5,true,null,"x"]},"'; DROP TABLE keys; --":"\n"}"#,
];

/// Times keep their microseconds, because the order of keys and comparisons of records
/// depend on them.
pub(super) async fn times_keep_their_microseconds(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_microseconds(&org)).await
}

/// Every time that a [`Timestamp`] can have is kept, because a host chooses its clock and
/// its expiries.
pub(super) async fn every_time_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_every_time(&org)).await
}

/// A missing time stays missing, because a key without an expiry must not get one, nor
/// lose one that it has.
pub(super) async fn missing_times_stay_missing(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_missing_times(&org)).await
}

/// Names are kept exactly, because people recognise their keys by them: in every script,
/// normalised or not, and where they look like a number, a pattern or a statement.
pub(super) async fn names_are_kept_exactly(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_names(&org)?).await
}

/// Names that an earlier version accepted are read with [`KeyName::restore`], because
/// stricter rules for new names must not make a stored key unreadable.
pub(super) async fn names_of_earlier_versions_are_kept(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_names_of_earlier_versions(&org)?).await
}

/// Key prefixes are kept exactly, the longest included, because people find the key that
/// belongs to a secret by its prefix.
pub(super) async fn key_prefixes_are_kept_exactly(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_prefixes(&org)).await
}

/// Fifty IPv4 and IPv6 networks keep their order, because people edit the list as they
/// entered it.
pub(super) async fn fifty_networks_keep_their_order(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_fifty_networks(&org)?).await
}

/// Every readable allowlist is kept, because it decides which clients may use the key; an
/// empty one allows every client.
pub(super) async fn every_readable_allowlist_is_kept(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_readable_allowlists(&org)?).await
}

/// An unreadable allowlist stays unreadable and keeps its entries, because one that is
/// dropped, or joined and split elsewhere, would let in clients that it kept out.
pub(super) async fn an_unreadable_allowlist_stays_unreadable(
    store: Arc<dyn KeyStore>,
) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_unreadable_allowlists(&org)?).await
}

/// Every revision is kept, because a changed one would refuse all later edits; the largest
/// does not fit into a signed 32-bit column.
pub(super) async fn every_revision_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_revisions(&org)).await
}

/// Both statuses are kept, because an import inserts revoked keys, which must not work.
pub(super) async fn every_status_is_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_statuses(&org)).await
}

/// Attributes are kept exactly, unknown members included, because a later version of this
/// crate may have written them.
pub(super) async fn attributes_are_kept_exactly(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_attributes(&org)?).await
}

/// Previous secrets are kept with the instant of their end, because they must work until
/// then and no longer.
pub(super) async fn previous_secrets_are_kept(store: Arc<dyn KeyStore>) -> Result<(), Violation> {
    let org = TestOrg::new(&store)?;
    come_back(&org, with_previous_secrets(&org)).await
}

/// New keys with all the values that the properties of this module try.
pub(super) fn unusual_keys(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let keys = [
        with_microseconds(org),
        with_every_time(org),
        with_missing_times(org),
        with_names(org)?,
        with_names_of_earlier_versions(org)?,
        with_prefixes(org),
        with_fifty_networks(org)?,
        with_readable_allowlists(org)?,
        with_unreadable_allowlists(org)?,
        with_revisions(org),
        with_statuses(org),
        with_attributes(org)?,
        with_previous_secrets(org),
    ];
    Ok(keys.concat())
}

fn with_microseconds(org: &TestOrg) -> Vec<ApiKey> {
    [0, 1, 499, 500, 998, 999_998].map(|micros| with_times(org, instant(micros))).to_vec()
}

/// Times before 1970, beside a whole second, after 2038 and after 2262.
fn with_every_time(org: &TestOrg) -> Vec<ApiKey> {
    let seconds = [-62_135_596_800, -2_208_988_800, -1, 0, 951_782_400, 2_147_483_648];
    let seconds = seconds.into_iter().chain([4_294_967_296, 9_223_372_037, 253_402_300_799]);
    let micros = seconds.flat_map(|second| [0, 1, 999_999].map(|micro| second * 1_000_000 + micro));
    let times = micros.filter_map(Timestamp::from_unix_micros);
    times.chain([Timestamp::MIN, Timestamp::MAX]).map(|at| with_times(org, at)).collect()
}

fn with_missing_times(org: &TestOrg) -> Vec<ApiKey> {
    let key = |present: u8| {
        let time = |bit: u8| (present & bit != 0).then(|| instant(bit.into()));
        ApiKey { expires_at: time(1), rotated_at: time(2), last_used_at: time(4), ..org.key() }
    };
    (0..8).map(key).collect()
}

fn with_names(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let longest = ["🗝".repeat(100), "字".repeat(100), "x".repeat(100)];
    let texts = NAMES.iter().copied().chain(longest.iter().map(String::as_str));
    texts.map(|text| Ok(ApiKey { name: name(text)?, ..org.key() })).collect()
}

fn with_names_of_earlier_versions(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let texts = ["❤\u{fe0f}\u{fe0f}", "🏴\u{e0041}", &format!("a{}", "\u{301}".repeat(40))];
    let key = |text| Ok(ApiKey { name: expect::made(KeyName::restore(text))?, ..org.key() });
    texts.into_iter().map(key).collect()
}

fn with_prefixes(org: &TestOrg) -> Vec<ApiKey> {
    let texts = ["vsp_sk_4fT9x", "a_aAbBz", "abcdefghij_klmnopqrs_tu_0Zz9A"];
    texts.map(|text| ApiKey { key_prefix: text.to_owned(), ..org.key() }).to_vec()
}

fn with_fifty_networks(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let networks = (0..25_u8).rev().flat_map(|n| {
        let v4 = Network::from(IpAddr::from(Ipv4Addr::new(192, 0, 2, n)));
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, u16::from(n), 0, 0, 0, 0, 0);
        [Some(v4), format!("{v6}/{}", 48 + n).parse().ok()]
    });
    let allowlist: Allowlist = networks.flatten().collect();
    expect::equal("the number of networks of the suite", &allowlist.len(), &50)?;
    Ok(vec![ApiKey { allowlist, ..org.key() }])
}

fn with_readable_allowlists(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let lists: [&[&str]; 4] =
        [&[], &["0.0.0.0/0", "::/0"], &["255.255.255.255", "::1"], &["10.0.0.0/8"]];
    let key = |list| Ok(ApiKey { allowlist: expect::made(Allowlist::parse(list))?, ..org.key() });
    lists.into_iter().map(key).collect()
}

fn with_unreadable_allowlists(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let key = |list: &&[&str]| {
        let allowlist = Allowlist::restore(*list);
        expect::holds(!allowlist.is_readable(), "an unreadable list from the suite", "another")?;
        Ok(ApiKey { allowlist, ..org.key() })
    };
    UNREADABLE.iter().map(key).collect()
}

fn with_revisions(org: &TestOrg) -> Vec<ApiKey> {
    let numbers = [1, 2, 32_768, 65_536, 2_147_483_648, u32::MAX];
    numbers.map(|number| ApiKey { revision: Revision::new(number), ..org.key() }).to_vec()
}

fn with_statuses(org: &TestOrg) -> Vec<ApiKey> {
    [Status::Active, Status::Revoked].map(|status| ApiKey { status, ..org.key() }).to_vec()
}

fn with_attributes(org: &TestOrg) -> Result<Vec<ApiKey>, Violation> {
    let long = format!(r#"{{"metadata":{{"long":"{}"}}}}"#, "字".repeat(10_000));
    let key = |text: &str| Ok(ApiKey { attributes: expect::made(text.parse())?, ..org.key() });
    ATTRIBUTES.iter().copied().chain([&*long]).map(key).collect()
}

fn with_previous_secrets(org: &TestOrg) -> Vec<ApiKey> {
    let times = [Timestamp::MIN, instant(0), instant(999_999), Timestamp::MAX];
    times.map(|until| ApiKey { previous: Some(org.previous(until)), ..org.key() }).to_vec()
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

/// Checks that each key comes back as `insert` and as `replace` wrote it.
async fn come_back(org: &TestOrg, keys: Vec<ApiKey>) -> Result<(), Violation> {
    for key in keys {
        comes_back(org, key).await?;
    }
    Ok(())
}

async fn comes_back(org: &TestOrg, key: ApiKey) -> Result<(), Violation> {
    org.add(key.clone()).await?;
    same_everywhere(org, &key).await?;
    let plain = org.add(org.key()).await?;
    let replaced = ApiKey {
        id: plain.id,
        digest: plain.digest,
        created_at: plain.created_at,
        last_used_at: None,
        previous: key.previous.map(|old| org.previous(old.until)),
        revision: key.revision.max(plain.revision.next()),
        ..key.clone()
    };
    org.change(&plain, replaced.clone()).await?;
    same_everywhere(org, &replaced).await?;
    // The list stays short for the next key.
    org.delete(&replaced).await?;
    org.delete(&key).await
}

async fn same_everywhere(org: &TestOrg, key: &ApiKey) -> Result<(), Violation> {
    expect::same_key("get", org.get(&key.id).await?.as_deref(), key)?;
    for digest in key.digests() {
        expect::found_key("find_by_digest", org.find(&digest).await?.as_deref(), key)?;
    }
    let list = org.list().await?;
    let listed = list.iter().find(|listed| listed.id == key.id);
    expect::same_key("list", listed.map(AsRef::as_ref), key)
}
