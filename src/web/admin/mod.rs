//! The management API over HTTP, as an axum router.

mod csv;
mod fields;
mod guard;
mod handlers;
mod input;
mod offer;
mod openapi;
mod precondition;
mod problem;
mod requests;
mod view;

use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::middleware;
use axum::routing::{MethodFilter, any, on};
use axum::{Extension, Json, Router};
use http::Method;
use utoipa::openapi::OpenApi;
use utoipa::openapi::path::Operation;

use crate::manager::KeyManager;
use crate::org::Actor;
use crate::web::admin::guard::{Guard, guard};
use crate::web::admin::input::InQuery;
use crate::web::admin::offer::Offer;
use crate::web::admin::openapi::operations;
use crate::web::unread::close_if_unread;

pub(crate) use crate::web::admin::guard::Hosts;

/// The table of routes, used for serving, for [`ROUTES`] and for the OpenAPI document.
macro_rules! routes {
    ($($method:ident $path:literal => $handler:path, $operation:path;)+) => {
        /// Every route of [`router`]: its method, and its path in axum's (and
        /// OpenAPI's) notation. A `GET` route answers `HEAD`, too.
        pub const ROUTES: &[(Method, &str)] = &[$((Method::$method, $path)),+];

        fn routes() -> Router<KeyManager> {
            Router::new()$(.route($path, on(MethodFilter::$method, $handler)))+
        }

        fn described(offer: &Offer) -> Vec<(Method, &'static str, Operation)> {
            vec![$((Method::$method, $path, $operation(offer))),+]
        }
    };
}

routes! {
    GET "/keys" => handlers::list, operations::list;
    POST "/keys" => handlers::create, operations::create;
    GET "/keys/{id}" => handlers::show, operations::show;
    PATCH "/keys/{id}" => handlers::edit, operations::edit;
    DELETE "/keys/{id}" => handlers::delete, operations::delete;
    POST "/keys/{id}/rotate" => handlers::rotate, operations::rotate;
    DELETE "/keys/{id}/previous-secret" => handlers::end_previous_secret, operations::end_previous_secret;
    GET "/keys/{id}/audit" => handlers::audit, operations::audit;
    GET "/keys/{id}/audit.csv" => handlers::audit_file, operations::audit_file;
    GET "/keys/{id}/usage" => handlers::usage, operations::usage;
    GET "/keys/{id}/changes" => handlers::key_changes, operations::key_changes;
    GET "/changes" => handlers::changes, operations::changes;
    GET "/openapi.json" => document, operations::openapi;
}

/// The management API: lists, creates, edits, rotates and deletes an organisation's keys,
/// and reads the log of their use and of their changes, all in JSON.
///
/// Nest it at any path, behind your own login; it answers every path below that one. The
/// login puts an [`Actor`](crate::Actor) into the request's extensions. Every request
/// without one is answered with 401.
///
/// ```
/// use axum::extract::Request;
/// use axum::http::StatusCode;
/// use axum::middleware::{self, Next};
/// use axum::response::Response;
/// use keygate::{Actor, KeyManager, MemoryStore, OrgId};
///
/// async fn login(mut request: Request, next: Next) -> Result<Response, StatusCode> {
///     // Check your session here: which user is it, of which organisation?
///     let (org, user) = ("acme", "ada@acme.example");
///     let org = OrgId::new(org).map_err(|_| StatusCode::UNAUTHORIZED)?;
///     request.extensions_mut().insert(Actor::new(org, user));
///     Ok(next.run(request).await)
/// }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyManager::builder(MemoryStore::new()).build()?;
/// let api = keygate::admin::router(keys).layer(middleware::from_fn(login));
/// let app: axum::Router = axum::Router::new().nest("/settings/api", api);
/// # Ok(())
/// # }
/// ```
///
/// Requests that a browser makes for another site are refused, so a cookie may serve as the
/// login. Errors are `application/problem+json` (RFC 9457) with a `code`, and responses may
/// not be cached. `GET /openapi.json` describes the API.
pub fn router(keys: KeyManager) -> Router {
    guarded(keys, Hosts::default())
}

/// Like [`router`], but every request must name one of these hosts (in `Host` or
/// `:authority`). Others are answered with 403.
///
/// A page of another site can make its own host name resolve to the address of this service
/// (DNS rebinding), and then counts as the same site. A login by cookie is safe from this,
/// since the cookie belongs to a different host. A login based on the network or the
/// address is not: set your hosts for such a login, and on a developer's machine.
///
/// An entry is a host, or a host and a port; without a port it matches every port.
/// `0.0.0.0` and `[::]` match every IP address, since DNS rebinding requires a name.
///
/// ```
/// # use keygate::{KeyManager, MemoryStore};
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyManager::builder(MemoryStore::new()).build()?;
/// let api = keygate::admin::router_on_hosts(keys, ["keys.acme.example", "localhost:3000"]);
/// # let _: axum::Router = api;
/// # Ok(())
/// # }
/// ```
pub fn router_on_hosts<H: Into<String>>(
    keys: KeyManager,
    hosts: impl IntoIterator<Item = H>,
) -> Router {
    guarded(keys, Hosts::new(hosts))
}

pub(crate) fn guarded(keys: KeyManager, hosts: Hosts) -> Router {
    routes()
        .method_not_allowed_fallback(handlers::wrong_method)
        // As routes, since axum ignores the fallback of a router that is nested twice.
        .route("/", any(handlers::unknown_path))
        .route("/{*path}", any(handlers::unknown_path))
        // For `OPTIONS *`, which no route matches.
        .fallback(handlers::unknown_path)
        .layer(DefaultBodyLimit::max(input::MAX_BODY))
        .layer(middleware::from_fn_with_state(Guard::new(keys.clone(), hosts), guard))
        .layer(middleware::from_fn(close_if_unread))
        .with_state(keys)
}

/// Placed here because it describes the table above.
async fn document(
    State(keys): State<KeyManager>,
    Extension(actor): Extension<Actor>,
    OriginalUri(uri): OriginalUri,
    InQuery(()): InQuery<()>,
) -> Json<OpenApi> {
    let offer = Offer::new(&keys, actor.org());
    Json(openapi::document(&offer, uri.path(), described(&offer)))
}
