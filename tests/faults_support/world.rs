//! A manager that reaches its database through a proxy, and direct access to that database.

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keygate::manager::{Admission, AdmitError, IssuedKey, RequestInfo};
use keygate::store::{KeyDigest, PostgresOptions};
use keygate::{Actor, Delivery, KeyId, KeyManager, ManageError, NewKey, OrgId};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::postgres_support::{PATIENT, administrator, schema_of, unique, url};
use crate::proxy::{Proxy, address};

/// The deadline of a call of the store, and of the delivery of an audit record.
pub(crate) const DEADLINE: Duration = Duration::from_millis(500);
/// A busy machine may take this much longer.
pub(crate) const SLACK: Duration = Duration::from_secs(2);
/// The time after a fault within which everything works again: the longest pause between two
/// attempts to connect, an attempt, and some more for a busy machine.
pub(crate) const RECOVERY: Duration = Duration::from_secs(15);

/// Limits the sessions: a server has 100 by default, and each world uses up to 35.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A manager that reaches its database through a proxy, and ways around the proxy.
pub(crate) struct World {
    _room: SemaphorePermit<'static>,
    pub(crate) proxy: Proxy,
    /// Uses the proxy.
    pub(crate) keys: KeyManager,
    /// Uses the database directly, with a long deadline.
    pub(crate) direct: KeyManager,
    pub(crate) db: Arc<Db>,
    pub(crate) actor: Actor,
}

impl World {
    /// Keys and audit log are behind the proxy. Each refusal has its own record.
    pub(crate) async fn new(options: &PostgresOptions) -> Self {
        let delivery = Delivery::strict().sum_refusals(u32::MAX, DEADLINE);
        Self::start(options, delivery, true).await
    }

    /// Only the audit log is behind the proxy.
    pub(crate) async fn of_log(options: &PostgresOptions, delivery: Delivery) -> Self {
        Self::start(options, delivery, false).await
    }

    async fn start(options: &PostgresOptions, delivery: Delivery, of_keys: bool) -> Self {
        let room = ROOM.acquire().await.unwrap();
        let proxy = Proxy::start(address(&url())).await;
        let schema = schema_of(options);
        let direct = options.clone().deadline(PATIENT).connect().await.unwrap();
        let options = PostgresOptions::from_url(&proxy.url(&url())).unwrap();
        let options = options.schema(&schema).unwrap().deadline(DEADLINE);
        // A busy machine may need several attempts.
        let proxied = loop {
            if let Ok(store) = options.clone().connect().await {
                break store;
            }
        };
        let keys = KeyManager::builder(if of_keys { proxied.clone() } else { direct.clone() })
            .store_deadline(DEADLINE * 2)
            .audit(proxied)
            .delivery(delivery.deadline(DEADLINE))
            .build()
            .unwrap();
        let direct = KeyManager::builder(direct).store_deadline(PATIENT).build().unwrap();
        let actor = Actor::new(OrgId::new(unique("acme")).unwrap(), "tester");
        Self { _room: room, proxy, keys, direct, db: Arc::new(Db::new(schema).await), actor }
    }

    /// Creates a key directly.
    pub(crate) async fn key(&self) -> IssuedKey {
        self.direct.create(&self.actor, NewKey::named("CI").unwrap()).await.unwrap()
    }

    pub(crate) async fn revoked_key(&self) -> IssuedKey {
        let issued = self.key().await;
        self.direct.revoke(&self.actor, &issued.key.id).await.unwrap();
        issued
    }

    /// Makes room for the next keys.
    pub(crate) async fn delete_all_keys(&self) {
        for id in self.db.ids(self.actor.org()).await {
            self.direct.delete(&self.actor, &id.parse().unwrap()).await.unwrap();
        }
    }

    /// Makes a whole request. Returns the status of its response.
    pub(crate) async fn request(&self, secret: &str, path: &str) -> u16 {
        let info = RequestInfo::new("GET", path).from_ip(Some(ip()));
        respond(self.keys.admit(secret, info).await).await
    }
}

/// Finishes an admitted request with 200. Returns the status of the response.
pub(crate) async fn respond(admitted: Result<Admission, AdmitError>) -> u16 {
    match admitted {
        Ok(admission) => admission.finish(200).await.map_or(503, |()| 200),
        Err(error) => error.http_status(),
    }
}

pub(crate) fn ip() -> IpAddr {
    [192, 0, 2, 1].into()
}

/// The result of the work. The test fails if it takes longer than the limit, or hangs.
pub(crate) async fn within<T>(what: &str, limit: Duration, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = timeout(limit * 4, work).await.unwrap_or_else(|_| panic!("{what} hangs"));
    let took = begun.elapsed();
    assert!(took <= limit, "{what} took {took:?} of {limit:?}");
    done
}

/// Polls until the condition holds, for at most [`RECOVERY`]. A macro, because the future of an
/// async closure is not known to be `Send`.
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

/// A direct connection to the database.
pub(crate) struct Db {
    client: Client,
    schema: String,
}

/// A row of the table of keys.
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

    /// The number of records with each path, status and outcome of requests with that key.
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

    /// Whether the path has exactly this one record.
    pub(crate) async fn has_request(&self, path: &str, status: u16, outcome: &str) -> bool {
        let sql = "SELECT status, outcome FROM {schema}.requests WHERE endpoint = $1";
        let rows = self.query(sql, path).await;
        let said: Vec<(i32, &str)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        said == [(i32::from(status), outcome)]
    }

    /// The number of records of a begun change.
    pub(crate) async fn begun(&self, id: KeyId, action: &str) -> usize {
        let sql = "SELECT action FROM {schema}.changes WHERE key::text = $1 AND phase = 'begun'";
        let rows = self.query(sql, &id.to_string()).await;
        rows.iter().filter(|row| row.get::<_, &str>(0) == action).count()
    }
}
