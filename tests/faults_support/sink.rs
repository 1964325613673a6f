//! Faults of the audit log only: each delivery mode keeps its promise, and keys can be read.

use std::time::Duration;

use keygate::{Delivery, KeyPatch, NewKey};

use crate::postgres_support::in_schema;
use crate::proxy::Network;
use crate::world::{DEADLINE, SLACK, World, is_unavailable, recovers, within};

const FAULTS: [Network; 6] = [
    Network::Closed,
    Network::Silent,
    Network::BlackHole,
    Network::Reset,
    Network::Truncated(5),
    Network::Slow(Duration::from_secs(2)),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_strict_a_fault_of_the_audit_log_stops_every_answer_and_every_change() {
    in_schema(|options| async move {
        let world = World::of_log(&options, Delivery::strict()).await;
        let (keys, actor) = (&world.keys, &world.actor);
        for fault in FAULTS {
            let case = format!("{fault:?}");
            let (key, revoked) = (world.key().await, world.revoked_key().await);
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            recovers!(&case, { world.request(secret, "/before").await == 200 });
            let (before, ids) = (world.db.key(id).await, world.db.ids(actor.org()).await);
            world.proxy.set(fault);

            // The place in the queue and the record have one deadline each.
            let limit = DEADLINE * 3 + SLACK;
            for key in [&key, &revoked] {
                let status = world.request(key.secret.expose_secret(), "/during");
                assert_eq!(within(&case, limit, status).await, 503, "{case}");
            }
            let create = keys.create(actor, NewKey::named("CI").unwrap());
            let update = keys.update(actor, &id, KeyPatch::revoke());
            for failed in [
                within(&case, limit, create).await.map(drop),
                within(&case, limit, update).await.map(drop),
                within(&case, limit, keys.rotate(actor, &id)).await.map(drop),
                within(&case, limit, keys.delete(actor, &id)).await,
            ] {
                assert!(failed.as_ref().is_err_and(is_unavailable), "{case}: {failed:?}");
            }
            // Calls without a record work.
            within(&case, limit, keys.verify(secret, None)).await.unwrap();
            let list = within(&case, limit, keys.list(actor.org())).await.unwrap();
            assert_eq!(list.len(), ids.len());

            world.proxy.set(Network::Intact);
            recovers!(&case, {
                world.request(secret, "/after").await == 200
                    && world.request(revoked.secret.expose_secret(), "/after").await == 401
            });
            assert_eq!(world.db.key(id).await, before, "{case}: a change without its record");
            assert_eq!(world.db.ids(actor.org()).await, ids, "{case}");
            let rows = world.db.requests(id).await;
            let after = ("/after".to_owned(), Some(200), "allowed".to_owned());
            assert!(rows.contains_key(&after), "{case}: {rows:?}");
            world.delete_all_keys().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_buffered_a_fault_of_the_audit_log_delays_no_answer_and_loses_no_record() {
    in_schema(|options| async move {
        let world = World::of_log(&options, Delivery::buffered()).await;
        for fault in FAULTS {
            let case = format!("{fault:?}");
            let key = world.key().await;
            let (id, secret) = (key.key.id, key.secret.expose_secret());
            world.proxy.set(fault);
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
            world.delete_all_keys().await;
        }
    })
    .await;
}
