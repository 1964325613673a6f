//! Filters of the audit log, and its file.

use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use keygate::audit::{AuditEvent, AuditId, AuditRecord, Outcome, RequestEvent};
use keygate::{AuditSink, KeyId, Timestamp};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::kit::{Api, START, request};

/// A key with these requests, a second apart.
async fn with_requests(events: impl IntoIterator<Item = RequestEvent>) -> (Api, String) {
    let api = Api::new();
    let path = api.create_path("k").await;
    let start: Timestamp = START.parse().unwrap();
    let key: KeyId = path.trim_start_matches("/keys/").parse().unwrap();
    let record = |(n, event): (u64, RequestEvent)| AuditRecord {
        id: AuditId::from_bytes(u128::from(n).to_be_bytes()),
        at: start.saturating_add(std::time::Duration::from_secs(n)),
        org: api.actor.org().clone(),
        key,
        event: AuditEvent::Request(event),
    };
    let records: Vec<_> = (0..).zip(events).map(record).collect();
    api.log.log.record(&records).await.unwrap();
    (api, path)
}

fn event(method: &'static str, path: &str, outcome: Outcome, status: u16) -> RequestEvent {
    let mut event = RequestEvent::new(method, path, outcome);
    event.status = Some(status).filter(|status| *status > 0);
    event
}

/// One request of each kind.
fn kinds() -> Vec<RequestEvent> {
    let mut events = vec![
        event("GET", "/0", Outcome::Allowed, 200),
        event("POST", "/1", Outcome::Allowed, 404),
        event("GET", "/2", Outcome::Revoked, 401),
        event("GET", "/3", Outcome::InsufficientScope, 403),
        event("GET", "/4", Outcome::Aborted, 0),
        event("GET", "/5", Outcome::Allowed, 503),
    ];
    events[2].ip = Some("203.0.113.7".parse().unwrap());
    events[5].ip = Some("2001:db8::7".parse().unwrap());
    events
}

#[tokio::test]
async fn a_page_has_only_the_requests_that_match() {
    let (api, path) = with_requests(kinds()).await;
    for (query, expected) in [
        ("outcome=allowed", "/5 /1 /0"),
        ("outcome=refused", "/3 /2"),
        ("outcome=aborted", "/4"),
        ("status=4xx", "/3 /2 /1"),
        ("status=404", "/1"),
        ("status=2xx&method=POST", ""),
        ("method=GET&outcome=allowed", "/5 /0"),
        ("ip=203.0.113.0/24", "/2"),
        ("ip=2001:db8::7", "/5"),
        ("since=2026-01-31T12:00:02Z", "/5 /4 /3 /2"),
        ("until=2026-01-31T13:00:02%2B01:00", "/1 /0"),
        ("since=2026-01-31T12:00:01Z&until=2026-01-31T12:00:03Z", "/2 /1"),
        ("outcome=refused&limit=1", "/3"),
    ] {
        let page = api.get(&format!("{path}/audit?{query}")).await.json();
        let records = page["records"].as_array().unwrap().iter();
        let found: Vec<_> = records.map(|record| record["endpoint"].as_str().unwrap()).collect();
        assert_eq!(found.join(" "), expected, "{query}");
    }
}

#[tokio::test]
async fn a_filter_that_does_not_parse_is_named() {
    let (api, path) = with_requests([]).await;
    for route in ["audit", "audit.csv"] {
        for (query, field) in [
            ("outcome=revoked", "outcome"),
            ("outcome=", "outcome"),
            ("outcome=ALLOWED", "outcome"),
            ("status=99", "status"),
            ("status=6xx", "status"),
            ("status=4XX", "status"),
            ("status=+404", "status"),
            ("method=", "method"),
            ("method=G%20T", "method"),
            ("ip=10.0.0.1/8", "ip"),
            ("ip=localhost", "ip"),
            ("since=yesterday", "since"),
            ("since=2026-01-31", "since"),
            ("until=2026-01-31T12:00:00", "until"),
            ("since=2026-01-31T12:00:00Z&until=2026-01-31T12:00:00Z", "until"),
            ("outcome=allowed&outcome=allowed", "outcome"),
            ("country=DE", "country"),
        ] {
            let reply = api.get(&format!("{path}/{route}?{query}")).await;
            assert_eq!(reply.fields(), [field], "{route}?{query}");
        }
    }
    assert_eq!(api.get(&format!("{path}/audit.csv?limit=5")).await.fields(), ["limit"]);
    assert_eq!(api.get("/changes?outcome=allowed").await.fields(), ["outcome"]);
}

#[tokio::test]
async fn the_file_has_a_header_and_the_rows_that_match() {
    let mut events = kinds();
    events.push(event("GET", "/a,\"b\"", Outcome::Allowed, 200));
    let mut sum = event("=cmd|'/C calc'!A0", "-1+1", Outcome::Revoked, 401);
    sum.count = 80;
    events.push(sum);
    let (api, path) = with_requests(events).await;
    let reply = api.get(&format!("{path}/audit.csv?since=2026-01-31T12:00:05Z")).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), "text/csv; charset=utf-8; header=present");
    let id = path.trim_start_matches("/keys/");
    let name = format!("requests-{id}-since-2026-01-31T12_00_05Z.csv");
    let disposition = format!("attachment; filename=\"{name}\"");
    assert_eq!(reply.header("content-disposition"), disposition);
    let lines = [
        "timestamp,method,endpoint,ip,country,status,outcome,count,secret",
        "2026-01-31T12:00:07Z,'=cmd|'/C calc'!A0,'-1+1,,,401,revoked,80,current",
        "2026-01-31T12:00:06Z,GET,\"/a,\"\"b\"\"\",,,200,allowed,1,current",
        "2026-01-31T12:00:05Z,GET,/5,2001:db8::7,,503,allowed,1,current",
        "",
    ];
    assert_eq!(reply.text(), lines.join("\r\n"));

    let empty = api.get(&format!("{path}/audit.csv?status=302")).await;
    assert_eq!(empty.text(), format!("{}\r\n", lines[0]));
}

#[tokio::test]
async fn case_19_the_file_of_another_organisation_is_not_there() {
    let (api, path) = with_requests(kinds()).await;
    let reply = api.of("globex").get(&format!("{path}/audit.csv")).await;
    assert_eq!(reply.code(), "not_found");
}

/// The answer, whose body is read by the test.
async fn file(api: &Api, path: &str) -> Body {
    let mut request: Request<Body> = request(Method::GET, &format!("{path}/audit.csv"));
    request.extensions_mut().insert(api.actor.clone());
    api.router.clone().oneshot(request).await.unwrap().into_body()
}

#[tokio::test]
async fn a_file_is_read_while_the_client_takes_it_and_has_100_000_rows_at_most() {
    let same = event("GET", "/", Outcome::Allowed, 200);
    let (api, path) = with_requests(std::iter::repeat_n(same, 100_050)).await;
    let mut body = file(&api, &path).await;
    let pages = || api.log.pages.load(Ordering::SeqCst);
    let mut rows = 0;
    while let Some(part) = body.frame().await {
        let part = part.unwrap().into_data().unwrap();
        if rows == 0 {
            assert_eq!(pages(), 1, "nothing is read ahead");
        }
        rows += part.iter().filter(|byte| **byte == b'\n').count();
        assert!(part.len() < 100_000, "{} bytes at a time", part.len());
    }
    assert_eq!((rows, pages()), (100_001, 100));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_to_its_end_breaks_off() {
    let same = event("GET", "/", Outcome::Allowed, 200);
    let (api, path) = with_requests(std::iter::repeat_n(same, 1_500)).await;
    let mut body = file(&api, &path).await;
    assert!(body.frame().await.unwrap().is_ok());
    api.log.unreadable.store(true, Ordering::SeqCst);
    assert!(body.frame().await.unwrap().is_err());
    // If the first part cannot be read, the answer says so.
    let reply = api.get(&format!("{path}/audit.csv")).await;
    assert_eq!((reply.code(), reply.json()["status"].clone()), ("unavailable".into(), json!(503)));
    assert_eq!(reply.json()["title"], Value::from("Service Unavailable"));
}
