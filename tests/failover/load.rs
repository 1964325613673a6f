//! The requests and changes made during a failover.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keygate::{KeyManager, KeyPatch, VerifyError};
use tokio::time::sleep;

use crate::cluster_support::changes::number;
use crate::cluster_support::worker::{Worker, is_outage};
use crate::support::eventually;
use crate::{actor, is_revoked, new_key};

/// Polls until the condition holds. Returns how long that took.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    eventually(what, async || is_so()).await;
    begun.elapsed()
}

/// State shared by the tasks of a failover test.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pub(crate) verified: AtomicU32,
    pub(crate) changed: AtomicU32,
    /// Tasks whose calls have failed.
    pub(crate) failing: AtomicU32,
    pub(crate) recovers: AtomicBool,
    pub(crate) over: AtomicBool,
    /// Keys whose revocation was acknowledged, with the time of the acknowledgement.
    pub(crate) revoked: Mutex<Vec<(String, Instant)>>,
}

impl Load {
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(crate) fn verifies(&self) -> bool {
        self.verified.load(Ordering::SeqCst) >= 20
    }

    pub(crate) fn works(&self) -> bool {
        self.verifies() && self.changed.load(Ordering::SeqCst) >= 20
    }

    /// A server is there again. Starts the measurement of recovery.
    pub(crate) fn recover(&self) {
        self.verified.store(0, Ordering::SeqCst);
        self.changed.store(0, Ordering::SeqCst);
        self.recovers.store(true, Ordering::SeqCst);
    }

    pub(crate) fn one_revoked(&self) -> Option<(String, Instant)> {
        let revoked = self.revoked.lock().unwrap();
        // Every second pick is one of the latest keys.
        let range = if number().is_multiple_of(2) { revoked.len() } else { revoked.len().min(5) };
        let back = number() as usize % range.max(1);
        revoked.len().checked_sub(back + 1).map(|place| revoked[place].clone())
    }
}

/// The longest time for which an operation did not work.
#[derive(Debug)]
pub(crate) struct Outage {
    worked: Instant,
    pub(crate) longest: Duration,
    pub(crate) failures: u32,
    pub(crate) longest_call: Duration,
}

impl Outage {
    pub(crate) fn none() -> Self {
        Self {
            worked: Instant::now(),
            longest: Duration::ZERO,
            failures: 0,
            longest_call: Duration::ZERO,
        }
    }

    pub(crate) fn works(&mut self) {
        self.longest = self.longest.max(self.worked.elapsed());
        self.worked = Instant::now();
    }
}

/// The key is right or its state is unknown. Any other result fails the test.
pub(crate) async fn verify(load: Arc<Load>, keys: KeyManager, secret: String) -> Outage {
    let mut outage = Outage::none();
    while !load.is_over() {
        let begun = Instant::now();
        let verified = keys.verify(&secret, None).await;
        outage.longest_call = outage.longest_call.max(begun.elapsed());
        match verified {
            Ok(key) => {
                assert_eq!(key.org().as_str(), "steady");
                outage.works();
                load.verified.fetch_add(1, Ordering::SeqCst);
            }
            Err(VerifyError::Unavailable(_)) => {
                load.failing.fetch_add(u32::from(outage.failures == 0), Ordering::SeqCst);
                outage.failures += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
        sleep(Duration::from_millis(1)).await;
    }
    outage
}

/// A revoked key is accepted for no longer than `grace` after the acknowledgement. Returns the
/// longest delay.
pub(crate) async fn verify_revoked(load: Arc<Load>, keys: KeyManager, grace: Duration) -> Duration {
    let mut latest = Duration::ZERO;
    while !load.is_over() {
        if let Some((secret, revoked)) = load.one_revoked() {
            let age = revoked.elapsed();
            match keys.verify(&secret, None).await {
                Ok(key) => {
                    assert!(age < grace, "{key:?} was accepted {age:?} after its revocation");
                    latest = latest.max(age);
                }
                Err(VerifyError::Unavailable(_)) => {}
                refused => assert!(is_revoked(&refused), "{refused:?}"),
            }
        }
        sleep(Duration::from_micros(200)).await;
    }
    latest
}

/// Creates keys, lets the other process see them, and revokes them.
pub(crate) async fn revoke(load: Arc<Load>, keys: KeyManager, other: KeyManager) -> Outage {
    let mut outage = Outage::none();
    for n in 0_u32.. {
        if load.is_over() {
            break;
        }
        let actor = actor(&format!("revoked-{n}"));
        let revoked = async {
            let made = keys.create(&actor, new_key()).await?;
            let seen = other.verify(made.secret.expose_secret(), None).await;
            assert!(matches!(seen, Ok(_) | Err(VerifyError::Unavailable(_))), "{seen:?}");
            keys.update(&actor, &made.key.id, KeyPatch::revoke()).await?;
            Ok(made.secret)
        };
        match revoked.await {
            Ok(secret) => {
                let secret = secret.expose_secret().to_owned();
                load.revoked.lock().unwrap().push((secret, Instant::now()));
                outage.works();
                load.changed.fetch_add(1, Ordering::SeqCst);
            }
            Err(error) => {
                assert!(is_outage(&error), "{error:?}");
                outage.failures += 1;
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    outage
}

/// Makes changes of every kind. Whether a failed change took place is known only after the
/// failover.
pub(crate) async fn change(load: Arc<Load>, mut worker: Worker) -> (Worker, Vec<bool>) {
    let mut in_doubt = Vec::new();
    while !load.is_over() {
        if worker.change().await {
            load.changed.fetch_add(1, Ordering::SeqCst);
            continue;
        }
        load.failing.fetch_add(u32::from(in_doubt.is_empty()), Ordering::SeqCst);
        while !load.recovers.load(Ordering::SeqCst) {
            sleep(Duration::from_millis(1)).await;
        }
        worker.wait_for_recovery().await;
        in_doubt.extend(worker.check().await);
    }
    (worker, in_doubt)
}
