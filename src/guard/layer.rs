//! The layer: what to guard with, and how.

use std::net::SocketAddr;
use std::sync::Arc;

use http::Extensions;
use tower_layer::Layer;

use crate::guard::config::Config;
use crate::guard::service::ApiKeyService;
use crate::manager::KeyManager;
use crate::wire::client_ip::ClientIp;
use crate::wire::refusal::Refusals;

/// Lets a request through to the service only with a good key, and puts the
/// [`VerifiedKey`](crate::VerifiedKey) into its extensions, and into those of the
/// answer, for an access log further out.
///
/// It works on any `http` request and response, under axum, hyper or tonic, and
/// answers what it refuses itself:
///
/// | case | answer |
/// |---|---|
/// | no credentials | 401, bare `Bearer` challenge |
/// | more than one credential | 400 `invalid_request` |
/// | malformed, unknown, revoked, expired or deleted key | 401 `invalid_token`, all alike |
/// | address not on the key's allowlist | 403 |
/// | store or audit log unavailable | 503 with `Retry-After` |
///
/// Give a nested axum router that it guards a `fallback` of its own: axum answers
/// the paths that it has no route for past the layer otherwise.
///
/// A gRPC call (`Content-Type: application/grpc…`) is refused as one: with `grpc-status`
/// `UNAUTHENTICATED` for 400 and 401, `PERMISSION_DENIED` for 403 and `UNAVAILABLE` for
/// 503. The audit log shows the HTTP status. Of an admitted call that fails, it shows
/// the status that stands for its `grpc-status`, if that is in the headers of the answer,
/// and 200 if it comes behind messages.
///
/// The client's address is that of the peer, which the server has to supply: as
/// axum's `ConnectInfo<SocketAddr>` (feature `axum`), as [`PeerAddr`](crate::PeerAddr) in the
/// request's extensions, or in a type of its own, see [`ApiKeyLayer::peer_from`].
/// Without it only keys without an allowlist get in. Behind proxies, set
/// [`ApiKeyLayer::client_ip`].
///
/// Once the server has stopped, call [`KeyManager::shutdown`]: what is queued for the
/// audit log is lost otherwise.
///
/// ```
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::{Request, Response, StatusCode};
/// use keygate::{ApiKeyLayer, KeyManager, MemoryStore, VerifiedKey};
/// use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
/// # use http_body_util::Empty;
/// # use bytes::Bytes;
///
/// let keys = KeyManager::builder(MemoryStore::new()).build()?;
/// let service = ServiceBuilder::new().layer(ApiKeyLayer::new(keys)).service(service_fn(
///     async |request: Request<Empty<Bytes>>| {
///         let key: &VerifiedKey = request.extensions().get().expect("the layer put it there");
///         Ok::<_, std::convert::Infallible>(Response::new(key.org().to_string()))
///     },
/// ));
/// let response = service.oneshot(Request::new(Empty::new())).await?;
/// assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ApiKeyLayer {
    config: Arc<Config>,
}

impl ApiKeyLayer {
    /// A layer that requires a good key of that manager.
    pub fn new(keys: KeyManager) -> Self {
        let config = Config {
            keys,
            peer_from: None,
            client_ip: ClientIp::peer(),
            refusals: Refusals::new("api"),
            optional: false,
            ignores_foreign: false,
        };
        Self { config: Arc::new(config) }
    }

    /// Lets requests without credentials through as well, without a
    /// `VerifiedKey`. A request that presents a bad key is still refused.
    pub fn optional(self) -> Self {
        self.with(|config| config.optional = true)
    }

    /// Takes a bearer token that does not begin with the prefix of this service's keys
    /// for no credential of this service, whatever its length. Together with
    /// [`ApiKeyLayer::optional`], keys and the tokens of another issuer, such as JWTs,
    /// share a route:
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// // What lets in JWTs comes behind it, and refuses requests with neither.
    /// let layer = ApiKeyLayer::new(keys).optional().ignore_foreign_tokens();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// What begins with the prefix and is no good key is still refused, and so are two
    /// credentials in one request, of whatever kind.
    pub fn ignore_foreign_tokens(self) -> Self {
        self.with(|config| config.ignores_foreign = true)
    }

    /// Finds the peer in what the server puts into the extensions of a request, before
    /// the layer looks for the peer itself. For tonic, in one line:
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    /// use tonic::transport::server::TcpConnectInfo;
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys)
    ///     .peer_from(|extensions| extensions.get::<TcpConnectInfo>()?.remote_addr());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// With TLS, tonic's type is `TlsConnectInfo<TcpConnectInfo>`, and the expression
    /// `extensions.get::<…>()?.get_ref().remote_addr()`.
    pub fn peer_from(self, find: fn(&Extensions) -> Option<SocketAddr>) -> Self {
        self.with(|config| config.peer_from = Some(find))
    }

    /// Sets how the client's address is found; the peer's address otherwise.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|config| config.client_ip = client_ip)
    }

    /// Sets the realm that challenges name; `api` otherwise.
    pub fn realm(self, realm: &str) -> Self {
        self.with(|config| config.refusals = Refusals::new(realm))
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }
}

impl<S> Layer<S> for ApiKeyLayer {
    type Service = ApiKeyService<S>;

    fn layer(&self, inner: S) -> ApiKeyService<S> {
        ApiKeyService { inner, config: Arc::clone(&self.config) }
    }
}
