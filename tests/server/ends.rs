//! Clients that disconnect, signals, and what is there after a restart.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::{assert_no_leak, poll};
use crate::{KEYS, Key, Server, is_time};

const COMPLETE: &str = "stopped; ShutdownReport { unfinished_changes: 0, unwritten_records: 0, unwritten_uses: 0, untold_changes: 0, uncopied_batches: 0 }";

/// Waits for an end without losses, after a signal.
fn assert_complete(server: Server) {
    let (status, output) = server.ended();
    assert!(status.success(), "{status}: {output}");
    assert!(output.lines().any(|line| line == COMPLETE), "{output}");
}

#[test]
fn case_36_a_client_that_disconnects_leaves_an_aborted_record() {
    for audit in ["buffered", "strict"] {
        let server = Server::start(&[("KEYGATE_AUDIT", audit)]);
        let key = Key::named(&server, "key");
        let mut client = server.client();
        key.send(&mut client, "/v1/slow/600000?x=1");
        key.await_use();
        assert_eq!(key.records(), Vec::<Value>::new(), "the request is still under way");
        drop(client);
        let record = key.await_records(1).remove(0);
        assert_eq!((&record["outcome"], &record["status"]), (&json!("aborted"), &Value::Null));
        assert_eq!(record["endpoint"], "/v1/slow/600000", "{audit}");
        assert_eq!(key.status(), 200, "{audit}");
    }
}

#[test]
fn case_37_at_sigterm_the_queue_is_drained_and_the_log_says_so() {
    for signal in ["-TERM", "-INT"] {
        let server = Server::start(&[]);
        let key = Key::named(&server, "key");
        let mut client = server.client();
        for _ in 0..300 {
            key.send(&mut client, "/v1/status/204");
        }
        for _ in 0..300 {
            assert_eq!(client.reply().status, 204);
        }
        server.signal(signal);
        drop(client);
        assert_complete(server);
    }
}

#[test]
fn case_37_at_sigterm_requests_under_way_are_answered_and_no_others() {
    let server = Server::start(&[]);
    let key = Key::named(&server, "key");
    let mut client = server.client();
    key.send(&mut client, "/v1/slow/1500");
    key.await_use();
    server.signal("-TERM");
    poll("new connections are refused", || TcpStream::connect(server.address).err());
    let reply = client.reply();
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(reply.text().contains("1500"));
    assert_complete(server);
}

#[test]
fn keys_audit_log_and_last_use_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keygate.db");
    // The default: `keygate.db` in the working directory.
    let default = [("KEYGATE_STORE", "")];
    let server = Server::start_in(folder.path(), &default);
    let [mut key, mut revoked] = ["lasting", "revoked"].map(|name| Key::named(&server, name));
    assert_eq!(revoked.patch(json!({ "status": "revoked" })).status, 200);
    assert_eq!((key.status(), revoked.status()), (200, 401));
    assert_eq!(key.ask("GET", "/v1/status/418", &[]).status, 418);
    // No waiting for the queues: stopping drains them.
    let output = server.stop();
    assert!(output.contains("store: sqlite:keygate.db"), "{output}");
    assert!(file.exists());

    let path = format!("sqlite:{}", file.display());
    for settings in [default, [("KEYGATE_STORE", &*path)]] {
        // The guide calls a copy of this one file a backup.
        assert!(!file.with_extension("db-wal").exists(), "a write-ahead log is left");
        let server = Server::start_in(folder.path(), &settings);
        (key.server, revoked.server) = (server.address, server.address);
        let shown = key.shown();
        assert_eq!((&shown["name"], &shown["revision"]), (&json!("lasting"), &json!(1)));
        assert!(is_time(&shown["last_used_at"]), "{shown}");
        let records = key.records();
        let statuses: Vec<_> = records.iter().rev().map(|record| &record["status"]).collect();
        assert_eq!(statuses[..2], [&json!(200), &json!(418)], "{records:?}");
        assert_eq!(revoked.records()[0]["outcome"], "revoked");
        // As before the restart, the key works and the revoked one does not.
        assert_eq!((key.status(), revoked.status()), (200, 401));
        assert_eq!(server.get(KEYS).json()["keys"].as_array().map(Vec::len), Some(2));
        let another = Key::named(&server, "another");
        assert_eq!(another.delete("another").status, 204);
        assert_no_leak("the output", &server.stop(), &key.secret);
        let file = std::fs::read(&file).unwrap();
        assert_no_leak("the file", &String::from_utf8_lossy(&file), &key.secret);
    }
    assert!(!file.with_extension("db-wal").exists(), "a write-ahead log is left");
}
