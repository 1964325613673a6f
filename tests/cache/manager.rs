//! A manager over a cache.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use keygate::manager::IssuedKey;
use keygate::runtime::ManualClock;
use keygate::*;

use crate::cache_support::acme;
use crate::{cached, probe};

const HOUR: Duration = Duration::from_secs(3_600);

fn actor() -> Actor {
    Actor::new(acme(), "ada")
}

#[tokio::test]
async fn case_59_a_cached_secret_ends_with_its_overlap() {
    let clock = Arc::new(ManualClock::new("2027-01-31T10:00:00Z".parse::<Timestamp>().unwrap()));
    let builder = KeyManager::builder(cached(&probe())).clock(clock.clone());
    let keys = builder.max_overlap(HOUR).build().unwrap();
    let works = async |issued: &IssuedKey| {
        // The second time from the cache.
        let secret = issued.secret.expose_secret();
        let [first, again] = [keys.verify(secret, None).await, keys.verify(secret, None).await];
        assert_eq!(first.is_ok(), again.is_ok());
        again.is_ok()
    };
    let first = keys.create(&actor(), NewKey::named("CI").unwrap()).await.unwrap();
    let id = first.key.id;
    let rotate = async || keys.rotate_with_overlap(&actor(), &id, HOUR, None).await.unwrap();
    assert!(works(&first).await);
    let second = rotate().await;
    assert!(works(&first).await && works(&second).await);
    clock.advance(HOUR - Duration::from_micros(1));
    assert!(works(&first).await && works(&second).await);
    clock.advance(Duration::from_micros(1));
    assert!(!works(&first).await && works(&second).await);

    let third = rotate().await;
    assert!(works(&second).await && works(&third).await);
    let fourth = rotate().await;
    assert!(!works(&second).await && works(&third).await && works(&fourth).await);
    keys.end_previous_secret(&actor(), &id).await.unwrap();
    assert!(!works(&third).await && works(&fourth).await);
    let fifth = rotate().await;
    assert!(works(&fourth).await && works(&fifth).await);
    keys.delete(&actor(), &id).await.unwrap();
    assert!(!works(&fourth).await && !works(&fifth).await);
}

#[tokio::test]
async fn status_expiry_and_address_are_checked_on_each_request() {
    let probe = probe();
    let begin = Timestamp::from_unix_micros(1_700_000_000_000_000).unwrap();
    let clock = Arc::new(ManualClock::new(begin));
    let keys = KeyManager::builder(cached(&probe)).clock(Arc::clone(&clock)).build().unwrap();
    let new = NewKey::named("CI").unwrap().allow(["10.0.0.0/8"]).unwrap();
    let issued = keys.create(&actor(), new.expires(Expiration::OneDay)).await.unwrap();
    let secret = issued.secret.expose_secret();
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    let denied = |result: Result<VerifiedKey, VerifyError>| match result {
        Err(VerifyError::Denied { denial, .. }) => denial,
        other => panic!("{other:?}"),
    };
    keys.verify(secret, ip("10.0.0.1")).await.unwrap();
    assert_eq!(denied(keys.verify(secret, ip("192.0.2.1")).await), Denial::IpNotAllowed);
    assert_eq!(denied(keys.verify(secret, None).await), Denial::IpNotAllowed);
    clock.set(issued.key.expires_at.unwrap());
    assert_eq!(denied(keys.verify(secret, ip("10.0.0.1")).await), Denial::Expired);
    assert_eq!(probe.finds(), 1);
    clock.set(begin);
    keys.verify(secret, ip("10.0.0.1")).await.unwrap();
    assert_eq!(probe.finds(), 1);
    keys.update(&actor(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_eq!(denied(keys.verify(secret, ip("10.0.0.1")).await), Denial::Revoked);
    keys.delete(&actor(), &issued.key.id).await.unwrap();
    assert!(matches!(keys.verify(secret, None).await, Err(VerifyError::Unknown)));
}

/// Another process revoked the key. A caller that sees the key as revoked relies on it.
#[tokio::test]
async fn an_earlier_revocation_by_another_process_takes_effect_too() {
    let probe = probe();
    let manager = || KeyManager::builder(cached(&probe)).build().unwrap();
    let (here, elsewhere) = (manager(), manager());
    let issued = here.create(&actor(), NewKey::named("CI").unwrap()).await.unwrap();
    let secret = issued.secret.expose_secret();
    here.verify(secret, None).await.unwrap();
    elsewhere.update(&actor(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    let told = here.update(&actor(), &issued.key.id, KeyPatch::revoke()).await.unwrap();
    assert_eq!(told.status, Status::Revoked);
    assert!(here.verify(secret, None).await.is_err());
}
