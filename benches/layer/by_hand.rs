//! The layers that keygate's is compared with, as a service would write them for itself.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use axum::extract::ConnectInfo;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Request, Response, StatusCode};
use jsonwebtoken::{DecodingKey, Validation};
use keygate::KeyManager;
use pin_project_lite::pin_project;
use serde::{Deserialize, Serialize};
use tower::{Layer, Service};

/// Says whether a request may pass, as a layer of one service alone would.
pub(crate) trait Check: Clone {
    fn admits<B>(&self, request: &mut Request<B>) -> bool;
}

#[derive(Clone)]
pub(crate) struct Everybody;

impl Check for Everybody {
    fn admits<B>(&self, _: &mut Request<B>) -> bool {
        true
    }
}

/// One token for all, compared as tower-http did it.
#[derive(Clone)]
pub(crate) struct Static(pub(crate) HeaderValue);

impl Check for Static {
    fn admits<B>(&self, request: &mut Request<B>) -> bool {
        request.headers().get(AUTHORIZATION) == Some(&self.0)
    }
}

#[derive(Clone)]
pub(crate) struct Jwt(pub(crate) Arc<(DecodingKey, Validation)>);

#[derive(Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) sub: String,
    pub(crate) org: String,
    pub(crate) exp: u64,
}

impl Check for Jwt {
    fn admits<B>(&self, request: &mut Request<B>) -> bool {
        let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let Some(token) = header.and_then(|header| header.strip_prefix("Bearer ")) else {
            return false;
        };
        match jsonwebtoken::decode::<Claims>(token, &self.0.0, &self.0.1) {
            Ok(token) => {
                request.extensions_mut().insert(Arc::new(token.claims));
                true
            }
            Err(_) => false,
        }
    }
}

/// `KeyManager::verify` and nothing else of this crate: for a store that answers at once.
#[derive(Clone)]
pub(crate) struct Verify(pub(crate) KeyManager);

impl Check for Verify {
    fn admits<B>(&self, request: &mut Request<B>) -> bool {
        let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let Some(key) = header.and_then(|header| header.strip_prefix("Bearer ")) else {
            return false;
        };
        let peer =
            request.extensions().get().map(|ConnectInfo(peer): &ConnectInfo<SocketAddr>| peer.ip());
        let verified = pin!(self.0.verify(key, peer)).poll(&mut Context::from_waker(Waker::noop()));
        match verified {
            Poll::Ready(Ok(key)) => {
                request.extensions_mut().insert(key);
                true
            }
            _ => false,
        }
    }
}

#[derive(Clone)]
pub(crate) struct ByHand<C>(pub(crate) C);

impl<C: Check, S> Layer<S> for ByHand<C> {
    type Service = Guarded<C, S>;

    fn layer(&self, inner: S) -> Guarded<C, S> {
        Guarded { check: self.0.clone(), inner }
    }
}

#[derive(Clone)]
pub(crate) struct Guarded<C, S> {
    check: C,
    inner: S,
}

impl<C, S, ReqBody, ResBody> Service<Request<ReqBody>> for Guarded<C, S>
where
    C: Check,
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = GuardedFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        if self.check.admits(&mut request) {
            return GuardedFuture::Admitted { future: self.inner.call(request) };
        }
        let mut response = Response::new(ResBody::default());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        GuardedFuture::Refused { response: Some(response) }
    }
}

pin_project! {
    #[project = GuardedProjection]
    pub(crate) enum GuardedFuture<F, B> {
        Admitted { #[pin] future: F },
        Refused { response: Option<Response<B>> },
    }
}

impl<F, B, E> Future for GuardedFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project() {
            GuardedProjection::Admitted { future } => Poll::Ready(ready!(future.poll(cx))),
            GuardedProjection::Refused { response } => {
                Poll::Ready(Ok(response.take().expect("polled once")))
            }
        }
    }
}
