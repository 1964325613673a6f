//! The layer for routes that need a scope.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::guard::body::ResponseBody;
use crate::guard::config::Anonymous;
use crate::manager::verify::VerifiedKey;
use crate::scopes::{Scope, ScopeError};
use crate::wire::refusal::{Asked, Refusal, Refusals, missing_layer};

/// Passes a request on only if its key has a scope, or full access. For routes below an
/// [`ApiKeyLayer`](crate::ApiKeyLayer), which records the refusal.
///
/// Other requests are answered with 403 (`insufficient_scope`), those that have no key
/// because of [`ApiKeyLayer::optional`](crate::ApiKeyLayer::optional) with 401, and those
/// that no `ApiKeyLayer` has seen with 500.
///
#[cfg_attr(
    feature = "axum",
    doc = r#"
```
# #[tokio::main]
# async fn main() -> Result<(), Box<dyn std::error::Error>> {
use axum::{Router, routing::get};
use keygate::guard::RequireScope;
use keygate::{ApiKeyLayer, KeyManager, MemoryStore};

let keys = KeyManager::builder(MemoryStore::new()).build()?;
let reports = get(async || "reports").layer(RequireScope::new("reports:read")?);
let api: Router = Router::new()
    .route("/reports", reports)
    .route("/whoami", get(async || "any key may ask"))
    .layer(ApiKeyLayer::new(keys));
# Ok(())
# }
```
"#
)]
#[derive(Clone, Debug)]
pub struct RequireScope {
    scope: Scope,
}

impl RequireScope {
    /// A layer that requires this scope.
    pub fn new(scope: impl AsRef<str>) -> Result<Self, ScopeError> {
        Ok(Self { scope: Scope::new(scope)? })
    }
}

impl<S> Layer<S> for RequireScope {
    type Service = RequireScopeService<S>;

    fn layer(&self, inner: S) -> RequireScopeService<S> {
        RequireScopeService { inner, scope: self.scope.clone() }
    }
}

/// A service that needs a scope; see [`RequireScope`].
#[derive(Clone, Debug)]
pub struct RequireScopeService<S> {
    inner: S,
    scope: Scope,
}

impl<S> RequireScopeService<S> {
    /// The response to a request that may not pass.
    fn refusal<B>(&self, request: &Request<B>) -> Option<Response<Bytes>> {
        let asked = || Asked::with(request.version(), request.headers());
        let extensions = request.extensions();
        if let Some(key) = extensions.get::<VerifiedKey>() {
            let missing = key.require_scope(self.scope.as_str()).err()?;
            let refusal = Refusal::InsufficientScope(missing);
            return Some(Refusals::without_realm().response(&refusal, asked()));
        }
        Some(match extensions.get() {
            Some(Anonymous(refusals)) => refusals.response(&Refusal::NoCredentials, asked()),
            None => {
                let scope = self.scope.as_str();
                tracing::error!(
                    scope,
                    "no VerifiedKey in the request: is `ApiKeyLayer` installed on this route?"
                );
                missing_layer(asked())
            }
        })
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RequireScopeService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = RequireScopeFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let state = match self.refusal(&request) {
            None => State::Serving { response: self.inner.call(request) },
            Some(refused) => {
                // Releases what made the service ready, such as a permit.
                self.inner = self.inner.clone();
                State::Refused { response: Some(refused) }
            }
        };
        RequireScopeFuture { state }
    }
}

pin_project! {
    /// The future of a [`RequireScopeService`].
    #[derive(Debug)]
    pub struct RequireScopeFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[project = StateProjection]
    #[derive(Debug)]
    enum State<F> {
        Serving { #[pin] response: F },
        Refused { response: Option<Response<Bytes>> },
    }
}

impl<F, B, E> Future for RequireScopeFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Serving { response } => {
                response.poll(cx).map_ok(|response| response.map(ResponseBody::service))
            }
            // Polled after completion, an empty response.
            StateProjection::Refused { response } => {
                Poll::Ready(Ok(response.take().unwrap_or_default().map(ResponseBody::refusal)))
            }
        }
    }
}
