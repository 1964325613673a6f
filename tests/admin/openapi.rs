//! The OpenAPI document describes exactly what the API does.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::{Method, Request};
use http_body_util::BodyExt;
use keygate::admin::ROUTES;
use keygate::audit::{AuditQuery, AuditScope};
use keygate::manager::KeyManagerBuilder;
use keygate::{KeyFormat, KeyManager, Limits, ScopeCatalog};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tower::ServiceExt;

use crate::kit::{Api, CODES, NO_KEY, Reply, new_key, request, send, with_header, with_json};
use crate::schema::{misfit, resolve};

const HOUR: Duration = Duration::from_secs(3_600);

/// A service whose document is needed.
#[derive(Clone, Copy)]
enum Service {
    Plain,
    WithScopes,
    WithEnvironments,
}

async fn document() -> &'static Value {
    document_of(Service::Plain).await
}

async fn document_of(service: Service) -> &'static Value {
    static DOCUMENTS: [OnceCell<Value>; 3] = [const { OnceCell::const_new() }; 3];
    let get = async || {
        let api = Api::with(|builder| match service {
            Service::Plain => builder,
            Service::WithScopes => builder.scopes(ScopeCatalog::new([("read", "")]).unwrap()),
            Service::WithEnvironments => live_and_test(builder),
        });
        let mut request = request(Method::GET, "/openapi.json");
        request.extensions_mut().insert(api.actor);
        let body = api.router.oneshot(request).await.unwrap().into_body();
        serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap()
    };
    DOCUMENTS[service as usize].get_or_init(get).await
}

pub(crate) fn live_and_test(builder: KeyManagerBuilder) -> KeyManagerBuilder {
    let test = KeyFormat::new("vsp_sk_test_").unwrap();
    builder.environment("live", KeyFormat::default()).environment("test", test)
}

/// The operation that handles this request, if there is one.
fn operation<'a>(document: &'a Value, method: &Method, path: &str) -> Option<&'a Value> {
    let is_at = |template: &str| {
        let (template, path) = (template.split('/'), path.split('/'));
        template.clone().count() == path.clone().count()
            && template.zip(path).all(|(t, p)| t == p || (t == "{id}" && !p.is_empty()))
    };
    let method = if method == Method::HEAD { "get" } else { &*method.as_str().to_lowercase() };
    let paths = document["paths"].as_object().unwrap();
    paths.iter().find(|(template, _)| is_at(template)).and_then(|(_, item)| item.get(method))
}

/// Checks that the document describes this answer. The tests of the API check every answer
/// that they get.
pub(crate) async fn check(method: &Method, path: &str, reply: &Reply) {
    let body = String::from_utf8_lossy(&reply.body);
    let document = document_of(if body.contains("\"scopes\"") {
        Service::WithScopes
    } else if body.contains("\"environment") {
        Service::WithEnvironments
    } else {
        Service::Plain
    })
    .await;
    let status = reply.status.as_str();
    let described = match operation(document, method, path) {
        Some(operation) => resolve(document, &operation["responses"][status]),
        // Below the path of a host, which has its own document.
        None if reply.status.is_success() || *method == Method::HEAD => return,
        None => {
            let everywhere = ["unauthenticated", "cross_site", "not_found", "method_not_allowed"];
            let code = reply.code();
            assert!(everywhere.contains(&&*code) || path.starts_with("/t/"), "{method} {path}");
            &document["components"]["responses"][code]
        }
    };
    assert!(described.is_object(), "{method} {path} has no described answer {status}");
    for header in described["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
        if header == "Location" && reply.code() == "key_limit_reached" {
            continue;
        }
        assert_ne!(reply.header(header), "", "{method} {path} {status}: {header}");
    }
    match described["content"].as_object().and_then(|content| content.iter().next()) {
        None => assert_eq!(reply.text(), ""),
        Some((media_type, content)) => {
            let essence = reply.header("content-type").split(';').next().unwrap();
            assert_eq!(essence, media_type, "{method} {path} {status}");
            if *method != Method::HEAD && essence.ends_with("json") {
                let fits = misfit(document, &content["schema"], &reply.json());
                assert_eq!(fits, Ok(()), "{method} {path} {status}: {}", reply.text());
            }
        }
    }
}

/// Whether a value is as a document's schema says.
pub(crate) fn described_by(document: &Value, schema: &str, value: &Value) -> Result<(), String> {
    let reference = json!({"$ref": format!("#/components/schemas/{schema}")});
    misfit(document, &reference, value)
}

/// Every operation of the document with its method and path.
fn operations(document: &Value) -> Vec<(Method, &str, &Value)> {
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            operations.push((method, path.as_str(), operation));
        }
    }
    operations
}

#[tokio::test]
async fn the_document_has_the_routes_of_the_router() {
    let operations = operations(document().await);
    let described: BTreeSet<String> =
        operations.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
    let served = ROUTES.iter().map(|(method, path)| format!("{method} {path}")).collect();
    assert_eq!(described, served);
    let ids: BTreeSet<&str> =
        operations.iter().map(|(_, _, o)| o["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), ROUTES.len(), "ids are unique");
}

/// The error codes that a body of this schema may have.
fn codes(document: &Value, schema: &Value) -> BTreeSet<String> {
    let schema = resolve(document, schema);
    let of = |keyword: &str| {
        schema[keyword].as_array().into_iter().flatten().map(|schema| codes(document, schema))
    };
    if schema["oneOf"].is_array() {
        return of("oneOf").flatten().collect();
    }
    if schema["allOf"].is_array() {
        return of("allOf").reduce(|all, one| &all & &one).unwrap();
    }
    let codes = schema["properties"]["code"]["enum"].as_array().into_iter().flatten();
    codes.map(|code| code.as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_codes_of_the_document_are_those_of_the_api() {
    let document = document().await;
    let responses = document["components"]["responses"].as_object().unwrap();
    let described: BTreeSet<String> = responses
        .values()
        .flat_map(|r| codes(document, &r["content"]["application/problem+json"]["schema"]))
        .collect();
    assert_eq!(described, CODES.iter().map(|(code, _)| (*code).to_owned()).collect());
}

/// A request that succeeds for a key named `k`.
fn good(method: &Method, template: &str, id: &str) -> Request<Body> {
    let request = request(method.clone(), &template.replace("{id}", id));
    match (method.as_str(), template) {
        ("POST", "/keys") => with_json(request, new_key("new")),
        ("POST", _) => with_json(request, json!({"confirm_name": "k"})),
        ("PATCH", _) => with_json(request, json!({"name": "new"})),
        ("DELETE", "/keys/{id}") => at(request, "?confirm_name=k"),
        _ => request,
    }
}

/// The same request with this suffix on its URI.
fn at(mut request: Request<Body>, end: &str) -> Request<Body> {
    *request.uri_mut() = format!("{}{end}", request.uri()).parse().unwrap();
    request
}

/// The answers to such requests in every way that they can fail.
async fn answers(method: &Method, template: &str) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    let limits = Limits::default().max_keys(2);
    let text = |request: Request<Body>, body: String| {
        let mut request = request.map(|_| Body::from(body));
        request.headers_mut().remove(CONTENT_TYPE);
        request
    };
    for fault in 0..16 {
        let mut api = Api::with(|builder| builder.limits(limits).max_overlap(HOUR));
        let path = api.create_path("k").await;
        let id = path.trim_start_matches("/keys/");
        let good = good(method, template, id);
        let request = match fault {
            0 | 1 => good,
            2 => with_header(good, "sec-fetch-site", "cross-site"),
            3 => at(request(method.clone(), &template.replace("{id}", id)), "?confirm_name=x"),
            12 => at(request(method.clone(), &template.replace("{id}", id)), "?unknown"),
            4 => self::good(method, template, NO_KEY),
            5 => with_json(text(good, String::new()), "{"),
            6 => with_json(text(good, String::new()), " ".repeat(70_000)),
            7 => text(good, "{}".into()),
            8 => with_header(good, IF_MATCH, "\"9\""),
            9 => with_json(text(good, String::new()), json!({"confirm_name": "x"})),
            13 => {
                let again = self::good(method, template, id);
                let again = with_header(again, "idempotency-key", "x");
                assert!(api.send(again).await.status.as_u16() < 500);
                with_header(good, "idempotency-key", "x")
            }
            10 => {
                api.create("second").await;
                let key = id.parse().unwrap();
                api.keys.rotate_with_overlap(&api.actor, &key, HOUR, None).await.unwrap();
                api.conflict();
                good
            }
            14 => {
                api.router = keygate::admin::router_on_hosts(api.keys.clone(), ["example.com"]);
                good
            }
            15 => {
                let keys = KeyManager::builder(api.store.clone()).limits(limits);
                api.router = keygate::admin::router(keys.max_overlap(HOUR).build().unwrap());
                good
            }
            _ => {
                api.store_fails();
                good
            }
        };
        let reply =
            if fault == 1 { send(&api.router, request).await } else { api.send(request).await };
        seen.insert(format!("{} {}", reply.status.as_str(), reply.code()).trim().to_owned());
    }
    seen
}

#[tokio::test]
async fn every_answer_is_described_and_every_described_answer_occurs() {
    let document = document().await;
    for (method, path, operation) in operations(document) {
        let mut described = BTreeSet::new();
        for (status, response) in operation["responses"].as_object().unwrap() {
            let response = resolve(document, response);
            let problem = &response["content"]["application/problem+json"];
            if problem.is_null() {
                described.insert(status.clone());
            } else {
                let codes = codes(document, &problem["schema"]);
                described.extend(codes.iter().map(|code| format!("{status} {code}")));
            }
        }
        assert_eq!(answers(&method, path).await, described, "{method} {path}");
    }
}

#[tokio::test]
async fn every_reference_resolves() {
    fn walk(document: &Value, value: &Value) {
        resolve(document, value);
        match value {
            Value::Array(items) => items.iter().for_each(|item| walk(document, item)),
            Value::Object(fields) => fields.values().for_each(|field| walk(document, field)),
            _ => {}
        }
    }
    let document = document().await;
    walk(document, document);
    let is_operation = |id: &Value| operations(document).iter().any(|o| o.2["operationId"] == *id);
    let created = &document["paths"]["/keys"]["post"]["responses"]["201"]["links"];
    let links = created.as_object().unwrap();
    assert!(links.contains_key("usage"), "{links:?}");
    assert!(links.values().all(|link| is_operation(&link["operationId"])), "{links:?}");
}

#[tokio::test]
async fn limits_and_server_are_those_of_this_router() {
    let limits = Limits::default().max_keys(7).max_ips_per_key(3);
    let api = Api::with(|builder| builder.limits(limits));
    let document = api.get("/openapi.json").await.json();
    assert_eq!(document["servers"], json!([{"url": "/"}]));
    for body in ["NewKey", "KeyPatch"] {
        let list = &document["components"]["schemas"][body]["properties"]["ip_allowlist"];
        assert_eq!(list["maxItems"], 3, "{body}");
    }
    let create = &document["paths"]["/keys"]["post"]["description"];
    assert!(create.as_str().unwrap().contains("at most 7 keys"), "{create}");

    let router =
        Router::new().nest("/{tenant}", Router::new().nest("/orgs/{id}/api", api.router.clone()));
    let nested = Api { router, ..api };
    let document = nested.get("/t/orgs/7/api/openapi.json").await.json();
    assert_eq!(document["servers"], json!([{"url": "/t/orgs/7/api"}]));
}

#[tokio::test]
async fn documented_bounds_and_choices_match_the_api() {
    let api = Api::new();
    let document = document().await;
    let schemas = &document["components"]["schemas"];
    let new = &schemas["NewKey"];
    assert_eq!(new["required"], json!(["name", "expiration"]));
    assert_eq!(schemas["KeyPatch"]["required"], Value::Null);
    let name = &schemas["KeyName"];
    let longest = "é".repeat(name["maxLength"].as_u64().unwrap().try_into().unwrap());
    assert_eq!(name["minLength"], 1);
    for expiration in new["properties"]["expiration"]["enum"].as_array().unwrap() {
        let body = json!({"name": longest, "expiration": expiration});
        assert_eq!(api.post("/keys", body).await.status, 201);
    }
    let path = api.create_path("k").await;
    let too_long = json!({"name": format!("{longest}é")});
    assert_eq!(api.patch(&path, too_long).await.fields(), ["name"]);
    for status in schemas["KeyPatch"]["properties"]["status"]["enum"].as_array().unwrap() {
        assert_eq!(api.patch(&path, json!({"status": status})).await.json()["status"], *status);
    }
    let parameters = document["paths"]["/keys/{id}/audit"]["get"]["parameters"].as_array().unwrap();
    let limit = &parameters.iter().find(|p| p["name"] == "limit").unwrap()["schema"];
    let query = AuditQuery::new(api.actor.org().clone(), AuditScope::OrgChanges);
    assert_eq!(limit["default"], query.limit);
    let (least, most) = (limit["minimum"].as_u64().unwrap(), limit["maximum"].as_u64().unwrap());
    for (limit, taken) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
        let reply = api.get(&format!("{path}/audit?limit={limit}")).await;
        assert_eq!(reply.status == 200, taken, "{limit}");
    }
}
