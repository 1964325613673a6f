//! The layer among other tower layers and services.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::ConnectInfo;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full};
use keygate::guard::{ApiKeyService, ResponseBody, ResponseFuture};
use keygate::{ApiKeyLayer, VerifiedKey};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_http::classify::{ServerErrorsAsFailures, SharedClassifier};
use tower_http::cors::CorsLayer;
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::support::{Find, Gate, PATIENCE, Sink, unknown_key};
use crate::{
    Answer, Unshared, World, at_once_and_later, bearer, from_peer, greet_in_tower, request, router,
    with_header,
};

/// Ready only after `poll_ready`. A clone is not ready.
#[derive(Default)]
struct Reserving {
    reserved: bool,
    out: Arc<AtomicUsize>,
}

impl Clone for Reserving {
    fn clone(&self) -> Self {
        Self { reserved: false, out: Arc::clone(&self.out) }
    }
}

impl Drop for Reserving {
    fn drop(&mut self) {
        if self.reserved {
            self.out.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Service<Request<Full<Bytes>>> for Reserving {
    type Response = Response<Full<Bytes>>;
    type Error = &'static str;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.reserved {
            if self.out.fetch_add(1, Ordering::SeqCst) > 0 {
                self.out.fetch_sub(1, Ordering::SeqCst);
                return Poll::Ready(Err("no room"));
            }
            self.reserved = true;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(std::mem::take(&mut self.reserved), "called without being ready");
        self.out.fetch_sub(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn the_layer_calls_the_service_that_was_ready() {
    let world = World::new();
    let (_, key) = world.key().await;
    let inner = Reserving::default();
    let out = Arc::clone(&inner.out);
    let mut service = world.layer().layer(inner);
    let with_body = |request: Request<()>| request.map(|()| Full::default());
    for find in at_once_and_later() {
        world.store.find(find);
        for _ in 0..3 {
            let ready = service.ready().await.unwrap();
            let answer = ready.call(with_body(bearer(&key))).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            // A refused request releases what was reserved for it.
            for refused in ["x", &unknown_key()] {
                let ready = service.ready().await.unwrap();
                let answer = ready.call(with_body(bearer(refused))).await.unwrap();
                assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
                assert_eq!(out.load(Ordering::SeqCst), 0);
            }
        }
    }
    // A service that is not ready stays so behind the layer.
    let mut reserved = service.clone();
    reserved.ready().await.unwrap();
    let refused = service.ready().await.map(drop);
    assert_eq!(refused.unwrap_err(), "no room");
}

#[tokio::test]
async fn a_reservation_is_held_during_the_look_up_and_released_with_the_request() {
    let world = World::new();
    let (_, key) = world.key().await;
    let gate = Arc::new(Gate::default());
    world.store.find(Find::HeldBefore(Arc::clone(&gate)));
    let inner = Reserving::default();
    let out = Arc::clone(&inner.out);
    let mut service = world.layer().layer(inner);
    let request = || bearer(&key).map(|()| Full::<Bytes>::default());
    let mut under_way = service.ready().await.unwrap().call(request());
    tokio::select! {
        _ = &mut under_way => panic!("an answer"),
        () = gate.reached.notified() => {}
    }
    assert_eq!(out.load(Ordering::SeqCst), 1);
    assert_eq!(service.ready().await.map(drop), Err("no room"), "only the clone is left");
    drop(under_way);
    assert_eq!(out.load(Ordering::SeqCst), 0);
    let under_way = service.ready().await.unwrap().call(request());
    gate.opened.notify_one();
    assert_eq!(under_way.await.unwrap().status(), StatusCode::OK);
}

/// The answers of the stack to a preflight request and to a request without a key.
async fn stacked<S, B>(order: &str, service: S)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
    B: HttpBody<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let origin = |request| with_header(request, "origin", "https://app.example");
    let mut preflight =
        with_header(origin(request("/", &[])), "access-control-request-method", "GET");
    *preflight.method_mut() = Method::OPTIONS;
    let ask = async |request: Request<()>| {
        let request = request.map(|()| Full::<Bytes>::default());
        Answer::read(service.clone().oneshot(request).await.unwrap()).await
    };
    let answer = ask(origin(request("/", &[]))).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{order}");
    let cors_is_outside = order.find("cors") < order.find("key");
    let header = "access-control-allow-origin";
    assert_eq!(answer.headers.contains_key(header), cors_is_outside, "{order}");
    let answer = ask(preflight).await;
    assert_eq!(answer.status == StatusCode::OK, cors_is_outside, "{order}");
}

fn key(world: &World) -> ApiKeyLayer {
    world.layer()
}

fn cors(_: &World) -> CorsLayer {
    CorsLayer::new().allow_origin(tower_http::cors::Any)
}

fn timeout(_: &World) -> TimeoutLayer {
    TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, PATIENCE)
}

fn trace(_: &World) -> TraceLayer<SharedClassifier<ServerErrorsAsFailures>> {
    TraceLayer::new_for_http()
}

/// A test of all these orders, outermost layer first.
macro_rules! orders {
    ($($($layer:ident)+;)+) => {
        #[tokio::test]
        async fn the_layer_works_with_tower_http_layers_in_any_order() {
            let world = World::new();
            $(
                let builder = ServiceBuilder::new();
                $(let builder = builder.layer($layer(&world));)+
                let service = builder.service(service_fn(async |_: Request<_>| {
                    Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
                }));
                stacked(stringify!($($layer)+), service).await;
            )+
        }
    };
}

// `CorsLayer` and `TimeoutLayer` cannot directly wrap `TraceLayer`, whose body type has no
// default.
orders! {
        key trace cors timeout;
        key trace timeout cors;
        cors key trace timeout;
        cors timeout key trace;
        timeout key trace cors;
        timeout cors key trace;
        trace key cors timeout;
        trace key timeout cors;
        trace cors key timeout;
        trace cors timeout key;
        trace timeout key cors;
        trace timeout cors key;
}

#[tokio::test]
async fn the_key_of_an_admitted_request_is_in_the_extensions_of_its_answer_if_asked_for() {
    let world = World::new();
    let (record, key) = world.key().await;
    let (revoked, revoked_key) = world.key().await;
    world.revoke(&revoked).await;
    let [silent, telling] = [world.layer(), world.layer().key_in_response()]
        .map(|layer| layer.optional().layer(service_fn(greet_in_tower)));
    let ask_of = async |service: &ApiKeyService<_>, request: Request<()>| {
        let answer = service.clone().oneshot(request.map(|()| Unshared::of(""))).await.unwrap();
        answer.extensions().get::<VerifiedKey>().map(VerifiedKey::id)
    };
    let ask = |request| ask_of(&telling, request);
    assert_eq!(ask_of(&silent, bearer(&key)).await, None);
    assert_eq!(ask(bearer(&key)).await, Some(record.id));
    for refused in [request("/", &[]), bearer("x"), bearer(&unknown_key()), bearer(&revoked_key)] {
        assert_eq!(ask(refused).await, None);
    }
    // A request that could not be recorded was not admitted.
    world.sink.sink(Sink::Rejects);
    assert_eq!(ask(bearer(&key)).await, None);
}

#[test]
fn futures_and_services_are_send_for_any_body_type() {
    fn is_send<T: Send>() {}
    type Inner = tower::util::BoxCloneService<Request<Unshared>, Response<Unshared>, Infallible>;
    is_send::<ResponseFuture<Inner, Unshared, Unshared>>();
    is_send::<ResponseBody<Unshared>>();
}

#[tokio::test]
async fn the_layer_preserves_the_length_of_a_body() {
    let world = World::new();
    let (_, key) = world.key().await;
    let service = world.layer().layer(service_fn(|_: Request<()>| {
        ready(Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(&[b'x'; 20])))))
    }));
    let answer = service.clone().oneshot(bearer(&key)).await.unwrap();
    assert_eq!(answer.body().size_hint().exact(), Some(20));
    assert!(!answer.body().is_end_stream());
    assert_eq!(Answer::read(answer).await.body.len(), 20);

    let refusal = service.oneshot(bearer("x")).await.unwrap();
    let length = refusal.body().size_hint().exact().expect("a length");
    let mut body = refusal.into_body();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frame.len() as u64, length);
    assert!(body.is_end_stream());
    assert_eq!(body.size_hint().exact(), Some(0));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn the_peer_of_axum_takes_precedence() {
    let world = World::new();
    let (record, key) = world.key().await;
    let mut request = from_peer(bearer(&key), "203.0.113.1").map(|()| Body::empty());
    let peer: SocketAddr = "192.0.2.1:5".parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    let router = router().layer(world.layer());
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(world.last_request(record.id).await.ip, Some(peer.ip()));
}
