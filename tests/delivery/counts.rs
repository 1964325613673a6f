//! Countries, a manager without a sink, and a full memory log.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use keygate::audit::{AuditQuery, AuditScope, AuditStats, CountryCode, CountryLookup};
use keygate::*;

use crate::support::{PATIENCE, org, poll};
use crate::{ada, bench, bench_with, get, new_key, poll_once, request, shut_down};

/// Knows one address and records every look-up.
#[derive(Debug)]
struct Countries(Arc<Mutex<Vec<IpAddr>>>);

impl CountryLookup for Countries {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        self.0.lock().unwrap().push(ip);
        (ip == "192.0.2.1".parse::<IpAddr>().unwrap()).then(|| CountryCode::new("de").unwrap())
    }
}

#[tokio::test]
async fn countries_are_filled_in_for_requests_with_a_known_address() {
    for delivery in [Delivery::strict(), Delivery::buffered()] {
        let asked = Arc::default();
        let lookup = Countries(Arc::clone(&asked));
        let b = bench_with(delivery, |builder| builder.countries(lookup)).await;
        b.keys.update(&ada(), &b.id, KeyPatch::rename(KeyName::new("b").unwrap())).await.unwrap();
        let (known, other) = ("192.0.2.1".parse().ok(), "2001:db8::1".parse().ok());
        for ip in [known, other, None] {
            let request = get("/").from_ip(ip);
            b.keys.admit(&b.secret, request).await.unwrap().finish(200).await.unwrap();
        }
        b.settled(4).await;
        let countries: Vec<_> = b.requests().await.iter().map(|r| r.country).collect();
        assert_eq!(countries, [CountryCode::new("DE"), None, None]);
        assert_eq!(*asked.lock().unwrap(), [known.unwrap(), other.unwrap()]);
    }
}

#[derive(Debug)]
struct PanickingCountries;

impl CountryLookup for PanickingCountries {
    fn country(&self, _: IpAddr) -> Option<CountryCode> {
        panic!("the country look-up of a test panics")
    }
}

#[tokio::test]
async fn case_35_a_country_lookup_that_panics_loses_the_country_but_not_the_record() {
    let b = bench_with(Delivery::buffered(), |builder| builder.countries(PanickingCountries)).await;
    b.handle_times(3).await;
    let stats = b.settled(3).await;
    assert_eq!((stats.written, stats.failed), (3, 0));
    b.handle("/").await.expect("the next request succeeds");
}

/// Blocks until it is released, or for far longer than the test waits.
#[derive(Debug)]
struct SlowCountries {
    asked: Arc<Mutex<bool>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl CountryLookup for SlowCountries {
    fn country(&self, _: IpAddr) -> Option<CountryCode> {
        *self.asked.lock().unwrap() = true;
        let _ = self.go.lock().unwrap().recv_timeout(PATIENCE * 3);
        None
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_country_lookup_delays_no_request() {
    let (asked, (go, going)) = (Arc::<Mutex<bool>>::default(), mpsc::channel());
    let lookup = SlowCountries { asked: Arc::clone(&asked), go: Mutex::new(going) };
    let b = bench_with(Delivery::buffered(), |builder| builder.countries(lookup)).await;
    b.handle("/1").await.unwrap();
    // Without a timer of the runtime, since one of its threads is blocked.
    poll("the country is looked up", || asked.lock().unwrap().then_some(()));
    let started = Instant::now();
    b.handle("/2").await.unwrap();
    let waited = started.elapsed();
    let _ = (go.send(()), go.send(()));
    b.settled(2).await;
    assert!(waited < PATIENCE, "{waited:?}");
}

#[tokio::test]
async fn without_a_sink_nothing_is_recorded_and_everything_else_works() {
    let keys = KeyManager::builder(MemoryStore::new()).build().unwrap();
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    let id = issued.key.id;
    keys.update(&ada(), &id, KeyPatch::rename(KeyName::new("b").unwrap())).await.unwrap();
    let rotated = keys.rotate(&ada(), &id).await.unwrap();
    let admission = keys.admit(rotated.secret.expose_secret(), get("/")).await.unwrap();
    assert_eq!(admission.key().id(), id);
    poll_once(pin!(admission.finish(200))).unwrap().unwrap();
    keys.update(&ada(), &id, KeyPatch::revoke()).await.unwrap();
    let refused = keys.admit(rotated.secret.expose_secret(), get("/")).await.unwrap_err();
    assert_eq!(refused.http_status(), 401);
    assert!(keys.audit_log().is_none());
    assert_eq!(keys.audit_stats(), AuditStats::default());
    let query = AuditQuery::new(org("acme"), AuditScope::OrgChanges);
    assert!(keys.audit_page(&query).await.is_none());
    shut_down(&keys).await;
    assert!(keys.list(&org("acme")).await.unwrap()[0].last_used_at.is_some());
}

#[tokio::test]
async fn a_full_memory_log_drops_its_oldest_records_and_counts_them() {
    let b = bench(Delivery::strict()).await;
    for path in ["/1", "/2", "/3", "/4", "/5"] {
        b.handle(path).await.unwrap();
    }
    let log = MemoryAuditLog::with_capacity(3);
    let records = b.sink.calls.lock().unwrap().concat();
    log.record(&records).await.unwrap();
    assert_eq!((log.len(), log.dropped()), (3, 2));
    let query = AuditQuery::new(org("acme"), AuditScope::KeyRequests(b.id));
    let left = log.page(&query).await.unwrap().records;
    let paths: Vec<_> = left.iter().map(|record| &*request(record).unwrap().endpoint).collect();
    assert_eq!(paths, ["/5", "/4", "/3"]);
}
