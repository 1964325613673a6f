//! Runtimes, and types that cross threads.

use std::future::{Future, pending};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::audit::{AuditQuery, AuditScope};
use keygate::error::BuildError;
use keygate::manager::RequestInfo;
use keygate::runtime::{BoxFuture, Runtime, TokioRuntime};
use keygate::store::Revision;
use keygate::*;

use crate::support::{SpyStore, org};
use crate::{ada, bench, new_key, no_key};

/// Tokio, with a count of the tasks and sleeps.
#[derive(Clone, Debug)]
struct CountingRuntime {
    tokio: TokioRuntime,
    spawned: Arc<AtomicUsize>,
    slept: Arc<Mutex<Vec<Duration>>>,
}

impl Runtime for CountingRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.spawned.fetch_add(1, SeqCst);
        self.tokio.spawn(task);
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.slept.lock().unwrap().push(time);
        self.tokio.sleep(time)
    }
}

#[test]
fn a_manager_needs_a_runtime_and_accepts_any() {
    let build = || KeyManager::builder(MemoryStore::new());
    let refused = build().build().unwrap_err();
    assert!(matches!(refused, BuildError::NoRuntime));
    // What `main` prints if it returns the error.
    assert_eq!(format!("{refused:?}"), refused.to_string());
    assert!(refused.to_string().contains("feature `tokio`"), "{refused}");

    let tokio = tokio::runtime::Runtime::new().unwrap();
    let runtime = CountingRuntime {
        tokio: TokioRuntime::new(tokio.handle().clone()),
        spawned: Arc::default(),
        slept: Arc::default(),
    };
    let store = Arc::new(SpyStore::default());
    let deadline = Duration::from_millis(31);
    let log = Arc::new(MemoryAuditLog::new());
    let keys = KeyManager::builder(store.clone())
        .runtime(runtime.clone())
        .store_deadline(deadline)
        .audit(log.clone())
        .build()
        .unwrap();
    let spawned = runtime.spawned.load(SeqCst);
    assert!(spawned >= 1, "the background tasks run on it");

    // Used outside of any runtime. Every deadline is kept by the given runtime.
    let issued = pollster(keys.create(&ada(), new_key())).unwrap();
    assert_eq!(runtime.spawned.load(SeqCst), spawned + 1, "a change runs on it as well");
    pollster(keys.verify(issued.secret.expose_secret(), None)).unwrap();
    assert!(!runtime.slept.lock().unwrap().contains(&deadline), "no call had to wait");
    store.before(|_| pending());
    let refused = pollster(keys.verify(issued.secret.expose_secret(), None)).unwrap_err();
    assert!(refused.is_unavailable());
    assert!(runtime.slept.lock().unwrap().contains(&deadline));
    store.heal();
    assert!(pollster(keys.shutdown(Duration::from_secs(20))).is_complete());
    assert!(pollster(store.inner.list(&org("acme"))).unwrap()[0].last_used_at.is_some());
    assert_eq!(log.len(), 1);
    assert_eq!(runtime.spawned.load(SeqCst), spawned + 1, "no task for each request");
}

/// Runs a future on this thread, outside of any runtime.
fn pollster<T>(work: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut cx = std::task::Context::from_waker(&waker);
    let mut work = std::pin::pin!(work);
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let std::task::Poll::Ready(done) = work.as_mut().poll(&mut cx) {
            return done;
        }
        std::thread::park_timeout(Duration::from_secs(1));
        assert!(Instant::now() < deadline, "in time");
    }
}

#[tokio::test]
async fn every_future_is_send() {
    fn check<T>(_: impl Future<Output = T> + Send) {}
    let b = bench();
    let (keys, id, query) =
        (&b.keys, no_key(), AuditQuery::new(org("acme"), AuditScope::OrgChanges));
    let request = RequestInfo::new("GET", "/");
    check(keys.create(&ada(), new_key()));
    check(keys.list(&org("acme")));
    check(keys.get(&org("acme"), &id));
    check(keys.update(&ada(), &id, KeyPatch::default()));
    check(keys.update_if(&ada(), &id, KeyPatch::default(), Revision::FIRST));
    check(keys.rotate(&ada(), &id));
    check(keys.delete(&ada(), &id));
    check(keys.verify("", None));
    check(keys.admit("", request));
    check(keys.audit_page(&query));
    check(keys.rotate_with_overlap(&ada(), &id, Duration::ZERO, Some(Revision::FIRST)));
    check(keys.delete_if(&ada(), &id, Revision::FIRST));
    check(keys.revoke_issued_before(&b.store.inner, Timestamp::MAX, "host"));
    check(keys.health());
    check(keys.shutdown(Duration::ZERO));
    let issued = b.create().await;
    let request = RequestInfo::new("GET", "/");
    let admission = keys.admit(issued.secret.expose_secret(), request).await.unwrap();
    check(admission.finish(200));

    // The credential and the request are dropped before the first `await`.
    let (verifies, admits) = {
        let brief = issued.secret.expose_secret().to_owned();
        let request = RequestInfo::new("GET", "/");
        (keys.verify(&brief, None), keys.admit(&brief, request))
    };
    verifies.await.unwrap();
    admits.await.unwrap().finish(200).await.unwrap();
}
