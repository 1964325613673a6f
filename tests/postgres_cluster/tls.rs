//! TLS accepts only trusted servers.

use std::path::Path;
use std::process::Command;

use keygate::error::PostgresOpenError;

use crate::cluster_support::certificates::write_certificates;
use crate::cluster_support::cluster::Cluster;
use crate::{PATIENT, options, use_once};

#[tokio::test]
#[ignore = "not a test: a process with other trusted certificates"]
async fn child() {
    let Ok(url) = std::env::var("KEYGATE_TLS_CHILD") else { return };
    match options(&url).deadline(PATIENT).connect().await {
        Ok(store) => {
            use_once(&store).await;
            println!("outcome: it works");
        }
        Err(PostgresOpenError::Tls { source, .. }) => println!("outcome: Tls: {source:?}"),
        Err(PostgresOpenError::AccessDenied { .. }) => println!("outcome: AccessDenied"),
        Err(other) => println!("outcome: {other:?}"),
    }
}

/// The output of a process that trusts only the certificates of this file.
fn outcome_of_tls(url: &str, trusted: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "tls::child"])
        .env("KEYGATE_TLS_CHILD", url)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let outcome = text.lines().find_map(|line| line.split_once("outcome: "));
    outcome.unwrap_or_else(|| panic!("{output:?}")).1.to_owned()
}

#[test]
#[ignore = "needs PostgreSQL's server binaries and openssl"]
fn tls_accepts_only_trusted_servers() {
    let access = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
    let cluster = Cluster::with(&["ssl = on"], access, write_certificates);
    let trusted = cluster.folder().join("data/authority.crt");
    let (port, other) = (cluster.port(), tempfile::tempdir().unwrap());
    write_certificates(other.path());
    let at = |host: &str, query: &str| {
        format!("postgres://postgres@{host}:{port}/postgres?sslmode=require{query}")
    };
    let works = |url: &str| assert_eq!(outcome_of_tls(url, &trusted), "it works", "{url}");
    let refused = |url: &str, trusted: &Path, why: &str| {
        let outcome = outcome_of_tls(url, trusted);
        assert!(outcome.starts_with("Tls: ") && outcome.contains(why), "{url}: {outcome}");
    };
    works(&at("localhost", ""));
    // The host name counts, not how its address was found.
    works(&at("localhost", "&hostaddr=127.0.0.1"));
    works(&at("no-such-host.invalid:1,localhost", ""));
    refused(&at("127.0.0.1", ""), &trusted, "NotValidForName");
    refused(&at("db.invalid", "&hostaddr=127.0.0.1"), &trusted, "NotValidForName");
    refused(&at("localhost", ""), &other.path().join("authority.crt"), "BadSignature");
    refused(&at("localhost", ""), Path::new("/dev/null"), "UnknownIssuer");
    // The server does require TLS.
    let plain = outcome_of_tls(&at("localhost", "").replace("require", "disable"), &trusted);
    assert_eq!(plain, "AccessDenied");
}
