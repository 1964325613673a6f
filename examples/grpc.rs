//! The layer on a tonic gRPC server, and what its clients see:
//! `cargo run -p keygate-heavy --example grpc`.
//!
//! The service is gRPC's health check. The key may be used only from this machine.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::error::Error;

use keygate::{Actor, ApiKeyLayer, KeyManager, KeyPatch, MemoryStore, NewKey, OrgId};
use tonic::metadata::MetadataValue;
use tonic::transport::server::{TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Server};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let keys = KeyManager::builder(MemoryStore::new()).build()?;
    let actor = Actor::new(OrgId::new("acme")?, "grpc");
    let issued = keys.create(&actor, NewKey::named("example")?.allow(["127.0.0.1"])?).await?;

    // tonic knows the peer; the layer has to be told where to find it.
    let layer = ApiKeyLayer::new(keys.clone())
        .peer_from(|extensions| extensions.get::<TcpConnectInfo>()?.remote_addr());
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?;
    let url = format!("http://{}", incoming.local_addr()?);
    let server = Server::builder().layer(layer).add_service(health).serve_with_incoming(incoming);
    tokio::spawn(async move {
        if let Err(error) = server.await {
            eprintln!("{error}");
        }
    });

    let channel = Channel::from_shared(url)?.connect().await?;
    println!("without a key: {:?}", check(&channel, None).await?);
    let key = issued.secret.expose_secret();
    println!("with the key: {:?}", check(&channel, Some(key)).await?);
    keys.update(&actor, &issued.key.id, KeyPatch::revoke()).await?;
    println!("after it was revoked: {:?}", check(&channel, Some(key)).await?);
    Ok(())
}

/// Calls the health check, and returns how the call ended.
async fn check(channel: &Channel, key: Option<&str>) -> Result<Code, Box<dyn Error>> {
    let mut request = Request::new(HealthCheckRequest::default());
    if let Some(key) = key {
        let credential = MetadataValue::try_from(format!("Bearer {key}"))?;
        request.metadata_mut().insert("authorization", credential);
    }
    let answer = HealthClient::new(channel.clone()).check(request).await;
    Ok(answer.map_or_else(|status| status.code(), |_| Code::Ok))
}
