//! Writes audit records.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use uuid::Uuid;

use crate::audit::country::CountryCode;
use crate::audit::record::{AuditEvent, AuditRecord, ChangeEvent, RequestEvent};
use crate::audit::usage::{UsageBucket, UsageCounts};
use crate::store::postgres::columns::escaped;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::keys::uuid;
use crate::store::postgres::partitions::Partitions;
use crate::store::postgres::pool::Pool;
use crate::store::postgres::statements::Sql;

/// How often a batch of requests is written, not counting the attempts that found some of them
/// stored.
const ATTEMPTS: usize = 4;

/// Writes the batch. A record that is stored already is left unchanged, so that the batch
/// may be sent again.
pub(super) async fn record(
    pool: &Pool,
    partitions: &Partitions,
    batch: &[AuditRecord],
) -> Result<()> {
    let mut sorted: Vec<&AuditRecord> = batch.iter().collect();
    // Sorted, so that two batches with the same records insert them in the same order and
    // do not deadlock.
    sorted.sort_unstable_by_key(|r| (r.at, r.id, r.key.to_bytes()));
    sorted.dedup_by_key(|r| (r.key.to_bytes(), r.at, r.id));
    let is_request = |record: &&AuditRecord| matches!(record.event, AuditEvent::Request(_));
    let (requests, changes): (Vec<_>, Vec<_>) = sorted.into_iter().partition(is_request);
    write_requests(pool, partitions, requests).await?;
    Changes::of(&changes).write(pool).await
}

/// Writes and counts the requests that are not stored yet.
async fn write_requests(
    pool: &Pool,
    partitions: &Partitions,
    mut records: Vec<&AuditRecord>,
) -> Result<()> {
    let mut attempts = ATTEMPTS;
    loop {
        let times = || records.iter().map(|record| record.at.unix_micros());
        let Some(newest) = times().max() else { return Ok(()) };
        partitions.look_ahead(pool, newest).await;
        attempts = attempts.saturating_sub(1);
        let requests = Requests::of(&records);
        match requests.write(pool).await {
            Err(fault) if fault.lacks_partition() && attempts > 0 => {
                let made = partitions.make(pool, times()).await;
                made.map_err(|fault| DbError::NoPartition(Box::new(fault)))?;
            }
            Err(fault) if fault.lacks_partition() => {
                return Err(DbError::NoPartition(Box::new(fault)));
            }
            Err(fault) if fault.is_constraint() => {
                let stored = requests.stored(pool).await?;
                let given = records.len();
                records.retain(|record| !stored.contains(&identity(record)));
                if records.len() < given {
                    attempts += 1;
                } else if attempts == 0 {
                    return Err(fault);
                }
            }
            written => return written,
        }
    }
}

type Identity = (Uuid, i64, Uuid);

fn identity(record: &AuditRecord) -> Identity {
    (uuid(record.key), record.at.unix_micros(), Uuid::from_bytes(record.id.to_bytes()))
}

/// The fields that every record has, column by column.
#[derive(Default)]
struct Heads<'a> {
    keys: Vec<Uuid>,
    times: Vec<i64>,
    ids: Vec<Uuid>,
    orgs: Vec<&'a str>,
}

impl<'a> Heads<'a> {
    fn push(&mut self, record: &'a AuditRecord) {
        let (key, at, id) = identity(record);
        self.keys.push(key);
        self.times.push(at);
        self.ids.push(id);
        self.orgs.push(record.org.as_str());
    }
}

#[derive(Default)]
struct Requests<'a> {
    heads: Heads<'a>,
    methods: Vec<Cow<'a, str>>,
    endpoints: Vec<Cow<'a, str>>,
    ips: Vec<Option<IpAddr>>,
    countries: Vec<Option<&'a str>>,
    statuses: Vec<Option<i32>>,
    outcomes: Vec<&'static str>,
    counts: Vec<i64>,
    secrets: Vec<&'static str>,
    usage: BTreeMap<([u8; 16], &'a str, i64), UsageCounts>,
}

impl<'a> Requests<'a> {
    fn of(records: &[&'a AuditRecord]) -> Self {
        let mut all = Self::default();
        for record in records {
            if let AuditEvent::Request(request) = &record.event {
                all.push(record, request);
            }
        }
        all
    }

    fn push(&mut self, record: &'a AuditRecord, request: &'a RequestEvent) {
        self.heads.push(record);
        self.methods.push(escaped(&request.method));
        self.endpoints.push(escaped(&request.endpoint));
        self.ips.push(request.ip);
        self.countries.push(request.country.as_ref().map(CountryCode::as_str));
        self.statuses.push(request.status.map(i32::from));
        self.outcomes.push(request.outcome.as_str());
        self.counts.push(i64::from(request.count));
        self.secrets.push(request.secret.as_str());
        let hour = UsageBucket::hour_of(record.at).unix_micros();
        let usage = self.usage.entry((record.key.to_bytes(), record.org.as_str(), hour));
        usage.or_default().add(UsageCounts::of(record).unwrap_or_default());
    }

    async fn write(&self, pool: &Pool) -> Result<()> {
        let (keys, rest): (Vec<Uuid>, Vec<(&str, i64)>) = self
            .usage
            .keys()
            .map(|(key, org, hour)| (Uuid::from_bytes(*key), (*org, *hour)))
            .unzip();
        let (orgs, hours): (Vec<&str>, Vec<i64>) = rest.into_iter().unzip();
        let counts = |count: fn(&UsageCounts) -> u64| -> Vec<i64> {
            let counts = self.usage.values().map(count);
            counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX)).collect()
        };
        let (allowed, client_errors) = (counts(|c| c.allowed), counts(|c| c.client_errors));
        let (server_errors, aborted) = (counts(|c| c.server_errors), counts(|c| c.aborted));
        let refused = counts(|c| c.refused);
        let parameters = [
            (&self.heads.keys as _, Type::UUID_ARRAY),
            (&self.heads.times as _, Type::INT8_ARRAY),
            (&self.heads.ids as _, Type::UUID_ARRAY),
            (&self.heads.orgs as _, Type::TEXT_ARRAY),
            (&self.methods as _, Type::TEXT_ARRAY),
            (&self.endpoints as _, Type::TEXT_ARRAY),
            (&self.ips as _, Type::INET_ARRAY),
            (&self.countries as _, Type::TEXT_ARRAY),
            (&self.statuses as _, Type::INT4_ARRAY),
            (&self.outcomes as _, Type::TEXT_ARRAY),
            (&self.counts as _, Type::INT8_ARRAY),
            (&self.secrets as _, Type::TEXT_ARRAY),
            (&keys as _, Type::UUID_ARRAY),
            (&orgs as _, Type::TEXT_ARRAY),
            (&hours as _, Type::INT8_ARRAY),
            (&allowed as _, Type::INT8_ARRAY),
            (&client_errors as _, Type::INT8_ARRAY),
            (&server_errors as _, Type::INT8_ARRAY),
            (&aborted as _, Type::INT8_ARRAY),
            (&refused as _, Type::INT8_ARRAY),
        ];
        pool.query(Sql::RecordRequests, &parameters).await?;
        Ok(())
    }

    /// Those that are stored.
    async fn stored(&self, pool: &Pool) -> Result<HashSet<Identity>> {
        let parameters = [
            (&self.heads.keys as _, Type::UUID_ARRAY),
            (&self.heads.times as _, Type::INT8_ARRAY),
            (&self.heads.ids as _, Type::UUID_ARRAY),
        ];
        let rows = pool.query(Sql::StoredRequests, &parameters).await?;
        let of = |row: &Row| Ok((row.try_get("key")?, row.try_get("at")?, row.try_get("id")?));
        rows.iter().map(of).collect()
    }
}

#[derive(Default)]
struct Changes<'a> {
    heads: Heads<'a>,
    actors: Vec<Cow<'a, str>>,
    actions: Vec<&'static str>,
    phases: Vec<&'static str>,
    fields: Vec<String>,
}

impl<'a> Changes<'a> {
    fn of(records: &[&'a AuditRecord]) -> Self {
        let mut all = Self::default();
        for record in records {
            if let AuditEvent::Change(change) = &record.event {
                all.push(record, change);
            }
        }
        all
    }

    fn push(&mut self, record: &'a AuditRecord, change: &'a ChangeEvent) {
        self.heads.push(record);
        self.actors.push(escaped(&change.actor));
        self.actions.push(change.action.as_str());
        self.phases.push(change.phase.as_str());
        self.fields.push(change.fields.to_string());
    }

    async fn write(&self, pool: &Pool) -> Result<()> {
        if self.heads.ids.is_empty() {
            return Ok(());
        }
        let parameters = [
            (&self.heads.keys as _, Type::UUID_ARRAY),
            (&self.heads.times as _, Type::INT8_ARRAY),
            (&self.heads.ids as _, Type::UUID_ARRAY),
            (&self.heads.orgs as _, Type::TEXT_ARRAY),
            (&self.actors as _, Type::TEXT_ARRAY),
            (&self.actions as _, Type::TEXT_ARRAY),
            (&self.phases as _, Type::TEXT_ARRAY),
            (&self.fields as _, Type::TEXT_ARRAY),
        ];
        pool.query(Sql::RecordChanges, &parameters).await?;
        Ok(())
    }
}
