//! The layer on a plain hyper service, without axum:
//! `cargo run --example tower_only --features tower`.
//!
//! It prints a key and a `curl` line to try it with.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use keygate::guard::PeerAddr;
use keygate::{Actor, ApiKeyLayer, KeyManager, MemoryStore, NewKey, OrgId, VerifiedKey};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};

async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = match request.extensions().get::<VerifiedKey>() {
        Some(key) => format!("Hello, {}\n", key.org()),
        None => "Hello, stranger\n".to_owned(),
    };
    Ok(Response::new(text.into()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let keys = KeyManager::builder(MemoryStore::new()).build()?;
    let actor = Actor::new(OrgId::new("acme")?, "tower_only");
    let issued = keys.create(&actor, NewKey::named("example")?).await?;

    let listener = TcpListener::bind("127.0.0.1:3001").await?;
    let address = listener.local_addr()?;
    println!("curl -H 'Authorization: Bearer {}' http://{address}/", issued.secret.expose_secret());

    let layer = ApiKeyLayer::new(keys);
    loop {
        let (stream, peer) = listener.accept().await?;
        let service = ServiceBuilder::new()
            .map_request(move |request| with_peer(request, peer))
            .layer(layer.clone())
            .service(service_fn(hello));
        tokio::spawn(async move {
            let service = TowerToHyperService::new(service);
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                eprintln!("{peer}: {error}");
            }
        });
    }
}

/// The layer checks allowlists against the peer's address, which only the server knows.
fn with_peer(mut request: Request<Incoming>, peer: SocketAddr) -> Request<Incoming> {
    request.extensions_mut().insert(PeerAddr(peer));
    request
}
