//! `If-Match`: a change happens only at the revision that it names.

use axum::body::Body;
use axum::http::header::IF_MATCH;
use axum::http::{Method, Request};
use serde_json::json;

use crate::kit::{Api, Reply, deletion, request, rotation, with_header, with_json};

async fn edit(api: &Api, path: &str, if_match: &[&str]) -> Reply {
    let edit = with_json(request(Method::PATCH, path), json!({"name": "new"}));
    api.send(if_match.iter().fold(edit, |edit, line| with_header(edit, IF_MATCH, line))).await
}

#[tokio::test]
async fn an_edit_for_the_current_revision_happens() {
    for present in [
        &["\"2\""][..],
        &["*"],
        &[" * "],
        &["\"1\", \"2\""],
        &["\"2\",\"9\""],
        &["\"1\"", "\"2\""],
        &["W/\"2\" ,, \"2\""],
    ] {
        let api = Api::new();
        let path = api.create_path("k").await;
        api.patch(&path, json!({"status": "revoked"})).await;
        let reply = edit(&api, &path, present).await;
        assert_eq!((reply.status.as_u16(), reply.header("etag")), (200, "\"3\""), "{present:?}");
    }
}

#[tokio::test]
async fn an_edit_for_another_revision_is_refused_with_the_reason() {
    const CHANGED: &str = "was changed in the meantime";
    const WEAK: &str = "weak tag";
    const QUOTES: &str = "double quotes";
    const OTHER: &str = "not the revision of a key";
    let api = Api::new();
    let path = api.create_path("k").await;
    api.patch(&path, json!({"status": "revoked"})).await;
    for (if_match, reason) in [
        ("\"1\"", CHANGED),
        ("\"3\"", CHANGED),
        ("\"1\", \"3\"", CHANGED),
        ("W/\"3\", \"3\"", CHANGED),
        ("x, \"3\"", CHANGED),
        ("W/\"2\"", WEAK),
        ("W/\"1\", W/\"2\"", WEAK),
        ("w/\"2\"", QUOTES),
        ("2", QUOTES),
        ("\"2", QUOTES),
        ("2\"", QUOTES),
        ("\"", QUOTES),
        ("'2'", QUOTES),
        ("**", QUOTES),
        ("\u{fc}", "`If-Match`"),
        ("\"02\"", OTHER),
        ("\"+2\"", OTHER),
        ("\" 2\"", OTHER),
        ("\"*\"", OTHER),
        ("\"x\"", OTHER),
        ("\"\"2\"\"", OTHER),
        ("\"4294967298\"", OTHER),
        ("", "is empty"),
        (" , ", "is empty"),
    ] {
        let reply = edit(&api, &path, &[if_match]).await;
        assert_eq!(reply.code(), "stale_revision", "{if_match}");
        assert!(reply.text().contains(reason), "{if_match}: {}", reply.text());
    }
    let key = api.get(&path).await.json();
    assert_eq!((&key["name"], &key["revision"]), (&json!("k"), &json!(2)));
    // An edit that would change nothing is refused, too.
    let same = api.create_path("new").await;
    assert_eq!(edit(&api, &same, &["\"1\""]).await.header("etag"), "\"1\"");
    assert_eq!(edit(&api, &same, &["\"2\""]).await.status, 412);
}

/// Rotates and deletes the key `k` with these `If-Match` lines.
fn rotate_and_delete(path: &str, if_match: &[&str]) -> [Request<Body>; 2] {
    [rotation(path, "k"), deletion(path, "k")]
        .map(|made| if_match.iter().fold(made, |made, line| with_header(made, IF_MATCH, line)))
}

#[tokio::test]
async fn rotate_and_delete_are_refused_at_another_revision_too() {
    let api = Api::new();
    let path = api.create_path("k").await;
    for made in rotate_and_delete(&path, &["\"2\""]) {
        assert_eq!(api.send(made).await.code(), "stale_revision");
    }
    let [rotate, stale] = rotate_and_delete(&path, &["\"1\""]);
    assert_eq!(api.send(rotate).await.status, 200);
    assert_eq!(api.send(stale).await.status, 412);
    let [_, delete] = rotate_and_delete(&path, &["\"2\""]);
    assert_eq!(api.send(delete).await.status, 204);
}

#[tokio::test]
async fn case_50_a_change_in_between_stops_rotate_and_delete() {
    // Each reads the key twice before it acts: to check the name and the header, and to begin
    // the change. A change after that is visible only to the store.
    for reads in 1..=2 {
        for (if_match, answer) in [(&["\"1\""][..], 412), (&["*"], 409), (&[], 409)] {
            for which in 0..2 {
                let api = Api::new();
                let (path, secret) = api.create_secret("k").await;
                let [rotate, delete] = rotate_and_delete(&path, if_match);
                api.overtake_after(reads);
                let reply = api.send(if which == 0 { rotate } else { delete }).await;
                let case = format!("{if_match:?} after {reads} reads");
                assert_eq!(reply.status, answer, "{case}: {}", reply.text());
                let key = api.get(&path).await.json();
                let expected = json!(["theirs", 2, null]);
                assert_eq!(json!([key["name"], key["revision"], key["rotated_at"]]), expected);
                assert!(api.verifies(&secret).await, "{case}");
            }
        }
    }
}
