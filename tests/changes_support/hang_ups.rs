//! Changes whose callers hang up.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::Request;
use axum::middleware::{self, Next};
use keygate::audit::{AuditEvent, AuditQuery, AuditRecord, AuditScope, ChangePhase};
use keygate::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinSet, yield_now};

use crate::changes_support::{Rng, Setup, actor, dropped_after, new_key};
use crate::support::PATIENCE;

const ORGS: [&str; 4] = ["a", "b", "c", "d"];

/// Changes the keys of one organisation and mostly does not wait for the result.
async fn hang_up_repeatedly(setup: Setup, org: &'static str, seed: usize) {
    let (rng, actor, manager) = (Rng::default(), actor(org), &setup.keys);
    for _ in 0..seed {
        rng.below(2);
    }
    for turn in 0..600 {
        let keys = setup.store.keys.list(actor.org()).await.unwrap();
        let polls = rng.below(60);
        let key = keys.get(rng.below(20) as usize).map(|key| key.id);
        let change = rng.below(5);
        let call = async {
            match (change, key) {
                (1, Some(id)) => drop(manager.rotate(&actor, &id).await),
                (2, Some(id)) => {
                    let patch = KeyPatch::rename(KeyName::new(format!("n{turn}")).unwrap());
                    drop(manager.update(&actor, &id, patch).await);
                }
                (3, Some(id)) => drop(manager.delete(&actor, &id).await),
                _ => drop(manager.create(&actor, new_key()).await),
            }
        };
        dropped_after(polls, call).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_49_a_change_whose_caller_is_dropped_has_happened_or_is_abandoned() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let setup = Setup::new(delivery.clone());
        let mut callers = JoinSet::new();
        // Two tasks for each organisation, so that their changes collide.
        for (seed, org) in ORGS.into_iter().cycle().take(2 * ORGS.len()).enumerate() {
            callers.spawn(hang_up_repeatedly(setup.clone(), org, seed));
        }
        callers.join_all().await;
        let (took_place, abandoned) = setup.settle(&ORGS).await;
        assert!(took_place > 500 && abandoned > 50, "{delivery:?}: {took_place} {abandoned}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_49_a_change_whose_http_client_hangs_up_has_happened_or_is_abandoned() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let setup = Setup::new(delivery.clone());
        let login = async |mut request: Request, next: Next| {
            request.extensions_mut().insert(actor("a"));
            next.run(request).await
        };
        let app = keygate::admin::router(setup.keys.clone()).layer(middleware::from_fn(login));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, app).await });

        let rng = Rng::default();
        for turn in 0..800 {
            let keys = setup.store.keys.list(actor("a").org()).await.unwrap();
            let key = keys.get(rng.below(20) as usize);
            let (line, body) = match (rng.below(5), key) {
                (1, Some(key)) => (
                    format!("POST /keys/{}/rotate", key.id),
                    format!(r#"{{"confirm_name":"{}"}}"#, key.name.as_str()),
                ),
                (2, Some(key)) => {
                    (format!("PATCH /keys/{}", key.id), format!(r#"{{"name":"n{turn}"}}"#))
                }
                (3, Some(key)) => (
                    format!("DELETE /keys/{}?confirm_name={}", key.id, key.name.as_str()),
                    String::new(),
                ),
                _ => ("POST /keys".into(), r#"{"name":"k","expiration":"never"}"#.into()),
            };
            let request = format!(
                "{line} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let mut client = TcpStream::connect(address).await.unwrap();
            client.set_nodelay(true).unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            if rng.below(4) == 0 {
                // Waits for the response.
                client.read_u8().await.unwrap();
            } else {
                for _ in 0..rng.below(30) {
                    yield_now().await;
                }
            }
        }
        // Ends every request.
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        let (took_place, _) = setup.settle(&["a"]).await;
        assert!(took_place > 200, "{delivery:?}: {took_place}");
    }
}

#[tokio::test]
async fn case_49_a_shutdown_waits_for_changes_whose_callers_hung_up() {
    let (setup, a) = (Setup::new(Delivery::buffered()), actor("a"));
    let issued = setup.keys.create(&a, new_key()).await.unwrap();
    setup.store.close();
    assert!(dropped_after(200, setup.keys.rotate(&a, &issued.key.id)).await.is_none());
    setup.store.is_waiting().await;

    let mut shutdown = pin!(setup.keys.shutdown(2 * PATIENCE));
    assert!(dropped_after(200, shutdown.as_mut()).await.is_none());
    let refused = setup.keys.create(&a, new_key()).await;
    assert!(matches!(refused, Err(ManageError::Unavailable(_))), "{refused:?}");
    setup.store.open();
    assert!(shutdown.await.is_complete());
    let refused = setup.keys.verify(issued.secret.expose_secret(), None).await;
    assert!(refused.is_err(), "the old secret still works after the rotation");
    setup.settle(&["a"]).await;
}

#[tokio::test]
async fn case_49_a_shutdown_reports_the_changes_it_did_not_wait_for() {
    let (setup, a) = (Setup::new(Delivery::buffered()), actor("a"));
    setup.store.close();
    assert!(dropped_after(200, setup.keys.create(&a, new_key())).await.is_none());
    setup.store.is_waiting().await;
    let report = setup.keys.shutdown(Duration::from_millis(50)).await;
    assert_eq!((report.unfinished_changes, report.is_complete()), (1, false));
    assert_eq!(report.unwritten_records, 0, "every record was written");
}

/// A log whose first write waits, and may then report a failure although it succeeded.
#[derive(Debug, Default)]
struct HeldLog {
    log: MemoryAuditLog,
    fails: bool,
    reached: Notify,
    released: Notify,
}

#[async_trait]
impl AuditSink for HeldLog {
    async fn record(&self, batch: &[AuditRecord]) -> Result<(), AuditError> {
        let is_first = self.log.is_empty();
        if is_first {
            self.reached.notify_one();
            self.released.notified().await;
        }
        self.log.record(batch).await?;
        if is_first && self.fails {
            Err(AuditError::unavailable("the answer was lost"))
        } else {
            Ok(())
        }
    }
}

#[tokio::test]
async fn case_49_a_record_without_a_change_is_marked_as_abandoned() {
    for fails in [false, true] {
        let store = Arc::new(MemoryStore::new());
        let log = Arc::new(HeldLog { fails, ..HeldLog::default() });
        let delivery = Delivery::buffered().deadline(PATIENCE);
        let keys = KeyManager::builder(store.clone()).audit_sink(log.clone()).delivery(delivery);
        let (keys, a) = (keys.build().unwrap(), actor("a"));
        let mut created = Box::pin(keys.create(&a, new_key()));
        assert!(dropped_after(1, created.as_mut()).await.is_none());
        log.reached.notified().await;
        log.released.notify_one();
        if fails {
            let refused = created.await;
            assert!(matches!(refused, Err(ManageError::Unavailable(_))), "{refused:?}");
        } else {
            drop(created);
        }
        assert_eq!(keys.shutdown(PATIENCE).await.unfinished_changes, 0);
        let query = AuditQuery::new(a.org().clone(), AuditScope::OrgChanges);
        let records = log.log.page(&query).await.unwrap().records;
        let phases = records.iter().map(|record| match &record.event {
            AuditEvent::Change(change) => change.phase,
            other => panic!("{other:?}"),
        });
        let expected = [ChangePhase::Abandoned, ChangePhase::Begun];
        assert_eq!(Vec::from_iter(phases), expected, "newest first; fails: {fails}");
        assert!(store.list(a.org()).await.unwrap().is_empty());
    }
}
