//! Formats and digests of existing keys.

use std::sync::Arc;

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, SecretUsed};
use keygate::error::{BuildError, ExistingDigestError, ExistingFormatError};
use keygate::existing::{DigestKind, ExistingDigest, ExistingFormat};
use keygate::manager::RequestInfo;
use keygate::store::{KeyDigest, PreviousSecret};
use keygate::{
    ApiKey, Denial, KeyFormat, KeyManager, KeyStore, ManageError, MemoryAuditLog, MemoryStore,
    NewKey, StoreError, Timestamp, VerifyError,
};
use sha2::{Digest, Sha256, Sha512};
use tokio::task::JoinSet;

use crate::support::{Call, Find, SpyStore, base64, eventually, org};
use crate::{
    KEY, ada, adopt, assert_allowed, assert_denied, assert_unknown, builder, format, hex, hmac,
    key, manager, manager_with_key, rename, sha256,
};

const SECRET: &str = "plK2vXq9sBd7TzRw5mYc";

/// A prefix, a kind of digest, a stored digest and the text of the key.
fn all_kinds() -> Vec<(&'static str, DigestKind, ExistingDigest, &'static str)> {
    let secret = SECRET;
    let sanctum = "12|plK2vXq9sBd7TzRw5mYc";
    let split = "acme_live_short_plK2vXq9sBd7TzRw5mYc";
    let of = |kind: &DigestKind, bytes: &[u8]| kind.read_bytes(bytes).unwrap();
    let both = |kind: DigestKind, bytes: &[u8]| (kind.clone(), of(&kind, bytes));
    let mut all = Vec::new();
    for (kind, digest) in [
        both(DigestKind::sha256(), &Sha256::digest(KEY)),
        both(DigestKind::sha512(), &Sha512::digest(KEY)),
        both(DigestKind::hmac_sha256("k"), &hmac("k", KEY)),
        both(DigestKind::pepper_before("salt"), &Sha256::digest(format!("salt{KEY}"))),
        both(DigestKind::pepper_behind("salt"), &Sha256::digest(format!("{KEY}salt"))),
    ] {
        all.push(("acme_live_", kind, digest, KEY));
    }
    let behind = both(DigestKind::sha256().behind_prefix(), &Sha256::digest(&KEY[10..]));
    all.push(("acme_live_", behind.0, behind.1.after("acme_live_"), KEY));
    let behind = both(DigestKind::sha256().behind('|'), &Sha256::digest(secret));
    all.push(("", behind.0, behind.1.after("12|"), sanctum));
    let behind = both(DigestKind::sha512().behind('_'), &Sha512::digest(secret));
    all.push(("acme_live_", behind.0, behind.1.after("acme_live_short_"), split));
    let behind = both(DigestKind::hmac_sha256("k").behind('_'), &hmac("k", secret));
    all.push(("acme_live_", behind.0, behind.1.after("acme_live_short_"), split));
    all
}

#[tokio::test]
async fn a_key_is_found_by_each_kind_of_digest_and_later_by_one_look_up() {
    for (prefix, kind, digest, text) in all_kinds() {
        let name = format!("{kind:?}");
        let format = ExistingFormat::new(prefix, 16..=40).unwrap().digests(kind);
        let (store, keys) = manager(format);
        adopt(&keys, key("acme", digest)).await;
        assert_allowed(&keys, text).await;
        store.take_calls();
        assert_allowed(&keys, text).await;
        assert_eq!(store.take_calls(), [Call::Find], "{name}");
    }
}

#[tokio::test]
async fn a_sha_256_digest_of_the_whole_key_costs_one_look_up_from_the_start() {
    let (store, keys) = manager(format());
    adopt(&keys, key("acme", sha256(KEY))).await;
    store.take_calls();
    assert_allowed(&keys, KEY).await;
    assert_eq!(store.take_calls(), [Call::Find]);
    assert_unknown(&keys, "acme_live_5fKq2Lx8RwZt0aYc").await;
    assert_eq!(store.take_calls(), [Call::Find]);
}

#[tokio::test]
async fn case_60_a_text_without_a_declared_format_is_refused_without_a_look_up() {
    let (store, keys) = manager(format().digests(DigestKind::sha512()));
    for text in [
        "acme_live_5fKq2Lx8RwZt0aY",
        "acme_live_5fKq2Lx8RwZt0aYbc",
        "acme_test_5fKq2Lx8RwZt0aYb",
        "acme_live_5fKq2Lx8 wZt0aYb",
        "acme_live_5fKq2Lx8,wZt0aYb",
        "acme_live_5fKq2Lx8éwZt0aY",
        "acme_live_5fKq2Lx8\0wZt0aYb",
        "12|plK2vXq9sBd7TzRw5mYc",
    ] {
        assert!(matches!(keys.verify(text, None).await, Err(VerifyError::Malformed(_))), "{text}");
    }
    assert_eq!(store.take_calls(), []);
}

#[tokio::test]
async fn case_60_neither_an_adopted_digest_nor_a_part_of_a_key_is_a_key() {
    for (prefix, kind, digest, text) in all_kinds() {
        let (store, builder) = builder();
        let format = ExistingFormat::new(prefix, 16..=40).unwrap().digests(kind.clone());
        // Every text that is presented has a declared format.
        let any = ExistingFormat::new("", 16..=54).unwrap().digests(kind.clone());
        let wide = ExistingFormat::new("", 56..=200).unwrap().digests(kind);
        let keys = builder.existing(format).existing(any).existing(wide).build().unwrap();
        adopt(&keys, key("acme", digest)).await;
        let stored = store.snapshot(&org("acme")).await[0].digest;
        let inner = Sha256::digest(text);
        let secret = SECRET;
        let mut presented = vec![hex(stored.as_bytes()), base64(stored.as_bytes()), hex(inner)];
        presented.extend([base64(&inner), hex(Sha512::digest(text)), base64(&hmac("k", text))]);
        presented.extend([hex(hmac("k", secret)), hex(Sha256::digest(secret))]);
        presented.extend([secret.to_owned(), format!("13|{secret}"), format!("12|12|{secret}")]);
        presented.extend([format!("acme_live_other_{secret}"), format!("acme_live__{secret}")]);
        for credential in presented {
            assert_unknown(&keys, &credential).await;
        }
        assert_allowed(&keys, text).await;
    }
}

#[tokio::test]
async fn case_60_a_format_that_new_keys_may_have_is_refused() {
    let build = |prefix: &str, lengths, kind: Option<DigestKind>| {
        let format = ExistingFormat::new(prefix, lengths).unwrap();
        let format = kind.into_iter().fold(format, ExistingFormat::digests);
        KeyManager::builder(MemoryStore::new())
            .environment("live", KeyFormat::default())
            .environment("test", KeyFormat::new("vsp_sk_test_").unwrap())
            .existing(format)
            .build()
            .map(drop)
    };
    let sanctum = || Some(DigestKind::sha256().behind('|'));
    let split = || Some(DigestKind::sha256().behind('_'));
    for (prefix, lengths, kind) in [
        ("vsp_sk_", 16..=60, None),
        ("vsp_sk_test_", 48..=48, None),
        ("", 16..=200, None),
        ("", 55..=55, None),
        ("v", 59..=59, None),
        ("vsp_sk_0", 47..=47, None),
        ("", 16..=200, split()),
        ("", 16..=200, Some(DigestKind::sha256().behind('a'))),
    ] {
        let refused = build(prefix, lengths, kind).unwrap_err();
        let overlaps = matches!(refused, BuildError::Existing(ExistingFormatError::Overlap { .. }));
        assert!(overlaps, "{prefix}: {refused:?}");
    }
    for (prefix, lengths, kind) in [
        ("vsp_sk_", 16..=47, None),
        ("vsp_sk_live_", 16..=60, None),
        ("vsp_pk_", 16..=60, None),
        ("", 16..=54, None),
        ("", 16..=200, sanctum()),
        ("vsp_sk_test_", 16..=60, split()),
    ] {
        assert!(build(prefix, lengths, kind).is_ok(), "{prefix}");
    }
}

#[test]
fn a_format_has_a_visible_prefix_and_long_keys() {
    let refused = |prefix: &str, lengths| ExistingFormat::new(prefix, lengths).unwrap_err();
    for prefix in ["a b", "a,b", "é", "\t", &"a".repeat(41)] {
        assert_eq!(refused(prefix, 16..=16), ExistingFormatError::Prefix);
    }
    let reversed = std::ops::RangeInclusive::new(20, 19);
    for lengths in [15..=20, reversed, 16..=257, 16..=usize::MAX] {
        assert_eq!(refused("", lengths), ExistingFormatError::Lengths);
    }
    for separator in [' ', ',', 'é', '\0', '…'] {
        let format = format().digests(DigestKind::sha256().behind(separator));
        let built = KeyManager::builder(MemoryStore::new()).existing(format);
        let built = tokio::runtime::Runtime::new().unwrap().block_on(async { built.build() });
        let refused = matches!(built, Err(BuildError::Existing(ExistingFormatError::Separator)));
        assert!(refused, "{separator}");
    }
}

#[test]
fn case_60_a_digest_of_the_wrong_length_or_for_a_part_without_the_rest_is_refused() {
    let sha256 = Sha256::digest("x");
    let sha512 = Sha512::digest("x");
    let read = |text: &str| DigestKind::sha256().read(text);
    let one = DigestKind::sha256().read_bytes(&sha256).unwrap();
    let url = base64(&sha256).replace('+', "-").replace('/', "_");
    for text in [
        &hex(sha256),
        &hex(sha256).to_uppercase(),
        &base64(&sha256),
        &url,
        url.trim_end_matches('='),
    ] {
        assert_eq!(read(text), Ok(one.clone()), "{text}");
    }
    assert!(DigestKind::sha512().read(&base64(&sha512)).is_ok());
    let md5 = "900150983cd24fb0d6963f7d28e17f72";
    for text in
        [md5, "", &hex(sha512), &hex(sha256)[1..], &format!("{}g", &hex(sha256)[1..]), "kéy"]
    {
        let refused = read(text).unwrap_err().to_string();
        assert!(refused.contains("32 bytes") && (text.is_empty() || !refused.contains(text)));
    }
    let zeros = ExistingDigestError::Length { bytes: 32 };
    assert_eq!(read(&"0".repeat(64)), Err(zeros));
    assert_eq!(
        DigestKind::sha512().read_bytes(&sha256),
        Err(ExistingDigestError::Length { bytes: 64 })
    );
}

#[tokio::test]
async fn a_hash_key_and_a_credential_are_not_shown() {
    let (_, builder) = builder();
    let kind = DigestKind::hmac_sha256("s3cret-hmac");
    let format = format().digests(kind).digests(DigestKind::pepper_before("s3cret-pepper"));
    let keys = builder.existing(format.clone()).build().unwrap();
    let shown = format!("{format:?} {keys:?}");
    for secret in ["s3cret", "115, 51, 99"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert_eq!(format!("{:?}", sha256(KEY)), "ExistingDigest(…)");
}

/// The key is rotated between its look-up and the replacement of its digest.
async fn rotated_during_the_first_request(overlap: bool) -> (Arc<SpyStore>, KeyManager) {
    let (store, keys, adopted) = manager_with_key().await;
    let (inner, id) = (Arc::clone(&store), adopted.id);
    store.before(move |call| {
        let inner = Arc::clone(&inner);
        async move {
            if call == Call::Replace {
                let current = inner.inner.get(&org("acme"), &id).await.unwrap().unwrap();
                let mut rotated = ApiKey::clone(&current);
                let previous = PreviousSecret { digest: current.digest, until: Timestamp::MAX };
                rotated.previous = overlap.then_some(previous);
                rotated.digest = KeyDigest::of("new");
                rotated.revision = current.revision.next();
                inner.inner.replace(&rotated, current.revision).await?;
            }
            Ok(())
        }
    });
    (store, keys)
}

#[tokio::test]
async fn a_rotation_during_the_first_request_ends_the_old_text() {
    let (store, keys) = rotated_during_the_first_request(false).await;
    assert_unknown(&keys, KEY).await;
    store.heal();
    assert_unknown(&keys, KEY).await;
}

#[tokio::test]
async fn case_59_an_overlap_that_begins_during_the_first_request_admits_it() {
    let (store, keys) = rotated_during_the_first_request(true).await;
    let verified = keys.verify(KEY, None).await.unwrap();
    assert_eq!(verified.secret_used(), SecretUsed::Previous);
    store.heal();
    assert_allowed(&keys, KEY).await;
}

#[tokio::test]
async fn a_key_whose_digest_cannot_be_replaced_is_accepted_and_replaced_later() {
    let (store, keys, adopted) = manager_with_key().await;
    store.before(|call| async move {
        if call == Call::Replace { Err(StoreError::unavailable("disk full")) } else { Ok(()) }
    });
    assert_allowed(&keys, KEY).await;
    assert_allowed(&keys, KEY).await;
    store.heal();
    // The replacement keeps an earlier edit.
    keys.update(&ada(), &adopted.id, rename("new")).await.unwrap();
    assert_allowed(&keys, KEY).await;
    let stored = store.snapshot(&org("acme")).await.remove(0);
    assert_eq!((stored.name.as_str(), stored.digest), ("new", KeyDigest::of(KEY)));
    keys.revoke(&ada(), &adopted.id).await.unwrap();
    assert_denied(&keys, KEY, Denial::Revoked).await;
}

#[tokio::test]
async fn case_60_a_store_that_fails_or_finds_the_wrong_key_admits_no_request() {
    let (store, keys) = manager(format().digests(DigestKind::sha512()));
    let other = adopt(&keys, key("acme", sha256("other"))).await;
    store.find(Find::Always(other));
    assert_unknown(&keys, KEY).await;
    store.find(Find::Fails);
    assert!(keys.verify(KEY, None).await.unwrap_err().is_unavailable());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_first_requests_with_one_key_are_all_accepted() {
    for _ in 0..50 {
        let (_, keys, _) = manager_with_key().await;
        let request = |_| {
            let keys = keys.clone();
            async move { assert_allowed(&keys, KEY).await }
        };
        (0..8).map(request).collect::<JoinSet<_>>().join_all().await;
    }
}

#[tokio::test]
async fn case_60_an_existing_key_in_a_path_or_a_name_is_redacted() {
    let keys = KeyManager::builder(MemoryStore::new())
        .audit(MemoryAuditLog::new())
        .existing(format())
        .existing(
            ExistingFormat::new("", 42..=50).unwrap().digests(DigestKind::sha256().behind('|')),
        )
        .build()
        .unwrap();
    let issued = keys.create(&ada(), NewKey::named("CI").unwrap()).await.unwrap();
    let token = format!("12|{}", SECRET.repeat(2));
    let encoded: String = KEY.bytes().map(|b| format!("%{b:02X}")).collect();
    for (path, shown) in [
        (format!("/v1/{KEY}"), "/v1/[REDACTED]"),
        (format!("/{}", &KEY[..18]), "/[REDACTED]"),
        (format!("/v1/{encoded}/x"), "/v1/[REDACTED]/x"),
        (format!("/v1/{}", token.replace('|', "%7C")), "/v1/[REDACTED]"),
        ("/docs/acme_live_keys".to_owned(), "/docs/acme_live_keys"),
    ] {
        let request = RequestInfo::new("GET", path);
        let secret = issued.secret.expose_secret();
        keys.admit(secret, request).await.unwrap().finish(200).await.unwrap();
        let query = AuditQuery::new(org("acme"), AuditScope::KeyRequests(issued.key.id));
        eventually(shown, async || {
            let page = keys.audit_page(&query).await.unwrap().unwrap();
            page.records.iter().any(|record| match &record.event {
                AuditEvent::Request(request) => &*request.endpoint == shown,
                _ => false,
            })
        })
        .await;
    }
    for name in [KEY, &token] {
        let refused = keys.create(&ada(), NewKey::named(name).unwrap()).await;
        assert!(matches!(refused, Err(ManageError::NameHoldsKey)), "{name}");
    }
}
