//! Reads of the audit log.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use keygate::audit::{AuditPage, AuditQuery, AuditRecord, AuditScope, UsageBucket, UsageQuery};
use keygate::*;
use tokio::sync::Semaphore;

use crate::support::{eventually, org, soon};
use crate::{bench_with, no_key};

/// A log whose reads wait until the test lets them go on.
#[derive(Debug)]
struct HeldLog {
    /// The organisations of the reads in progress.
    reading: Mutex<Vec<OrgId>>,
    go_on: Semaphore,
}

impl HeldLog {
    async fn read(&self, org: &OrgId) {
        self.reading.lock().unwrap().push(org.clone());
        self.go_on.acquire().await.unwrap().forget();
        let mut reading = self.reading.lock().unwrap();
        let at = reading.iter().position(|other| other == org).unwrap();
        reading.remove(at);
    }

    fn reading(&self) -> Vec<OrgId> {
        self.reading.lock().unwrap().clone()
    }
}

#[async_trait]
impl AuditSink for HeldLog {
    async fn record(&self, _: &[AuditRecord]) -> Result<(), AuditError> {
        Ok(())
    }
}

#[async_trait]
impl AuditLog for HeldLog {
    async fn page(&self, query: &AuditQuery) -> Result<AuditPage, AuditError> {
        self.read(&query.org).await;
        Ok(AuditPage::default())
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageBucket>, AuditError> {
        self.read(&query.org).await;
        Ok(Vec::new())
    }

    async fn purge_before(&self, _: Timestamp) -> Result<u64, AuditError> {
        Ok(0)
    }
}

#[tokio::test]
async fn many_reads_of_one_organisation_take_turns_and_others_do_not_wait() {
    let log = Arc::new(HeldLog { reading: Mutex::default(), go_on: Semaphore::new(0) });
    let patient = Duration::from_secs(60);
    let b = bench_with(|builder| builder.audit(Arc::clone(&log)).store_deadline(patient));
    let mut reads = tokio::task::JoinSet::new();
    for round in 0..20 {
        let keys = b.keys.clone();
        reads.spawn(async move {
            if round % 2 == 0 {
                let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
                keys.audit_page(&query).await.unwrap().map(drop)
            } else {
                keys.usage(&org("acme"), &no_key(), 1).await.unwrap().map(drop)
            }
        });
    }
    // Spawned last, on one thread: once it reads, the others have tried to.
    let keys = b.keys.clone();
    reads.spawn(async move {
        let query = AuditQuery::new(org("globex"), AuditScope::OrgChanges);
        keys.audit_page(&query).await.unwrap().map(drop)
    });
    eventually("the other one reads", async || log.reading().contains(&org("globex"))).await;
    assert_eq!(log.reading(), [org("acme"), org("globex")]);
    log.go_on.add_permits(21);
    while let Some(read) = soon(reads.join_next()).await {
        read.unwrap().unwrap();
    }
}
