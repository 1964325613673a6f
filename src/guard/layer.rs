//! The layer and its settings.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Extensions, HeaderName, Response};
use tower_layer::Layer;

use crate::guard::config::Config;
use crate::guard::service::ApiKeyService;
use crate::manager::KeyManager;
use crate::scopes::{Scope, ScopeError};
use crate::wire::client_ip::ClientIp;
use crate::wire::refusal::{Refusal, Refusals};

/// Passes a request to the service only if it has a valid key. It puts the
/// [`VerifiedKey`](crate::VerifiedKey) into the extensions of the request.
///
/// Add it once per route: two layers record each request twice.
///
/// It works with any `http` request and response, under axum, hyper or tonic. It answers
/// refused requests itself:
///
/// | case | answer |
/// |---|---|
/// | no credentials | 401, bare `Bearer` challenge |
/// | more than one credential | 400 `invalid_request` |
/// | malformed, unknown, revoked, expired or deleted key | 401 `invalid_token`, all alike |
/// | address not on the key's allowlist | 403 |
/// | key lacks a scope | 403 `insufficient_scope` |
/// | key has reached its rate limit | 429 `rate_limited` with `Retry-After` |
/// | store or audit log unavailable | 503 with `Retry-After` |
///
/// If it wraps a nested axum router, give that router its own `fallback`. Otherwise axum
/// answers unknown paths without going through the layer.
///
/// A gRPC call (`Content-Type: application/grpc…`) is refused in gRPC's format: with
/// `grpc-status` `UNAUTHENTICATED` for 400 and 401, `PERMISSION_DENIED` for 403,
/// `RESOURCE_EXHAUSTED` for 429 and `UNAVAILABLE` for 503. The audit log shows the HTTP
/// status. For an admitted call that fails, it shows the HTTP status that corresponds to
/// `grpc-status` if that is in the headers of the response, and 200 if it follows after
/// messages.
///
/// The client's address is that of the peer, which the server has to supply: as axum's
/// `ConnectInfo<SocketAddr>` (feature `axum`), as [`PeerAddr`](crate::guard::PeerAddr) in the
/// request's extensions, or in another type, see [`ApiKeyLayer::peer_from`]. Without it,
/// only keys without an allowlist are admitted. Behind proxies, set
/// [`ApiKeyLayer::client_ip`].
///
/// Once the server has stopped, call [`KeyManager::shutdown`]; otherwise queued audit
/// records are lost.
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
    /// A layer that requires a valid key of this manager.
    pub fn new(keys: KeyManager) -> Self {
        let config = Config {
            keys,
            peer_from: None,
            client_ip: ClientIp::peer(),
            refusals: Refusals::new("api"),
            key_header: None,
            environment: None,
            optional: false,
            ignores_foreign: false,
            key_in_response: false,
            scopes: Vec::new(),
        };
        Self { config: Arc::new(config) }
    }

    /// Also admits requests without credentials, which have no `VerifiedKey`. A request
    /// that presents an invalid key is still refused.
    pub fn optional(self) -> Self {
        self.with(|config| config.optional = true)
    }

    /// Ignores bearer tokens that do not begin with the prefix of this service's keys,
    /// whatever their length. Together with [`ApiKeyLayer::optional`], this lets keys and
    /// the tokens of another issuer, such as JWTs, share a route:
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// // An inner layer accepts JWTs, and refuses requests with neither.
    /// let layer = ApiKeyLayer::new(keys).optional().ignore_foreign_tokens();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A token that begins with the prefix but is not a valid key is still refused, and so
    /// are two credentials of any kind in one request.
    pub fn ignore_foreign_tokens(self) -> Self {
        self.with(|config| config.ignores_foreign = true)
    }

    /// Puts the [`VerifiedKey`](crate::VerifiedKey) into the extensions of the response as
    /// well, for outer layers such as an access log.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys).key_in_response();
    /// # Ok(())
    /// # }
    /// ```
    pub fn key_in_response(self) -> Self {
        self.with(|config| config.key_in_response = true)
    }

    /// Sets a function that finds the peer in the extensions that the server adds to a
    /// request. It takes precedence over the layer's own search.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::net::SocketAddr;
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// /// What the server adds.
    /// #[derive(Clone)]
    /// struct Connection {
    ///     peer: SocketAddr,
    /// }
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys)
    ///     .peer_from(|extensions| Some(extensions.get::<Connection>()?.peer));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// For tonic, the expression is `extensions.get::<TcpConnectInfo>()?.remote_addr()`, and
    /// with TLS `extensions.get::<TlsConnectInfo<TcpConnectInfo>>()?.get_ref().remote_addr()`.
    pub fn peer_from(self, find: fn(&Extensions) -> Option<SocketAddr>) -> Self {
        self.with(|config| config.peer_from = Some(find))
    }

    /// Sets how the client's address is determined. The default is the peer's address.
    pub fn client_ip(self, client_ip: ClientIp) -> Self {
        self.with(|config| config.client_ip = client_ip)
    }

    /// Also requires this scope, or full access, of every key. May be called again, to
    /// require several.
    ///
    /// A request without it is answered with 403 (`insufficient_scope`), and recorded as
    /// [`Outcome::InsufficientScope`](crate::audit::Outcome::InsufficientScope). For single
    /// routes below the layer there is [`RequireScope`](crate::guard::RequireScope), and for a
    /// single handler
    /// [`VerifiedKey::require_scope`](crate::VerifiedKey::require_scope).
    ///
    /// Requests without a key that [`ApiKeyLayer::optional`] admits are not checked.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys).require_scope("reports:read")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn require_scope(self, scope: impl AsRef<str>) -> Result<Self, ScopeError> {
        let scope = Scope::new(scope)?;
        Ok(self.with(|config| config.scopes.push(scope)))
    }

    /// Sets the realm of challenges. The default is `api`.
    pub fn realm(self, realm: &str) -> Self {
        self.with(|config| config.refusals.set_realm(realm))
    }

    /// Also takes a key from this header, such as `x-api-key`, without a scheme. A request
    /// that has both this header and `Authorization` is refused with 400, whatever they
    /// contain.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use http::HeaderName;
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys).key_header(HeaderName::from_static("x-api-key"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn key_header(self, name: HeaderName) -> Self {
        // That one is read in any case, with its scheme.
        if name == AUTHORIZATION {
            return self;
        }
        self.with(|config| {
            config.refusals.set_header(&name);
            config.key_header = Some(name);
        })
    }

    /// Admits only keys of this environment. Keys of others are refused like unknown keys,
    /// without a look-up or a record.
    pub fn environment(self, name: &str) -> Self {
        self.with(|config| config.environment = Some(name.into()))
    }

    /// Replaces the responses to refused requests, for example by the service's own error
    /// format. The function gets the [`Refusal`] and the response that would be sent. It
    /// cannot admit a request: a status below 400 is replaced. gRPC clients get their usual
    /// status.
    ///
    /// ```
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use keygate::{ApiKeyLayer, KeyManager, MemoryStore};
    ///
    /// let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let layer = ApiKeyLayer::new(keys).refusals(|refusal, response| {
    ///     let error = format!(r#"{{"error":{{"status":{}}}}}"#, refusal.status().as_u16());
    ///     response.map(|_| error.into())
    /// });
    /// # Ok(())
    /// # }
    /// ```
    pub fn refusals(
        self,
        write: impl Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.refusals.set_hook(Arc::new(write)))
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
