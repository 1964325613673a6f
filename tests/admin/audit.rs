//! The pages of a key's audit log.

use std::net::IpAddr;
use std::sync::Arc;

use keygate::audit::{CountryCode, CountryLookup};
use keygate::manager::RequestInfo;
use keygate::{AuditLog, Delivery, KeyManager, MemoryAuditLog, MemoryStore, NewKey, Timestamp};
use serde_json::{Value, json};

use crate::kit::{Api, actor};
use crate::support::eventually;

struct Logged {
    api: Api,
    path: String,
    secret: String,
}

impl Logged {
    /// A key whose requests are in the log as soon as they are answered.
    async fn new() -> Self {
        let api = Api::with(|b| b.delivery(Delivery::strict()).countries(Germany));
        let (path, secret) = api.create_secret("k").await;
        Self { api, path, secret }
    }

    async fn use_key(&self, path: &str, ip: Option<&str>) {
        let ip = ip.map(|ip| ip.parse().unwrap());
        let info = RequestInfo::new("GET", path).from_ip(ip);
        if let Ok(admission) = self.api.keys.admit(&self.secret, info).await {
            admission.finish(200).await.unwrap();
        }
        self.api.advance(1);
    }

    async fn page(&self, query: &str) -> Value {
        let reply = self.api.get(&format!("{}/audit?{query}", self.path)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    }
}

/// Every IPv4 address is in Germany.
#[derive(Debug)]
struct Germany;

impl CountryLookup for Germany {
    fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        CountryCode::new("DE").filter(|_| ip.is_ipv4())
    }
}

fn endpoints(page: &Value) -> Vec<&str> {
    let records = page["records"].as_array().unwrap();
    records.iter().map(|record| record["endpoint"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_record_has_the_request_and_its_outcome() {
    let logged = Logged::new().await;
    logged.use_key("/v1/a", Some("192.0.2.1")).await;
    logged.use_key("/v1/b", None).await;
    logged.api.patch(&logged.path, json!({"status": "revoked"})).await;
    logged.use_key("/v1/<c>", Some("2001:db8::1")).await;
    let page = logged.page("").await;
    let record = |seconds: u32, endpoint, ip, country, status: u16, outcome| {
        json!({
            "timestamp": format!("2026-01-31T12:00:0{seconds}Z"), "method": "GET",
            "endpoint": endpoint, "ip": ip, "country": country, "status": status,
            "outcome": outcome, "count": 1, "secret": "current",
        })
    };
    let records = json!([
        record(2, "/v1/<c>", json!("2001:db8::1"), json!(null), 401, "revoked"),
        record(1, "/v1/b", json!(null), json!(null), 200, "allowed"),
        record(0, "/v1/a", json!("192.0.2.1"), json!("DE"), 200, "allowed"),
    ]);
    assert_eq!(page, json!({"records": records, "older": null, "newer": null}));
}

#[tokio::test]
async fn a_request_without_an_answer_has_no_status() {
    let logged = Logged::new().await;
    let info = RequestInfo::new("PUT", "/");
    drop(logged.api.keys.admit(&logged.secret, info).await.unwrap());
    let record = eventually("a record", async || {
        logged.page("").await["records"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!((&record["outcome"], &record["status"]), (&json!("aborted"), &Value::Null));
}

#[tokio::test]
async fn a_page_has_25_records_unless_a_limit_is_given() {
    let logged = Logged::new().await;
    for i in 0..30 {
        logged.use_key(&format!("/{i}"), None).await;
    }
    let first = logged.page("").await;
    assert_eq!((endpoints(&first).len(), endpoints(&first)[0]), (25, "/29"));
    assert_eq!(first["newer"], Value::Null);

    assert_eq!(endpoints(&logged.page("limit=200").await).len(), 30);
}

#[tokio::test]
async fn case_56_a_record_from_the_future_hides_no_other_and_can_be_purged() {
    let logged = Logged::new().await;
    for i in 0..5 {
        logged.use_key(&format!("/{i}"), None).await;
    }
    logged.api.set_time("2099-01-01T00:00:00Z");
    logged.use_key("/future", None).await;
    logged.api.set_time("2026-01-31T12:01:00Z");
    for i in 5..12 {
        logged.use_key(&format!("/{i}"), None).await;
        let newest = logged.page("limit=3").await;
        assert_eq!(endpoints(&newest)[..2], ["/future", &format!("/{i}")]);
        assert_eq!(newest["newer"], Value::Null);
    }
    let all: Vec<String> =
        ["/future".to_owned()].into_iter().chain((0..12).rev().map(|i| format!("/{i}"))).collect();

    let mut page = logged.page("limit=3").await;
    let mut back = endpoints(&page).join(" ");
    while let Some(older) = page["older"].as_str() {
        page = logged.page(&format!("limit=3&before={older}")).await;
        back = format!("{back} {}", endpoints(&page).join(" "));
    }
    assert_eq!(back, all.join(" "), "older pages hold every record once");

    let mut forward = endpoints(&page).join(" ");
    while let Some(newer) = page["newer"].as_str() {
        page = logged.page(&format!("limit=3&after={newer}")).await;
        forward = format!("{} {forward}", endpoints(&page).join(" "));
    }
    assert_eq!(forward.trim(), all.join(" "), "so do newer pages");

    let purged = |instant: &str| logged.api.log.purge_before(instant.parse::<Timestamp>().unwrap());
    // Five requests and the creation.
    assert_eq!(purged("2026-01-31T12:01:00Z").await.unwrap(), 6);
    assert_eq!(endpoints(&logged.page("").await), &all[..8], "the others are kept");
    assert_eq!(purged("2099-01-02T00:00:00Z").await.unwrap(), 8);
    logged.use_key("/after", None).await;
    assert_eq!(endpoints(&logged.page("").await), ["/after"]);
}

#[tokio::test]
async fn the_log_of_a_key_holds_only_its_requests() {
    let logged = Logged::new().await;
    logged.use_key("/mine", None).await;
    let path = format!("{}/audit", logged.api.create_path("other").await);
    assert!(logged.api.log.len() >= 3, "the changes are in the log, too");
    assert_eq!(logged.api.get(&path).await.json()["records"], json!([]));
    assert_eq!(endpoints(&logged.page("").await), ["/mine"]);
}

#[tokio::test]
async fn without_a_readable_log_the_route_is_404() {
    let write_only = Arc::new(MemoryAuditLog::new());
    let keys = KeyManager::builder(MemoryStore::new()).audit_sink(write_only).build().unwrap();
    let key = keys.create(&actor("acme"), NewKey::named("k").unwrap()).await.unwrap().key;
    let api = Api { router: keygate::admin::router(keys), ..Api::new() };
    let reply = api.get(&format!("/keys/{}/audit", key.id)).await;
    assert_eq!(reply.code(), "not_found");
    assert!(reply.text().contains("audit log"));
    assert_eq!(api.get(&format!("/keys/{}", key.id)).await.status, 200);
}
