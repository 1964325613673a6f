//! A manager that reaches its database by way of a proxy, and another look at that database.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::manager::{AdmitError, IssuedKey, KeyManagerBuilder, RequestInfo};
use keygate::store::{KeyDigest, PostgresOptions};
use keygate::{
    Actor, Delivery, KeyId, KeyManager, ManageError, NewKey, OrgId, PostgresStore, VerifyError,
};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::postgres_support::{PATIENT, administrator, schema_of, unique, url};
use crate::proxy::{Proxy, address};

/// Of a call of the store, and of the delivery of an audit record.
pub(crate) const DEADLINE: Duration = Duration::from_millis(500);
/// What a machine on which everything runs at once may take on top.
pub(crate) const SLACK: Duration = Duration::from_secs(2);
/// Within that time after a fault, everything works again: the longest pause between
/// two attempts to connect, an attempt under way, and what is left of a busy machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(15);

/// A server has 100 sessions by default, and a world up to 35.
static ROOM: Semaphore = Semaphore::const_new(2);

pub(crate) struct World {
    _room: SemaphorePermit<'static>,
    pub(crate) proxy: Proxy,
    /// By way of the proxy.
    pub(crate) keys: KeyManager,
    /// Straight to the database, and in no hurry.
    pub(crate) sure: KeyManager,
    pub(crate) db: Arc<Db>,
    pub(crate) actor: Actor,
}

impl World {
    /// Keys and audit log behind one proxy; strict delivery, with a record of its own for
    /// each refusal.
    pub(crate) async fn new(options: &PostgresOptions) -> Self {
        Self::with(options, |near, _, builder| {
            builder(near.clone())
                .audit(near)
                .delivery(Delivery::strict().deadline(DEADLINE).sum_refusals(u32::MAX, DEADLINE))
        })
        .await
    }

    /// `build` is given the store behind the proxy, and one straight to the database.
    pub(crate) async fn with(
        options: &PostgresOptions,
        build: impl FnOnce(
            PostgresStore,
            PostgresStore,
            fn(PostgresStore) -> KeyManagerBuilder,
        ) -> KeyManagerBuilder,
    ) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let proxy = Proxy::start(address(&url())).await;
        let schema = schema_of(options);
        let direct = options.clone().deadline(PATIENT).connect().await.unwrap();
        let near = PostgresOptions::from_url(&proxy.url(&url())).unwrap().schema(&schema).unwrap();
        // The schema is there, so that this is quick; but a busy machine may be slow.
        let near = loop {
            if let Ok(store) = near.clone().deadline(DEADLINE).connect().await {
                break store;
            }
        };
        let builder = |store| KeyManager::builder(store).store_deadline(DEADLINE * 2);
        let keys = build(near, direct.clone(), builder).build().unwrap();
        let sure = KeyManager::builder(direct).store_deadline(PATIENT).build().unwrap();
        let actor = Actor::new(OrgId::new(unique("acme")).unwrap(), "tester");
        Self { _room: room, proxy, keys, sure, db: Arc::new(Db::new(schema).await), actor }
    }

    /// A key that is made without a fault.
    pub(crate) async fn key(&self) -> IssuedKey {
        let issued = self.sure.create(&self.actor, NewKey::named("CI").unwrap()).await;
        issued.unwrap()
    }

    /// A whole request, and the status of its answer.
    pub(crate) async fn request(&self, secret: &str, path: &str) -> u16 {
        request(&self.keys, secret, path).await
    }
}

pub(crate) async fn request(keys: &KeyManager, secret: &str, path: &str) -> u16 {
    let info = RequestInfo::new("GET", path).from_ip(Some(ip()));
    match keys.admit(secret, info).await {
        Ok(admission) => match admission.finish(200).await {
            Ok(()) => 200,
            Err(_) => 503,
        },
        Err(error) => {
            if let AdmitError::Refused(VerifyError::Unavailable(_)) = &error {
                assert_eq!(error.http_status(), 503);
            }
            error.http_status()
        }
    }
}

pub(crate) fn ip() -> IpAddr {
    [192, 0, 2, 1].into()
}

/// What the work comes to, within so long; what hangs fails the test.
pub(crate) async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = timeout(limit * 4, work).await.unwrap_or_else(|_| panic!("{what} hangs"));
    let took = begun.elapsed();
    assert!(took <= limit, "{what} took {took:?} of {limit:?}");
    done
}

/// Asks until the answer is yes; [`RECOVERY`] later it has to be. A macro, since the
/// future of an async closure is not known to be `Send`.
macro_rules! recovers {
    ($what:expr, $ask:block) => {
        let begun = std::time::Instant::now();
        while !async { $ask }.await {
            let what: &str = $what;
            let limit = $crate::world::RECOVERY;
            assert!(begun.elapsed() < limit, "{what}: not within {limit:?} after the fault");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
}
pub(crate) use recovers;

pub(crate) fn is_unavailable(error: &ManageError) -> bool {
    matches!(error, ManageError::Unavailable(_) | ManageError::InDoubt(_))
}

/// The database itself.
pub(crate) struct Db {
    client: Client,
    schema: String,
}

/// A row of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) digest: KeyDigest,
    pub(crate) status: String,
}

impl Db {
    async fn new(schema: String) -> Self {
        Self { client: administrator().await, schema }
    }

    async fn query(&self, sql: &str, text: &str) -> Vec<tokio_postgres::Row> {
        let sql = sql.replace("{schema}", &self.schema);
        self.client.query_typed(&sql, &[(&text, Type::TEXT)]).await.unwrap()
    }

    pub(crate) async fn key(&self, id: KeyId) -> Option<Row> {
        let sql = "SELECT digest, status FROM {schema}.keys WHERE id::text = $1";
        let rows = self.query(sql, &id.to_string()).await;
        rows.first().map(|row| Row {
            digest: KeyDigest::from_slice(row.get(0)).unwrap(),
            status: row.get(1),
        })
    }

    /// The ids of an organisation's keys.
    pub(crate) async fn ids(&self, org: &OrgId) -> Vec<String> {
        let sql = "SELECT id::text FROM {schema}.keys WHERE org = $1 ORDER BY created_at, id";
        self.query(sql, org.as_str()).await.iter().map(|row| row.get(0)).collect()
    }

    /// The rows of requests with that key: how often each path, status and outcome.
    pub(crate) async fn requests(
        &self,
        id: KeyId,
    ) -> HashMap<(String, Option<u16>, String), usize> {
        let sql = "SELECT endpoint, status, outcome FROM {schema}.requests WHERE key::text = $1";
        let mut found = HashMap::new();
        for row in self.query(sql, &id.to_string()).await {
            let status: Option<i32> = row.get(1);
            let status = status.map(|status| u16::try_from(status).unwrap());
            *found.entry((row.get(0), status, row.get(2))).or_default() += 1;
        }
        found
    }

    /// Whether there is such a row, and no other of that path.
    pub(crate) async fn has_request(&self, path: &str, status: u16, outcome: &str) -> bool {
        let sql = "SELECT status, outcome FROM {schema}.requests WHERE endpoint = $1";
        let rows = self.query(sql, path).await;
        let said: Vec<(i32, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        said == [(i32::from(status), outcome)]
    }

    /// How often the change was begun, by the audit log.
    pub(crate) async fn begun(&self, id: KeyId, action: &str) -> usize {
        let sql = "SELECT action FROM {schema}.changes WHERE key::text = $1 AND phase = 'begun'";
        let rows = self.query(sql, &id.to_string()).await;
        rows.iter().filter(|row| row.get::<_, &str>(0) == action).count()
    }
}
