//! Access to the API: requests without an actor and cross-site requests are refused.

use std::collections::BTreeSet;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{Method, Version};
use keygate::admin::ROUTES;
use serde_json::json;

use crate::kit::{
    Api, NO_KEY, creation, deletion, new_key, request, rotation, send, with_header, with_json,
};
use crate::support::{assert_no_leak, capture_logs, log_lines, logs, unknown_key};

const METHODS: [Method; 9] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
    Method::TRACE,
    Method::CONNECT,
];

fn path(template: &str, id: &str) -> String {
    let path = template.replace("{id}", id);
    assert!(!path.contains('{'), "a parameter that this test does not know");
    path
}

#[tokio::test]
async fn case_18_without_an_actor_a_body_that_names_one_changes_nothing() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let claim = json!({"name": "k", "expiration": "never", "org": "acme", "confirm_name": "k"});
    for (method, uri) in [
        (Method::POST, "/keys".to_owned()),
        (Method::PATCH, path.clone()),
        (Method::POST, format!("{path}/rotate")),
        (Method::DELETE, format!("{path}?confirm_name=k&org=acme")),
        (Method::GET, format!("{path}/audit")),
        (Method::GET, "/keys".to_owned()),
    ] {
        let request = with_json(request(method, &uri), claim.clone());
        let request = with_header(request, "x-org", "acme");
        assert_eq!(send(&api.router, request).await.code(), "unauthenticated", "{uri}");
    }
    let keys = api.get("/keys").await.json()["keys"].clone();
    assert_eq!((keys.as_array().unwrap().len(), &keys[0]["revision"]), (1, &json!(1)));
}

#[tokio::test]
async fn case_21_every_route_is_401_without_an_actor() {
    let api = Api::new();
    let key = api.create_path("k").await.replace("/keys/", "");
    let unknown = ["/", "/x", "/keys/", "/keys/a/b", "/keys/%ff", "/../keys", "/openapi.jsonx"];
    let known = ROUTES.iter().map(|(_, path)| *path);
    let custom = Method::from_bytes(b"BREW").unwrap();
    for template in known.chain(unknown) {
        for id in [key.as_str(), NO_KEY, "x"] {
            for method in METHODS.iter().chain([&custom]) {
                // Other errors in the request are not looked at.
                let path = path(template, id);
                let good = || request(method.clone(), &path);
                for request in [
                    good(),
                    request(method.clone(), &format!("{path}?x=%ff")),
                    with_header(good(), ORIGIN, "null"),
                    with_json(good(), "{".repeat(70_000)),
                ] {
                    let reply = send(&api.router, request).await;
                    assert_eq!(reply.status, 401, "{method} {template}");
                    assert!(*method == Method::HEAD || reply.code() == "unauthenticated");
                }
            }
        }
    }
}

#[tokio::test]
async fn case_21_the_table_of_routes_is_the_router() {
    let api = Api::new();
    let paths: BTreeSet<&str> = ROUTES.iter().map(|(_, path)| *path).collect();
    assert!(paths.contains("/keys") && ROUTES.len() >= 7);
    for template in paths {
        let key = api.create_path("k").await.replace("/keys/", "");
        let mut served = BTreeSet::new();
        let mut allowed = BTreeSet::new();
        for method in METHODS {
            let reply = api.send(request(method.clone(), &path(template, &key))).await;
            if reply.status == 405 {
                allowed.insert(reply.header("allow").to_owned());
            } else {
                assert_ne!(reply.status, 404, "{method} {template}");
                served.insert(method.to_string());
            }
        }
        let of_path = ROUTES.iter().filter(|(_, path)| *path == template);
        let mut expected: BTreeSet<_> = of_path.map(|(method, _)| method.to_string()).collect();
        if expected.contains("GET") {
            expected.insert("HEAD".to_owned());
        }
        assert_eq!(served, expected, "{template}");
        assert_eq!(allowed.len(), 1);
        let allow = allowed.pop_first().unwrap();
        assert_eq!(allow.split(',').map(str::to_owned).collect::<BTreeSet<_>>(), expected);
    }
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405() {
    let api = Api::new();
    for unknown in ["/", "/x", "/keys/", "/Keys", "/keys/a/b", "/keys//audit", "/keys/%ff"] {
        assert_eq!(api.get(unknown).await.code(), "not_found", "{unknown}");
    }
    let put = api.send(request(Method::PUT, "/keys")).await;
    assert_eq!((put.code().as_str(), put.header("allow")), ("method_not_allowed", "GET,HEAD,POST"));
    let anywhere = request(Method::OPTIONS, "*");
    assert_eq!(api.send(anywhere).await.code(), "not_found");
}

/// Sends a request with these headers and no other error, with every unsafe method that has a
/// route.
async fn refused(headers: &[(&'static str, &str)]) -> bool {
    let api = Api::new();
    let path = api.create_path("k").await;
    let mut codes = BTreeSet::new();
    for request in [
        creation("x"),
        with_json(request(Method::PATCH, &path), json!({"name": "x"})),
        rotation(&path, "x"),
        deletion(&path, "x"),
    ] {
        let add =
            |request, (name, value): &(&'static str, &str)| with_header(request, *name, value);
        codes.insert(api.send(headers.iter().fold(request, add)).await.code());
    }
    let list = api.get("/keys").await.json()["keys"].clone();
    let refused = codes.contains("cross_site");
    assert_eq!(codes.len(), 1, "every route gives the same code: {codes:?}");
    assert_eq!(refused, list[0]["name"] == "k" && list.as_array().unwrap().len() == 1);
    refused
}

#[tokio::test]
async fn case_25_changes_for_another_site_are_refused() {
    const HERE: (&str, &str) = ("host", "example.com");
    for headers in [
        &[HERE, ("sec-fetch-site", "cross-site")][..],
        &[HERE, ("sec-fetch-site", "same-site")],
        &[HERE, ("sec-fetch-site", "Same-Origin")],
        &[HERE, ("sec-fetch-site", "")],
        &[HERE, ("sec-fetch-site", "same-origin, cross-site")],
        &[HERE, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")],
        &[HERE, ("sec-fetch-site", "cross-site"), ("origin", "https://example.com")],
        &[HERE, ("origin", "https://evil.example")],
        &[HERE, ("origin", "https://sub.example.com")],
        &[HERE, ("origin", "https://example.com:8443")],
        &[HERE, ("origin", "https://example.com:80")],
        &[HERE, ("origin", "https://example.com:70000")],
        &[HERE, ("origin", "https://example.com:")],
        &[HERE, ("origin", "https://example.com.evil.example")],
        &[HERE, ("origin", "https://user@example.com")],
        &[HERE, ("origin", "https://example.com/")],
        &[HERE, ("origin", "https://")],
        &[HERE, ("origin", "extension://example.com")],
        &[HERE, ("origin", "example.com")],
        &[("host", "example.com:80"), ("origin", "https://example.com")],
        &[("host", "example.com:443"), ("origin", "http://example.com")],
        &[("host", "sub.example.com"), ("origin", "https://example.com")],
        &[("host", ""), ("origin", "https://example.com")],
        &[("host", "null"), ("origin", "null")],
        &[("host", "[::2]"), ("origin", "http://[::1]")],
        &[HERE, ("origin", "null")],
        &[HERE, ("origin", "")],
        &[HERE, ("origin", "\u{fc}")],
        &[HERE, HERE, ("origin", "https://example.com")],
        &[HERE, ("origin", "https://example.com"), ("origin", "https://example.com")],
        &[HERE, HERE, ("sec-fetch-site", "same-origin")],
        &[("origin", "https://example.com")],
        &[("host", "\u{fc}"), ("origin", "https://example.com")],
    ] {
        assert!(refused(headers).await, "{headers:?}");
    }
    for headers in [
        &[][..],
        &[HERE],
        &[HERE, ("sec-fetch-site", "same-origin")],
        &[HERE, ("sec-fetch-site", "none")],
        &[HERE, ("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none")],
        &[HERE, ("origin", "https://example.com")],
        &[HERE, ("origin", "http://EXAMPLE.com:80")],
        &[("host", "example.com:3000"), ("origin", "http://example.com:3000")],
        &[("host", "example.com:443"), ("origin", "https://example.com")],
        &[("host", "[::1]:80"), ("origin", "http://[::1]")],
        &[("host", "[::1]:3000"), ("origin", "http://[::1]:3000")],
    ] {
        assert!(!refused(headers).await, "{headers:?}");
    }
}

#[tokio::test]
async fn case_25_reads_are_allowed_and_changes_are_refused_before_routing() {
    let api = Api::new();
    for method in METHODS {
        let safe = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(&method);
        for uri in ["/keys", "/unknown"] {
            let cross = with_header(request(method.clone(), uri), "sec-fetch-site", "cross-site");
            let reply = api.send(cross).await;
            assert_eq!(reply.status == 403, !safe, "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn case_25_over_http_2_the_host_is_taken_from_the_uri() {
    let api = Api::new();
    for (origin, status) in [("https://example.com", 201), ("https://evil.example", 403)] {
        let request = with_json(request(Method::POST, "https://example.com/keys"), new_key("x"));
        assert_eq!(api.send(with_header(request, ORIGIN, origin)).await.status, status);
    }
    let request = with_json(request(Method::POST, "https://evil.example/keys"), new_key("x"));
    let request = with_header(request, HOST, "example.com");
    let reply = api.send(with_header(request, ORIGIN, "https://evil.example")).await;
    assert_eq!(reply.status, 403, "the Host header takes precedence");
}

#[tokio::test]
async fn an_answer_before_the_body_is_read_closes_the_connection_of_http_1() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let asked = |method: Method, uri: &str, version| {
        let mut request = with_json(request(method, uri), json!({ "name": "renamed" }));
        *request.version_mut() = version;
        request
    };
    for (version, connection) in
        [(Version::HTTP_10, "close"), (Version::HTTP_11, "close"), (Version::HTTP_2, "")]
    {
        for (method, template) in ROUTES {
            let uri = self::path(template, NO_KEY);
            let reply = send(&api.router, asked(method.clone(), &uri, version)).await;
            assert_eq!((reply.status.as_u16(), reply.header("connection")), (401, connection));
            let reply = send(&api.router, request(method.clone(), &uri)).await;
            assert_eq!(reply.header("connection"), "", "{uri}: no body");
        }
    }
    // Whether it is refused does not matter here: only whether the body was read.
    for (method, uri, status, connection) in [
        (Method::GET, "/keys", 200, "close"),
        (Method::PUT, "/keys", 405, "close"),
        (Method::POST, "/nothing", 404, "close"),
        (Method::POST, "/keys?x=1", 422, "close"),
        (Method::POST, "/keys", 422, ""),
        (Method::PATCH, &path, 200, ""),
        (Method::DELETE, &format!("{path}?confirm_name=renamed"), 204, "close"),
    ] {
        let reply = api.send(asked(method.clone(), uri, Version::HTTP_11)).await;
        assert_eq!(reply.status, status, "{method} {uri}");
        assert_eq!(reply.header("connection"), connection, "{method} {uri}");
    }
}

#[tokio::test]
async fn a_wrong_host_and_a_missing_actor_are_in_the_log() {
    capture_logs();
    let api = Api::new();
    let router = keygate::admin::router_on_hosts(api.keys.clone(), ["example.com"]);
    let listed = Api { router, ..api.clone() };
    let key = &*unknown_key();
    for host in [key, "other.example"] {
        let reply = listed.send(with_header(request(Method::GET, "/keys"), HOST, host)).await;
        assert_eq!(reply.code(), "cross_site");
    }
    assert_eq!(log_lines(&["WARN", "SettingsPage::hosts"]), 1, "{}", logs());
    assert_eq!(log_lines(&["SettingsPage::hosts", "[REDACTED]"]), 1, "{}", logs());
    assert_no_leak("log", &logs(), key);

    for _ in 0..2 {
        send(&api.router, request(Method::GET, "/keys")).await;
    }
    assert_eq!(log_lines(&["WARN", "is the login middleware outside of the router?"]), 1);
}

/// A foreign host name that resolves to this service, with the `Origin` of its page.
#[tokio::test]
async fn case_57_a_host_that_is_not_listed_is_refused_for_every_method() {
    const HOSTS: [&str; 5] =
        ["example.com", "0.0.0.0:3000", "localhost:4000", "a.example:443", "[::1]:4000"];
    let api = Api::new();
    let path = api.create_path("k").await;
    let router = keygate::admin::router_on_hosts(api.keys.clone(), HOSTS);
    let listed = Api { router, ..api.clone() };
    let ask = async |api: &Api, hosts: &[&str], method: Method, uri: &str| {
        let mut asked = request(method, uri);
        for host in hosts {
            asked = with_header(asked, HOST, host);
            asked = with_header(asked, ORIGIN, &format!("http://{host}"));
        }
        api.send(asked).await
    };
    for (hosts, is_ours) in [
        (&["example.com"][..], true),
        (&["example.com:8080"], true),
        (&["EXAMPLE.com"], true),
        (&["192.0.2.7:3000"], true),
        (&["[2001:db8::1]:3000"], true),
        (&["localhost:4000"], true),
        (&["[::1]:4000"], true),
        (&["a.example"], true),
        (&["a.example:80"], false),
        (&["localhost"], false),
        (&["localhost:4001"], false),
        (&["192.0.2.7:3001"], false),
        (&["127.0.0.1.evil.example:3000"], false),
        (&["a.example.com"], false),
        (&["example.com.evil.example"], false),
        (&["example.com."], false),
        (&["example.com:"], false),
        (&["evil.example"], false),
        (&["\u{fc}"], false),
        (&[""], false),
        (&[], false),
        (&["example.com", "example.com"], false),
    ] {
        for uri in ["/keys", &path, &format!("{path}/audit"), "/openapi.json", "/unknown"] {
            let reply = ask(&listed, hosts, Method::GET, uri).await;
            assert_eq!(reply.code() != "cross_site", is_ours, "{hosts:?} {uri}");
            assert_eq!(reply.status != 403, is_ours, "{hosts:?} {uri}");
            assert_ne!(ask(&api, hosts, Method::GET, uri).await.status, 403, "no hosts are listed");
        }
    }
    let gone = format!("{path}?confirm_name=k");
    let reply = ask(&listed, &["evil.example"], Method::DELETE, &gone).await;
    assert_eq!((reply.code().as_str(), api.get(&path).await.status.as_u16()), ("cross_site", 200));
    assert_eq!(ask(&listed, &["example.com"], Method::DELETE, &gone).await.status, 204);

    // In HTTP/2 the URI contains the host.
    for (uri, status) in [("https://example.com/keys", 200), ("https://evil.example/keys", 403)] {
        assert_eq!(listed.get(uri).await.status, status);
    }
}
