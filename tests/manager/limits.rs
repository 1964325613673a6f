//! Limits, expiry and the lack of randomness.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use keygate::error::BuildError;
use keygate::rand_core::{TryCryptoRng, TryRng, utils};
use keygate::runtime::Clock;
use keygate::*;

use crate::support::SpyStore;
use crate::{ada, assert_denied, assert_unavailable, bench, bench_with, eve, networks, new_key};

#[tokio::test]
async fn an_organisation_has_at_most_20_keys_including_revoked_and_expired_ones() {
    let b = bench();
    let mut ids = Vec::new();
    for at in 0..20 {
        let new = if at < 3 { new_key().expires(Expiration::OneDay) } else { new_key() };
        ids.push(b.keys.create(&ada(), new).await.unwrap().key.id);
    }
    b.keys.update(&ada(), &ids[5], KeyPatch::revoke()).await.unwrap();
    b.clock.advance(Duration::from_secs(2 * 86_400));
    let (before, records) = (b.snapshot().await, b.log.len());

    let refused = b.keys.create(&ada(), new_key()).await;
    assert!(matches!(refused, Err(ManageError::LimitReached { max: 20 })), "{refused:?}");
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));

    b.keys.create(&eve(), new_key()).await.expect("each organisation has its own limit");
    b.keys.delete(&ada(), &ids[0]).await.unwrap();
    b.create().await;
    assert!(b.keys.create(&ada(), new_key()).await.is_err());
}

#[tokio::test]
async fn an_allowlist_has_at_most_50_entries_and_the_host_can_set_the_limits() {
    let few = Limits::default().max_keys(2).max_ips_per_key(1);
    for (limits, most) in [(Limits::default(), 50), (few, 1)] {
        let b = bench_with(|builder| builder.limits(limits));
        assert_eq!(b.keys.limits(ada().org()), limits);
        let fits = b.keys.create(&ada(), new_key().allowlist(networks(most))).await.unwrap();
        let (before, records) = (b.snapshot().await, b.log.len());
        let too_long = |error| matches!(error, ManageError::AllowlistTooLong { max } if max == u32::from(most));
        let created = b.keys.create(&ada(), new_key().allowlist(networks(most + 1))).await;
        assert!(too_long(created.unwrap_err()), "{most}");
        let patch = KeyPatch::restrict(networks(most + 1));
        let updated = b.keys.update(&ada(), &fits.key.id, patch).await;
        assert!(too_long(updated.unwrap_err()), "{most}");
        assert_eq!((b.snapshot().await, b.log.len()), (before, records));
    }
    for most in [0, 2] {
        let b = bench_with(|builder| builder.limits(few.max_keys(most)));
        for _ in 0..most {
            b.create().await;
        }
        let refused = b.keys.create(&ada(), new_key()).await;
        assert!(matches!(refused, Err(ManageError::LimitReached { max }) if max == most));
    }
}

#[tokio::test]
async fn case_10_a_key_is_valid_before_its_expiry_only_also_if_the_clock_steps_back() {
    let b = bench();
    let created = b.clock.now();
    let exactly = created.saturating_add(Duration::from_micros(1));
    for (expiration, expires) in [
        (Expiration::OneDay, "2027-02-01T10:00:00Z"),
        (Expiration::OneWeek, "2027-02-07T10:00:00Z"),
        (Expiration::OneMonth, "2027-02-28T10:00:00Z"),
        (Expiration::ThreeMonths, "2027-04-30T10:00:00Z"),
        (Expiration::OneYear, "2028-01-31T10:00:00Z"),
        (Expiration::At(exactly), "2027-01-31T10:00:00.000001Z"),
    ] {
        b.clock.set(created);
        let mut issued = b.keys.create(&ada(), new_key().expires(expiration)).await.unwrap();
        let at = expires.parse::<Timestamp>().unwrap();
        assert_eq!(issued.key.expires_at, Some(at), "{expiration}");
        b.clock.set(at.saturating_sub(Duration::from_micros(1)));
        b.verify(&issued).await.unwrap();
        for late in [at, at.saturating_add(Duration::from_secs(1)), Timestamp::MAX] {
            b.clock.set(late);
            assert_denied(b.verify(&issued).await, Denial::Expired);
        }
        // As documented: the key is valid again while the clock is back.
        for early in [created, created.saturating_sub(Duration::from_secs(1)), Timestamp::MIN] {
            b.clock.set(early);
            b.verify(&issued).await.unwrap();
            issued = b.keys.rotate(&ada(), &issued.key.id).await.unwrap();
        }
    }
    b.clock.set(created);
    let never = b.create().await;
    b.clock.set(Timestamp::MAX);
    b.verify(&never).await.unwrap();
    assert!(b.keys.shutdown(Duration::from_secs(20)).await.is_complete());
}

#[tokio::test]
async fn an_expiration_that_is_not_in_the_future_is_refused() {
    let b = bench();
    let now = b.clock.now();
    for at in [now, now.saturating_sub(Duration::from_micros(1)), Timestamp::MIN] {
        let refused = b.keys.create(&ada(), new_key().expires(Expiration::At(at))).await;
        assert!(matches!(refused, Err(ManageError::ExpirationInThePast)), "{at}: {refused:?}");
    }
    b.clock.set(Timestamp::MAX);
    let refused = b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await;
    assert!(matches!(refused, Err(ManageError::ExpirationInThePast)), "{refused:?}");
    assert_eq!((b.snapshot().await, b.log.len()), (vec![], 0));
}

#[tokio::test]
async fn a_slow_store_does_not_extend_the_life_of_a_key() {
    let b = bench();
    let issued = b.keys.create(&ada(), new_key().expires(Expiration::OneDay)).await.unwrap();
    let clock = b.clock.clone();
    b.store.after(move |_| {
        clock.advance(Duration::from_secs(86_400));
        async { Ok(()) }
    });
    assert_denied(b.verify(&issued).await, Denial::Expired);
}

/// A generator that works a number of times and then fails.
#[derive(Debug)]
struct RunsDry(usize);

impl TryRng for RunsDry {
    type Error = io::Error;

    fn try_next_u32(&mut self) -> io::Result<u32> {
        utils::next_word_via_fill(self)
    }

    fn try_next_u64(&mut self) -> io::Result<u64> {
        utils::next_word_via_fill(self)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::UnexpectedEof)?;
        getrandom::fill(bytes).map_err(io::Error::other)
    }
}

impl TryCryptoRng for RunsDry {}

#[tokio::test]
async fn without_random_bytes_no_key_is_created() {
    let store = Arc::new(SpyStore::default());
    let built = KeyManager::builder(store.clone()).rng(RunsDry(0)).build();
    let Err(BuildError::Random(error)) = built else { panic!("{built:?}") };
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::UnexpectedEof));
    for fills in 1..10 {
        let b = bench_with(|builder| builder.rng(RunsDry(fills)));
        match b.keys.create(&ada(), new_key()).await {
            Ok(_) => return assert!(fills >= 3, "an id, a secret and the manager's own"),
            failed => assert_unavailable(failed),
        }
        assert_eq!((b.snapshot().await, b.log.len()), (vec![], 0));
    }
    panic!("never enough");
}
