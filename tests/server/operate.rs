//! The example `operate`, beside a server that uses the same file.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

use keygate::store::OrgLimit;
use keygate::{ApiKey, KeyStore, SqliteStore, Timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::example;
use crate::{Key, Server, new_key};

struct Desk {
    folder: TempDir,
    server: Server,
}

impl Desk {
    fn start(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let env = [env, &[("KEYGATE_STORE", "sqlite:keys.db")]].concat();
        let server = Server::start_in(folder.path(), &env);
        Self { folder, server }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("keys.db")
    }

    /// Runs a command.
    fn run(&self, arguments: &[&str]) -> Output {
        self.run_with("", arguments)
    }

    /// Runs a command with this text as standard input.
    fn run_with(&self, input: &str, arguments: &[&str]) -> Output {
        let mut command = example("operate");
        command.current_dir(&self.folder).arg("sqlite:keys.db").args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that reads nothing may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The output for people of a command that succeeds.
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        said(&output)
    }

    /// The output for programs.
    fn values(&self, arguments: &[&str]) -> Vec<Value> {
        let text = self.says(&[&["--json"], arguments].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What a command that fails complains about. It prints nothing else.
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
        errors(&output)
    }
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[tokio::test]
async fn a_key_is_found_by_its_id_its_secret_and_any_first_characters() {
    for prefix in ["vsp_sk_", "a_long_prefix_"] {
        let desk = Desk::start(&[("KEYGATE_KEY_PREFIX", prefix)]);
        let key = Key::named(&desk.server, "leaked");
        let shown = usize::max(12, prefix.len() + 5);
        // Another key is shown by the same characters.
        let store = SqliteStore::open(desk.file()).unwrap();
        let key_prefix = key.secret[..shown].to_owned();
        let twin = ApiKey { key_prefix, ..ApiKey::sample(7) };
        store.insert(&twin, OrgLimit::NONE).await.unwrap();
        drop(store);
        let (id, twin) = (key.id.clone(), twin.id.to_string());
        let found = |output: &Output| {
            let mut ids: Vec<_> = said(output).lines().map(|line| line[..36].to_owned()).collect();
            ids.sort();
            ids
        };
        let mut both = vec![id.clone(), twin];
        both.sort();

        // The whole secret belongs to one.
        for output in [
            desk.run(&["find", &id]),
            desk.run(&["find", &key.secret]),
            desk.run_with(&format!(" {}\n", key.secret), &["find", "-"]),
            desk.run_with(&key.secret, &["find", "-"]),
        ] {
            assert_eq!((found(&output), errors(&output)), (vec![id.clone()], String::new()));
        }
        let output = desk.run(&["find", &key.secret[..shown]]);
        assert_eq!((found(&output), errors(&output)), (both.clone(), String::new()));
        let mistyped = format!("{}!", &key.secret[..prefix.len() + 47]);
        for part in [&key.secret[..shown + 1], &key.secret[..prefix.len() + 40], &mistyped] {
            let output = desk.run(&["find", part]);
            assert_eq!(found(&output), both, "{part}");
            assert!(errors(&output).contains("no key has this secret"), "{}", errors(&output));
        }
        for part in [&key.secret[..shown - 1], prefix, "-"] {
            assert!(desk.refuses(&["find", part]).starts_with("no key has this id"), "{part}");
        }
    }
}

#[test]
fn a_key_is_shown_with_all_that_restricts_it_and_each_value_says_what_it_is() {
    let desk = Desk::start(&[("KEYGATE_SCOPES", "read,write"), ("KEYGATE_AUDIT", "strict")]);
    let key = Key::create(
        &desk.server,
        &json!({
            "name": "key", "expiration": "1_day", "scopes": ["read", "write"],
            "ip_allowlist": ["127.0.0.1", "10.0.0.0/8"],
        }),
    );
    assert_eq!(key.status(), 200);
    key.await_use();
    let text = desk.says(&["show", &key.id]);
    let line = text.lines().next().unwrap();
    assert!(line.contains(": \"key\", active, expires 20"), "{line}");
    assert!(line.contains(" by demo user, scopes: read write, only from: 127.0.0.1 10.0.0.0/8"));
    assert!(text.contains("\n127.0.0.1: 1 request, first 20"), "{text}");
    // Whole seconds for people, everything for programs.
    let words = text.split_whitespace().map(|word| word.trim_end_matches([',', ':', ';']));
    let times: Vec<_> = words.filter(|word| word.parse::<Timestamp>().is_ok()).collect();
    assert!(times.len() > 5 && times.iter().all(|time| time.len() == 20), "{times:?}");
    let values = desk.values(&["show", &key.id]);
    let types: Vec<_> = values.iter().map(|value| value["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["key", "hour", "address", "request", "change"]);
    assert!(values[0]["created_at"].as_str().unwrap().contains('.'));

    desk.says(&["expire", &key.id, "now"]);
    assert_eq!(key.status(), 401);
    assert!(desk.says(&["find", &key.id]).contains("\"key\", expired, expires 20"));
    assert_eq!(desk.values(&["find", &key.id])[0]["expired"], true);
    assert!(desk.says(&["expire", &key.id, "never"]).contains("\"key\", active, expires never"));
}

#[test]
fn a_revocation_says_whether_there_was_anything_to_revoke() {
    let desk = Desk::start(&[]);
    let keys = ["a", "b", "c"].map(|name| Key::named(&desk.server, name));
    assert!(desk.says(&["revoke", &keys[0].id]).starts_with(&format!("revoked:\n{}", keys[0].id)));
    assert_eq!(keys[0].status(), 401);
    assert!(desk.says(&["revoke", &keys[0].id]).starts_with("was revoked already:\n"));
    assert_eq!(desk.values(&["revoke", &keys[0].id])[0], json!({ "type": "result", "revoked": 0 }));
    assert!(desk.refuses(&["revoke", "00000000-0000-4000-8000-000000000000"]).contains("no key"));
    assert_eq!(desk.says(&["revoke-all", "demo"]), "2 keys revoked\n");
    assert!(desk.refuses(&["revoke-all", "dmeo"]).contains("dmeo has no keys"));
    // An empty list is said, and no failure.
    for nothing in [&["list", "dmeo"], &["expiring", "7"], &["unused", "7"]] {
        let output = desk.run(nothing);
        assert!(output.status.success() && output.stdout.is_empty(), "{nothing:?}");
        assert_eq!(errors(&output), "no keys\n");
    }
}

#[test]
fn what_takes_everything_needs_a_yes() {
    let desk = Desk::start(&[]);
    let key = Key::named(&desk.server, "key");
    for zero in ["0", "00", "+0"] {
        for command in ["revoke-unused", "purge"] {
            assert!(desk.refuses(&[command, zero]).contains("add --yes"), "{command} {zero}");
        }
    }
    assert_eq!(key.status(), 200);
    assert!(desk.says(&["show", &key.id]).contains(": created by demo user"));
    // Without the use, which may be later than the instant of the command.
    let unused = Key::named(&desk.server, "unused");
    assert_eq!(desk.says(&["revoke-unused", "1"]), "0 keys revoked\n");
    assert!(desk.says(&["--yes", "revoke-unused", "0"]).ends_with(" revoked\n"));
    assert_eq!(unused.status(), 401);
    assert!(desk.says(&["purge", "0", "--yes"]).ends_with(" records removed\n"));
    assert!(desk.says(&["show", &unused.id]).contains("Its latest changes:\nnone\n"));
}

#[test]
fn a_missing_or_empty_file_is_no_database_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty.db");
    fs::write(&empty, "").unwrap();
    for (file, problem) in [
        ("empty.db", "the file empty.db is empty: not a keygate database\n"),
        ("missing.db", "the file missing.db does not exist\n"),
    ] {
        let mut command = example("operate");
        let command =
            command.current_dir(&folder).args([&format!("sqlite:{file}"), "list", "demo"]);
        let output = command.output().unwrap();
        assert_eq!((output.status.code(), errors(&output)), (Some(1), problem.to_owned()));
    }
    assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let desk = Desk::start(&[]);
    let key = Key::named(&desk.server, "key");
    for arguments in [&["show", &key.id], &["list", "demo"], &["revoke", &key.id]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = example("operate");
        command.current_dir(&desk.folder).arg("sqlite:keys.db").args(arguments);
        let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", errors(&output));
        assert_eq!(errors(&output), "", "{arguments:?}");
    }
    assert_eq!(key.status(), 401);
}

#[test]
fn the_guide_has_only_commands_that_there_are() {
    let desk = Desk::start(&[]);
    let key = Key::create(&desk.server, &new_key("key"));
    let page = include_str!("../../src/guide/incidents.md");
    let lines = page.lines().filter_map(|line| line.trim().strip_prefix("operate "));
    let lines: Vec<_> = lines.collect();
    assert!(lines.len() > 10, "{lines:?}");
    for line in lines {
        // The id in the guide is the same everywhere.
        let line = line.replace("8f14e45f-ceea-467a-9f0b-5d8f3c1b2a77", &key.id);
        let output = desk.run(&line.split_whitespace().collect::<Vec<_>>());
        let is_there = output.status.success() || errors(&output).starts_with("no key has");
        let has_no_keys = errors(&output) == "acme has no keys\n";
        assert!(is_there || has_no_keys, "{line}: {}", errors(&output));
    }
}
