//! TLS by rustls, with the certificates that the system trusts.

use std::sync::Arc;

use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::store::postgres::open::PostgresOpenError;

/// Names its cryptography, so that the process need not have chosen any.
pub(super) fn connector(servers: &str) -> Result<MakeRustlsConnect, PostgresOpenError> {
    let failed = |source| PostgresOpenError::Tls { servers: servers.to_owned(), source };
    let mut roots = RootCertStore::empty();
    // Without any, servers with TLS are refused; others still can be reached.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}
