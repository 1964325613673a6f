//! `GET /openapi.json`: the document that describes the API.

pub(super) mod operations;
mod problems;
mod requests;
mod schemas;

use http::Method;
use utoipa::openapi::path::{HttpMethod, Operation, Paths};
use utoipa::openapi::schema::Components;
use utoipa::openapi::{Info, OpenApi, Server};

use crate::manager::KeyManager;

const PATH: &str = "/openapi.json";

const DESCRIPTION: &str = "Manages the API keys of one organisation: lists, creates, edits, \
rotates and deletes them, and reads the log of their use.\n\n\
The service that provides this API authenticates requests with its own login, which also \
determines the organisation; without a login, every response is 401. API keys do not give access \
to this API.\n\n\
Errors are problem details (RFC 9457); programs should decide by `code`. In addition to the \
responses listed, an unsupported method is answered with 405 (`method_not_allowed`), and an unknown \
path with 404 (`not_found`). Each `GET` also supports `HEAD`. Unknown fields and parameters \
are refused. Changes that a browser requests for another site are refused by \
`Sec-Fetch-Site`, or by `Origin` and `Host` if that is missing. Responses must not be cached.";

/// The document for these routes, as served at this path.
pub(super) fn document(
    keys: &KeyManager,
    path: &str,
    routes: Vec<(Method, &'static str, Operation)>,
) -> OpenApi {
    let info = Info::builder()
        .title("API keys")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION));
    let mut paths = Paths::new();
    for (method, path, operation) in routes {
        add(&mut paths, &method, path, operation);
    }
    let components = Components::builder()
        .schemas_from_iter(schemas::all())
        .schemas_from_iter(requests::all(keys.limits(), keys.max_overlap()))
        .schemas_from_iter(problems::schemas())
        .responses_from_iter(problems::responses());
    // The path at which the host has nested the router.
    let base = path.strip_suffix(PATH).filter(|base| !base.is_empty()).unwrap_or("/");
    OpenApi::builder()
        .info(info.build())
        .servers(Some([Server::new(base)]))
        .paths(paths)
        .components(Some(components.build()))
        .build()
}

fn add(paths: &mut Paths, method: &Method, path: &str, operation: Operation) {
    let method = match *method {
        Method::POST => HttpMethod::Post,
        Method::PUT => HttpMethod::Put,
        Method::PATCH => HttpMethod::Patch,
        Method::DELETE => HttpMethod::Delete,
        _ => HttpMethod::Get,
    };
    paths.add_path_operation(path, vec![method], operation);
}
