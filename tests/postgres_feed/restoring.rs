//! The steps of `src/guide/restore.md`, word for word, beside a running service.

use std::cell::Cell;
use std::process::Command;
use std::time::{Duration, Instant};

use keygate::store::PostgresOptions;
use keygate::{Allowlist, KeyManager, KeyPatch, PlaintextKey, PostgresStore};
use tempfile::TempDir;

use crate::caches::{Process, actor, new};
use crate::postgres_support::{Database, PATIENT, count, session};
use crate::recorder::Recorder;

const GUIDE: &str = include_str!("../../src/guide/restore.md");

/// A service with its database, and the folder in which the steps run.
struct Setup {
    database: Database,
    folder: TempDir,
    store: PostgresStore,
    keys: KeyManager,
}

impl Setup {
    /// With many records of requests, so that a restore takes some time.
    async fn start() -> Self {
        let database = Database::new("").await;
        let options = PostgresOptions::from_url(&database.url()).unwrap();
        let store = options.deadline(PATIENT).connect().await.unwrap();
        let keys = KeyManager::builder(store.clone()).store_deadline(PATIENT).build().unwrap();
        let fill = "INSERT INTO keygate.requests (key, at, id, org, method, endpoint, outcome) \
                    SELECT gen_random_uuid(), n, gen_random_uuid(), 'acme', 'GET', '/v1', \
                    'allowed' FROM generate_series(1, 50000) AS n";
        let db = session(&database.url().parse().unwrap()).await;
        db.batch_execute(fill).await.unwrap();
        Self { database, folder: tempfile::tempdir().unwrap(), store, keys }
    }

    /// Runs the step of the guide that contains these words.
    async fn step(&self, words: &str) {
        let blocks = GUIDE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        let step = blocks.filter(|block| block.contains(words)).collect::<Vec<_>>();
        let [step] = step[..] else { panic!("one step with {words}: {step:?}") };
        self.run(step).await;
    }

    async fn run(&self, step: &str) {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", step]);
        shell.env("DATABASE_URL", self.database.url()).current_dir(self.folder.path());
        let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{step}{}", String::from_utf8_lossy(&output.stderr));
    }

    async fn make(&self) -> (keygate::KeyId, PlaintextKey) {
        let issued = self.keys.create(&actor(), new()).await.unwrap();
        (issued.key.id, issued.secret)
    }

    /// Runs a step, and verifies that key meanwhile. Returns the number of verifications.
    async fn step_beside_service(&self, words: &str, key: &PlaintextKey) -> u32 {
        let times = Cell::new(0);
        let verify = async {
            loop {
                self.keys.verify(key.expose_secret(), None).await.unwrap();
                times.set(times.get() + 1);
            }
        };
        tokio::select! {
            () = self.step(words) => times.get(),
            () = verify => unreachable!("it verifies until dropped"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_backup_is_restored_beside_a_running_service_and_reactivated_keys_are_revoked() {
    let setup = Setup::start().await;
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

    let times = setup.step_beside_service("RENAME TO keygate_before", &good).await;
    let restored = Instant::now();
    assert!(times > 20, "verified {times} times meanwhile");

    // The restore announces nothing.
    there.assert_refused_within(max_staleness, restored, made.expose_secret()).await;
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
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn a_restore_over_the_tables_in_use_refuses_no_valid_key() {
    let setup = Setup::start().await;
    let (_, good) = setup.make().await;
    setup.step("pg_dump").await;
    let (_, made) = setup.make().await;
    assert!(setup.step_beside_service("DROP SCHEMA keygate", &good).await > 0);
    setup.keys.verify(made.expose_secret(), None).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn rows_of_requests_are_restored_into_tables_with_other_partitions() {
    let setup = Setup::start().await;
    setup
        .run(
            "pg_dump --dbname=$DATABASE_URL --format=custom --schema=keygate --file=keygate.dump \
             --load-via-partition-root && psql --dbname=$DATABASE_URL --set=ON_ERROR_STOP=1 \
             --command='DROP TABLE keygate.requests_before'",
        )
        .await;
    setup.step("make_partitions").await;
    let restore = "pg_restore --dbname=$DATABASE_URL --data-only --table=requests_before \
                   --exit-on-error keygate.dump";
    setup.run(restore).await;
    let db = session(&setup.database.url().parse().unwrap()).await;
    assert_eq!(count(&db, "SELECT count(*) FROM keygate.requests").await, 50_000);
}
