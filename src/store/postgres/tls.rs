//! TLS by rustls, with the system's trusted certificates.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::postgres::open::PostgresOpenError;

/// Sets its crypto provider itself, so that the process need not install one.
pub(super) fn connector(servers: &str) -> Result<MakeRustlsConnect, PostgresOpenError> {
    let failed = |source| PostgresOpenError::Tls { servers: servers.to_owned(), source };
    let mut roots = RootCertStore::empty();
    // Without any certificates, servers with TLS are refused; others can still be reached.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
