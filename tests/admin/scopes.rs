//! Scopes over HTTP: with a catalogue, and without one.

use keygate::store::Attributes;
use keygate::{ApiKey, KeyStore, ScopeCatalog, Scopes};
use serde_json::{Value, json};

use crate::kit::{Api, Reply, new_key, path_of};
use crate::openapi::described_by;

pub(crate) fn api(scopes: &[(&str, &str)]) -> Api {
    let catalog = ScopeCatalog::new(scopes.iter().copied()).unwrap();
    Api::with(|builder| builder.scopes(catalog))
}

const OFFERED: [(&str, &str); 2] =
    [("reports:read", "Read reports"), ("reports:write", "Change \"reports\"")];

fn new(scopes: Value) -> Value {
    json!({"name": "CI", "expiration": "never", "scopes": scopes})
}

/// The messages at the field `scopes` of a 422.
#[track_caller]
fn problems(reply: &Reply) -> Vec<String> {
    assert_eq!(reply.status, 422, "{}", reply.text());
    let errors = reply.json()["errors"].as_array().unwrap().clone();
    let at_scopes =
        errors.iter().inspect(|error| assert_eq!(error["field"], "scopes", "{errors:?}"));
    at_scopes.map(|error| error["message"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn scopes_are_listed_given_shown_and_edited() {
    let api = api(&OFFERED);
    let offered = OFFERED.map(|(name, text)| json!({"name": name, "description": text}));
    assert_eq!(api.get("/keys").await.json()["scopes"], json!(offered));
    for scopes in [json!("all"), json!(["reports:read"]), json!(["reports:write", "reports:read"])]
    {
        let reply = api.post("/keys", new(scopes.clone())).await;
        assert_eq!(reply.status, 201, "{}", reply.text());
        assert_eq!(reply.json()["key"]["scopes"], scopes);
        let path = path_of(&reply.json());
        assert_eq!(api.get(&path).await.json()["scopes"], scopes);
        for edited in [json!(["reports:write"]), json!("all"), json!(["reports:read"])] {
            let reply = api.patch(&path, json!({"scopes": edited})).await;
            assert_eq!((reply.status.as_u16(), &reply.json()["scopes"]), (200, &edited));
        }
        let reply = api.patch(&path, json!({"name": "renamed"})).await;
        assert_eq!(reply.json()["scopes"], json!(["reports:read"]), "another field's edit");
        let reply = api.rotate(&path, "renamed").await;
        assert_eq!(reply.json()["key"]["scopes"], json!(["reports:read"]));
    }
}

#[tokio::test]
async fn bad_scopes_are_refused_by_name_of_the_field_and_nothing_is_stored() {
    let api = api(&OFFERED);
    let missing = api.post("/keys", new_key("CI")).await;
    assert_eq!(problems(&missing), ["is required"]);
    let many: Vec<String> = (0..51).map(|n| n.to_string()).collect();
    let path = path_of(&api.post("/keys", new(json!(["reports:read"]))).await.json());
    let shape = "must be \"all\" or a list of scopes";
    let name =
        "entry 1: a scope has 1 to 64 of a-z, 0-9 and :._/- and begins with a letter or digit";
    for (scopes, message) in [
        (json!(null), shape),
        (json!("ALL"), shape),
        (json!("reports:read"), shape),
        (json!(true), shape),
        (json!({"all": true}), shape),
        (json!([]), "must name at least one scope"),
        (json!(many), "must name at most 50 scopes"),
        (json!([7]), name),
        (json!(["*"]), name),
        (json!(["vsp_sk_Secret"]), name),
        (json!(["reports:read", "reports:read"]), "entry 2: already on the list"),
        (json!(["reports:read", "reports"]), "entry 2: this service does not offer the scope"),
        (json!(["all"]), "entry 1: this service does not offer the scope"),
    ] {
        assert_eq!(problems(&api.post("/keys", new(scopes.clone())).await), [message], "{scopes}");
        let edit = api.patch(&path, json!({"name": "other", "scopes": scopes})).await;
        assert_eq!(problems(&edit), [message], "{scopes}");
    }
    let keys = api.store.snapshot(api.actor.org()).await;
    assert_eq!((keys.len(), keys[0].name.as_str()), (1, "CI"));
    assert_eq!(keys[0].attributes.scopes, Scopes::only(["reports:read"]).unwrap());
}

#[tokio::test]
async fn stored_scopes_that_cannot_be_read_are_shown_as_none_and_can_be_mended() {
    let api = api(&OFFERED);
    let path = path_of(&api.post("/keys", new(json!("all"))).await.json());
    let key = api.store.snapshot(api.actor.org()).await.remove(0);
    let attributes: Attributes = r#"{"scopes":["?"]}"#.parse().unwrap();
    let damaged = ApiKey { attributes, revision: key.revision.next(), ..key.clone() };
    api.store.replace(&damaged, key.revision).await.unwrap();
    assert_eq!(api.get(&path).await.json()["scopes"], json!([]));
    let renamed = api.patch(&path, json!({"name": "renamed"})).await;
    assert_eq!(renamed.json()["scopes"], json!([]), "{}", renamed.text());
    let kept = api.store.snapshot(api.actor.org()).await.remove(0);
    assert_eq!(kept.attributes.to_string(), r#"{"scopes":["?"]}"#);
    let mended = api.patch(&path, json!({"scopes": ["reports:read"]})).await;
    assert_eq!(mended.json()["scopes"], json!(["reports:read"]));
}

#[tokio::test]
async fn without_a_catalogue_the_api_knows_no_scopes() {
    let api = Api::new();
    assert_eq!(problems(&api.post("/keys", new(json!("all"))).await), ["is unknown"]);
    let issued = api.create("CI").await;
    assert_eq!(issued["key"]["scopes"], Value::Null);
    let path = path_of(&issued);
    let edit = api.patch(&path, json!({"scopes": ["reports:read"]})).await;
    assert_eq!(problems(&edit), ["is unknown"]);
    for path in ["/keys", &path, "/openapi.json"] {
        let text = api.get(path).await.text().replace("insufficient_scope", "");
        assert!(!text.to_lowercase().contains("scope"), "{path}: {text}");
    }
}

#[tokio::test]
async fn the_document_of_a_service_with_scopes_describes_its_answers_and_bodies() {
    let api = api(&OFFERED);
    let document = api.get("/openapi.json").await.json();
    let key = api.post("/keys", new(json!("all"))).await.json()["key"].clone();
    assert_eq!(described_by(&document, "Key", &key), Ok(()));
    let mut without = key;
    without.as_object_mut().unwrap().remove("scopes");
    assert!(described_by(&document, "Key", &without).is_err(), "scopes are always there");
    for (body, fits) in [
        (new(json!("all")), true),
        (new(json!(["reports:read"])), true),
        (new(json!([])), false),
        (new(json!("none")), false),
        (new(json!(["other"])), false),
        (new_key("CI"), false),
    ] {
        let described = described_by(&document, "NewKey", &body).is_ok();
        let accepted = api.post("/keys", body.clone()).await.status == 201;
        assert_eq!((described, accepted), (fits, fits), "{body}");
    }
    assert_eq!(described_by(&document, "KeyPatch", &json!({"scopes": ["gone"]})), Ok(()));
}
