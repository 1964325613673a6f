//! The whole life of a key, without HTTP: `cargo run --example quickstart`.
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::time::Duration;

use keygate::audit::{AuditQuery, AuditScope};
use keygate::{
    Actor, Expiration, KeyManager, KeyPatch, MemoryAuditLog, MemoryStore, NewKey, OrgId,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let keys = KeyManager::builder(MemoryStore::new()).audit(MemoryAuditLog::new()).build()?;
    let ada = Actor::new(OrgId::new("acme")?, "ada@acme.example");

    // Create. The full key is available only here; the store has only its digest.
    let new = NewKey::named("CI deploy")?.expires(Expiration::ThreeMonths).allow(["10.0.0.0/8"])?;
    let issued = keys.create(&ada, new).await?;
    let id = issued.key.id;
    println!("created  {}…  expires {:?}", issued.key.key_prefix, issued.key.expires_at);

    // Verify the key from an allowed address, and from another one.
    let inside = Some("10.1.2.3".parse()?);
    let verified = keys.verify(issued.secret.expose_secret(), inside).await?;
    println!("verified as {} of {}", verified.name(), verified.org());
    let outside = Some("192.0.2.1".parse()?);
    show(&keys, "from outside", issued.secret.expose_secret(), outside).await;

    // Revoke, and re-enable.
    keys.update(&ada, &id, KeyPatch::revoke()).await?;
    show(&keys, "revoked", issued.secret.expose_secret(), inside).await;
    keys.update(&ada, &id, KeyPatch::enable()).await?;
    show(&keys, "enabled", issued.secret.expose_secret(), inside).await;

    // Rotate: a new secret for the same key. The old one no longer works.
    let rotated = keys.rotate(&ada, &id).await?;
    show(&keys, "old secret", issued.secret.expose_secret(), inside).await;
    show(&keys, "new secret", rotated.secret.expose_secret(), inside).await;

    // Delete. The audit log still has the changes.
    keys.delete(&ada, &id).await?;
    show(&keys, "deleted", rotated.secret.expose_secret(), inside).await;
    let changes = AuditQuery::new(ada.org().clone(), AuditScope::KeyChanges(id));
    if let Some(page) = keys.audit_page(&changes).await {
        for record in page?.records {
            println!("audit    {} {:?}", record.at, record.event);
        }
    }

    let report = keys.shutdown(Duration::from_secs(5)).await;
    println!("everything written: {}", report.is_complete());
    Ok(())
}

async fn show(keys: &KeyManager, what: &str, secret: &str, ip: Option<std::net::IpAddr>) {
    match keys.verify(secret, ip).await {
        Ok(_) => println!("{what}: allowed"),
        Err(error) => println!("{what}: refused, {error}"),
    }
}
