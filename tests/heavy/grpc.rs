//! The layer on a tonic server, over a socket, seen by tonic's client.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

use std::net::IpAddr;
use std::sync::Arc;

use keygate::audit::{AuditEvent, AuditQuery, AuditScope, Outcome};
use keygate::manager::IssuedKey;
use keygate::{Actor, ApiKeyLayer, AuditLog, Delivery, KeyManager, NewKey};
use support::{Find, SpySink, SpyStore, org, unknown_key};
use tokio::task::JoinHandle;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// gRPC's own health check behind the layer, with a client for it.
struct Setup {
    store: Arc<SpyStore>,
    sink: Arc<SpySink>,
    keys: KeyManager,
    actor: Actor,
    channel: Channel,
    server: JoinHandle<()>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Setup {
    async fn new(layer: impl FnOnce(ApiKeyLayer) -> ApiKeyLayer) -> Self {
        let (store, sink) = (Arc::new(SpyStore::default()), Arc::new(SpySink::default()));
        let builder = KeyManager::builder(Arc::clone(&store)).audit(Arc::clone(&sink));
        let keys = builder.delivery(Delivery::strict()).build().unwrap();
        let actor = Actor::new(org("acme"), "ada");

        let layer = layer(ApiKeyLayer::new(keys.clone()));
        let (_, health) = tonic_health::server::health_reporter();
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let url = format!("http://{}", incoming.local_addr().unwrap());
        let server = Server::builder().layer(layer).add_service(health);
        let server = tokio::spawn(async { server.serve_with_incoming(incoming).await.unwrap() });
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        Self { store, sink, keys, actor, channel, server }
    }

    async fn key(&self, allowlist: &[&str]) -> IssuedKey {
        let new = NewKey::named("key").unwrap().allow(allowlist).unwrap();
        self.keys.create(&self.actor, new).await.unwrap()
    }

    /// Calls a method with that credential.
    async fn call(&self, credential: Option<&str>, service: &str) -> Result<(), Status> {
        let mut request = Request::new(HealthCheckRequest { service: service.to_owned() });
        if let Some(credential) = credential {
            request.metadata_mut().insert("authorization", credential.parse().unwrap());
        }
        HealthClient::new(self.channel.clone()).check(request).await.map(drop)
    }

    async fn call_with(&self, key: &IssuedKey) -> Result<(), Status> {
        self.call(Some(&format!("Bearer {}", key.secret.expose_secret())), "").await
    }

    /// Status, outcome and address of the last recorded request of a key.
    async fn recorded(&self, key: &IssuedKey) -> (Option<u16>, Outcome, Option<IpAddr>) {
        let scope = AuditScope::KeyRequests(key.key.id);
        let query = AuditQuery::new(self.actor.org().clone(), scope).limit(1);
        let record = self.sink.page(&query).await.unwrap().records.pop().expect("a record");
        let AuditEvent::Request(request) = record.event else { panic!("{record:?}") };
        assert_eq!(&*request.endpoint, "/grpc.health.v1.Health/Check");
        (request.status, request.outcome, request.ip)
    }
}

/// tonic's own type for the peer address.
fn with_peer(layer: ApiKeyLayer) -> ApiKeyLayer {
    layer.peer_from(|extensions| extensions.get::<TcpConnectInfo>()?.remote_addr())
}

fn assert_refused(answer: Result<(), Status>, code: Code, message: &str) {
    let status = answer.expect_err("a refusal");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(message), "{status:?}");
    // Only the trailers with the status.
    let headers = status.metadata().clone().into_headers();
    assert!(headers.keys().all(|name| ["content-type", "date"].contains(&name.as_str())));
}

#[tokio::test]
async fn case_53_a_client_sees_why_it_is_refused() {
    let setup = Setup::new(with_peer).await;
    let good = setup.key(&[]).await;
    assert_refused(setup.call(None, "").await, Code::Unauthenticated, "needs an API key");
    for bad in ["Bearer x", "Bearer vsp_sk_x", &format!("Bearer {}", unknown_key())] {
        assert_refused(setup.call(Some(bad), "").await, Code::Unauthenticated, "is not valid");
    }
    let two = setup.call(Some("Bearer a b"), "").await;
    assert_refused(two, Code::Unauthenticated, "exactly one");

    setup.call_with(&good).await.unwrap();
    let peer = Some("127.0.0.1".parse().unwrap());
    assert_eq!(setup.recorded(&good).await, (Some(200), Outcome::Allowed, peer));
    // A failed call is recorded with the HTTP status of its gRPC status.
    let credential = format!("Bearer {}", good.secret.expose_secret());
    let failed = setup.call(Some(&credential), "no.such.Service").await;
    assert_eq!(failed.unwrap_err().code(), Code::NotFound);
    assert_eq!(setup.recorded(&good).await, (Some(404), Outcome::Allowed, peer));
    setup.store.find(Find::Fails);
    assert_refused(setup.call_with(&good).await, Code::Unavailable, "could not be checked");
    setup.store.find(Find::Honest);

    setup.keys.revoke(&setup.actor, &good.key.id).await.unwrap();
    assert_refused(setup.call_with(&good).await, Code::Unauthenticated, "is not valid");
    assert_eq!(setup.recorded(&good).await, (Some(401), Outcome::Revoked, peer));
}

#[tokio::test]
async fn case_53_a_key_with_an_allowlist_works_under_tonic() {
    let setup = Setup::new(with_peer).await;
    let (here, elsewhere) = (setup.key(&["127.0.0.1"]).await, setup.key(&["203.0.113.0/24"]).await);
    let peer = Some("127.0.0.1".parse().unwrap());
    for _ in 0..2 {
        setup.call_with(&here).await.unwrap();
        assert_eq!(setup.recorded(&here).await, (Some(200), Outcome::Allowed, peer));
        assert_refused(setup.call_with(&elsewhere).await, Code::PermissionDenied, "not allowed");
        assert_eq!(setup.recorded(&elsewhere).await, (Some(403), Outcome::IpNotAllowed, peer));
    }
    // If the layer cannot find the peer, the address is unknown.
    let unknown = Setup::new(|layer| layer).await;
    let here = unknown.key(&["127.0.0.1"]).await;
    assert_refused(unknown.call_with(&here).await, Code::PermissionDenied, "not allowed");
    assert_eq!(unknown.recorded(&here).await, (Some(403), Outcome::IpNotAllowed, None));
}
