//! Environments over HTTP: only where the service has any.

use axum::http::Method;
use keygate::KeyFormat;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::admin_support::{Api, actor, request};
use crate::schema::misfit;

fn with_environments() -> Api {
    Api::with(|builder| {
        let test = KeyFormat::new("vsp_sk_test_").unwrap();
        builder.environment("live", KeyFormat::default()).environment("test", test)
    })
}

/// Sends a request, and checks the answer by this schema of the API's own document.
async fn ask(api: &Api, method: Method, body: Option<&Value>, schema: &str) -> (u16, Value) {
    let json = async |mut request: http::Request<axum::body::Body>| {
        request.extensions_mut().insert(actor("acme"));
        let response = api.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice::<Value>(&body).unwrap())
    };
    let (_, document) = json(request(Method::GET, "/openapi.json")).await;
    let asked = match body {
        None => request(method, "/keys"),
        Some(body) => crate::admin_support::with_json(request(method, "/keys"), body.clone()),
    };
    let (status, answer) = json(asked).await;
    if status < 400 {
        let schema = &document["components"]["schemas"][schema];
        assert_eq!(misfit(&document, schema, &answer), Ok(()), "{answer}");
    }
    (status, answer)
}

#[tokio::test]
async fn a_key_is_created_in_an_environment_of_the_list() {
    let api = with_environments();
    for (chosen, expected) in [(None, "live"), (Some("test"), "test")] {
        let mut body = json!({ "name": "key", "expiration": "never" });
        if let Some(name) = chosen {
            body["environment"] = name.into();
        }
        let (status, issued) = ask(&api, Method::POST, Some(&body), "IssuedKey").await;
        assert_eq!((status, &issued["key"]["environment"]), (201, &json!(expected)));
    }
    for wrong in [json!("staging"), json!(""), json!(null), json!(["test"])] {
        let body = json!({ "name": "key", "expiration": "never", "environment": wrong });
        let (status, answer) = ask(&api, Method::POST, Some(&body), "").await;
        assert_eq!((status, &answer["errors"][0]["field"]), (422, &json!("environment")));
    }
    let (_, list) = ask(&api, Method::GET, None, "Keys").await;
    assert_eq!(list["keys"].as_array().unwrap().len(), 2);
    let live = json!({ "name": "live", "prefix": "vsp_sk_" });
    let test = json!({ "name": "test", "prefix": "vsp_sk_test_" });
    assert_eq!(list["environments"], json!([live, test]));
}

#[tokio::test]
async fn without_environments_nothing_speaks_of_them() {
    let api = Api::new();
    let body = json!({ "name": "key", "expiration": "never", "environment": "live" });
    let reply = api.post("/keys", body).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.json()["errors"][0]["field"]),
        (422, &json!("environment"))
    );
    api.create("key").await;
    assert!(!api.get("/keys").await.text().contains("environment"));
    assert!(!api.get("/openapi.json").await.text().contains("environment"));
}
