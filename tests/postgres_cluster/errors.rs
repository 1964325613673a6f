//! Errors that the client library reports as text.

use std::future::pending;

use keygate::PostgresStore;
use keygate::error::PostgresOpenError;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_postgres::NoTls;

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::port::free_port;
use crate::{PATIENT, options, use_once};

/// How a server ends its sessions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending {
    /// It never answers.
    Never,
    /// It answers the first message with these bytes.
    After(&'static [u8]),
}

/// Listens on the returned port. With another port, only the first session ends like this, and
/// later ones are forwarded to that port.
pub(crate) async fn server(ending: Ending, later: Option<u16>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for n in 0.. {
            let (mut near, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                match (ending, later) {
                    (_, Some(port)) if n > 0 => {
                        let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                    (Ending::Never, _) => pending().await,
                    (Ending::After(bytes), _) => {
                        let _ = near.read(&mut [0; 1024]).await;
                        let _ = near.write_all(bytes).await;
                        let _ = near.shutdown().await;
                        let _ = near.read(&mut [0; 1024]).await;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn errors_of_the_client_library_are_distinguished() {
    let access = "local all all trust\nhost all all all scram-sha-256\n";
    let cluster = Cluster::with(&[], access, |_| {});
    cluster.ask("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'sesame'");
    let at = |user: &str, port: u16| format!("postgres://{user}@127.0.0.1:{port}/postgres");
    let known = at("app:sesame", cluster.port());
    // Each connection computes its password hash for a while, without optimisation.
    use_once(&options(&known).connections(1).deadline(PATIENT).connect().await.unwrap()).await;
    let kerberos = server(Ending::After(b"R\0\0\0\x08\0\0\0\x02"), None).await;
    let ends = server(Ending::After(b""), None).await;
    let http = server(Ending::After(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None).await;
    let denied = [
        ("no password", at("app", cluster.port())),
        ("a wrong password", at("app:barley", cluster.port())),
        ("no channel binding", format!("{known}?channel_binding=require")),
        ("an unknown method", at("app:sesame", kerberos)),
    ];
    for (what, url) in denied {
        let error = PostgresStore::connect(&url).await.unwrap_err();
        assert!(matches!(error, PostgresOpenError::AccessDenied { .. }), "{what}: {error:?}");
        assert!(!format!("{error:?}").contains("barley"), "{what}: {error:?}");
    }
    for (what, port) in [("closed", free_port()), ("ends before the session has begun", ends)] {
        let error = PostgresStore::connect(&at("app", port)).await.unwrap_err();
        assert!(matches!(error, PostgresOpenError::Unreachable { .. }), "{what}: {error:?}");
    }
    let error = PostgresStore::connect(&format!("{known}?sslmode=require")).await.unwrap_err();
    assert!(matches!(error, PostgresOpenError::Tls { .. }), "{error:?}");
    let error = PostgresStore::connect(&at("app", http)).await.unwrap_err();
    assert!(
        matches!(error, PostgresOpenError::Failed { .. } | PostgresOpenError::Unreachable { .. }),
        "{error:?}"
    );
}

/// The store treats these as errors of a value and keeps the connection.
#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn the_store_recognises_the_error_texts_about_values() {
    let cluster = Cluster::start();
    let (client, connection) = tokio_postgres::connect(&cluster.url(""), NoTls).await.unwrap();
    tokio::spawn(connection);
    let row = client.query_one("SELECT 1", &[]).await.unwrap();
    let deserializing = row.try_get::<_, String>(0).unwrap_err();
    let column = row.try_get::<_, i32>("no_such_column").unwrap_err();
    let serializing = client.query("SELECT $1::text", &[&1]).await.unwrap_err();
    let parameters = client.query("SELECT $1::text", &[]).await.unwrap_err();
    for (error, start) in [
        (deserializing, "error deserializing"),
        (column, "invalid column"),
        (serializing, "error serializing"),
        (parameters, "expected "),
    ] {
        assert!(error.to_string().starts_with(start), "{error}");
    }
}
