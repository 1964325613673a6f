//! Countries from MaxMind DB files: small ones created by the tests, and a real one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]
#![cfg(all(feature = "geoip", feature = "tokio"))]

mod geoip_support;
mod support;

use std::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use geoip_support::{Map, Number, Text, Value, file, iso};
use keygate::audit::{AuditEvent, AuditQuery, AuditScope, CountryLookup, MaxMindCountries};
use keygate::error::GeoIpError;
use keygate::manager::{IssuedKey, RequestInfo};
use keygate::*;
use support::eventually;
use tempfile::TempDir;

/// Creates a folder that contains the file.
fn folder_with(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("country.mmdb");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn opened(bytes: &[u8]) -> MaxMindCountries {
    // The file is not needed after it was read.
    let (_folder, path) = folder_with(bytes);
    MaxMindCountries::open(path).unwrap()
}

fn refused(bytes: &[u8]) -> GeoIpError {
    let (_folder, path) = folder_with(bytes);
    MaxMindCountries::open(path).unwrap_err()
}

fn code(countries: &impl CountryLookup, ip: &str) -> String {
    let code = countries.country(ip.parse().unwrap());
    code.map_or_else(String::new, |code| code.to_string())
}

/// Replaces a file atomically.
fn rename(new: &[u8], path: &Path) {
    let beside = path.with_extension("new");
    fs::write(&beside, new).unwrap();
    fs::rename(beside, path).unwrap();
}

/// Opens a possibly damaged file and looks up many addresses. Any answer is allowed, but no
/// panic and no long wait. Returns whether the file could be opened.
fn survives(bytes: &[u8], path: &Path, asked: u32) -> bool {
    fs::write(path, bytes).unwrap();
    let started = Instant::now();
    let opened = MaxMindCountries::open(path);
    if let Ok(countries) = &opened {
        for number in 0..asked {
            let v4 = number.wrapping_mul(2_654_435_761);
            countries.country(Ipv4Addr::from_bits(v4).into());
            let v6 = (u128::from(0x2000_0000 | v4 >> 3) << 96) | u128::from(v4);
            countries.country(Ipv6Addr::from_bits(v6).into());
        }
    }
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    opened.is_ok()
}

#[test]
fn the_country_is_found_in_the_layouts_of_common_files() {
    let text = |key, code| Map(vec![(key, Text(code))]);
    let within = |key, code| Map(vec![(key, text("iso_code", code))]);
    let cases: Vec<(Value, &str)> = vec![
        (iso("DE"), "DE"),
        (iso("de"), "DE"),
        (text("country_code", "DE"), "DE"),
        (text("country", "DE"), "DE"),
        // IPinfo Lite
        (Map(vec![("country", Text("Germany")), ("country_code", Text("DE"))]), "DE"),
        // Full records of MaxMind, in any order.
        (
            Map(vec![
                ("registered_country", text("iso_code", "US")),
                ("country", Map(vec![("geoname_id", Number(7)), ("iso_code", Text("DE"))])),
                ("continent", text("code", "EU")),
            ]),
            "DE",
        ),
        (Map(vec![("country", Map(vec![])), ("country_code", Text("DE"))]), "DE"),
        (within("registered_country", "DE"), ""),
        (within("represented_country", "DE"), ""),
        (text("continent_code", "EU"), ""),
        (iso(""), ""),
        (iso("DEU"), ""),
        (iso("D1"), ""),
        (iso("Ä"), ""),
        (Map(vec![("country_code", Number(49))]), ""),
        (Map(vec![("country", Map(vec![("iso_code", Number(49))]))]), ""),
        (Map(vec![]), ""),
        (Text("DE"), ""),
        (Number(49), ""),
    ];
    for (at, (record, expected)) in cases.into_iter().enumerate() {
        // The other network makes it a file with countries.
        let networks = [("192.0.2.0/24", record), ("198.51.100.0/24", iso("FR"))];
        let countries = opened(&file(4, &networks));
        assert_eq!(code(&countries, "192.0.2.1"), expected, "case {at}");
        assert_eq!(code(&countries, "198.51.100.1"), "FR", "case {at}");
    }
}

#[test]
fn addresses_of_both_families_are_found_by_their_network() {
    let networks = [
        ("192.0.2.0/25", iso("DE")),
        ("192.0.2.128/25", iso("FR")),
        ("198.51.100.7/32", iso("IT")),
        ("2001:db8::/32", iso("JP")),
    ];
    let expected = [
        ("192.0.2.0", "DE"),
        ("192.0.2.127", "DE"),
        ("192.0.2.128", "FR"),
        ("192.0.3.0", ""),
        ("198.51.100.7", "IT"),
        ("198.51.100.8", ""),
        ("127.0.0.1", ""),
        ("::ffff:192.0.2.1", "DE"),
        ("::ffff:127.0.0.1", ""),
        ("2001:db8::", "JP"),
        ("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "JP"),
        ("2001:db9::", ""),
        ("::1", ""),
    ];
    let both = opened(&file(6, &networks));
    let v4_only = opened(&file(4, &networks[..3]));
    let v6_only = opened(&file(6, &networks[3..]));
    for (ip, country) in expected {
        let v4 = ip.parse::<IpAddr>().unwrap().to_canonical().is_ipv4();
        assert_eq!(code(&both, ip), country, "{ip}");
        assert_eq!(code(&v4_only, ip), if v4 { country } else { "" }, "{ip}");
        assert_eq!(code(&v6_only, ip), if v4 { "" } else { country }, "{ip}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.mmdb");
    let pipe = folder.path().join("pipe");
    let huge = folder.path().join("huge");
    // A sparse file: it takes no space.
    fs::File::create(&huge).unwrap().set_len((1 << 30) + 1).unwrap();
    let mut paths = vec![missing, folder.path().to_owned(), huge, PathBuf::new()];
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    if made.is_ok_and(|status| status.success()) {
        paths.push(pipe);
    }
    for path in paths {
        let error = MaxMindCountries::open(&path).unwrap_err();
        assert!(matches!(error, GeoIpError::Unreadable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("{} cannot be read; check", path.display())), "{text}");
        assert!(error.source().is_some());
    }
}

#[test]
fn a_file_that_is_not_a_database_is_refused() {
    let whole = file(4, &[("192.0.2.0/24", iso("DE"))]);
    for bytes in [
        &b""[..],
        b"<html>429 Too Many Requests</html>",
        b"\xab\xcd\xefMaxMind.com",
        &whole[..whole.len() - 1],
        // The beginning is missing, so the tree is larger than the file.
        &whole[100..],
        &[0; 100_000],
    ] {
        let error = refused(bytes);
        assert!(matches!(error, GeoIpError::NotMaxMindDb { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("country.mmdb is not a MaxMind DB file or is damaged"), "{text}");
        assert!(error.source().is_some());
    }
}

#[test]
fn a_database_without_countries_is_refused() {
    let asn = Map(vec![("autonomous_system_number", Number(64_500))]);
    let networks = [("192.0.2.0/24", asn.clone()), ("198.51.100.0/24", asn)];
    for bytes in [file(4, &networks), file(6, &networks), file(4, &[]), file(6, &[])] {
        let error = refused(&bytes);
        let GeoIpError::NoCountries { path, database_type } = error else { panic!("{error:?}") };
        assert!(path.ends_with("country.mmdb") && database_type == "Test");
    }
    // One country in the last of many networks is enough.
    let networks: Vec<_> = (0..=255).map(|n| format!("2001:db8:{n:x}::/48")).collect();
    let record = |n| if n == 255 { iso("DE") } else { Map(vec![("asn", Number(n))]) };
    let networks: Vec<_> = (0..).zip(&networks).map(|(n, net)| (&**net, record(n))).collect();
    assert_eq!(code(&opened(&file(6, &networks)), "2001:db8:ff::1"), "DE");
}

/// Both branches of every node lead to the next one: as many paths as addresses, and no
/// country at the end of any.
#[test]
fn a_tree_with_endless_paths_is_refused_quickly() {
    let mut bytes = file(6, &[("2001:db8::/127", iso("DE"))]);
    let record = |number: usize| u32::try_from(number).unwrap().to_be_bytes()[1..].to_vec();
    let nodes = 127;
    for first_of_v4 in [nodes, nodes - 1, 1] {
        for node in 0..nodes {
            let next = if node == nodes - 1 { first_of_v4 } else { node + 1 };
            let both = [record(next), record(next)].concat();
            bytes[node * 6..node * 6 + 6].copy_from_slice(&both);
        }
        let started = Instant::now();
        refused(&bytes);
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn a_damaged_file_neither_panics_nor_hangs() {
    let (_folder, path) = folder_with(b"");
    let asn = Map(vec![("asn", Number(1))]);
    let whole = file(6, &[("192.0.2.0/24", iso("DE")), ("2001:db8::/32", asn)]);
    assert!(survives(&whole, &path, 10));
    for length in 0..whole.len() {
        assert!(!survives(&whole[..length], &path, 10), "{length} bytes of {}", whole.len());
    }
    let (mut good, mut bad) = (0, 0);
    for at in 0..whole.len() {
        for change in [0x01, 0x08, 0x20, 0x40, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            *(if survives(&bytes, &path, 10) { &mut good } else { &mut bad }) += 1;
        }
    }
    assert!(good > 100 && bad > 100, "{good} opened, {bad} refused");
}

#[test]
fn a_replaced_file_is_used_without_reopening() {
    let network = |code| file(4, &[("192.0.2.0/24", iso(code))]);
    let (_folder, path) = folder_with(&network("DE"));
    let countries = MaxMindCountries::open(&path).unwrap();
    let clone = countries.clone();
    let says = |expected| {
        assert_eq!(code(&countries, "192.0.2.1"), expected);
        assert_eq!(code(&clone, "192.0.2.1"), expected);
    };
    says("DE");
    rename(&network("FR"), &path);
    clone.reload().unwrap();
    says("FR");
    fs::write(&path, network("IT")).unwrap();
    countries.reload().unwrap();
    says("IT");
    for broken in [&network("JP")[..300], b"", &file(4, &[])] {
        rename(broken, &path);
        countries.reload().unwrap_err();
        says("IT");
    }
    fs::remove_file(&path).unwrap();
    let error = countries.reload().unwrap_err();
    assert!(matches!(error, GeoIpError::Unreadable { .. }), "{error:?}");
    says("IT");
    fs::write(&path, network("JP")).unwrap();
    countries.reload().unwrap();
    says("JP");
    let text = format!("{countries:?}");
    assert!(text.contains("country.mmdb") && text.len() < 300, "{text}");
}

/// Replaces the file at full speed during look-ups: each answer comes from one of the two
/// files.
#[test]
fn lookups_continue_while_the_file_is_replaced() {
    let files = ["DE", "FR"].map(|code| file(4, &[("192.0.2.0/24", iso(code))]));
    let (_folder, path) = folder_with(&files[0]);
    let countries = MaxMindCountries::open(&path).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let found = code(&countries, "192.0.2.1");
                    assert!(["DE", "FR"].contains(&&*found), "{found}");
                }
            });
        }
        for round in 1..200 {
            rename(&files[round % 2], &path);
            countries.reload().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
}

/// A manager with this file, and the key of its only organisation.
struct Setup {
    keys: KeyManager,
    log: Arc<MemoryAuditLog>,
    issued: IssuedKey,
}

impl Setup {
    async fn new(countries: &MaxMindCountries) -> Self {
        let log = Arc::new(MemoryAuditLog::new());
        let builder = KeyManager::builder(MemoryStore::new()).audit(Arc::clone(&log));
        let builder = builder.delivery(Delivery::strict()).countries(countries.clone());
        let keys = builder.build().unwrap();
        let actor = Actor::new(OrgId::new("acme").unwrap(), "ada");
        let issued = keys.create(&actor, NewKey::named("CI").unwrap()).await.unwrap();
        Self { keys, log, issued }
    }

    /// The countries in the records of requests from these addresses.
    async fn recorded(&self, ips: &[&str]) -> Vec<String> {
        let key = &self.issued.key;
        let scope = AuditScope::KeyRequests(key.id);
        let query = AuditQuery::new(key.org.clone(), scope).limit(1);
        let mut countries = Vec::new();
        for ip in ips {
            let request = RequestInfo::new("GET", "/").from_ip(Some(ip.parse().unwrap()));
            let secret = self.issued.secret.expose_secret();
            self.keys.admit(secret, request).await.unwrap().finish(200).await.unwrap();
            let record = self.log.page(&query).await.unwrap().records.remove(0);
            let AuditEvent::Request(request) = record.event else { panic!("{record:?}") };
            countries.push(request.country.map_or_else(String::new, |code| code.to_string()));
        }
        countries
    }
}

#[tokio::test]
async fn records_have_the_country_of_the_current_file() {
    let (_folder, path) = folder_with(&file(6, &[("192.0.2.0/24", iso("DE"))]));
    let countries = MaxMindCountries::open(&path).unwrap();
    let setup = Setup::new(&countries).await;
    let ips = ["192.0.2.1", "::ffff:192.0.2.1", "198.51.100.1"];
    assert_eq!(setup.recorded(&ips).await, ["DE", "DE", ""]);
    rename(&file(6, &[("198.51.100.0/24", iso("FR"))]), &path);
    countries.reload().unwrap();
    assert_eq!(setup.recorded(&ips).await, ["", "", "FR"]);
    fs::write(&path, "broken").unwrap();
    countries.reload().unwrap_err();
    assert_eq!(setup.recorded(&ips).await, ["", "", "FR"]);
}

#[cfg(all(feature = "postgres", feature = "settings-page", feature = "sqlite", unix))]
mod server {
    use super::*;
    use crate::support::{Client, example_server, poll};
    use serde_json::json;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Stdio};

    /// A process that is killed when dropped.
    struct Server(Child);

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn the_example_server_records_countries() {
        let (_folder, path) = folder_with(&file(6, &[("127.0.0.0/8", iso("DE"))]));
        let mut command = example_server();
        command.env("KEYGATE_STORE", "memory:").env("KEYGATE_GEOIP", &path);
        let mut server = Server(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line = line.unwrap();
            line.strip_prefix("settings: http://")?.split('/').next()?.parse().ok()
        });
        let address = address.expect("the server prints its address");
        let mut client = Client::connect(address);
        let new = json!({ "name": "CI", "expiration": "never" });
        let created = client.ask_json("POST", "/settings/api/keys", &[], &new);
        let (id, secret) = (created.json()["key"]["id"].clone(), created.json()["secret"].clone());
        let bearer = format!("Authorization: Bearer {}", secret.as_str().unwrap());
        assert_eq!(client.ask("GET", "/v1/whoami", &[&bearer]).status, 200);
        let audit = format!("/settings/api/keys/{}/audit", id.as_str().unwrap());
        let country = poll("the record", || {
            let page = Client::connect(address).ask("GET", &audit, &[]).json();
            page["records"].as_array()?.first().map(|record| record["country"].clone())
        });
        assert_eq!(country, "DE");
    }
}

/// The file of `npm pack @ip-location-db/geo-whois-asn-country-mmdb`, for both families.
fn real_file() -> Vec<u8> {
    let path = std::env::var_os("KEYGATE_TEST_MMDB").expect("KEYGATE_TEST_MMDB is set");
    fs::read(path).expect("KEYGATE_TEST_MMDB is a file")
}

/// Addresses that do not move between countries.
const KNOWN: [(&str, &str); 10] = [
    ("8.8.8.8", "US"),
    ("::ffff:8.8.8.8", "US"),
    ("1.1.1.1", "AU"),
    ("193.0.6.139", "NL"),
    ("133.11.0.1", "JP"),
    ("2001:4860:4860::8888", "US"),
    ("2001:67c:2e8:22::c100:68b", "NL"),
    ("127.0.0.1", ""),
    ("10.0.0.1", ""),
    ("::1", ""),
];

#[test]
#[ignore = "needs a MaxMind DB file"]
fn known_addresses_are_found_in_a_real_file() {
    let countries = opened(&real_file());
    for (ip, expected) in KNOWN {
        assert_eq!(code(&countries, ip), expected, "{ip}");
    }
    let started = Instant::now();
    for number in 0..100_000_u32 {
        countries.country(Ipv4Addr::from_bits(number.wrapping_mul(2_654_435_761)).into());
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test]
#[ignore = "needs a MaxMind DB file"]
async fn a_real_file_replaces_another_and_records_have_its_countries() {
    let (_folder, path) = folder_with(&file(4, &[("8.8.8.0/24", iso("FR"))]));
    let countries = MaxMindCountries::open(&path).unwrap();
    let setup = Setup::new(&countries).await;
    assert_eq!(setup.recorded(&["8.8.8.8", "133.11.0.1"]).await, ["FR", ""]);
    // Without a notification: within two checks, 5 seconds apart.
    rename(&real_file(), &path);
    eventually("the file is read", async || code(&countries, "8.8.8.8") == "US").await;
    let (ips, expected): (Vec<_>, Vec<_>) = KNOWN.into_iter().unzip();
    assert_eq!(setup.recorded(&ips).await, expected);
}

#[test]
#[ignore = "needs a MaxMind DB file"]
fn a_truncated_real_file_is_refused() {
    let (whole, (_folder, path)) = (real_file(), folder_with(b""));
    for part in 0..64 {
        assert!(!survives(&whole[..whole.len() / 64 * part], &path, 0), "{part}/64");
    }
    for bytes in 1..=300 {
        assert!(!survives(&whole[..whole.len() - bytes], &path, 0), "{bytes} bytes less");
    }
}

#[test]
#[ignore = "needs a MaxMind DB file"]
fn a_real_file_with_bytes_flipped_neither_panics_nor_hangs() {
    let (whole, (_folder, path)) = (real_file(), folder_with(b""));
    // Pseudo-random numbers, the same in each run.
    let mut seed = 7_u64;
    let mut below = |limit: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        usize::try_from(seed >> 16).unwrap() % limit
    };
    for round in 0..200 {
        let mut bytes = whole.clone();
        // Anywhere in the file, or in the metadata and records at its end.
        let from = if round % 2 == 0 { 0 } else { whole.len() - 4_000 };
        for _ in 0..1 + below(if round % 2 == 0 { 20_000 } else { 4 }) {
            let at = from + below(whole.len() - from);
            bytes[at] = below(256) as u8;
        }
        survives(&bytes, &path, 20_000);
    }
    // Gaps, like those of an interrupted download.
    for round in 0..64 {
        let (mut bytes, part) = (whole.clone(), whole.len() / 64);
        bytes[round * part..][..part].fill(if round % 2 == 0 { 0 } else { 0xff });
        survives(&bytes, &path, 20_000);
    }
}
