//! Credentials, and the organisations that own them.

use std::sync::Arc;
use std::time::Duration;

use keygate::audit::{AuditQuery, AuditScope, SecretUsed};
use keygate::error::{DeliveryError, MalformedKey};
use keygate::manager::AdmitError;
use keygate::store::KeyDigest;
use keygate::*;

use crate::support::{Call, Find, SpyStore, base64, org};
use crate::{
    Bench, ada, assert_denied, assert_not_found, assert_unknown, bench, change_first_key, eve, ip,
    new_key, rename,
};

#[tokio::test]
async fn case_05_values_that_cannot_be_a_key_are_refused_without_a_call_to_the_store() {
    let b = bench();
    let issued = b.create().await;
    let secret = issued.secret.expose_secret();
    b.store.take_calls();
    let long = "a".repeat(64 * 1024);
    let keys = format!("{secret} {secret}");
    for text in ["", " ", "\0", "ключ", "vsp_sk_", "Bearer", &long, &keys, &secret.to_uppercase()]
    {
        assert_malformed(&b, text).await;
    }
}

#[tokio::test]
async fn case_06_a_damaged_key_is_refused_without_a_call_to_the_store() {
    let b = bench();
    let issued = b.create().await;
    let secret = issued.secret.expose_secret();
    b.store.take_calls();
    assert_malformed(&b, &secret[1..]).await;
    assert_malformed(&b, &secret[..54]).await;
    assert_malformed(&b, &format!("{secret}0")).await;
    assert_malformed(&b, &format!("{secret} ")).await;
    assert_malformed(&b, &format!("{secret}\n")).await;
    assert_malformed(&b, &format!("vsp_pk_{}", &secret[7..])).await;
    for at in 0..secret.len() {
        let mut bytes = secret.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        assert_malformed(&b, std::str::from_utf8(&bytes).unwrap()).await;
    }
}

async fn assert_malformed(b: &Bench, credential: &str) {
    let refused = b.keys.verify(credential, None).await.unwrap_err();
    assert!(matches!(refused, VerifyError::Malformed(_)), "{refused:?}");
    assert_eq!(refused.http_status(), 401);
    assert_eq!(b.store.take_calls(), []);
}

#[tokio::test]
async fn case_07_unknown_revoked_expired_and_deleted_keys_cost_the_same_and_get_the_same_answer() {
    let b = bench();
    let [unknown, expired, revoked, deleted, allowed] = [
        bench().create().await,
        b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await.unwrap(),
        b.create().await,
        b.create().await,
        b.create().await,
    ];
    b.keys.update(&ada(), &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    b.keys.delete(&ada(), &deleted.key.id).await.unwrap();
    b.clock.advance(Duration::from_secs(86_400));
    b.store.take_calls();
    for refused in [&unknown, &expired, &revoked, &deleted] {
        assert_eq!(b.verify(refused).await.unwrap_err().http_status(), 401);
        assert_eq!(b.store.take_calls(), [Call::Find]);
    }
    b.verify(&allowed).await.unwrap();
    assert_eq!(b.store.take_calls(), [Call::Find]);
    assert_unknown(b.verify(&unknown).await);
    assert_unknown(b.verify(&deleted).await);
    assert_denied(b.verify(&expired).await, Denial::Expired);
    assert_denied(b.verify(&revoked).await, Denial::Revoked);
}

#[tokio::test]
async fn case_08_stored_values_are_no_keys() {
    let b = bench();
    let key = b.create().await.key;
    b.store.take_calls();
    let digest = key.digest.as_bytes();
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    for stolen in [
        hex.clone(),
        hex.to_uppercase(),
        base64(digest),
        format!("vsp_sk_{hex}"),
        format!("vsp_sk_{}", &hex[..48]),
        key.id.to_string(),
        format!("vsp_sk_{}", key.id),
        key.key_prefix.clone(),
    ] {
        assert_malformed(&b, &stolen).await;
    }
    let latin: String = digest.iter().copied().map(char::from).collect();
    assert_malformed(&b, &latin).await;
}

/// A manager on a store that finds the same record for every digest.
fn finds_always(key: Arc<ApiKey>) -> KeyManager {
    let store = SpyStore::default();
    store.find(Find::Always(key));
    KeyManager::builder(store).build().unwrap()
}

#[tokio::test]
async fn case_09_a_store_that_finds_a_wrong_record_admits_no_key() {
    let b = bench();
    let [theirs, ours] = [b.create().await, b.create().await];
    let keys = finds_always(theirs.key.clone());
    keys.verify(theirs.secret.expose_secret(), None).await.unwrap();
    assert_unknown(keys.verify(ours.secret.expose_secret(), None).await);

    // Neither a record with the digest of empty input nor one with an empty digest admits.
    let empty = ApiKey { digest: KeyDigest::of(""), ..ApiKey::clone(&theirs.key) };
    let keys = finds_always(Arc::new(empty));
    assert_unknown(keys.verify(ours.secret.expose_secret(), None).await);
    assert!(matches!(keys.verify("", None).await, Err(VerifyError::Malformed(_))));
    assert!(KeyDigest::from_slice(&[0; 32]).is_err());
}

#[tokio::test]
async fn case_14_an_allowlist_admits_only_its_addresses_and_never_an_unknown_one() {
    let b = bench();
    let new = new_key().allow(["10.0.0.0/8", "2001:db8::1"]).unwrap();
    let issued = b.keys.create(&ada(), new).await.unwrap();
    let verify = async |ip| b.keys.verify(issued.secret.expose_secret(), ip).await;
    for good in ["10.255.0.1", "2001:db8::1", "::ffff:10.0.0.1"] {
        verify(ip(good)).await.unwrap();
    }
    for bad in ["11.0.0.1", "2001:db8::2", "::ffff:11.0.0.1"] {
        assert_denied(verify(ip(bad)).await, Denial::IpNotAllowed);
    }
    let refused = verify(None).await.unwrap_err();
    assert_eq!(refused.http_status(), 403);
    assert_denied(Err(refused), Denial::IpNotAllowed);
}

#[tokio::test]
async fn case_17_a_stored_allowlist_that_no_longer_parses_refuses_until_it_is_replaced() {
    let b = bench();
    let issued = b.create().await;
    let allowlist = Allowlist::restore(["10.0.0.0/8", "10.0.0."]);
    change_first_key(&b.store, |key| key.allowlist = allowlist).await;
    for from in [None, ip("10.0.0.1")] {
        let refused = b.keys.verify(issued.secret.expose_secret(), from).await.unwrap_err();
        assert_eq!(refused.http_status(), 403);
        assert_denied(Err(refused), Denial::AllowlistUnreadable);
    }
    // An edit of another field does not make the key usable.
    b.keys.update(&ada(), &issued.key.id, rename("b")).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::AllowlistUnreadable);
    let mended = KeyPatch::restrict(Allowlist::default());
    b.keys.update(&ada(), &issued.key.id, mended).await.unwrap();
    b.verify(&issued).await.unwrap();
}

#[tokio::test]
async fn each_refusal_has_its_http_status() {
    let key = bench().create().await.key;
    for (denial, status) in [
        (Denial::Revoked, 401),
        (Denial::Expired, 401),
        (Denial::IpNotAllowed, 403),
        (Denial::InsufficientScope, 403),
        (Denial::AllowlistUnreadable, 403),
    ] {
        let refused = VerifyError::Denied { denial, key: key.clone(), secret: SecretUsed::Current };
        assert_eq!((refused.http_status(), refused.is_unavailable()), (status, false));
        assert_eq!(AdmitError::from(refused).http_status(), status);
    }
    assert_eq!(VerifyError::Unknown.http_status(), 401);
    assert_eq!(VerifyError::Malformed(MalformedKey).http_status(), 401);
    let unavailable = VerifyError::Unavailable(StoreError::unavailable("down"));
    assert_eq!((unavailable.http_status(), unavailable.is_unavailable()), (503, true));
    assert_eq!(AdmitError::from(DeliveryError::Full).http_status(), 503);
}

// ---- isolation ----

#[tokio::test]
async fn case_19_another_organisations_key_does_not_exist() {
    let b = bench();
    let issued = b.create().await;
    let (before, records) = (b.snapshot().await, b.log.len());
    b.store.take_calls();
    for stranger in
        [eve(), Actor::new(org("*"), "w"), Actor::new(org("%"), "l"), Actor::new(org("ACME"), "u")]
    {
        assert_not_found(&b, &stranger, &issued.key.id).await;
        assert!(b.keys.list(stranger.org()).await.unwrap().is_empty());
        let scopes = [
            AuditScope::OrgChanges,
            AuditScope::KeyChanges(issued.key.id),
            AuditScope::KeyRequests(issued.key.id),
        ];
        for scope in scopes {
            let query = AuditQuery::new(stranger.org().clone(), scope);
            assert!(b.keys.audit_page(&query).await.unwrap().unwrap().records.is_empty());
        }
    }
    let reads = [Call::Get, Call::List];
    assert!(b.store.take_calls().iter().all(|call| reads.contains(call)));
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));
    b.verify(&issued).await.unwrap();
}
