//! `PostgresStore` and tokio-postgres by hand, on the store's own tables.

use std::env;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keygate::audit::{AuditEvent, AuditRecord, CountryCode};
use keygate::store::{KeyDigest, PostgresOptions, Revision};
use keygate::{Allowlist, ApiKey, CachedStore, KeyId, KeyName, OrgId, PostgresStore, Timestamp};
use tokio_postgres::{Client, Error, NoTls, Row, Statement};
use uuid::Uuid;

use crate::data::Data;
use crate::measure::{Bench, Comparison, Finder, Recorder, Store};

/// As many connections does the store have, unless it is told otherwise.
const CONNECTIONS: usize = 2;

/// Works in a schema of its own, which is dropped in the end.
pub(crate) fn compare(bench: &Bench, data: &Data) -> Vec<Comparison> {
    let url = env::var("KEYGATE_TEST_POSTGRES")
        .unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/test".to_owned());
    let administrator = match bench.runtime.block_on(connect(&url)) {
        Ok(client) => client,
        Err(error) => {
            println!("no PostgreSQL server (KEYGATE_TEST_POSTGRES): {error}");
            return Vec::new();
        }
    };
    let schema = format!("keygate_bench_{:x}", std::process::id());
    let compared = catch_unwind(AssertUnwindSafe(|| compare_in(bench, data, &url, &schema)));
    let drop = format!("DROP SCHEMA IF EXISTS {schema} CASCADE");
    bench.runtime.block_on(administrator.batch_execute(&drop)).unwrap();
    compared.unwrap_or_else(|panic| resume_unwind(panic))
}

fn compare_in(bench: &Bench, data: &Data, url: &str, schema: &str) -> Vec<Comparison> {
    let (store, hand, plain) = bench.runtime.block_on(async {
        let options = PostgresOptions::from_url(url).unwrap().schema(schema).unwrap();
        let store: PostgresStore = options.connect().await.unwrap();
        fill(url, schema, data).await;
        let hand = Hand::connect(url, schema, "ON CONFLICT DO NOTHING").await;
        (Store(store), hand, Hand::connect(url, schema, "").await)
    });

    bench.check_lookups(data, &hand, &store);
    let mut comparisons: Vec<Comparison> = [1, 32]
        .map(|tasks| bench.lookups("postgres", tasks, data, hand.clone(), store.clone()))
        .into();
    // One place for a key, in random order: it is never the right one.
    let cold = CachedStore::builder(store.0.clone(), Duration::from_secs(2)).entries(1);
    let cold = Store(bench.runtime.block_on(async { cold.build().unwrap() }));
    bench.check_lookups(data, &hand, &cold);
    comparisons.extend(
        [1, 32].map(|tasks| bench.lookups("cold cache", tasks, data, hand.clone(), cold.clone())),
    );
    bench.check_ingestion(data, &hand, &store, &store.0);
    comparisons.push(bench.ingestion("postgres", 1_000, data, hand, store.clone()));
    // What it costs that a batch may be sent again after its connection was lost.
    bench.ingestion("postgres, plain INSERT", 1_000, data, plain, store);
    comparisons
}

async fn connect(url: &str) -> Result<Client, Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn fill(url: &str, schema: &str, data: &Data) {
    let client = connect(url).await.unwrap();
    // Nested arrays cannot be unnested by one level: a list is a text until then.
    let sql = format!(
        "INSERT INTO {schema}.keys (id, org, name, key_prefix, digest, status, allowlist, \
         created_at, expires_at, last_used_at, revision) \
         SELECT id, org, name, key_prefix, digest, status, string_to_array(list, ' '), \
         created_at, expires_at, last_used_at, revision \
         FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], \
         $7::text[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[]) \
         AS rows (id, org, name, key_prefix, digest, status, list, created_at, expires_at, \
         last_used_at, revision)"
    );
    let statement = client.prepare(&sql).await.unwrap();
    for keys in data.keys.chunks(10_000) {
        let rows = client
            .execute(
                &statement,
                &[
                    &column(keys, |key| Uuid::from_bytes(key.id.to_bytes())),
                    &column(keys, |key| key.org.as_str()),
                    &column(keys, |key| key.name.as_str()),
                    &column(keys, |key| key.key_prefix.as_str()),
                    &column(keys, |key| key.digest.as_bytes().as_slice()),
                    &column(keys, |key| key.status.as_str()),
                    &column(keys, |key| key.allowlist.entries().join(" ")),
                    &column(keys, |key| key.created_at.unix_micros()),
                    &column(keys, |key| key.expires_at.map(Timestamp::unix_micros)),
                    &column(keys, |key| key.last_used_at.map(Timestamp::unix_micros)),
                    &column(keys, |key| i64::from(key.revision.get())),
                ],
            )
            .await;
        assert_eq!(rows.unwrap(), keys.len() as u64);
    }
    client.batch_execute(&format!("VACUUM ANALYZE {schema}.keys")).await.unwrap();
}

fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// A few shared connections, on which statements follow each other without
/// waiting for answers: faster than a pool whose connections serve one at a time.
#[derive(Clone)]
struct Hand {
    connections: Arc<[HandConnection; CONNECTIONS]>,
    next: Arc<AtomicUsize>,
}

struct HandConnection {
    client: Client,
    find: Statement,
    record: Statement,
}

impl Hand {
    async fn connect(url: &str, schema: &str, on_conflict: &str) -> Self {
        let find = format!(
            "SELECT id, org, name, key_prefix, digest, status, allowlist, created_at, expires_at, \
             rotated_at, last_used_at, revision, attributes FROM {schema}.keys WHERE digest = $1"
        );
        let record = format!(
            "INSERT INTO {schema}.requests \
             (key, at, id, org, method, endpoint, ip, country, status, outcome) \
             SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::text[], \
             $6::text[], $7::inet[], $8::text[], $9::integer[], $10::text[]) {on_conflict}"
        );
        let one = async || {
            let client = connect(url).await.unwrap();
            let find = client.prepare(&find).await.unwrap();
            let record = client.prepare(&record).await.unwrap();
            HandConnection { client, find, record }
        };
        let connections = [one().await, one().await];
        Self { connections: Arc::new(connections), next: Arc::default() }
    }

    fn turn(&self) -> &HandConnection {
        &self.connections[self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS]
    }
}

impl Finder for Hand {
    type Key = ApiKey;

    async fn find(&self, digest: &KeyDigest) -> ApiKey {
        let HandConnection { client, find, .. } = self.turn();
        let row = client.query_one(find, &[&digest.as_bytes().as_slice()]).await.unwrap();
        key(&row)
    }
}

fn key(row: &Row) -> ApiKey {
    let instant = |micros| Timestamp::from_unix_micros(micros).unwrap();
    ApiKey {
        id: KeyId::from_bytes(row.get::<_, Uuid>(0).into_bytes()),
        org: OrgId::new(row.get::<_, &str>(1)).unwrap(),
        name: KeyName::restore(row.get::<_, &str>(2)).unwrap(),
        key_prefix: row.get(3),
        digest: KeyDigest::from_slice(row.get(4)).unwrap(),
        status: row.get::<_, &str>(5).parse().unwrap(),
        allowlist: Allowlist::parse(row.get::<_, Vec<&str>>(6)).unwrap(),
        created_at: instant(row.get(7)),
        expires_at: row.get::<_, Option<i64>>(8).map(instant),
        rotated_at: row.get::<_, Option<i64>>(9).map(instant),
        last_used_at: row.get::<_, Option<i64>>(10).map(instant),
        revision: Revision::new(row.get::<_, i64>(11).try_into().unwrap()),
        attributes: row.get::<_, &str>(12).parse().unwrap(),
        previous: None,
    }
}

impl Recorder for Hand {
    async fn write(&self, batch: &[AuditRecord]) {
        let rows = column(batch, |record| match &record.event {
            AuditEvent::Request(request) => (record, request),
            _ => panic!("only requests are written"),
        });
        let HandConnection { client, record, .. } = self.turn();
        let written = client
            .execute(
                record,
                &[
                    &column(&rows, |(record, _)| Uuid::from_bytes(record.key.to_bytes())),
                    &column(&rows, |(record, _)| record.at.unix_micros()),
                    &column(&rows, |(record, _)| Uuid::from_bytes(record.id.to_bytes())),
                    &column(&rows, |(record, _)| record.org.as_str()),
                    &column(&rows, |(_, request)| &*request.method),
                    &column(&rows, |(_, request)| &*request.endpoint),
                    &column::<_, Option<IpAddr>>(&rows, |(_, request)| request.ip),
                    &column(&rows, |(_, request)| {
                        request.country.as_ref().map(CountryCode::as_str)
                    }),
                    &column(&rows, |(_, request)| request.status.map(i32::from)),
                    &column(&rows, |(_, request)| request.outcome.as_str()),
                ],
            )
            .await;
        assert_eq!(written.unwrap(), batch.len() as u64);
    }
}
