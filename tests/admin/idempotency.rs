//! `Idempotency-Key`: a repeated creation makes no second key.

use keygate::Limits;
use serde_json::json;

use crate::kit::{Api, Reply, creation, with_header};

async fn create(api: &Api, lines: &[&str]) -> Reply {
    let add = |create, line: &&str| with_header(create, "idempotency-key", line);
    api.send(lines.iter().fold(creation("k"), add)).await
}

#[tokio::test]
async fn a_second_creation_with_the_header_is_409_and_names_the_key_that_was_made() {
    let limits = Limits::default().max_keys(2);
    let api = Api::with(|builder| builder.limits(limits));
    let first = create(&api, &["x"]).await;
    assert_eq!(first.status, 201);
    let path = first.header("location").to_owned();
    for _ in 0..2 {
        let again = create(&api, &["x"]).await;
        assert_eq!((again.status.as_u16(), again.code().as_str()), (409, "already_created"));
        assert_eq!(again.header("location"), path);
        assert!(!again.text().contains(&first.json()["secret"].as_str().unwrap()[12..]));
    }
    assert_eq!(create(&api.of("other"), &["x"]).await.status, 201);
    assert_eq!(create(&api, &["\"x\""]).await.status, 201, "quotes are part of it");
    // The limit is reached, but the answer still names the existing key.
    let again = create(&api, &["x"]).await;
    assert_eq!((again.code().as_str(), again.header("location")), ("already_created", &*path));
    assert_eq!(create(&api, &["y"]).await.code(), "key_limit_reached");

    assert_eq!(api.delete(&format!("{path}?confirm_name=k")).await.status, 204);
    assert_eq!(create(&api, &["x"]).await.status, 201, "a deleted key can be created again");
    assert_eq!(api.delete(&format!("{path}?confirm_name=k")).await.status, 204);
    api.create("k").await;
    api.advance(24 * 60 * 60);
    assert_eq!(create(&api, &["\"x\""]).await.code(), "key_limit_reached", "a day has passed");
}

#[tokio::test]
async fn a_malformed_header_is_422_naming_it() {
    let api = Api::new();
    for lines in [&[""][..], &[" "], &["a b"], &["\u{fc}"], &[&*"x".repeat(256)], &["x", "x"]] {
        assert_eq!(create(&api, lines).await.fields(), ["Idempotency-Key"], "{lines:?}");
    }
    assert_eq!(api.get("/keys").await.json()["keys"], json!([]));
    assert_eq!(create(&api, &[&*"x".repeat(255)]).await.status, 201);
}
