//! The middleware itself: one request from its credential to its audit record.

use std::borrow::Cow;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use ::http::header::AUTHORIZATION;
use ::http::{Method, Request, Response};
use tower_service::Service;

use crate::http::bearer::{Presented, presented};
use crate::http::refusal::Refusal;
use crate::key::digest::KeyDigest;
use crate::manager::admission::{Admission, RequestInfo};
use crate::tower::body::ResponseBody;
use crate::tower::future::ResponseFuture;
#[cfg(feature = "axum")]
use crate::tower::layer::Anonymous;
use crate::tower::layer::{Config, PeerAddr};

/// A service guarded by [`ApiKeyLayer`](crate::ApiKeyLayer).
#[derive(Clone, Debug)]
pub struct ApiKeyService<S> {
    pub(super) inner: S,
    pub(super) config: Arc<Config>,
}

/// What is known of a request before the store is asked.
enum Claim {
    Key(KeyDigest),
    Nothing,
    Refused(Refusal),
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for ApiKeyService<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone + Send + 'static,
    S::Future: Send,
    ReqBody: Send + 'static,
    ResBody: Send,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<ResBody, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        // The clone may not be ready; the service that was polled is.
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        let config = Arc::clone(&self.config);
        let ip = config.client_ip.resolve(peer(&request), request.headers());
        let claim = config.claim(&request);
        if let Some(credential) = request.headers_mut().get_mut(AUTHORIZATION) {
            // So that nobody further in prints the key by printing the headers.
            credential.set_sensitive(true);
        }
        ResponseFuture {
            inner: Box::pin(async move {
                let admission = match config.admit(claim, ip, &mut request).await {
                    Ok(admission) => admission,
                    Err(refusal) => return Ok(config.refuse(refusal)),
                };
                let response = inner.call(request).await?;
                if let Some(admission) = admission
                    && let Err(error) = admission.finish(response.status().as_u16()).await
                {
                    tracing::error!(%error, "an answer was withheld: it could not be recorded");
                    return Ok(config.refuse(Refusal::Unavailable));
                }
                Ok(response.map(ResponseBody::service))
            }),
        }
    }
}

impl Config {
    fn claim<B>(&self, request: &Request<B>) -> Claim {
        match presented(request.headers()) {
            Presented::Bearer(credential) => match self.keys.digest(credential) {
                Ok(digest) => Claim::Key(digest),
                Err(_) => Claim::Refused(Refusal::InvalidToken),
            },
            Presented::Nothing if self.optional => Claim::Nothing,
            Presented::Nothing => Claim::Refused(Refusal::NoCredentials),
            Presented::Malformed => Claim::Refused(Refusal::InvalidToken),
            Presented::Ambiguous => Claim::Refused(Refusal::InvalidRequest),
        }
    }

    /// Asks the store, opens the audit record, and hands the key to the service.
    async fn admit<B>(
        &self,
        claim: Claim,
        ip: Option<IpAddr>,
        request: &mut Request<B>,
    ) -> Result<Option<Admission>, Refusal> {
        let digest = match claim {
            Claim::Key(digest) => digest,
            Claim::Nothing => {
                #[cfg(feature = "axum")]
                request.extensions_mut().insert(Anonymous(self.refusals.clone()));
                return Ok(None);
            }
            Claim::Refused(refusal) => {
                tracing::debug!(reason = refusal.reason(), "refused");
                return Err(refusal);
            }
        };
        let checked = self.keys.check(digest, ip).await;
        let draft = self.keys.draft(&checked, || RequestInfo {
            method: method_name(request.method()),
            path: path(request).into(),
            ip,
        });
        let admission = self
            .keys
            .open(checked, draft)
            .await
            .map_err(|error| Refusal::from_status(error.http_status()))?;
        request.extensions_mut().insert(admission.key().clone());
        Ok(Some(admission))
    }

    fn refuse<B>(&self, refusal: Refusal) -> Response<ResponseBody<B>> {
        self.refusals.response(refusal).map(ResponseBody::refusal)
    }
}

fn peer<B>(request: &Request<B>) -> Option<IpAddr> {
    let extensions = request.extensions();
    #[cfg(feature = "axum")]
    if let Some(::axum::extract::ConnectInfo(peer)) =
        extensions.get::<::axum::extract::ConnectInfo<std::net::SocketAddr>>()
    {
        return Some(peer.ip());
    }
    extensions.get::<PeerAddr>().map(|PeerAddr(peer)| peer.ip())
}

/// The path as the client sent it; axum takes the mount point off the URI.
fn path<B>(request: &Request<B>) -> &str {
    #[cfg(feature = "axum")]
    if let Some(::axum::extract::OriginalUri(uri)) =
        request.extensions().get::<::axum::extract::OriginalUri>()
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
        _ => method.as_str().to_owned().into(),
    }
}
