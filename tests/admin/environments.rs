//! Environments over HTTP: only where the service has any.

use serde_json::json;

use crate::kit::{Api, new_key};
use crate::openapi::live_and_test;

#[tokio::test]
async fn a_key_is_created_in_an_environment_of_the_list() {
    let api = Api::with(live_and_test);
    let mut body = new_key("key");
    assert_eq!(api.post("/keys", body.clone()).await.json()["key"]["environment"], "live");
    body["environment"] = json!("test");
    assert_eq!(api.post("/keys", body.clone()).await.json()["key"]["environment"], "test");
    for wrong in [json!("staging"), json!(""), json!(null), json!(["test"])] {
        body["environment"] = wrong;
        assert_eq!(api.post("/keys", body.clone()).await.fields(), ["environment"], "{body}");
    }
    let list = api.get("/keys").await.json();
    assert_eq!(list["keys"].as_array().unwrap().len(), 2);
    let live = json!({ "name": "live", "prefix": "vsp_sk_" });
    let test = json!({ "name": "test", "prefix": "vsp_sk_test_" });
    assert_eq!(list["environments"], json!([live, test]));
}

#[tokio::test]
async fn without_environments_no_answer_mentions_them() {
    let api = Api::new();
    let mut body = new_key("key");
    body["environment"] = json!("live");
    assert_eq!(api.post("/keys", body).await.fields(), ["environment"]);
    api.create("key").await;
    assert!(!api.get("/keys").await.text().contains("environment"));
    assert!(!api.get("/openapi.json").await.text().contains("environment"));
}
