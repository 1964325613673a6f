//! Keys and paths do not leak into logs or records.

use std::error::Error;

use axum::Router;
use axum::routing::get;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use keygate::audit::AuditCursor;
use keygate::guard::ProxyHeader;
use keygate::manager::RequestInfo;
use keygate::{
    Allowlist, Expiration, KeyFormat, KeyId, KeyName, KeyPatch, Network, NewKey, OrgId, VerifiedKey,
};
use tower::{Layer, Service, service_fn};

use crate::support::{Find, Sink, assert_no_leak, capture_logs, logs, unknown_key};
use crate::{
    Unshared, World, XFF, bearer, bearer_at, behind_proxies, forwarded, greet_in_tower, hosts,
    in_axum, request, router, with_header,
};

#[tokio::test]
async fn case_39_a_canary_key_appears_nowhere() {
    let world = World::new();
    let issued = world.keys.create(&world.actor, NewKey::named("canary").unwrap()).await.unwrap();
    let key = issued.secret.expose_secret().to_owned();
    let bad = unknown_key();
    let mut seen = vec![("issued", format!("{issued:?} {} {:?}", issued.secret, issued.secret))];
    let mut note = |place: &'static str, text: String| seen.push((place, text));

    // Every way to send it, both as a valid key and as an unknown one.
    for key in [&key, &bad] {
        for layer in [world.layer(), world.layer().optional()] {
            for (_, ask) in hosts(&layer) {
                for scheme in ["Bearer ", "bearer  ", "Basic ", "ApiKey ", "", "Bearer", "Bearer:"]
                {
                    let line = format!("{scheme}{key}");
                    note("header", format!("{:?}", ask(request("/", &[line.as_bytes()])).await));
                }
                for line in [
                    format!("Bearer {key},Bearer {key}"),
                    format!("Bearer {key}!"),
                    format!("Bearer {key} x"),
                    format!("Bearer x{key}"),
                    format!("Bearer {}", key.repeat(5)),
                    format!("Bearer {key}\u{e9}"),
                ] {
                    let answer = ask(request("/", &[line.as_bytes()])).await;
                    note("malformed", format!("{answer:?}"));
                }
                let line = format!("Bearer {key}");
                let lines = [line.as_bytes(), line.as_bytes()];
                note("two lines", format!("{:?}", ask(request("/", &lines)).await));
                for path in [format!("/?api_key={key}"), format!("/v1/{key}/x")] {
                    note("path, alone", format!("{:?}", ask(request(&path, &[])).await));
                    note("path, and header", format!("{:?}", ask(bearer_at(&path, key)).await));
                }
                for header in ["x-api-key", "cookie", "forwarded", XFF, "user-agent", "host"] {
                    let answer = ask(with_header(bearer(key), header, key)).await;
                    note("other header", format!("{answer:?}"));
                }
            }
        }
        // Behind proxies, forwarding headers are read.
        for header in [ProxyHeader::XForwardedFor, ProxyHeader::Forwarded] {
            let ask = in_axum(router().layer(behind_proxies(&world, header)));
            for name in [XFF, "forwarded"] {
                let answer = ask(forwarded(key, "10.0.0.1", name, &[key])).await;
                note("forwarding header", format!("{answer:?}"));
            }
        }
    }

    // A refused key, a fault of the store, a fault of the sink.
    let ask = in_axum(router().layer(world.layer()));
    for find in [Find::Fails, Find::Corrupt] {
        world.store.find(find);
        note("store fails", format!("{:?}", ask(bearer(&key)).await));
        let error = world.keys.verify(&key, None).await.unwrap_err();
        note("verify error", format!("{error} {error:?}"));
    }
    world.store.find(Find::Honest);
    for sink in [Sink::Rejects, Sink::Panics] {
        world.sink.sink(sink);
        note("sink fails", format!("{:?}", ask(bearer(&key)).await));
        world.sink.sink(Sink::Works);
    }
    let allowlist = Allowlist::parse(["203.0.113.1"]).unwrap();
    world.keys.update(&world.actor, &issued.key.id, KeyPatch::restrict(allowlist)).await.unwrap();
    note("not allowed", format!("{:?}", ask(bearer(&key)).await));
    let free = KeyPatch::restrict(Allowlist::default());
    world.keys.update(&world.actor, &issued.key.id, free).await.unwrap();

    // A handler that panics with all it knows.
    let panics = async |verified: VerifiedKey, request: axum::extract::Request| -> &'static str {
        panic!("{verified:?} {request:?} {:?} {:?}", request.headers(), request.extensions())
    };
    let panicking = in_axum(Router::new().route("/", get(panics)).layer(world.layer()));
    let panic = tokio::spawn(panicking(bearer(&key))).await.unwrap_err().into_panic();
    let message = panic.downcast_ref::<String>().expect("a message").clone();
    assert!(message.contains("authorization") && message.contains("VerifiedKey"), "{message}");
    note("panic", message);

    // A request without the layer.
    let unguarded = in_axum(Router::new().route("/{key}", get(async |_: VerifiedKey| ())));
    let answer = unguarded(bearer_at(&format!("/{key}"), &key)).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    note("no layer", format!("{answer:?}"));

    // The text of a key in a field for another text.
    let errors: [Box<dyn Error>; 8] = [
        KeyFormat::new(&key).unwrap_err().into(),
        key.parse::<KeyId>().unwrap_err().into(),
        Allowlist::parse([&key]).unwrap_err().into(),
        key.parse::<Network>().unwrap_err().into(),
        key.parse::<Expiration>().unwrap_err().into(),
        key.parse::<AuditCursor>().unwrap_err().into(),
        KeyName::new(format!("{key}{key}")).unwrap_err().into(),
        OrgId::new(format!("{key}\0")).unwrap_err().into(),
    ];
    for error in errors {
        note("field", format!("{error} {error:?}"));
    }
    note("damaged allowlist", format!("{:?}", Allowlist::restore([&key])));

    // Every type that can be printed.
    let info = || RequestInfo::new("GET", "/");
    let admission = world.keys.admit(&key, info()).await.unwrap();
    note("admission", format!("{admission:?}"));
    note("verified", format!("{:?} {:?}", admission.key(), admission.key().record()));
    admission.finish(200).await.unwrap();
    let malformed = KeyFormat::default().digest(format!("{key}!")).unwrap_err();
    note("malformed key", format!("{malformed} {malformed:?}"));
    world.revoke(&issued.key).await;
    for credential in [key.clone(), bad.clone(), format!("{key}!"), format!("{key}{key}")] {
        let error = world.keys.verify(&credential, None).await.unwrap_err();
        note("verify error", format!("{error} {error:?} {error:#?}"));
        let error = world.keys.admit(&credential, info()).await.unwrap_err();
        note("admit error", format!("{error} {error:?} {error:#?}"));
    }
    let layer = world.layer();
    let service = layer.layer(service_fn(greet_in_tower));
    let future = service.clone().call(bearer(&key).map(|()| Unshared::of("")));
    note("future", format!("{future:?}"));
    drop(future);
    note("layer", format!("{layer:?} {:?}", layer.clone().optional()));
    note("manager", format!("{:?} {:#?}", world.keys, world.keys));
    let stored = world.keys.list(world.actor.org()).await.unwrap();
    note("database", format!("{:?} {stored:?}", world.store));
    let records = world.requests(issued.key.id).await;
    note("audit log", format!("{:?} {records:?}", world.sink));
    note("log", logs());

    assert!(seen.iter().any(|(place, text)| *place == "log" && text.contains("refused")));
    assert!(seen.iter().any(|(place, text)| *place == "audit log" && text.contains("[REDACTED]")));
    for (place, text) in &seen {
        assert_no_leak(place, text, &key);
        assert_no_leak(place, text, &bad);
    }
}

#[tokio::test]
async fn case_39_a_key_in_a_path_or_method_is_not_recorded() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for path in ["/KEY", "/v1/xKEYx/KEY", "/vsp_sk_KEY", "/PERCENT/x"] {
        let path = path.replace("PERCENT", &key.replace('_', "%5F")).replace("KEY", &key);
        let mut request = bearer_at(&path, &key);
        *request.method_mut() = Method::from_bytes(key.as_bytes()).unwrap();
        assert_eq!(ask(request).await.status, StatusCode::OK, "{path}");
        let event = world.last_request(record.id).await;
        assert_no_leak("record", &format!("{event:?}"), &key);
    }
}

#[tokio::test]
async fn case_39_the_service_gets_the_credential_marked_as_sensitive() {
    let world = World::new();
    let (_, key) = world.key().await;
    let print = async |headers: HeaderMap| format!("{headers:?}");
    let optional = world.layer().optional();
    for (layer, request) in [
        (world.layer(), bearer(&key)),
        (optional.clone(), bearer(&key)),
        (optional, request("/", &[format!("ApiKey {key}").as_bytes()])),
        (
            world.layer().key_header(HeaderName::from_static("x-api-key")),
            with_header(request("/", &[]), "x-api-key", &key),
        ),
    ] {
        let case = format!("{request:?}");
        let answer = in_axum(Router::new().route("/", get(print)).layer(layer))(request).await;
        assert_eq!(answer.status, StatusCode::OK, "{case}");
        assert!(answer.text().contains("Sensitive"), "{case}: {}", answer.text());
        assert_no_leak(&case, answer.text(), &key);
    }
}

#[tokio::test]
async fn case_41_a_path_is_inert_in_the_audit_record_and_in_the_log() {
    let world = World::new();
    let (record, key) = world.key().await;
    let ask = in_axum(router().layer(world.layer()));
    for path in [
        "/%0d%0a2026-01-01T00:00:00Z%20ERROR%20forged",
        "/%3Cimg%20src=x%20onerror=alert(1)%3E",
        "/%00%1b[31m%e2%80%ae",
        "/a%2fb/../c//d;x=1",
        "/%",
        "//evil.example/",
    ] {
        let answer = ask(bearer_at(&format!("{path}?q=%0d%0a"), &key)).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}");
        assert_eq!(&*world.last_request(record.id).await.endpoint, path, "recorded unchanged");
    }
    // The extractor's error comes from a request that was not checked.
    let unguarded = in_axum(Router::new().fallback(async |_: VerifiedKey| ()));
    capture_logs();
    let path = "/x%0d%0aERROR%20forged/\u{85}\u{202e}";
    assert_eq!(unguarded(bearer_at(path, &key)).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    let logged = logs();
    assert_eq!(logged.lines().count(), 1, "{logged:?}");
    assert!(logged.contains("ApiKeyLayer"), "{logged:?}");
    assert!(logged.trim_end().chars().all(|c| !c.is_control()), "{logged:?}");
}
