//! The example server's `/v1/whoami` under load: `cargo bench --bench server --all-features`.
//!
//! Three processes: the example server with keys in SQLite and buffered audit; this
//! program once more, as a server with the same handler and no keys; and the load, one
//! thread with 32 connections that drives them in turns. A turn of the guarded server
//! is over once its audit records are in the file, so that none is written during the
//! other's; the answers are counted until the last one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench"
)]

mod support;

use std::env;
use std::future::{self, IntoFuture};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use getrandom::SysRng;
use keygate::{KeyId, KeyName, OrgId};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing_subscriber::EnvFilter;

use crate::support::Spread;
use crate::support::server::Server;

const CONNECTIONS: usize = 32;
const ROUNDS: usize = 11;
const TURN: Duration = Duration::from_secs(2);
const TARGET: f64 = 0.9;
const UNGUARDED: &str = "unguarded";

// ---- the servers ----

fn unguarded() -> Server {
    Server::start(Command::new(env::current_exe().unwrap()).arg(UNGUARDED))
}

/// Makes a key, and says what it is.
fn key(server: &Server) -> String {
    let body = r#"{"name":"CI deploy","expiration":"1_year","ip_allowlist":["127.0.0.0/8"]}"#;
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    write!(
        stream,
        "POST /settings/api/keys HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        server.address,
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    let json: Value = serde_json::from_str(json).unwrap();
    json["secret"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// Whose key it would be.
struct Caller {
    org: OrgId,
    id: KeyId,
    name: KeyName,
}

/// The example server without its keys.
async fn serve_unguarded() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let caller = Arc::new(Caller {
        org: OrgId::new("demo").unwrap(),
        id: KeyId::random(&mut SysRng).unwrap(),
        name: KeyName::new("CI deploy").unwrap(),
    });
    let whoami = async |State(caller): State<Arc<Caller>>| {
        let Caller { org, id, name } = &*caller;
        Json(json!({ "org": org.as_str(), "key_id": id.to_string(), "key_name": name.as_str() }))
    };
    let api = Router::new()
        .route("/whoami", get(whoami))
        .fallback(async || StatusCode::NOT_FOUND)
        .with_state(caller);
    let app = Router::new().nest("/v1", api);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}/", listener.local_addr().unwrap());
    let service = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service)
        .with_graceful_shutdown(future::pending())
        .into_future()
        .await
        .unwrap();
}

// ---- the load ----

/// Asks again and again until then; says how often.
async fn ask(address: SocketAddr, request: Arc<str>, until: Instant) -> u64 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut answer = vec![0; 4_096];
    // All answers are as long as the first.
    let (mut length, mut answers) = (None, 0);
    while Instant::now() < until {
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut read = 0;
        while length.is_none_or(|length| read < length) {
            let end = length.unwrap_or(answer.len());
            let more = stream.read(&mut answer[read..end]).await.unwrap();
            assert!(more > 0, "the server has closed");
            read += more;
            length = length.or_else(|| length_of(&answer[..read]));
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        answers += 1;
    }
    answers
}

/// The length of an answer with its body, once its head is complete.
fn length_of(answer: &[u8]) -> Option<usize> {
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let lines = str::from_utf8(&answer[..head]).unwrap().lines();
    let length = lines.filter_map(|line| line.strip_prefix("content-length: ")).next().unwrap();
    Some(head + length.parse::<usize>().unwrap())
}

/// The answers of a turn, and how many a second those are.
async fn turn(address: SocketAddr, request: &Arc<str>) -> (u64, f64) {
    let started = Instant::now();
    let connection = || tokio::spawn(ask(address, Arc::clone(request), started + TURN));
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| connection()).collect();
    let mut answers = 0;
    for connection in connections {
        answers += connection.await.unwrap();
    }
    (answers, answers as f64 / started.elapsed().as_secs_f64())
}

// ---- the audit records ----

fn records(file: &Connection) -> u64 {
    let counted = file.query_row("SELECT count(*) FROM requests", [], |row| row.get::<_, i64>(0));
    u64::try_from(counted.unwrap()).unwrap()
}

/// Waits until there is a record of every answer; says for how long.
async fn recorded(file: &Connection, answers: u64) -> Duration {
    let started = Instant::now();
    while records(file) < answers {
        assert!(started.elapsed() < Duration::from_secs(60), "{} of {answers}", records(file));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    started.elapsed()
}

async fn compare() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keygate.db");
    let (guarded, unguarded) = (Server::start(&mut Server::example(&path)), unguarded());
    let file = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let request: Arc<str> = format!(
        "GET /v1/whoami HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
        guarded.address,
        key(&guarded)
    )
    .into();

    let (mut with, mut without, mut ratios, mut late) = (vec![], vec![], vec![], vec![]);
    let mut answers = 0;
    for round in 0..=ROUNDS {
        let (mut by_guarded, mut by_unguarded) = (0.0, 0.0);
        // Neither always comes first.
        for side in [round % 2, (round + 1) % 2] {
            if side == 0 {
                let (more, rate) = turn(guarded.address, &request).await;
                (answers, by_guarded) = (answers + more, rate);
                late.push(recorded(&file, answers).await.as_secs_f64() * 1e3);
            } else {
                by_unguarded = turn(unguarded.address, &request).await.1;
            }
        }
        // The first one warms up.
        if round > 0 {
            with.push(by_guarded);
            without.push(by_unguarded);
            ratios.push(by_guarded / by_unguarded);
        }
    }
    guarded.stop();
    let records = records(&file);

    println!("requests a second on {CONNECTIONS} connections: median (middle half) of {ROUNDS}");
    println!("{:<12}{}", "unguarded", Spread::of(without).show(0));
    println!("{:<12}{}", "keygate", Spread::of(with).show(0));
    println!("the last records are written {} ms after a turn", Spread::of(late).show(0));
    println!("records: {records} of {answers}");
    assert_eq!(records, answers);
    let ratio = Spread::of(ratios).show(2);
    println!("with keygate: {ratio} of the requests without (target {TARGET})");
}

fn main() {
    if env::args().nth(1).as_deref() == Some(UNGUARDED) {
        // As many threads as the example server has.
        return tokio::runtime::Runtime::new().unwrap().block_on(serve_unguarded());
    }
    let mut one_thread = tokio::runtime::Builder::new_current_thread();
    one_thread.enable_all().build().unwrap().block_on(compare());
}
