//! The steps of `src/guide/restore.md`, word for word, beside a running service.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::store::PostgresOptions;
use keygate::{Allowlist, KeyManager, KeyPatch, PlaintextKey, PostgresStore};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

use crate::caches::{Process, actor, new};
use crate::postgres_support::{PATIENT, administrator, unique, url};
use crate::recorder::Recorder;

const GUIDE: &str = include_str!("../../src/guide/restore.md");

/// Runs a test with the URL of its own database, which is dropped even when the test fails.
async fn in_database<F>(test: impl FnOnce(String) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let (database, administrator) = (unique("keygate_test"), administrator().await);
    administrator.batch_execute(&format!("CREATE DATABASE {database}")).await.unwrap();
    let server = url().rsplit_once('/').unwrap().0.to_owned();
    let outcome = tokio::spawn(test(format!("{server}/{database}"))).await;
    let drop = format!("DROP DATABASE {database} WITH (FORCE)");
    administrator.batch_execute(&drop).await.unwrap();
    if let Err(error) = outcome {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// A service with its database, and the folder in which the steps run.
struct Setup {
    url: String,
    folder: TempDir,
    store: PostgresStore,
    keys: KeyManager,
}

impl Setup {
    /// With this many records of requests, so that a restore takes some time.
    async fn start(url: String) -> Self {
        let store =
            PostgresOptions::from_url(&url).unwrap().deadline(PATIENT).connect().await.unwrap();
        let keys = KeyManager::builder(store.clone()).store_deadline(PATIENT).build().unwrap();
        let this = Self { url, folder: tempfile::tempdir().unwrap(), store, keys };
        this.sql(
            "INSERT INTO keygate.requests (key, at, id, org, method, endpoint, outcome) \
             SELECT gen_random_uuid(), n, gen_random_uuid(), 'acme', 'GET', '/v1', 'allowed' \
             FROM generate_series(1, 50000) AS n",
        )
        .await;
        this
    }

    async fn sql(&self, sql: &str) {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute(sql).await.unwrap();
    }

    /// Runs the step of the guide that contains these words.
    async fn step(&self, words: &str) {
        let blocks = GUIDE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        let step = blocks.filter(|block| block.contains(words)).collect::<Vec<_>>();
        let [step] = step[..] else { panic!("one step with {words}: {step:?}") };
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", step]);
        shell.env("DATABASE_URL", &self.url).current_dir(self.folder.path());
        let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{step}{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn make(&self) -> (keygate::KeyId, PlaintextKey) {
        let issued = self.keys.create(&actor(), new()).await.unwrap();
        (issued.key.id, issued.secret)
    }

    /// Verifies that key repeatedly until stopped. Returns the number of verifications.
    fn verify(&self, key: &PlaintextKey, stop: &Arc<AtomicBool>) -> JoinHandle<u32> {
        let (keys, stop) = (self.keys.clone(), Arc::clone(stop));
        let secret = key.expose_secret().to_owned();
        tokio::spawn(async move {
            let mut times = 0;
            while !stop.load(Ordering::SeqCst) {
                keys.verify(&secret, None).await.unwrap();
                times += 1;
            }
            times
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_backup_is_restored_beside_a_running_service_and_reactivated_keys_are_revoked() {
    in_database(|url| async move {
        let setup = Setup::start(url).await;
        let max_staleness = Duration::from_secs(2);
        let there = Process::start(setup.store.clone(), &setup.store, max_staleness).await;
        let (_, good) = setup.make().await;
        let (revoked, narrowed) = (setup.make().await, setup.make().await);
        let (rotated, deleted) = (setup.make().await, setup.make().await);
        let afterwards = [&revoked, &narrowed, &rotated, &deleted].map(|(_, secret)| secret);
        setup.step("pg_dump").await;

        let keys = &setup.keys;
        keys.update(&actor(), &revoked.0, KeyPatch::revoke()).await.unwrap();
        let list = Allowlist::parse(["192.0.2.1"]).unwrap();
        keys.update(&actor(), &narrowed.0, KeyPatch::restrict(list)).await.unwrap();
        keys.rotate(&actor(), &rotated.0).await.unwrap();
        keys.delete(&actor(), &deleted.0).await.unwrap();
        let (_, made) = setup.make().await;
        for secret in afterwards {
            keys.verify(secret.expose_secret(), None).await.unwrap_err();
        }
        // Until the cache has received all announcements and keeps that key.
        let recorder = Recorder::by(&setup.store);
        for _ in 0..10 {
            recorder.proof().await;
            there.keys.verify(made.expose_secret(), None).await.unwrap();
        }

        let stop = Arc::default();
        let verifying = setup.verify(&good, &stop);
        setup.step("RENAME TO keygate_before").await;
        let restored = Instant::now();
        stop.store(true, Ordering::SeqCst);
        let times = verifying.await.unwrap();
        assert!(times > 20, "verified {times} times meanwhile");

        // The restore announces nothing.
        let last = there.last_acceptance(made.expose_secret()).await;
        let late = last.saturating_duration_since(restored);
        assert!(late <= max_staleness, "accepted {late:?} later");
        for secret in afterwards {
            keys.verify(secret.expose_secret(), None).await.unwrap();
            there.keys.verify(secret.expose_secret(), None).await.unwrap();
        }
        setup.step("UPDATE keygate.keys").await;
        for secret in afterwards {
            keys.verify(secret.expose_secret(), None).await.unwrap_err();
            there.last_acceptance(secret.expose_secret()).await;
        }
        keys.verify(good.expose_secret(), None).await.unwrap();
        there.keys.verify(good.expose_secret(), None).await.unwrap();
        setup.step("SELECT pg_notify").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_restore_over_the_tables_in_use_refuses_no_valid_key() {
    in_database(|url| async move {
        let setup = Setup::start(url).await;
        let (_, good) = setup.make().await;
        setup.step("pg_dump").await;
        let (_, made) = setup.make().await;
        let stop = Arc::default();
        let verifying = setup.verify(&good, &stop);
        setup.step("--clean --if-exists").await;
        stop.store(true, Ordering::SeqCst);
        assert!(verifying.await.unwrap() > 0);
        setup.keys.verify(made.expose_secret(), None).await.unwrap_err();
    })
    .await;
}
