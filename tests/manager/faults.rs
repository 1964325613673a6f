//! A store that fails or hangs.

use std::future::pending;
use std::time::{Duration, Instant};

use keygate::audit::ChangeAction::Created;
use keygate::audit::ChangePhase::Begun;
use keygate::manager::{IssuedKey, RequestInfo};
use keygate::store::Revision;
use keygate::*;

use crate::support::{Call, org, soon};
use crate::{
    Bench, ada, assert_in_doubt, assert_unavailable, bench, bench_with, name, new_key, rename,
};

async fn assert_all_unavailable(b: &Bench, issued: &IssuedKey) {
    let (keys, id) = (&b.keys, &issued.key.id);
    let refused = soon(b.verify(issued)).await.unwrap_err();
    assert!(refused.is_unavailable() && refused.http_status() == 503, "{refused:?}");
    let request = RequestInfo::new("GET", "/");
    let refused = soon(keys.admit(issued.secret.expose_secret(), request)).await.unwrap_err();
    assert_eq!(refused.http_status(), 503);
    b.change(id).await.into_iter().for_each(assert_unavailable);
    assert_unavailable(soon(keys.list(&org("acme"))).await);
    assert_unavailable(soon(keys.get(&org("acme"), id)).await);
    assert_unavailable(soon(keys.update_if(&ada(), id, rename("b"), Revision::FIRST)).await);
    let health = soon(keys.health()).await;
    assert!(!health.lookups.works() && !health.changes.works() && health.audit_log.works());
}

#[tokio::test]
async fn case_32_a_store_that_is_down_refuses_every_key_and_recovers() {
    let b = bench();
    let issued = b.create().await;
    let before = b.snapshot().await;
    b.store.before(|_| async { Err(StoreError::unavailable("connection refused")) });
    assert_all_unavailable(&b, &issued).await;
    let refused = b.verify(&issued).await.unwrap_err();
    let cause = std::error::Error::source(&refused).and_then(|error| error.source()).unwrap();
    assert_eq!(cause.to_string(), "connection refused", "the error has its cause");

    b.store.before(|_| async { Err(StoreError::corrupt("no such column")) });
    assert_all_unavailable(&b, &issued).await;
    b.store.heal();
    b.verify(&issued).await.unwrap();
    assert!(b.keys.health().await.lookups.works());
    assert_eq!((b.snapshot().await, b.changes().await), (before, vec![(Created, Begun)]));
}

#[tokio::test]
async fn case_32_a_store_that_hangs_is_unavailable_once_the_deadline_has_passed() {
    let b = bench_with(|builder| builder.store_deadline(Duration::from_millis(30)));
    let issued = b.create().await;
    b.store.before(|_| pending());
    let started = Instant::now();
    assert_all_unavailable(&b, &issued).await;
    // Ten calls, each with its own deadline.
    assert!(started.elapsed() >= Duration::from_millis(300));
    b.store.heal();
    b.verify(&issued).await.unwrap();

    // Half open: it accepts the request, works, and never answers.
    b.store.after(|_| pending());
    let refused = soon(b.verify(&issued)).await.unwrap_err();
    assert!(refused.is_unavailable());
    assert_unavailable(soon(b.keys.list(&org("acme"))).await);
    b.store.heal();
    b.verify(&issued).await.unwrap();
    assert_eq!(b.snapshot().await[0].name, name("CI"));
}

#[tokio::test]
async fn case_32_a_write_that_hangs_is_in_doubt_once_the_deadline_has_passed() {
    for hung in [Call::Insert, Call::Replace, Call::Delete] {
        let b = bench_with(|builder| builder.store_deadline(Duration::from_millis(30)));
        let id = b.create().await.key.id;
        b.store
            .before(move |call| async move { if call == hung { pending().await } else { Ok(()) } });
        match hung {
            Call::Insert => assert_in_doubt(soon(b.keys.create(&ada(), new_key())).await),
            Call::Delete => assert_in_doubt(soon(b.keys.delete(&ada(), &id)).await),
            _ => {
                assert_in_doubt(soon(b.keys.update(&ada(), &id, rename("b"))).await);
                assert_in_doubt(soon(b.keys.rotate(&ada(), &id)).await);
            }
        }
        b.store.heal();
        b.keys.update(&ada(), &id, rename("c")).await.unwrap();
    }
}

#[cfg(feature = "metrics")]
#[tokio::test]
async fn calls_that_hang_are_measured() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = keygate::metrics::set_default_local_recorder(&recorder);
    let b = bench_with(|builder| builder.store_deadline(Duration::from_millis(20)));
    let issued = b.create().await;
    b.store.before(|_| pending());
    assert_unavailable(b.keys.get(&org("acme"), &issued.key.id).await);
    b.store
        .before(|call| async move { if call == Call::Replace { pending().await } else { Ok(()) } });
    assert_in_doubt(b.keys.revoke(&ada(), &issued.key.id).await);
    let shown = recorder.handle().render();
    for (operation, outcome) in [("get", "unavailable"), ("replace", "in_doubt")] {
        let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
        let count = format!("keygate_store_duration_seconds_count{labels} 1");
        assert!(shown.contains(&count), "{count}: {shown}");
    }
}
