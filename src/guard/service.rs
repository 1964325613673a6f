//! The middleware: handles a request from its credential to its audit record.

use std::borrow::Cow;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::header::AUTHORIZATION;
use http::{Method, Request, Response};
use tower_service::Service;
use tracing::Span;

use crate::guard::body::ResponseBody;
use crate::guard::config::{Anonymous, Config, peer_of};
use crate::guard::future::{ResponseFuture, State};
use crate::key::existing::Lookup;
use crate::manager::admission::{NotAdmitted, RequestInfo};
use crate::manager::endpoint::seen;
use crate::manager::rate::RateStatus;
use crate::runtime::spawn::BoxFuture;
use crate::wire::bearer::{Presented, presented};
use crate::wire::refusal::{Asked, Refusal};

/// A service guarded by [`ApiKeyLayer`](crate::ApiKeyLayer).
#[derive(Clone, Debug)]
pub struct ApiKeyService<S> {
    pub(super) inner: S,
    pub(super) config: Arc<Config>,
}

/// What is known about a request before the store is asked.
enum Claim {
    Key(Lookup),
    Nothing,
    Refused(Refusal),
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ApiKeyService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, ReqBody, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let config = &self.config;
        let ip = config.client_ip.resolve(config.peer(&request), request.headers());
        let claim = config.claim(&request);
        let asked = Asked::with(request.version(), request.headers());
        for name in std::iter::once(&AUTHORIZATION).chain(&config.key_header) {
            if let Some(credential) = request.headers_mut().get_mut(name) {
                // Keeps inner layers that print the headers from printing the key.
                credential.set_sensitive(true);
            }
        }
        let state = match claim {
            Claim::Key(lookup) => self.admit(lookup, ip, request),
            Claim::Nothing => {
                request.extensions_mut().insert(Anonymous(self.config.refusals.clone()));
                let response = self.inner.call(request);
                State::Serving { response, admission: None, span: Span::none() }
            }
            Claim::Refused(refusal) => {
                if matches!(refusal, Refusal::InvalidToken) {
                    self.config.keys.count_malformed();
                }
                tracing::debug!(reason = refusal.reason(), "refused");
                self.refuse(refusal, None)
            }
        };
        ResponseFuture { config: Arc::clone(&self.config), asked, state }
    }
}

impl<S: Clone> ApiKeyService<S> {
    fn admit<ReqBody, ResBody>(
        &mut self,
        lookup: Lookup,
        ip: Option<IpAddr>,
        request: Request<ReqBody>,
    ) -> State<S, S::Future, Request<ReqBody>, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        let config = Arc::clone(&self.config);
        let info = config.info(&request, ip);
        let mut admission: BoxFuture<'static, _> =
            Box::pin(async move { config.keys.admit_lookup(&lookup, info, &config.scopes).await });
        // If nothing has to wait, as with a store in memory, the service that is ready is
        // called at once. Otherwise the caller polls the future again with a real waker.
        match admission.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(admission)) => admission.serve(&mut self.inner, request),
            Poll::Ready(Err(NotAdmitted { error, rate })) => {
                self.refuse(Refusal::of(error, &self.config.scopes), rate)
            }
            Poll::Pending => {
                // The clone may not be ready, but the original is, since it was polled.
                let clone = self.inner.clone();
                let inner = mem::replace(&mut self.inner, clone);
                State::Admitting { admission, inner, request: Some(request) }
            }
        }
    }

    fn refuse<F, R, B>(
        &mut self,
        refusal: Refusal,
        rate: Option<Box<RateStatus>>,
    ) -> State<S, F, R, B> {
        // Releases what made the service ready, such as a permit.
        self.inner = self.inner.clone();
        State::Refused { refusal, rate }
    }
}

impl Config {
    fn info<B>(&self, request: &Request<B>, ip: Option<IpAddr>) -> RequestInfo {
        // Only the audit log needs the path.
        let path = if self.keys.is_audited() { seen(path(request)).into() } else { Box::default() };
        RequestInfo { method: method_name(request.method()), path, ip }
    }

    fn claim<B>(&self, request: &Request<B>) -> Claim {
        let foreign_to = self.ignores_foreign.then(|| self.keys.formats());
        match presented(request.headers(), self.key_header.as_ref(), foreign_to) {
            Presented::Bearer(credential) => {
                // The part of a verification that does not need the store.
                match self.keys.formats().lookup(credential, self.environment.as_deref()) {
                    Ok(lookup) => Claim::Key(lookup),
                    Err(_) => Claim::Refused(Refusal::InvalidToken),
                }
            }
            Presented::Nothing if self.optional => Claim::Nothing,
            Presented::Nothing => Claim::Refused(Refusal::NoCredentials),
            Presented::Malformed => Claim::Refused(Refusal::InvalidToken),
            Presented::Ambiguous => Claim::Refused(Refusal::InvalidRequest),
        }
    }

    fn peer<B>(&self, request: &Request<B>) -> Option<IpAddr> {
        let extensions = request.extensions();
        let found = self.peer_from.and_then(|find| find(extensions));
        found.map(|peer| peer.ip()).or_else(|| peer_of(extensions))
    }
}

/// The path as the client sent it; axum strips the mount point from the URI.
fn path<B>(request: &Request<B>) -> &str {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::OriginalUri(uri)) =
        request.extensions().get::<axum::extract::OriginalUri>()
    {
        return uri.path();
    }
    request.uri().path()
}

fn method_name(method: &Method) -> Cow<'static, str> {
    match *method {
        Method::GET => "GET".into(),
        Method::POST => "POST".into(),
        Method::PUT => "PUT".into(),
        Method::PATCH => "PATCH".into(),
        Method::DELETE => "DELETE".into(),
        Method::HEAD => "HEAD".into(),
        Method::OPTIONS => "OPTIONS".into(),
        _ => seen(method.as_str()).to_owned().into(),
    }
}
