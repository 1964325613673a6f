//! Lost and silent connections, and those of a dropped store.

use std::time::{Duration, Instant};

use keygate::store::{KeyUse, OrgLimit, PostgresOptions};
use keygate::{KeyStore, StoreError};

use crate::postgres_support::{
    PATIENT, administrator, in_schema, in_session, key, new_key, org, schema_of, sessions_end,
    unique, url,
};
use crate::proxy::{Network, Proxy, address};

/// Ends the sessions of an application.
const KILL: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name = $1";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn killed_server_sessions_are_replaced() {
    in_schema(|options| async move {
        let name = unique("kg");
        let store = in_session(&schema_of(&options), &name).connect().await.unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        let administrator = administrator().await;
        let readers = (0..8).map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let begun = Instant::now();
                let mut failed = 0;
                while begun.elapsed() < Duration::from_secs(2) {
                    match store.find_by_digest(&key(1).digest).await {
                        Ok(found) => assert!(found.is_some()),
                        Err(StoreError::Unavailable(_)) => failed += 1,
                        Err(error) => panic!("{error:?}"),
                    }
                }
                failed
            })
        });
        let readers: Vec<_> = readers.collect();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(400)).await;
            assert!(administrator.query(KILL, &[&name]).await.unwrap().len() >= 2);
        }
        let mut failed = 0;
        for reader in readers {
            failed += reader.await.unwrap();
        }
        assert_eq!(failed, 0, "reads are retried");
        // The connection for transactions was killed as well.
        administrator.query(KILL, &[&name]).await.unwrap();
        store.insert(&key(2), OrgLimit::NONE).await.unwrap();
        let uses = [KeyUse { id: key(2).id, at: key(2).created_at }];
        store.record_uses(&uses).await.unwrap();
    })
    .await;
}

/// The pauses between reconnects start again after a working session.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn repeatedly_killed_sessions_are_replaced_as_quickly_as_the_first_ones() {
    in_schema(|options| async move {
        let name = unique("kg");
        let options = in_session(&schema_of(&options), &name).deadline(Duration::from_secs(1));
        let store = options.connect().await.unwrap();
        let administrator = administrator().await;
        for round in 0..10 {
            // Kill each of the connections in turn.
            for _ in 0..8 {
                let found = store.find_by_digest(&key(1).digest).await;
                assert!(found.is_ok(), "in round {round}: {found:?}");
            }
            administrator.query(KILL, &[&name]).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_dropped_store_leaves_no_session_behind() {
    in_schema(|options| async move {
        let name = unique("kg");
        let store = in_session(&schema_of(&options), &name).connect().await.unwrap();
        store.find_by_digest(&key(1).digest).await.unwrap();
        drop(store);
        sessions_end(&name).await;
    })
    .await;
}

/// A proxy that stops forwarding, like a network that drops packets.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn silent_connections_are_dropped_and_replaced() {
    in_schema(|options| async move {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, target): (tokio_postgres::Config, _) = (url().parse().unwrap(), url());
        let (_, rest) = target.split_once('@').unwrap();
        let address = rest.split_once('/').unwrap().0.to_owned();
        let (silence, silent) = tokio::sync::watch::channel(0_u32);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (address, mut silent) = (address.clone(), silent.clone());
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(address).await.unwrap();
                    silent.mark_unchanged();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = silent.changed() => std::future::pending().await,
                    }
                });
            }
        });
        let url = format!(
            "postgres://{}@127.0.0.1:{port}/{}",
            server.get_user().unwrap(),
            server.get_dbname().unwrap()
        );
        let deadline = Duration::from_secs(2);
        let store = PostgresOptions::from_url(&url)
            .unwrap()
            .schema(schema_of(&options))
            .unwrap()
            .deadline(deadline)
            .connect()
            .await
            .unwrap();
        store.insert(&key(1), OrgLimit::NONE).await.unwrap();
        for round in 1..=2 {
            silence.send(round).unwrap();
            let mut failed = 0;
            let begun = Instant::now();
            loop {
                let call = Instant::now();
                let found = store.find_by_digest(&key(1).digest).await;
                assert!(call.elapsed() < deadline * 2, "{:?}", call.elapsed());
                match found {
                    Ok(found) => break assert!(found.is_some()),
                    Err(StoreError::Unavailable(_)) => failed += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            assert!(failed <= 2, "at most one per connection");
            assert!(begun.elapsed() < deadline * 4);
        }
        // A caller with a shorter deadline than the store's succeeds too.
        silence.send(3).unwrap();
        let digest = key(1).digest;
        let mut tries = 0;
        let found = loop {
            tries += 1;
            let call = store.find_by_digest(&digest);
            if let Ok(Ok(found)) = tokio::time::timeout(deadline / 2, call).await {
                break found;
            }
            assert!(tries < 10);
        };
        assert!(found.is_some());
        // Finally the connection for transactions.
        let _ = store.insert(&key(2), OrgLimit::NONE).await;
        store.insert(&key(3), OrgLimit::NONE).await.unwrap();
    })
    .await;
}

/// If the network loses a call or its answer, the server's session is idle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn after_each_outage_that_loses_answers_changes_work_again() {
    in_schema(|options| async move {
        drop(options.clone().connect().await.unwrap());
        let proxy = Proxy::start(address(&url())).await;
        let near = PostgresOptions::from_url(&proxy.url(&url())).unwrap();
        let near = near.schema(schema_of(&options)).unwrap().deadline(Duration::from_millis(500));
        let store = loop {
            if let Ok(store) = near.clone().connect().await {
                break store;
            }
        };
        let fill = async |name| store.insert(&new_key(&org(name)), OrgLimit::NONE).await;
        // Enough that each of the four connections is lost twice.
        for outage in 1..=10 {
            proxy.set(Network::Silent);
            let lost = tokio::join!(fill("a"), fill("b"), fill("c"), fill("d"));
            assert!(matches!(lost, (Err(_), Err(_), Err(_), Err(_))), "{lost:?}");
            proxy.set(Network::Intact);
            let give_up = Instant::now() + PATIENT;
            while fill("e").await.is_err() {
                assert!(Instant::now() < give_up, "no change works after outage {outage}");
            }
        }
    })
    .await;
}
