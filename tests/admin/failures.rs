//! A store that is down.

use axum::http::Method;
use serde_json::json;

use crate::kit::{Api, creation, deletion, request, rotation, with_json};

#[tokio::test]
async fn a_store_that_is_down_is_503_on_every_route() {
    let api = Api::new();
    let path = api.create_path("k").await;
    api.store_fails();
    for request in [
        request(Method::GET, "/keys"),
        creation("k"),
        request(Method::GET, &path),
        with_json(request(Method::PATCH, &path), json!({"name": "new"})),
        rotation(&path, "k"),
        deletion(&path, "k"),
        request(Method::GET, &format!("{path}/audit")),
    ] {
        let reads = request.method() == Method::GET;
        let reply = api.send(request).await;
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, "unavailable"));
        assert_eq!(reply.header("retry-after"), "1");
        let detail = if reads {
            "The keys cannot be read at present. Try again shortly."
        } else {
            "Nothing was changed. Try again shortly."
        };
        assert!(reply.text().contains(detail), "{}", reply.text());
        assert!(!reply.text().contains("fire"), "the cause is shown to the operator only");
    }
}
