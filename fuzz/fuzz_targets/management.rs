//! The management API on hostile bodies, queries and content types:
//! `cargo +nightly fuzz run management -- -max_total_time=60 -detect_leaks=0 -dict=fuzz/dictionaries/management.dict`
//! (the audit log grows, and looking for leaks after each input takes most of the time).
//!
//! The first byte chooses the route, the second the content type; the rest is the body
//! or the query. Every answer is one of those documented and never 5xx; what is refused
//! changes nothing and repeats no key; what is taken fits, by a second look at its JSON,
//! and comes back as it was given.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, LOCATION};
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::BodyExt;
use keygate::audit::AuditCursor;
use keygate::{
    Actor, Allowlist, ApiKey, Expiration, KeyManager, KeyName, MemoryAuditLog, MemoryStore, NewKey,
    OrgId,
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tower::ServiceExt;

/// Of every error, the status and the code.
const ERRORS: [(u16, &str); 10] = [
    (400, "malformed_body"),
    (404, "not_found"),
    (405, "method_not_allowed"),
    (409, "key_limit_reached"),
    (409, "conflict"),
    (412, "stale_revision"),
    (413, "payload_too_large"),
    (415, "unsupported_media_type"),
    (422, "validation_failed"),
    (422, "confirmation_mismatch"),
];

struct Api {
    router: Router,
    /// Over the same store, without an audit log: it makes and removes keys sooner.
    keys: KeyManager,
    actor: Actor,
    runtime: tokio::runtime::Runtime,
}

/// One at a time: an input finds one key and leaves none.
static API: LazyLock<Mutex<Api>> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (keys, router) = {
        let _entered = runtime.enter();
        let store = Arc::new(MemoryStore::new());
        let logged = KeyManager::builder(Arc::clone(&store)).audit(MemoryAuditLog::new());
        let router = keygate::admin::router(logged.build().unwrap());
        (KeyManager::builder(store).build().unwrap(), router)
    };
    let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
    Mutex::new(Api { router, keys, actor, runtime })
});

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

fuzz_target!(|input: &[u8]| {
    let [route, media_type, rest @ ..] = input else { return };
    let api = API.lock().unwrap_or_else(PoisonError::into_inner);
    api.runtime.block_on(api.one(*route, *media_type, rest));
});

impl Api {
    async fn one(&self, route: u8, media_type: u8, rest: &[u8]) {
        let org = self.actor.org();
        let new = NewKey::named("CI").unwrap().allow(["10.0.0.0/8"]).unwrap();
        let issued = self.keys.create(&self.actor, new).await.unwrap();
        let before = self.keys.list(org).await.unwrap();
        let id = issued.key.id;

        let query = || std::str::from_utf8(rest).ok();
        let (method, uri, takes_body) = match route % 7 {
            0 => (Method::POST, Some("/keys".to_owned()), true),
            1 => (Method::PATCH, Some(format!("/keys/{id}")), true),
            2 => (Method::POST, Some(format!("/keys/{id}/rotate")), true),
            3 => (Method::DELETE, query().map(|q| format!("/keys/{id}?{q}")), false),
            4 => (Method::GET, query().map(|q| format!("/keys/{id}/audit?{q}")), false),
            5 => (Method::GET, query().map(|q| format!("/keys?{q}")), false),
            _ => (Method::GET, query().map(|path| format!("/{path}")), false),
        };
        let uri = uri.and_then(|uri| uri.parse::<Uri>().ok());
        let (media_type, body) = match media_type % 4 {
            0 => (vec![HeaderValue::from_static("application/json")], rest),
            1 => (vec![HeaderValue::from_static("Application/JSON; charset=utf-8")], rest),
            2 => (vec![], rest),
            // As many lines as there are up to an empty one.
            _ => {
                let end = rest.windows(2).position(|pair| pair == b"\n\n");
                let (head, body) = end.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 2..]));
                let lines = head.split(|b| *b == b'\n');
                (lines.filter_map(|line| HeaderValue::from_bytes(line).ok()).collect(), body)
            }
        };
        if let Some(uri) = uri {
            let mut request = Request::builder().method(method.clone()).uri(uri.clone());
            for line in &media_type {
                request = request.header(CONTENT_TYPE, line);
            }
            let sent = if takes_body { Body::from(body.to_vec()) } else { Body::empty() };
            let request = request.extension(self.actor.clone()).body(sent).unwrap();
            let reply = self.send(request).await;
            reply.is_documented();
            let after = self.keys.list(org).await.unwrap();
            if reply.status >= 400 {
                assert_eq!(before, after, "refused, and changed all the same");
            }
            if takes_body {
                expected(&media_type, body, reply.status);
            }
            match (route % 7, reply.status) {
                (0, 201) => self.created(&reply, body, &after).await,
                (1, 200) => patched(&reply, body, &after),
                (2, 200) => {
                    assert_eq!(json(body)["confirm_name"], "CI");
                    let secret = reply.json()["secret"].as_str().unwrap().to_owned();
                    let inside: Option<IpAddr> = Some("10.0.0.1".parse().unwrap());
                    assert!(self.keys.verify(&secret, inside).await.is_ok());
                    let old = issued.secret.expose_secret();
                    assert!(self.keys.verify(old, inside).await.is_err());
                }
                (3, 204) => assert!(after.is_empty() && reply.body.is_empty()),
                (4, 200) => page(&reply, uri.query().unwrap_or_default()),
                (0..=2, ..400) | (3, ..400) => panic!("{route}: {}", reply.status),
                _ => assert_eq!(before, after, "reading changes nothing"),
            }
        }
        for key in self.keys.list(org).await.unwrap() {
            self.keys.delete(&self.actor, &key.id).await.unwrap();
        }
    }

    async fn send(&self, request: Request<Body>) -> Reply {
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn created(&self, reply: &Reply, body: &[u8], after: &[Arc<ApiKey>]) {
        let (given, answer) = (json(body), reply.json());
        only(&given, &["name", "expiration", "ip_allowlist"]);
        let [_, made] = after else { panic!("{} keys", after.len()) };
        fits(&given, &answer["key"], made);
        let expiration: Expiration = given["expiration"].as_str().unwrap().parse().unwrap();
        assert_eq!(made.expires_at, expiration.after(made.created_at));
        assert_eq!(reply.headers[LOCATION], format!("/keys/{}", made.id).as_str());
        let secret = answer["secret"].as_str().unwrap();
        assert_eq!(made.key_prefix, secret[..12]);
        // From anywhere or from nowhere, as its list has it.
        let verified = self.keys.verify(secret, None).await;
        assert_eq!(verified.is_ok(), made.allowlist.is_empty());
    }
}

impl Reply {
    fn is_documented(&self) {
        assert_eq!(self.headers[CACHE_CONTROL], "no-store");
        if self.status < 400 {
            assert!(matches!(self.status, 200 | 201 | 204), "{}", self.status);
            return;
        }
        assert_eq!(self.headers[CONTENT_TYPE], "application/problem+json");
        let problem = self.json();
        let code = problem["code"].as_str().unwrap();
        assert!(ERRORS.contains(&(self.status, code)), "{} {code}", self.status);
        assert_eq!(problem["status"], self.status);
        let errors = problem.get("errors").map_or(&[][..], |errors| errors.as_array().unwrap());
        assert_eq!(errors.is_empty(), code != "validation_failed");
        assert!(errors.len() <= 100);
        // Nowhere in it a key, were it one or not.
        let text = std::str::from_utf8(&self.body).unwrap();
        let secret = |rest: &str| rest.bytes().take_while(u8::is_ascii_alphanumeric).count();
        assert!(text.split("vsp_sk_").skip(1).all(|rest| secret(rest) < 42), "{text}");
    }

    fn json(&self) -> Value {
        json(&self.body)
    }
}

fn json(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

/// What any body is answered with, before its fields are looked at.
fn expected(media_type: &[HeaderValue], body: &[u8], status: u16) {
    let is_json = match media_type {
        [line] => {
            let line = line.as_bytes().to_ascii_lowercase();
            line.split(|b| *b == b';').next().map(<[u8]>::trim_ascii) == Some(b"application/json")
                && line.iter().all(|b| matches!(b, b'\t' | b' '..=b'~'))
        }
        _ => false,
    };
    assert_eq!(status == 415, !is_json, "{media_type:?}");
    if !is_json {
        return;
    }
    assert_eq!(status == 413, body.len() > 64 * 1024);
    if status != 413 {
        let value = serde_json::from_slice::<Value>(body);
        assert_eq!(status == 400, value.is_err());
        if value.is_ok_and(|value| !value.is_object()) {
            assert_eq!(status, 422);
        }
    }
}

fn only(given: &Value, fields: &[&str]) {
    assert!(given.as_object().unwrap().keys().all(|name| fields.contains(&name.as_str())));
}

/// What was given is what is answered and what is kept, as far as it was given.
fn fits(given: &Value, answered: &Value, kept: &ApiKey) {
    if let Some(name) = given.get("name") {
        let name = KeyName::new(name.as_str().unwrap()).unwrap();
        assert_eq!(kept.name, name);
    }
    if let Some(list) = given.get("ip_allowlist") {
        let texts: Vec<&str> =
            list.as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
        assert!(texts.len() <= 50);
        assert_eq!(kept.allowlist, Allowlist::parse(texts).unwrap());
    }
    if let Some(status) = given.get("status") {
        assert_eq!(kept.status.as_str(), status.as_str().unwrap());
    }
    assert_eq!(answered["id"], kept.id.to_string());
    assert_eq!(answered["name"], kept.name.as_str());
    assert_eq!(answered["status"], kept.status.as_str());
    assert_eq!(answered["revision"], kept.revision.get());
    let shown: Vec<&str> =
        answered["ip_allowlist"].as_array().unwrap().iter().map(|e| e.as_str().unwrap()).collect();
    assert_eq!(shown, kept.allowlist.entries());
}

fn patched(reply: &Reply, body: &[u8], after: &[Arc<ApiKey>]) {
    let given = json(body);
    only(&given, &["name", "status", "ip_allowlist"]);
    let [kept] = after else { panic!("{} keys", after.len()) };
    fits(&given, &reply.json(), kept);
}

fn page(reply: &Reply, query: &str) {
    let page = reply.json();
    assert!(page["records"].as_array().unwrap().len() <= 200);
    for way in ["older", "newer"] {
        if let Some(cursor) = page[way].as_str() {
            assert_eq!(cursor.parse::<AuditCursor>().unwrap().to_string(), cursor);
        }
    }
    let names = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    let plain = names.filter(|name| !name.is_empty() && !name.contains(['%', '+']));
    assert!(plain.into_iter().all(|name| ["limit", "before", "after"].contains(&name)), "{query}");
}
