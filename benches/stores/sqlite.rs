//! `SqliteStore` and rusqlite by hand, on the store's own file.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use keygate::audit::{AuditEvent, AuditRecord, CountryCode};
use keygate::store::{KeyDigest, Revision};
use keygate::{Allowlist, ApiKey, KeyId, KeyName, OrgId, SqliteStore, Timestamp};
use rusqlite::{Connection, OpenFlags, Row, TransactionBehavior, params};

use crate::data::Data;
use crate::measure::{Bench, Comparison, Finder, Recorder, Store};

pub(crate) fn compare(bench: &Bench, data: &Data) -> Vec<Comparison> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.db");
    let store = Store(SqliteStore::open(&path).unwrap());
    fill(&path, data);

    let finder = HandFinder { path: path.clone() };
    bench.check_lookups(data, &finder, &store);
    let mut comparisons: Vec<Comparison> = [1, 32]
        .map(|tasks| bench.lookups("sqlite", tasks, data, finder.clone(), store.clone()))
        .into();

    let recorder = HandRecorder { connection: Arc::new(Mutex::new(open(&path))) };
    bench.check_ingestion(data, &recorder, &store, &store.0);
    comparisons.extend(
        [100, 1_000]
            .map(|batch| bench.ingestion("sqlite", batch, data, recorder.clone(), store.clone())),
    );
    comparisons
}

fn open(path: &Path) -> Connection {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).unwrap();
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL").unwrap();
    connection
}

fn fill(path: &Path, data: &Data) {
    let mut connection = open(path);
    connection.execute_batch("PRAGMA cache_size = -200000").unwrap();
    let transaction = connection.transaction().unwrap();
    let sql = "INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist, created_at, \
               expires_at, rotated_at, last_used_at, revision) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";
    let mut statement = transaction.prepare(sql).unwrap();
    for key in &data.keys {
        let lines: String = key.allowlist.entries().iter().map(|e| format!("{e}\n")).collect();
        let row = params![
            key.id.to_bytes(),
            key.org.as_str(),
            key.name.as_str(),
            key.key_prefix,
            key.digest.as_bytes(),
            key.status.as_str(),
            lines,
            key.created_at.unix_micros(),
            key.expires_at.map(Timestamp::unix_micros),
            key.rotated_at.map(Timestamp::unix_micros),
            key.last_used_at.map(Timestamp::unix_micros),
            key.revision.get(),
        ];
        statement.execute(row).unwrap();
    }
    drop(statement);
    transaction.commit().unwrap();
    // Readers shall find everything in the file itself.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

/// Finds keys in place, each thread on a connection that it need not share.
#[derive(Clone)]
struct HandFinder {
    path: PathBuf,
}

thread_local! {
    static CONNECTION: OnceCell<Connection> = const { OnceCell::new() };
}

impl Finder for HandFinder {
    type Key = ApiKey;

    async fn find(&self, digest: &KeyDigest) -> ApiKey {
        CONNECTION.with(|connection| {
            let connection = connection.get_or_init(|| open(&self.path));
            let sql = "SELECT id, org, name, key_prefix, digest, status, allowlist, created_at, \
                       expires_at, rotated_at, last_used_at, revision, attributes FROM keys WHERE digest = ?1";
            let mut statement = connection.prepare_cached(sql).unwrap();
            statement.query_row([digest.as_bytes()], key).unwrap()
        })
    }
}

fn key(row: &Row<'_>) -> rusqlite::Result<ApiKey> {
    let text = |column| Ok::<_, rusqlite::Error>(row.get_ref(column)?.as_str()?);
    let instant = |micros| Timestamp::from_unix_micros(micros).unwrap();
    Ok(ApiKey {
        id: KeyId::from_bytes(row.get(0)?),
        org: OrgId::new(text(1)?).unwrap(),
        name: KeyName::restore(text(2)?).unwrap(),
        key_prefix: row.get(3)?,
        digest: KeyDigest::from_slice(row.get_ref(4)?.as_blob()?).unwrap(),
        status: text(5)?.parse().unwrap(),
        allowlist: Allowlist::parse(text(6)?.split_terminator('\n')).unwrap(),
        created_at: instant(row.get(7)?),
        expires_at: row.get::<_, Option<i64>>(8)?.map(instant),
        rotated_at: row.get::<_, Option<i64>>(9)?.map(instant),
        last_used_at: row.get::<_, Option<i64>>(10)?.map(instant),
        revision: Revision::new(row.get(11)?),
        attributes: text(12)?.parse().unwrap(),
        previous: None,
    })
}

/// Writes a batch in one transaction, in place.
#[derive(Clone)]
struct HandRecorder {
    connection: Arc<Mutex<Connection>>,
}

impl Recorder for HandRecorder {
    async fn write(&self, batch: &[AuditRecord]) {
        let mut connection = self.connection.lock().unwrap();
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let sql = "INSERT INTO requests \
                   (key, at, id, org, method, endpoint, ip, country, status, outcome) \
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let mut statement = transaction.prepare_cached(sql).unwrap();
        for record in batch {
            let AuditEvent::Request(request) = &record.event else { continue };
            let row = params![
                record.key.to_bytes(),
                record.at.unix_micros(),
                record.id.to_bytes(),
                record.org.as_str(),
                request.method,
                request.endpoint,
                request.ip.map(|ip| ip.to_string()),
                request.country.as_ref().map(CountryCode::as_str),
                request.status,
                request.outcome.as_str(),
            ];
            statement.execute(row).unwrap();
        }
        drop(statement);
        transaction.commit().unwrap();
    }
}
