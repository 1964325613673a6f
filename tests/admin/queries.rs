//! Query parameters: only known ones, at most once, and well-formed.

use keygate::admin::ROUTES;

use crate::kit::{Api, request, with_json};

#[tokio::test]
async fn every_route_refuses_unknown_parameters() {
    let api = Api::new();
    let key = api.create_path("k").await.replace("/keys/", "");
    for (method, template) in ROUTES {
        let uri = format!("{}?confirm_name=k&confirmName=k", template.replace("{id}", &key));
        let reply = api.send(with_json(request(method.clone(), &uri), "{}")).await;
        let fields = reply.fields();
        assert!(fields.contains(&"confirmName".to_owned()), "{method} {template}: {fields:?}");
    }
    let uri = format!("/keys/{key}?confirm_name=k&&");
    assert_eq!(api.delete(&uri).await.status, 204, "empty text between two & is no parameter");
}

#[tokio::test]
async fn a_parameter_must_be_given_once_and_in_utf_8() {
    let api = Api::new();
    let path = api.create_path("k\u{fffd}").await;
    for (query, field) in [
        ("confirm_name=k&confirm_name=k", "confirm_name"),
        ("confirm_name=x&confirm%5Fname=k", "confirm_name"),
        ("confirm_name=k%ff", "confirm_name"),
        ("%ff=1", "?"),
    ] {
        assert_eq!(api.delete(&format!("{path}?{query}")).await.fields(), [field], "{query}");
    }
    assert_eq!(api.get(&path).await.status, 200);
    assert_eq!(api.delete(&format!("{path}?confirm_name=k%EF%BF%BD")).await.status, 204);
}

#[tokio::test]
async fn case_39_a_parameter_that_could_be_a_credential_is_not_repeated() {
    let api = Api::new();
    let (path, secret) = api.create_secret("k").await;
    for query in [secret.clone(), format!("{secret}=1&{secret}=1"), format!("limit={secret}")] {
        let reply = api.get(&format!("{path}/audit?{query}")).await;
        assert!(!reply.fields().is_empty());
        assert!(!reply.text().contains(&secret[12..]));
    }
}

#[tokio::test]
async fn invalid_page_parameters_are_named() {
    let api = Api::new();
    let path = api.create_path("k").await;
    let cursor = "0".repeat(48);
    for (query, fields) in [
        ("limit=0", &["limit"][..]),
        ("limit=201", &["limit"]),
        ("limit=", &["limit"]),
        ("limit", &["limit"]),
        ("limit=+5", &["limit"]),
        ("limit=%2B5", &["limit"]),
        ("limit=-1", &["limit"]),
        ("limit=5.0", &["limit"]),
        ("limit=99999999999999999999999999", &["limit"]),
        ("limit=5&limit=5", &["limit"]),
        ("before=x", &["before"]),
        ("after=", &["after"]),
        ("after=null", &["after"]),
        (&format!("before={cursor}&after={cursor}"), &["after"]),
        ("limit=x&before=x&after=x&page=2", &["limit", "before", "after", "page"]),
    ] {
        let reply = api.get(&format!("{path}/audit?{query}")).await;
        assert_eq!(reply.fields(), fields, "{query}");
    }
    for query in ["limit=1", "limit=200", "limit=025", "", &format!("before={cursor}")] {
        assert_eq!(api.get(&format!("{path}/audit?{query}")).await.status, 200, "{query}");
    }
}
