//! Without prepared statements a connection carries one call at a time, even if callers give up.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use keygate::store::{KeyUse, OrgLimit};
use keygate::{KeyStore, PostgresStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::postgres_support::{Schema, key, new_key, url};
use crate::proxy::{address, url_at};
use crate::support::eventually;

/// One connection opened the store. 4 look up, 4 change, 2 write audit records, and one each
/// is for last uses and for pages of the audit log.
const CONNECTIONS: usize = 13;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn without_prepared_statements_a_connection_carries_one_call_at_a_time() {
    let schema = Schema::new();
    let (store, seen) = inspected(&schema, true).await;
    impatient_crowd(&store).await;
    assert!(seen.too_early() > 0, "the proxy saw no overlap");

    let (store, seen) = inspected(&schema, false).await;
    eventually("all connections", async || seen.connections() == CONNECTIONS).await;
    impatient_crowd(&store).await;
    assert_eq!(seen.too_early(), 0);
    assert_eq!(seen.connections(), CONNECTIONS, "giving up costs connections");
}

/// The server may report an error some time before it is ready again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs PostgreSQL"]
async fn without_prepared_statements_a_call_waits_for_the_end_of_an_error_too() {
    let schema = Schema::new();
    let (store, seen) = inspected(&schema, false).await;
    let own = new_key(&key(1).org);
    store.insert(&own, OrgLimit::NONE).await.unwrap();
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN RAISE 'not today'; END $$; CREATE TRIGGER refuse \
                  BEFORE UPDATE ON keys FOR EACH ROW EXECUTE FUNCTION refuse()";
    schema.db().await.batch_execute(refuse).await.unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..16 {
        let store = store.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                let error = store.record_uses(&[KeyUse { id: own.id, at: own.created_at }]).await;
                assert!(format!("{error:?}").contains("not today"), "{error:?}");
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(seen.too_early(), 0);
    assert!(seen.connections() <= CONNECTIONS, "errors cost connections");
}

/// Many callers look up and write. Most of them give up at a random moment.
async fn impatient_crowd(store: &PostgresStore) {
    let one_of_them = |store: PostgresStore, n: u64| async move {
        let own = new_key(&key(1).org);
        store.insert(&own, OrgLimit::NONE).await.unwrap();
        let uses = [KeyUse { id: own.id, at: own.created_at }];
        let mut given_up = 0;
        for round in 0..60 {
            let patience = Duration::from_micros((n * 60 + round) * 7919 % 3_000);
            match timeout(patience, store.find_by_digest(&own.digest)).await {
                Ok(found) => assert_eq!(found.unwrap().unwrap().id, own.id),
                Err(_) => given_up += 1,
            }
            match timeout(patience, store.record_uses(&uses)).await {
                Ok(recorded) => recorded.unwrap(),
                Err(_) => given_up += 1,
            }
        }
        let found = store.find_by_digest(&own.digest).await.unwrap().unwrap();
        assert_eq!((found.id, found.expires_at), (own.id, None));
        given_up
    };
    let crowd = (0..32).map(|n| one_of_them(store.clone(), n)).collect::<JoinSet<_>>();
    let given_up: u32 = crowd.join_all().await.into_iter().sum();
    assert!(given_up > 100, "{given_up}");
}

/// The messages on the way to the server.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    /// Messages sent before the previous answer on the same connection was complete.
    too_early: AtomicUsize,
}

impl Seen {
    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn too_early(&self) -> usize {
        self.too_early.load(Ordering::SeqCst)
    }
}

/// A store whose messages are inspected, and the results.
async fn inspected(schema: &Schema, prepared: bool) -> (PostgresStore, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = url_at(&url(), listener.local_addr().unwrap().port());
    let seen = Arc::new(Seen::default());
    let all = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let near = listener.accept().await.unwrap().0;
            let far = TcpStream::connect(address(&url())).await.unwrap();
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            all.connections.fetch_add(1, Ordering::SeqCst);
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            // The start of a session is a question too.
            let waiting = Arc::new(Mutex::new(1));
            tokio::spawn(pass(near_in, far_out, questions(Arc::clone(&waiting), Arc::clone(&all))));
            tokio::spawn(pass(far_in, near_out, answers(waiting)));
        }
    });
    let options = schema.options_at(&near).prepared(prepared);
    (options.connect().await.unwrap(), seen)
}

/// Forwards messages after inspecting them.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut look: impl FnMut(&mut Vec<u8>)) {
    let mut unread = Vec::new();
    let mut bytes = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        unread.extend_from_slice(&bytes[..read]);
        look(&mut unread);
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
}

/// The types of the messages that have arrived completely.
fn messages(unread: &mut Vec<u8>) -> Vec<u8> {
    let mut types = Vec::new();
    while unread.len() >= 5 {
        let length = u32::from_be_bytes(unread[1..5].try_into().unwrap()) as usize + 1;
        if unread.len() < length {
            break;
        }
        types.push(unread[0]);
        unread.drain(..length);
    }
    types
}

fn questions(waiting: Arc<Mutex<usize>>, seen: Arc<Seen>) -> impl FnMut(&mut Vec<u8>) {
    let mut begun = false;
    move |unread| {
        if !begun {
            // The first message has no type.
            let length = u32::from_be_bytes(unread[..4].try_into().unwrap()) as usize;
            unread.drain(..length);
            begun = true;
        }
        for kind in messages(unread) {
            let mut waiting = waiting.lock().unwrap();
            // A password is part of the start, a goodbye gets no answer, and an empty query
            // asks whether the server is ready.
            if *waiting > 0 && !matches!(kind, b'p' | b'X' | b'Q') {
                seen.too_early.fetch_add(1, Ordering::SeqCst);
            }
            if matches!(kind, b'S' | b'Q') {
                *waiting += 1;
            }
        }
    }
}

fn answers(waiting: Arc<Mutex<usize>>) -> impl FnMut(&mut Vec<u8>) {
    move |unread| {
        let ready = messages(unread).into_iter().filter(|kind| *kind == b'Z').count();
        *waiting.lock().unwrap() -= ready;
    }
}
