//! Only the audit log is behind the proxy: what the declared mode promises, while keys can be read.

use std::time::Duration;

use keygate::store::PostgresOptions;
use keygate::{Delivery, KeyPatch, NewKey};

use crate::postgres_support::in_schema;
use crate::proxy::Network;
use crate::world::{DEADLINE, SLACK, World, is_unavailable, recovers, within};

const ILLS: [Network; 6] = [
    Network::Closed,
    Network::Silent,
    Network::BlackHole,
    Network::Reset,
    Network::Truncated(5),
    Network::Slow(Duration::from_secs(2)),
];

async fn world(options: &PostgresOptions, delivery: Delivery) -> World {
    World::with(options, |near, direct, builder| {
        builder(direct).audit(near).delivery(delivery.deadline(DEADLINE))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_strict_an_audit_database_that_is_ill_lets_no_answer_and_no_change_through() {
    in_schema(|options| async move {
        let world = world(&options, Delivery::strict()).await;
        for ill in ILLS {
            let case = format!("{ill:?}");
            let (key, revoked) = (world.key().await, world.key().await);
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            world.sure.update(&world.actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
            recovers!(&case, { world.request(secret, "/before").await == 200 });
            let before = world.db.key(id).await;
            world.proxy.set(ill);

            // Room in the queue, and the record: each has the deadline.
            let limit = DEADLINE * 3 + SLACK;
            for key in [&key, &revoked] {
                let status = world.request(key.secret.expose_secret(), "/meanwhile");
                assert_eq!(within(&case, limit, status).await, 503, "{case}");
            }
            let (keys, actor) = (&world.keys, &world.actor);
            let ids = world.db.ids(actor.org()).await;
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
            // What writes nothing to the log goes on.
            within(&case, limit, keys.verify(secret, None)).await.unwrap();
            assert_eq!(
                within(&case, limit, keys.list(actor.org())).await.unwrap().len(),
                ids.len()
            );

            world.proxy.set(Network::Intact);
            recovers!(&case, {
                world.request(secret, "/after").await == 200
                    && world.request(revoked.secret.expose_secret(), "/after").await == 401
            });
            assert_eq!(world.db.key(id).await, before, "{case}: no change without its record");
            assert_eq!(world.db.ids(actor.org()).await, ids, "{case}");
            let rows = world.db.requests(id).await;
            let after = ("/after".to_owned(), Some(200), "allowed".to_owned());
            assert!(rows.get(&after).is_some_and(|&rows| rows >= 1), "{case}: {rows:?}");
            for id in ids {
                world.sure.delete(actor, &id.parse().unwrap()).await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_buffered_an_audit_database_that_is_ill_holds_up_no_answer_and_loses_nothing() {
    in_schema(|options| async move {
        let world = world(&options, Delivery::buffered()).await;
        for ill in ILLS {
            let case = format!("{ill:?}");
            let key = world.key().await;
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            world.proxy.set(ill);
            let mut sent = Vec::new();
            for number in 0..60 {
                let path = format!("/{number}");
                let status = within(&case, SLACK, world.request(secret, &path)).await;
                assert_eq!(status, 200, "{case}");
                sent.push((path, Some(200), "allowed".to_owned()));
                if number % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
            }
            tokio::time::sleep(DEADLINE * 2).await;
            world.proxy.set(Network::Intact);
            recovers!(&case, { world.db.requests(id).await.len() == sent.len() });
            let rows = world.db.requests(id).await;
            assert!(sent.iter().all(|row| rows.get(row) == Some(&1)), "{case}: {rows:?}");
            recovers!(&case, { world.keys.audit_stats().queued == 0 });
            let stats = world.keys.audit_stats();
            assert_eq!((stats.failed, stats.shed), (0, 0), "{case}");
            world.sure.delete(&world.actor, &id).await.unwrap();
        }
    })
    .await;
}
