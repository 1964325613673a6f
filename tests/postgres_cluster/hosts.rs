//! Several hosts, some of which are unusable.

use std::time::Instant;

use keygate::KeyManager;
use keygate::error::PostgresOpenError;
use tokio::net::TcpListener;

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::port::free_port;
use crate::errors::{Ending, server};
use crate::support::soon;
use crate::{DEADLINE, PATIENT, create, options, use_once};

fn two_hosts(first: u16, second: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn an_unusable_host_is_skipped() {
    let cluster = Cluster::start();
    let standby = Cluster::start();
    standby.ask("ALTER SYSTEM SET default_transaction_read_only = on");
    standby.ask("SELECT pg_reload_conf()");
    let silent = server(Ending::Never, None).await;
    for (what, first) in [
        ("silent", silent),
        ("closed", free_port()),
        ("standby", standby.port()),
        ("ends each session", server(Ending::After(b""), None).await),
    ] {
        let begun = Instant::now();
        let url = two_hosts(first, cluster.port());
        let store = soon(options(&url).deadline(DEADLINE).connect()).await;
        let store = store.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(begun.elapsed() < DEADLINE * 4, "{what}: {:?}", begun.elapsed());
        use_once(&store).await;
    }
    // The first host is random, and a working one is always found.
    for _ in 0..4 {
        let url = two_hosts(standby.port(), cluster.port()) + "?load_balance_hosts=random";
        use_once(&options(&url).connect().await.unwrap()).await;
    }
    // The given addresses are used, whatever the host names resolve to.
    let (port, hosts) = (cluster.port(), "no-such-host.invalid");
    let url = format!("postgres://postgres@{hosts}:{port}/postgres?hostaddr=127.0.0.1");
    use_once(&options(&url).connect().await.unwrap()).await;
    let url = format!("postgres://postgres@{hosts}:{port},localhost:{port}/postgres");
    use_once(&options(&url).deadline(PATIENT).connect().await.unwrap()).await;
}

/// If the other host is an old primary, it does not know the latest revocations.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_host_that_ends_a_session_during_its_start_is_tried_again() {
    let other = Cluster::start();
    let ended = b"E\0\0\0\x21SFATAL\0VFATAL\0C57P01\0Mended\0\0";
    for first in [&ended[..], b""] {
        let cluster = Cluster::start();
        let url = two_hosts(server(Ending::After(first), Some(cluster.port())).await, other.port());
        use_once(&options(&url).deadline(PATIENT).connect().await.unwrap()).await;
        let tables = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'keys'";
        assert_eq!((cluster.ask(tables).trim(), other.ask(tables).trim()), ("1", "0"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL's server binaries"]
async fn a_host_that_goes_silent_later_is_skipped_by_every_call() {
    let (mut first, second) = (Cluster::start(), Cluster::start());
    let url = two_hosts(first.port(), second.port());
    let store = options(&url).deadline(DEADLINE).connect().await.unwrap();
    use_once(&store).await;
    // A second host to fail over to.
    options(&second.url("")).connect().await.unwrap();
    first.kill();
    let listener = TcpListener::bind(("127.0.0.1", first.port())).await.unwrap();
    let keys = KeyManager::builder(store.clone()).build().unwrap();
    // The call fails over on the connection that is opened within its deadline.
    let begun = Instant::now();
    while let Err(error) = create(&keys, "acme").await {
        assert!(begun.elapsed() < DEADLINE * 6, "{error:?}");
    }
    use_once(&store).await;
    drop(listener);
}

#[tokio::test]
#[ignore = "needs PostgreSQL's server binaries"]
async fn of_several_failures_the_most_informative_is_reported() {
    let strict = Cluster::with(&[], "local all all trust\nhost all all all reject\n", |_| {});
    let standby = Cluster::with(
        &["default_transaction_read_only = on"],
        "local all all trust\nhost all all all trust\n",
        |_| {},
    );
    let (closed, silent) = (free_port(), server(Ending::Never, None).await);
    let refused = async |first, second| {
        let options = options(&two_hosts(first, second)).deadline(DEADLINE / 2);
        options.connect().await.unwrap_err()
    };
    for (first, second) in [(strict.port(), closed), (standby.port(), strict.port())] {
        let error = refused(first, second).await;
        let PostgresOpenError::AccessDenied { servers, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*servers, format!("127.0.0.1:{}", strict.port()));
    }
    let error = refused(standby.port(), standby.port()).await;
    assert!(matches!(error, PostgresOpenError::ReadOnly { .. }), "{error:?}");
    let error = refused(standby.port(), closed).await;
    let PostgresOpenError::Unreachable { servers, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*servers, format!("127.0.0.1:{closed}"));
    let error = refused(standby.port(), silent).await;
    let PostgresOpenError::NoAnswer { servers, waited } = &error else { panic!("{error:?}") };
    assert_eq!((servers, *waited <= DEADLINE / 2), (&format!("127.0.0.1:{silent}"), true));
}
