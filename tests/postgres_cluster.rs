//! `PostgresStore` on servers of the test's own, which are killed, refuse, or stand behind
//! others: `cargo test --all-features --test postgres_cluster -- --ignored`.
//!
//! Needs PostgreSQL's server binaries, `openssl` and `pgbouncer`; as root also
//! `setpriv` and a user `postgres`, since the server does not run as root.
#![cfg(all(target_os = "linux", feature = "postgres-tls", feature = "conformance"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests"
)]

mod cluster_support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use keygate::error::PostgresOpenError;
use keygate::store::{KeyUse, PostgresOptions};
use keygate::{
    Actor, ApiKey, KeyManager, KeyPatch, KeyStore, ManageError, NewKey, OrgId, PostgresStore,
    Status, StoreError, VerifyError, conformance,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;

use crate::cluster_support::certificates::write_certificates;
use crate::cluster_support::changes::number;
use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::pgbouncer::PgBouncer;
use crate::cluster_support::port::free_port;
use crate::cluster_support::process::PATIENCE;
use crate::cluster_support::worker::Worker;

const DEADLINE: Duration = Duration::from_secs(1);
/// Concurrent suites on a small machine are slow.
const PATIENT: Duration = Duration::from_secs(10);

fn options(url: &str) -> PostgresOptions {
    PostgresOptions::from_url(url).unwrap()
}

/// Checks that the store really works.
async fn use_once(store: &PostgresStore) {
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "tester");
    let made = keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap();
    keys.verify(made.secret.expose_secret(), None).await.unwrap();
    keys.delete(&actor, &made.key.id).await.unwrap();
}

/// Waits until the condition holds.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

// ------------------------------------------------------------------- a killed server

/// State shared by the tasks of one round.
#[derive(Debug, Default)]
struct Round {
    done: AtomicU32,
    failing: AtomicU32,
    restarted: AtomicBool,
    over: AtomicBool,
}

const WORKERS: u32 = 3;
const VERIFIERS: u32 = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_killed_server_loses_no_change_and_leaves_none_half_done() {
    let mut cluster = Cluster::start();
    let store = options(&cluster.url("")).deadline(DEADLINE).connect().await.unwrap();
    let steady = KeyManager::builder(store.clone()).build().unwrap();
    let actor = Actor::new(OrgId::new("steady").unwrap(), "tester");
    let secret = steady.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap().secret;
    let mut workers: Vec<_> =
        (0..WORKERS).map(|n| Worker::new(&store, &format!("org-{n}"))).collect();
    let mut in_doubt = Vec::new();
    for round in 0..6 {
        let state = Arc::new(Round::default());
        let working: Vec<_> = workers
            .drain(..)
            .map(|mut worker| {
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    while worker.change().await {
                        state.done.fetch_add(1, Ordering::SeqCst);
                        // A short outage may fall between two statements.
                        if state.restarted.load(Ordering::SeqCst) {
                            return (worker, Instant::now());
                        }
                    }
                    state.failing.fetch_add(1, Ordering::SeqCst);
                    worker.wait_for_recovery().await;
                    (worker, Instant::now())
                })
            })
            .collect();
        let verifying: Vec<_> = (0..VERIFIERS)
            .map(|_| {
                let (state, keys) = (Arc::clone(&state), steady.clone());
                let secret = secret.expose_secret().to_owned();
                tokio::spawn(verify_continuously(state, keys, secret))
            })
            .collect();
        // The moment of the kill: after a number of changes, plus some microseconds.
        let changes = 10 + (number() % 40) as u32;
        // Or after a number of failures, if on a busy machine no worker makes changes any
        // more.
        let so_many = || state.done.load(Ordering::SeqCst) >= changes;
        let stopped = || state.failing.load(Ordering::SeqCst) >= WORKERS;
        until("changes", || so_many() || stopped()).await;
        let moment = Instant::now() + Duration::from_micros(number() % 3_000);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        cluster.kill();
        // Alternate between a short outage and one that affects every task.
        if round % 2 == 0 {
            let all = WORKERS + VERIFIERS;
            until("failures", || state.failing.load(Ordering::SeqCst) >= all).await;
        }
        cluster = tokio::task::spawn_blocking(move || {
            cluster.run();
            cluster
        })
        .await
        .unwrap();
        let accepting = Instant::now();
        state.restarted.store(true, Ordering::SeqCst);
        for worker in working {
            let (worker, recovered) =
                tokio::time::timeout(PATIENCE, worker).await.unwrap().unwrap();
            let took = recovered.saturating_duration_since(accepting);
            assert!(took < DEADLINE * 5, "recovered only after {took:?}");
            assert!(worker.longest_call < DEADLINE * 4, "a call of {:?}", worker.longest_call);
            workers.push(worker);
        }
        state.over.store(true, Ordering::SeqCst);
        for verifier in verifying {
            let longest = tokio::time::timeout(PATIENCE, verifier).await.unwrap().unwrap();
            assert!(longest < DEADLINE * 4, "a verification of {longest:?}");
        }
        for worker in &mut workers {
            in_doubt.extend(worker.check().await);
        }
    }
    println!("changes in doubt, and whether they took effect: {in_doubt:?}");
    assert!(!in_doubt.is_empty(), "nothing was interrupted");
}

/// The key is right or its state is unknown. Any other result fails the test.
async fn verify_continuously(state: Arc<Round>, keys: KeyManager, secret: String) -> Duration {
    let (mut longest, mut failed) = (Duration::ZERO, false);
    loop {
        let over = state.over.load(Ordering::SeqCst);
        let begun = Instant::now();
        let verified = keys.verify(&secret, None).await;
        longest = longest.max(begun.elapsed());
        match verified {
            Ok(key) => assert_eq!(key.org().as_str(), "steady"),
            Err(VerifyError::Unavailable(error)) => {
                assert!(!over, "it does not work after the recovery: {error:?}");
                if !failed {
                    state.failing.fetch_add(1, Ordering::SeqCst);
                }
                failed = true;
            }
            Err(error) => panic!("{error:?}"),
        }
        if over {
            return longest;
        }
        tokio::task::yield_now().await;
    }
}

// ---------------------------------------------------------------- several hosts

/// Accepts connections and never answers.
async fn black_hole() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let held = async move {
        let mut held = Vec::new();
        while let Ok(connection) = listener.accept().await {
            held.push(connection);
        }
    };
    (port, tokio::spawn(held))
}

fn two_hosts(first: u16, second: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn an_unusable_host_is_skipped() {
    let cluster = Cluster::start();
    let standby = Cluster::start();
    standby.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    standby.sql("SELECT pg_reload_conf()");
    let (silent, _held) = black_hole().await;
    for (what, first) in [
        ("silent", silent),
        ("closed", free_port()),
        ("standby", standby.port()),
        ("ends each session", server_that_answers(b"").await),
    ] {
        let begun = Instant::now();
        let url = two_hosts(first, cluster.port());
        let connecting = options(&url).deadline(DEADLINE).connect();
        let store = tokio::time::timeout(PATIENCE, connecting).await.unwrap();
        let store = store.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(begun.elapsed() < DEADLINE * 4, "{what}: {:?}", begun.elapsed());
        use_once(&store).await;
    }
    // The first host is random, and a working one is always found.
    for _ in 0..4 {
        let url = two_hosts(standby.port(), cluster.port()) + "?load_balance_hosts=random";
        use_once(&options(&url).connect().await.unwrap()).await;
    }
    // The given addresses are used, whatever the host names resolve to.
    let (port, hosts) = (cluster.port(), "no-such-host.invalid");
    let url = format!("postgres://postgres@{hosts}:{port}/postgres?hostaddr=127.0.0.1");
    use_once(&options(&url).connect().await.unwrap()).await;
    let url = format!("postgres://postgres@{hosts}:{port},localhost:{port}/postgres");
    use_once(&options(&url).deadline(PATIENT).connect().await.unwrap()).await;
}

/// A server that ends its first session like this and then forwards to the other port.
async fn server_that_first_answers(bytes: &'static [u8], port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let first = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(bytes).await;
        drop(stream);
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    first
}

/// If the other host is an old primary, it does not know the latest revocations.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_host_that_ends_a_session_during_its_start_is_tried_again() {
    let other = Cluster::start();
    let ended = b"E\0\0\0\x21SFATAL\0VFATAL\0C57P01\0Mended\0\0";
    for first in [&ended[..], b""] {
        let cluster = Cluster::start();
        let url = two_hosts(server_that_first_answers(first, cluster.port()).await, other.port());
        use_once(&options(&url).deadline(PATIENT).connect().await.unwrap()).await;
        let tables = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'keys'";
        assert_eq!((cluster.ask(tables).trim(), other.ask(tables).trim()), ("1", "0"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_host_that_goes_silent_later_is_skipped_by_every_call() {
    let (mut first, second) = (Cluster::start(), Cluster::start());
    let url = two_hosts(first.port(), second.port());
    let store = options(&url).deadline(DEADLINE).connect().await.unwrap();
    use_once(&store).await;
    // A second host to fail over to.
    options(&second.url("")).connect().await.unwrap();
    first.kill();
    let listener = TcpListener::bind(("127.0.0.1", first.port())).await.unwrap();
    let begun = Instant::now();
    let key = {
        let keys = KeyManager::builder(store.clone()).build().unwrap();
        let actor = Actor::new(OrgId::new("acme").unwrap(), "tester");
        loop {
            // The call fails over on the connection that is opened within its deadline.
            match keys.create(&actor, NewKey::named("CI deploy").unwrap()).await {
                Ok(made) => break made.key,
                Err(error) => assert!(begun.elapsed() < DEADLINE * 6, "{error:?}"),
            }
        }
    };
    assert_eq!(key.org.as_str(), "acme");
    use_once(&store).await;
    drop(listener);
}

#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn of_several_failures_the_most_informative_is_reported() {
    let strict = Cluster::with(&[], "local all all trust\nhost all all all reject\n", |_| {});
    let standby = Cluster::with(
        &["default_transaction_read_only = on"],
        "local all all trust\nhost all all all trust\n",
        |_| {},
    );
    let (closed, (silent, _held)) = (free_port(), black_hole().await);
    let refused = async |first, second| {
        let options = options(&two_hosts(first, second)).deadline(DEADLINE / 2);
        options.connect().await.unwrap_err()
    };
    for (first, second) in [(strict.port(), closed), (standby.port(), strict.port())] {
        let error = refused(first, second).await;
        let PostgresOpenError::AccessDenied { servers, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*servers, format!("127.0.0.1:{}", strict.port()));
    }
    let error = refused(standby.port(), standby.port()).await;
    assert!(matches!(error, PostgresOpenError::ReadOnly { .. }), "{error:?}");
    let error = refused(standby.port(), closed).await;
    let PostgresOpenError::Unreachable { servers, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*servers, format!("127.0.0.1:{closed}"));
    let error = refused(standby.port(), silent).await;
    let PostgresOpenError::NoAnswer { servers, waited } = &error else { panic!("{error:?}") };
    assert_eq!((servers, *waited <= DEADLINE / 2), (&format!("127.0.0.1:{silent}"), true));
}

// ------------------------------------------- errors that tokio-postgres reports as text

/// A server that answers the first message with these bytes and hangs up.
async fn server_that_answers(bytes: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    port
}

#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn errors_of_the_client_library_are_distinguished() {
    let access = "local all all trust\nhost all all all scram-sha-256\n";
    let cluster = Cluster::with(&[], access, |_| {});
    cluster.sql("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'sesame'");
    let at = |user: &str| format!("postgres://{user}@127.0.0.1:{}/postgres", cluster.port());
    let refused = async |url: String| PostgresStore::connect(&url).await.unwrap_err();
    // Each connection computes its password hash for a while, without optimisation.
    let known = options(&at("app:sesame")).deadline(PATIENT);
    use_once(&known.connect().await.unwrap()).await;
    // No password, and a wrong one.
    for url in [at("app"), at("app:barley")] {
        let error = refused(url).await;
        assert!(matches!(error, PostgresOpenError::AccessDenied { .. }), "{error:?}");
        assert!(!format!("{error:?}").contains("barley"), "{error:?}");
    }
    // A channel binding that is not possible, and an unknown method.
    let kerberos = server_that_answers(b"R\0\0\0\x08\0\0\0\x02").await;
    for url in [
        at("app:sesame") + "?channel_binding=require",
        format!("postgres://app:sesame@127.0.0.1:{kerberos}/postgres"),
    ] {
        let error = refused(url).await;
        assert!(matches!(error, PostgresOpenError::AccessDenied { .. }), "{error:?}");
    }
    let error = refused(at("app:sesame") + "?sslmode=require").await;
    assert!(matches!(error, PostgresOpenError::Tls { .. }), "{error:?}");
    // A connection that ends before the session has begun.
    for port in [free_port(), server_that_answers(b"").await] {
        let error = refused(format!("postgres://app@127.0.0.1:{port}/postgres")).await;
        assert!(matches!(error, PostgresOpenError::Unreachable { .. }), "{error:?}");
    }
    // A server that is not PostgreSQL.
    let http = server_that_answers(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let error = refused(format!("postgres://app@127.0.0.1:{http}/postgres")).await;
    assert!(
        matches!(error, PostgresOpenError::Failed { .. } | PostgresOpenError::Unreachable { .. }),
        "{error:?}"
    );
}

/// The store treats these as errors of a value and keeps the connection.
#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn the_store_recognises_the_error_texts_about_values() {
    let cluster = Cluster::start();
    let (client, connection) =
        tokio_postgres::connect(&cluster.url(""), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = client.query_one("SELECT 1", &[]).await.unwrap();
    let deserializing = row.try_get::<_, String>(0).unwrap_err();
    let column = row.try_get::<_, i32>("no_such_column").unwrap_err();
    let serializing = client.query("SELECT $1::text", &[&1]).await.unwrap_err();
    let parameters = client.query("SELECT $1::text", &[]).await.unwrap_err();
    for (error, start) in [
        (deserializing, "error deserializing"),
        (column, "invalid column"),
        (serializing, "error serializing"),
        (parameters, "expected "),
    ] {
        assert!(error.to_string().starts_with(start), "{error}");
    }
}

// -------------------------------------------------------------------------- TLS

#[test]
#[ignore = "not a test: a process with other trusted certificates"]
fn tls_child() {
    let Ok(url) = std::env::var("KEYGATE_TLS_CHILD") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match options(&url).deadline(PATIENT).connect().await {
            Ok(store) => {
                use_once(&store).await;
                println!("outcome: it works");
            }
            Err(PostgresOpenError::Tls { source, .. }) => println!("outcome: Tls: {source:?}"),
            Err(PostgresOpenError::AccessDenied { .. }) => println!("outcome: AccessDenied"),
            Err(other) => println!("outcome: {other:?}"),
        }
    });
}

/// The output of a process that trusts only the certificates of this file.
fn outcome_of_tls(url: &str, trusted: &std::path::Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "tls_child"])
        .env("KEYGATE_TLS_CHILD", url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcome = text.lines().find_map(|line| line.split_once("outcome: "));
    outcome.unwrap_or_else(|| panic!("{output:?}")).1.to_owned()
}

#[test]
#[ignore = "needs PostgreSQL's server binaries and openssl"]
fn tls_accepts_only_trusted_servers() {
    let access = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
    let cluster = Cluster::with(&["ssl = on"], access, write_certificates);
    let trusted = cluster.folder().join("data/authority.crt");
    let (port, other) = (cluster.port(), tempfile::tempdir().unwrap());
    write_certificates(other.path());
    let at = |host: &str, query: &str| {
        format!("postgres://postgres@{host}:{port}/postgres?sslmode=require{query}")
    };
    let works = |url: &str| assert_eq!(outcome_of_tls(url, &trusted), "it works", "{url}");
    let refused = |url: &str, trusted: &std::path::Path, why: &str| {
        let outcome = outcome_of_tls(url, trusted);
        assert!(outcome.starts_with("Tls: ") && outcome.contains(why), "{url}: {outcome}");
    };
    works(&at("localhost", ""));
    // The host name counts, not how its address was found.
    works(&at("localhost", "&hostaddr=127.0.0.1"));
    works(&at("no-such-host.invalid:1,localhost", ""));
    refused(&at("127.0.0.1", ""), &trusted, "NotValidForName");
    refused(&at("db.invalid", "&hostaddr=127.0.0.1"), &trusted, "NotValidForName");
    refused(&at("localhost", ""), &other.path().join("authority.crt"), "BadSignature");
    refused(&at("localhost", ""), std::path::Path::new("/dev/null"), "UnknownIssuer");
    // The server does require TLS.
    let plain = outcome_of_tls(&at("localhost", "").replace("require", "disable"), &trusted);
    assert_eq!(plain, "AccessDenied");
}

// -------------------------------------------------------------------- PgBouncer

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn the_store_conforms_behind_pgbouncer() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let options = options(&bouncer.url("")).prepared(false).deadline(PATIENT);
    let store = options.connections(4).connect().await.unwrap();
    conformance::check_store(|| async { store.clone() }).await.unwrap();
    conformance::check_audit_log(|| async { store.clone() }).await.unwrap();
}

const CROWDED: Duration = Duration::from_secs(4);

/// Many tasks on two stores share fewer sessions. Counts correct answers and failures.
async fn crowd(bouncer: &PgBouncer, prepared: bool, deadline: Duration) -> (u32, Vec<String>) {
    let options = options(&bouncer.url("")).prepared(prepared).deadline(deadline);
    let stores = [options.clone().connect().await.unwrap(), options.connect().await.unwrap()];
    let until = Instant::now() + CROWDED;
    let tasks: Vec<_> = (0..16)
        .map(|n| tokio::spawn(one_of_them(stores[n % 2].clone(), n, until, deadline)))
        .collect();
    let (mut right, mut failed) = (0, Vec::new());
    for task in tasks {
        let (its_right, its_failed) = task.await.unwrap();
        right += its_right;
        failed.extend(its_failed);
    }
    (right, failed)
}

/// Many tasks on a store that does not wait for its answers. The server is slow with some of
/// them, so that one connection after the other is closed. Counts the interrupted calls.
async fn hasty_crowd(cluster: &Cluster, bouncer: &PgBouncer) -> usize {
    let options = options(&bouncer.url("?connect_timeout=5")).prepared(false);
    let patient = options.clone().deadline(PATIENT).connect().await.unwrap();
    let keys = KeyManager::builder(patient).store_deadline(PATIENT).build().unwrap();
    let actor = Actor::new(OrgId::new("hasty").unwrap(), "tester");
    let made = keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap();
    cluster.sql(
        "CREATE FUNCTION keygate.dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF random() < 0.3 THEN PERFORM pg_sleep(0.05); END IF; RETURN NULL; END $$; \
         CREATE TRIGGER dawdle BEFORE UPDATE ON keygate.keys FOR EACH ROW \
         WHEN (OLD.org = 'hasty') EXECUTE FUNCTION keygate.dawdle()",
    );
    let store = options.deadline(Duration::from_millis(30)).connect().await.unwrap();
    let uses = KeyUse { id: made.key.id, at: made.key.created_at };
    let until = Instant::now() + CROWDED;
    let hasty = |store: PostgresStore| async move {
        let mut broken_off = 0;
        while Instant::now() < until {
            broken_off += usize::from(store.record_uses(&[uses]).await.is_err());
        }
        broken_off
    };
    let tasks: Vec<_> = (0..16).map(|_| tokio::spawn(hasty(store.clone()))).collect();
    let mut broken_off = 0;
    for task in tasks {
        broken_off += task.await.unwrap();
    }
    broken_off
}

/// Uses its own keys, so that an answer for another task would be noticed.
async fn one_of_them(
    store: PostgresStore,
    n: usize,
    until: Instant,
    deadline: Duration,
) -> (u32, Vec<String>) {
    let keys = KeyManager::builder(store).store_deadline(deadline).build().unwrap();
    let actor = Actor::new(OrgId::new(format!("org-{n}")).unwrap(), "tester");
    let (mut right, mut failed) = (0, Vec::new());
    while Instant::now() < until {
        let begun = Instant::now();
        let made = match keys.create(&actor, NewKey::named("CI deploy").unwrap()).await {
            Ok(made) => made,
            // A change in doubt had taken place.
            Err(ManageError::LimitReached { .. }) if !failed.is_empty() => break,
            Err(error) => {
                failed.push(format!("{error:?}"));
                continue;
            }
        };
        assert!(begun.elapsed() < deadline * 4, "{:?}", begun.elapsed());
        for _ in 0..20 {
            let begun = Instant::now();
            match keys.verify(made.secret.expose_secret(), None).await {
                Ok(key) => {
                    assert_eq!((key.id(), key.org()), (made.key.id, actor.org()));
                    right += 1;
                }
                Err(error) => failed.push(format!("{error:?}")),
            }
            assert!(begun.elapsed() < deadline * 4, "{:?}", begun.elapsed());
        }
        if let Err(error) = keys.delete(&actor, &made.key.id).await {
            failed.push(format!("{error:?}"));
        }
    }
    (right, failed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn concurrent_callers_behind_pgbouncer_get_their_own_answers() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let (crowd, broken_off) =
        tokio::join!(crowd(&bouncer, false, PATIENT), hasty_crowd(&cluster, &bouncer));
    let (right, failed) = crowd;
    println!("without: {right} right, {} failed, {broken_off} broken off", failed.len());
    assert_eq!((right > 100, failed), (true, Vec::new()));
    assert!(broken_off > 100, "{broken_off}");
}

/// The limits of a session do not apply through a pooler; those of a statement do.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn case_44_behind_pgbouncer_a_change_that_timed_out_never_takes_effect() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 8, "");
    let options = options(&bouncer.url("")).prepared(false);
    let direct = options.clone().deadline(PATIENT).connect().await.unwrap();
    let keys = KeyManager::builder(direct.clone()).build().unwrap();
    let actor = Actor::new(OrgId::new("acme").unwrap(), "tester");
    let made = keys.create(&actor, NewKey::named("CI deploy").unwrap()).await.unwrap();
    let revoked = keys.update(&actor, &made.key.id, KeyPatch::revoke()).await.unwrap();
    for lock in ["SELECT 1 FROM keygate.keys FOR UPDATE", "LOCK TABLE keygate.keys IN SHARE MODE"] {
        let store = options.clone().deadline(DEADLINE).connect().await.unwrap();
        let (db, connection) = tokio_postgres::connect(&cluster.url(""), NoTls).await.unwrap();
        tokio::spawn(connection);
        db.batch_execute(&format!("BEGIN; {lock}")).await.unwrap();
        let revision = revoked.revision;
        let enabled =
            ApiKey { status: Status::Active, revision: revision.next(), ..ApiKey::clone(&revoked) };
        let changed = store.replace(&enabled, revision).await;
        let error = changed.unwrap_err();
        // The wait for a lock on the table begins before the statement's own limits apply, and
        // the pooler may take its time to cancel it.
        let in_doubt = matches!(error, StoreError::InDoubt(_)) && lock.starts_with("LOCK");
        assert!(in_doubt || matches!(error, StoreError::Unavailable(_)), "{error:?}");
        db.batch_execute("ROLLBACK").await.unwrap();
        drop(store);
        // A statement that queued behind it on the same row: all earlier ones have ended.
        let renamed = ApiKey { revision: revision.next(), ..ApiKey::clone(&revoked) };
        direct.replace(&renamed, revision).await.unwrap();
        let back = ApiKey { revision, ..ApiKey::clone(&revoked) };
        direct.replace(&back, revision.next()).await.unwrap();
    }
}

/// A wrong setting: calls fail and get answers that were meant for others. Even then no call
/// returns another key, and none hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn prepared_statements_behind_pgbouncer_fail_in_time() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let (right, failed) = crowd(&bouncer, true, DEADLINE).await;
    println!("prepared: {right} right, {} failed", failed.len());
    assert!(right > 0, "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL and PgBouncer"]
async fn pgbouncer_accepts_the_parameters_that_the_store_sends() {
    let cluster = Cluster::start();
    let bouncer = PgBouncer::start(&cluster, 3, "");
    let store = options(&bouncer.url("")).prepared(false).connect().await.unwrap();
    use_once(&store).await;
    // `options` is a setting of the host and not among them.
    let with = "?options=-cgeqo%3Doff";
    let error = options(&bouncer.url(with)).prepared(false).connect().await.unwrap_err();
    let PostgresOpenError::Failed { source, .. } = &error else { panic!("{error:?}") };
    assert!(format!("{source:?}").contains("unsupported startup parameter: options"), "{error:?}");
    let bouncer = PgBouncer::start(&cluster, 3, "ignore_startup_parameters = options");
    use_once(&options(&bouncer.url(with)).prepared(false).connect().await.unwrap()).await;
}
