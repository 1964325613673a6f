//! A key in the wrong place is in no answer and in no log.

use serde_json::json;

use crate::support::{Reply, assert_no_leak, poll};
use crate::{KEYS, Key, Server, new_key};

#[test]
fn case_39_a_canary_key_appears_only_where_it_was_issued() {
    let server = Server::start(&[("RUST_LOG", "trace")]);
    let key = Key::named(&server, "canary");
    let (secret, good) = (key.secret.as_str(), key.authorization());
    let path = key.path();
    let mut client = server.client();
    let mut replies = Vec::new();
    let mut note = |reply: Reply| replies.push(reply.text());

    // As a credential, valid or malformed.
    for target in ["/v1/whoami", "/v1/status/418", "/healthz", "/settings", KEYS, "/nothing"] {
        for line in [
            good.clone(),
            format!("{good}!"),
            format!("{good}, Bearer {secret}"),
            format!("Authorization: Basic {secret}"),
            format!("Authorization: {secret}"),
            format!("X-Api-Key: {secret}"),
            format!("Cookie: session={secret}"),
            format!("Referer: http://h/?{secret}"),
            format!("X-Forwarded-For: {secret}"),
            format!("User-Agent: {secret}"),
        ] {
            note(client.ask("GET", target, &[&line]));
            note(client.ask("GET", target, &[&line, &good]));
        }
    }
    for target in [
        format!("/v1/whoami?api_key={secret}"),
        format!("/v1/{secret}"),
        format!("/v1/slow/{secret}"),
        format!("/v1/{secret}?{secret}={secret}"),
        format!("/{secret}"),
        format!("/settings/{secret}"),
        format!("{KEYS}/{secret}"),
        format!("{KEYS}/{secret}/audit"),
        format!("{path}/{secret}"),
        format!("{path}?{secret}=1"),
        format!("{path}/audit?limit={secret}"),
        format!("{path}/audit?before={secret}"),
        format!("{path}/audit?{secret}=1"),
    ] {
        note(client.ask("GET", &target, &[]));
        note(client.ask("GET", &target, &[&good]));
    }
    // As any other text.
    note(client.ask("GET", KEYS, &[&format!("x-demo-org: {secret}")]));
    note(client.ask("DELETE", &format!("{path}?confirm_name={secret}"), &[]));
    note(client.ask("DELETE", &format!("{KEYS}/{secret}?confirm_name=canary"), &[]));
    for body in [
        new_key(secret),
        json!({ "name": "x", "expiration": secret }),
        json!({ "name": [secret], "expiration": "never" }),
        new_key(&format!("{secret}{secret}")),
        new_key(&format!("{secret}\u{202e}")),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": [secret] }),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": [format!("10.0.0.1/{secret}")] }),
        json!({ "name": "x", "expiration": "never", "ip_allowlist": secret }),
        json!({ "name": "x", "expiration": "never", secret: 1 }),
        json!({ "confirm_name": secret }),
        json!({ "status": secret }),
        json!(secret),
        json!([secret]),
    ] {
        note(client.ask_json("POST", KEYS, &[], &body));
        note(client.ask_json("PATCH", &path, &[], &body));
        note(client.ask_json("POST", &format!("{path}/rotate"), &[], &body));
    }
    for body in [
        secret,
        &format!("{{\"name\":\"{secret}\",\"name\":\"x\"}}"),
        &format!("{{\"{secret}\":1,\"{secret}\":2}}"),
    ] {
        note(client.ask_json("POST", KEYS, &[], body));
    }
    for header in [
        format!("If-Match: \"{secret}\""),
        format!("Sec-Fetch-Site: {secret}"),
        format!("Origin: http://{secret}"),
        format!("Origin: {secret}"),
    ] {
        note(client.ask_json("PATCH", &path, &[&header], new_key("x")));
    }
    let post = format!("POST {KEYS} HTTP/1.1\r\nHost: h\r\nContent-Length");
    for request in [
        format!("{post}: 2\r\nContent-Type: {secret}\r\n\r\n{{}}"),
        format!("{post}: {secret}\r\n\r\n{{}}"),
        format!("GET {secret} HTTP/1.1\r\nHost: h\r\n\r\n"),
        format!("GET / {secret}\r\nHost: h\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: h\r\n{secret}\r\n\r\n"),
        format!("GET http://{secret}/v1/whoami HTTP/1.1\r\nHost: h\r\n{good}\r\n\r\n"),
    ] {
        let mut client = server.client();
        client.send(request);
        note(client.reply());
    }

    let reply = client.ask("GET", &format!("/v1/status/{secret}"), &[&good]);
    assert_eq!(reply.status, 400);
    note(reply);
    poll("the path of the last request, redacted", || {
        let records = key.records();
        records.iter().any(|record| record["endpoint"] == "/v1/status/[REDACTED]").then_some(())
    });
    note(key.patch(json!({ "status": "revoked" })));
    note(client.ask("GET", "/v1/whoami", &[&good]));
    for target in [path.clone(), format!("{path}/audit?limit=200"), KEYS.to_owned()] {
        note(client.ask("GET", &target, &[]));
    }
    assert_no_leak("answer", &replies.concat(), secret);
    let output = server.stop();
    assert!(output.contains("refused"), "{output}");
    assert_no_leak("log", &output, secret);
}
