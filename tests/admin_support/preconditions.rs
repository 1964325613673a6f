//! `If-Match`: a change happens only at the revision that it names.

use axum::body::Body;
use axum::http::header::IF_MATCH;
use axum::http::{Method, Request};
use serde_json::json;

use crate::admin_support::{Api, NO_KEY, Reply, request, with_header, with_json};

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
async fn an_edit_for_another_revision_is_refused() {
    let api = Api::new();
    let path = api.create_path("k").await;
    api.patch(&path, json!({"status": "revoked"})).await;
    for other in [
        "\"1\"",
        "\"3\"",
        "W/\"2\"",
        "w/\"2\"",
        "2",
        "\"02\"",
        "\"+2\"",
        "\"2",
        "2\"",
        "'2'",
        "\" 2\"",
        "\"*\"",
        "**",
        "",
        ",",
        "\"1\", \"3\"",
        "\u{fc}",
        "\"4294967298\"",
    ] {
        let reply = edit(&api, &path, &[other]).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (412, "stale_revision"),
            "{other}"
        );
    }
    let key = api.get(&path).await.json();
    assert_eq!((&key["name"], &key["revision"]), (&json!("k"), &json!(2)));
}

#[tokio::test]
async fn an_edit_without_changes_is_refused_at_another_revision_too() {
    let api = Api::new();
    let path = api.create_path("new").await;
    assert_eq!(edit(&api, &path, &["\"1\""]).await.header("etag"), "\"1\"");
    assert_eq!(edit(&api, &path, &["\"2\""]).await.status, 412);
}

#[tokio::test]
async fn of_many_edits_for_one_revision_one_succeeds() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let edits = (0..16).map(|i| {
        let (api, path) = (api.clone(), path.clone());
        tokio::spawn(async move {
            let edit = with_json(request(Method::PATCH, &path), json!({"name": format!("n{i}")}));
            api.send(with_header(edit, IF_MATCH, "\"1\"")).await.status.as_u16()
        })
    });
    let mut statuses = Vec::new();
    for edit in edits.collect::<Vec<_>>() {
        statuses.push(edit.await.unwrap());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1);
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 15);
    assert_eq!(api.get(&path).await.json()["revision"], 2);
}

#[tokio::test]
async fn rotate_and_delete_are_refused_at_another_revision_too() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let rotate = || {
        with_json(request(Method::POST, &format!("{path}/rotate")), json!({"confirm_name": "k"}))
    };
    let delete = || request(Method::DELETE, &format!("{path}?confirm_name=k"));
    for made in [rotate(), delete()] {
        let reply = api.send(with_header(made, IF_MATCH, "\"2\"")).await;
        assert_eq!(reply.code(), "stale_revision");
    }
    assert_eq!(api.send(with_header(rotate(), IF_MATCH, "\"1\"")).await.status, 200);
    assert_eq!(api.send(with_header(delete(), IF_MATCH, "\"1\"")).await.status, 412);
    assert_eq!(api.send(with_header(delete(), IF_MATCH, "\"2\"")).await.status, 204);
}

#[tokio::test]
async fn a_tag_that_can_never_match_gets_a_specific_error() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let changed = "was changed in the meantime";
    for (if_match, told) in [
        ("W/\"1\"", "weak tag"),
        ("W/\"1\", W/\"2\"", "weak tag"),
        ("W/\"2\", \"2\"", changed),
        ("1", "double quotes"),
        ("w/\"1\"", "double quotes"),
        ("\"1", "double quotes"),
        ("\"", "double quotes"),
        ("\"x\"", "not the revision of a key"),
        ("\"01\"", "not the revision of a key"),
        ("\"\"1\"\"", "not the revision of a key"),
        ("\"4294967297\"", "not the revision of a key"),
        (" , ", "is empty"),
        ("\"2\"", changed),
        ("x, \"2\"", changed),
    ] {
        let reply = edit(&api, &path, &[if_match]).await;
        assert_eq!(reply.code(), "stale_revision", "{if_match}");
        let detail = reply.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(told), "{if_match}: {detail}");
    }
}

/// Rotates and deletes the key `k` with these `If-Match` lines.
fn rotate_and_delete(path: &str, if_match: &[&str]) -> [Request<Body>; 2] {
    let rotate = request(Method::POST, &format!("{path}/rotate"));
    let rotate = with_json(rotate, json!({"confirm_name": "k"}));
    let delete = request(Method::DELETE, &format!("{path}?confirm_name=k"));
    [rotate, delete]
        .map(|made| if_match.iter().fold(made, |made, line| with_header(made, IF_MATCH, line)))
}

#[tokio::test]
async fn case_50_a_change_in_between_stops_rotate_and_delete() {
    // Each reads the key twice before it acts: to check the name and the header, and to begin
    // the change. A change after that is visible only to the store.
    for reads in 1..=2 {
        for (if_match, answer) in [(&["\"1\""][..], 412), (&["*"], 409), (&[], 409)] {
            for which in 0..2 {
                let api = Api::new();
                let issued = api.create("k").await;
                let path = format!("/keys/{}", issued["key"]["id"].as_str().unwrap());
                let [rotate, delete] = rotate_and_delete(&path, if_match);
                api.overtake_after(reads);
                let reply = api.send(if which == 0 { rotate } else { delete }).await;
                let case = format!("{if_match:?} after {reads} reads");
                assert_eq!(reply.status, answer, "{case}: {}", reply.text());
                let key = api.get(&path).await.json();
                let expected = json!(["theirs", 2, null]);
                assert_eq!(json!([key["name"], key["revision"], key["rotated_at"]]), expected);
                assert!(api.verifies(issued["secret"].as_str().unwrap()).await, "{case}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn case_50_of_two_changes_for_one_revision_one_succeeds() {
    for round in 0..300 {
        let api = Api::new();
        let path = api.create_path("k").await;
        let [rotate, delete] = rotate_and_delete(&path, &["\"1\""]);
        let made = if round % 2 == 0 { rotate } else { delete };
        let edit = with_json(request(Method::PATCH, &path), json!({"status": "revoked"}));
        let edit = with_header(edit, IF_MATCH, "\"1\"");
        let send = |made| {
            let api = api.clone();
            tokio::spawn(async move { api.send(made).await.status.as_u16() })
        };
        let (made, edited) = (send(made), send(edit));
        let (made, edited) = (made.await.unwrap(), edited.await.unwrap());
        let deleted = round % 2 == 1;
        match (made, edited) {
            (412, 200) => {}
            (200, 412) if !deleted => {}
            (204, 404) if deleted => {}
            both => panic!("round {round}: {both:?}"),
        }
    }
}

#[tokio::test]
async fn a_missing_key_is_404_at_any_revision() {
    let api = Api::new();
    for if_match in ["*", "\"1\""] {
        let reply = edit(&api, &format!("/keys/{NO_KEY}"), &[if_match]).await;
        assert_eq!(reply.code(), "not_found");
    }
}
