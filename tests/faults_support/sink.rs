//! Faults of the audit log only: the declared delivery mode keeps its promises while keys can
//! be read.

use std::time::Duration;

use keygate::store::PostgresOptions;
use keygate::{Delivery, KeyPatch, NewKey};

use crate::postgres_support::in_schema;
use crate::proxy::Network;
use crate::setup::{DEADLINE, SLACK, Setup, is_unavailable, recovers, within};

const ILLS: [Network; 6] = [
    Network::Closed,
    Network::Silent,
    Network::BlackHole,
    Network::Reset,
    Network::Truncated(5),
    Network::Slow(Duration::from_secs(2)),
];

async fn setup(options: &PostgresOptions, delivery: Delivery) -> Setup {
    Setup::with(options, |proxied, direct, builder| {
        builder(direct).audit(proxied).delivery(delivery.deadline(DEADLINE))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_strict_a_faulty_audit_database_stops_every_answer_and_change() {
    in_schema(|options| async move {
        let setup = setup(&options, Delivery::strict()).await;
        for ill in ILLS {
            let case = format!("{ill:?}");
            let (key, revoked) = (setup.key().await, setup.key().await);
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            setup.direct.update(&setup.actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
            recovers!(&case, { setup.request(secret, "/before").await == 200 });
            let before = setup.db.key(id).await;
            setup.proxy.set(ill);

            // Waiting for room in the queue and writing the record each have the deadline.
            let limit = DEADLINE * 3 + SLACK;
            for key in [&key, &revoked] {
                let status = setup.request(key.secret.expose_secret(), "/meanwhile");
                assert_eq!(within(&case, limit, status).await, 503, "{case}");
            }
            let (keys, actor) = (&setup.keys, &setup.actor);
            let ids = setup.db.ids(actor.org()).await;
            let create = keys.create(actor, NewKey::named("CI").unwrap());
            let failed = within(&case, limit, create).await.unwrap_err();
            assert!(is_unavailable(&failed), "{case}: {failed:?}");
            let revoke = keys.update(actor, &id, KeyPatch::revoke());
            let failed = within(&case, limit, revoke).await.unwrap_err();
            assert!(is_unavailable(&failed), "{case}: {failed:?}");
            let failed = within(&case, limit, keys.rotate(actor, &id)).await.unwrap_err();
            assert!(is_unavailable(&failed), "{case}: {failed:?}");
            let failed = within(&case, limit, keys.delete(actor, &id)).await.unwrap_err();
            assert!(is_unavailable(&failed), "{case}: {failed:?}");
            // Operations that write nothing to the log continue.
            within(&case, limit, keys.verify(secret, None)).await.unwrap();
            assert_eq!(
                within(&case, limit, keys.list(actor.org())).await.unwrap().len(),
                ids.len()
            );

            setup.proxy.set(Network::Intact);
            recovers!(&case, {
                setup.request(secret, "/after").await == 200
                    && setup.request(revoked.secret.expose_secret(), "/after").await == 401
            });
            assert_eq!(setup.db.key(id).await, before, "{case}: no change without its record");
            assert_eq!(setup.db.ids(actor.org()).await, ids, "{case}");
            let rows = setup.db.requests(id).await;
            let after = ("/after".to_owned(), Some(200), "allowed".to_owned());
            assert!(rows.get(&after).is_some_and(|&rows| rows >= 1), "{case}: {rows:?}");
            for id in ids {
                setup.direct.delete(actor, &id.parse().unwrap()).await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_buffered_a_faulty_audit_database_delays_no_answer_and_loses_no_record() {
    in_schema(|options| async move {
        let setup = setup(&options, Delivery::buffered()).await;
        for ill in ILLS {
            let case = format!("{ill:?}");
            let key = setup.key().await;
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            setup.proxy.set(ill);
            let mut sent = Vec::new();
            for number in 0..60 {
                let path = format!("/{number}");
                let status = within(&case, SLACK, setup.request(secret, &path)).await;
                assert_eq!(status, 200, "{case}");
                sent.push((path, Some(200), "allowed".to_owned()));
                if number % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
            }
            tokio::time::sleep(DEADLINE * 2).await;
            setup.proxy.set(Network::Intact);
            recovers!(&case, { setup.db.requests(id).await.len() == sent.len() });
            let rows = setup.db.requests(id).await;
            assert!(sent.iter().all(|row| rows.get(row) == Some(&1)), "{case}: {rows:?}");
            recovers!(&case, { setup.keys.audit_stats().queued == 0 });
            let stats = setup.keys.audit_stats();
            assert_eq!((stats.failed, stats.shed), (0, 0), "{case}");
            setup.direct.delete(&setup.actor, &id).await.unwrap();
        }
    })
    .await;
}
