//! Random faults, one after the other, while clients use a key that another process changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::manager::{AdmitError, RequestInfo};
use keygate::{ApiKey, KeyManager, KeyPatch, Status, VerifyError};

use crate::checker::{Demand, check};
use crate::event::{Event, Outcome, Patch, Span, State, Version};
use crate::postgres_support::in_schema;
use crate::proxy::{Network, Side};
use crate::world::{DEADLINE, Db, SLACK, World, ip, recovers, respond};

const DURATION: Duration = Duration::from_secs(12);
const CLIENTS: usize = 8;

const FAULTS: [Network; 9] = [
    Network::Closed,
    Network::Slow(Duration::from_millis(20)),
    Network::Silent,
    Network::BlackHole,
    Network::Reset,
    Network::HalfClosed,
    Network::Truncated(5),
    Network::Incomplete(9),
    Network::Limited(4_000),
];

fn version(key: &ApiKey) -> Version {
    let revoked = key.status == Status::Revoked;
    let state = State { secret: 1, revoked, reads: true, ..State::default() };
    Version { revision: key.revision.get(), state }
}

/// The outcome in the record of a response. A response with 503 needs no record.
fn outcome_of(status: u16) -> Option<&'static str> {
    match status {
        200 => Some("allowed"),
        401 => Some("revoked"),
        503 => None,
        other => panic!("a response with {other}"),
    }
}

/// A client that makes one request after the other.
struct Client {
    number: usize,
    keys: KeyManager,
    secret: Arc<str>,
    begun: Instant,
    events: Vec<Event>,
    /// The path and the status of each response.
    responses: Vec<(String, u16)>,
    slowest: Duration,
}

fn nanos(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap()
}

impl Client {
    async fn run(mut self, db: Arc<Db>, is_over: Arc<AtomicBool>) -> Self {
        while !is_over.load(Ordering::Relaxed) {
            self.request(&db).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self
    }

    async fn request(&mut self, db: &Db) {
        let path = format!("/{}/{}", self.number, self.responses.len());
        let info = RequestInfo::new("GET", path.as_str()).from_ip(Some(ip()));
        let (called, start) = (Instant::now(), nanos(self.begun));
        let admitted = self.keys.admit(&self.secret, info).await;
        let span = Span { start, end: nanos(self.begun) };
        let seen = match &admitted {
            Ok(admission) => Some((version(admission.key().record()), None)),
            Err(AdmitError::Refused(VerifyError::Denied { denial, key, .. })) => {
                Some((version(key), Some(*denial)))
            }
            Err(AdmitError::Refused(VerifyError::Unavailable(_)) | AdmitError::NotRecorded(_)) => {
                None
            }
            Err(other) => panic!("a fault is no reason to refuse a key: {other:?}"),
        };
        self.events.extend(seen.map(|(seen, denial)| Event {
            span,
            outcome: Outcome::Verified { secret: 1, home: true, seen, denial },
        }));
        let status = respond(admitted).await;
        self.slowest = self.slowest.max(called.elapsed());
        if let Some(outcome) = outcome_of(status) {
            let is_recorded = db.has_request(&path, status, outcome).await;
            assert!(is_recorded, "{path}: no record of the response with {status}");
        }
        self.responses.push((path, status));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_during_random_faults_decisions_are_right_and_each_response_has_its_record() {
    in_schema(|options| async move {
        let world = World::new(&options).await;
        let issued = world.key().await;
        let (id, secret) = (issued.key.id, Arc::<str>::from(issued.secret.expose_secret()));
        let (begun, is_over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let client = Client {
                    number,
                    keys: world.keys.clone(),
                    secret: secret.clone(),
                    begun,
                    events: Vec::new(),
                    responses: Vec::new(),
                    slowest: Duration::ZERO,
                };
                tokio::spawn(client.run(world.db.clone(), is_over.clone()))
            })
            .collect();
        let created = Outcome::Created(version(&issued.key), None);
        let mut events = vec![Event { span: Span { start: 0, end: 0 }, outcome: created }];
        let mut round = 0;
        while begun.elapsed() < DURATION {
            let revoked = round % 2 == 0;
            let asked = if revoked { KeyPatch::revoke() } else { KeyPatch::enable() };
            let start = nanos(begun);
            let updated = world.direct.update(&world.actor, &id, asked).await.unwrap();
            let patch = Patch { revoked: Some(revoked), ..Patch::default() };
            let outcome = Outcome::Updated(patch, version(&updated));
            events.push(Event { span: Span { start, end: nanos(begun) }, outcome });
            let mut bytes = [0; 2];
            getrandom::fill(&mut bytes).unwrap();
            // Half of the rounds have a fault. The key is revoked in half of those.
            let fault = FAULTS[usize::from(bytes[0]) % FAULTS.len()];
            let network = if matches!(round % 4, 0 | 3) { fault } else { Network::Intact };
            match bytes[1] % 3 {
                0 => world.proxy.set_on(Side::ToServer, network),
                1 => world.proxy.set_on(Side::FromServer, network),
                _ => world.proxy.set(network),
            }
            tokio::time::sleep(Duration::from_millis(60 + 3 * u64::from(bytes[1]))).await;
            round += 1;
        }
        world.proxy.set(Network::Intact);
        is_over.store(true, Ordering::Relaxed);
        let (mut responses, mut slowest) = (Vec::new(), Duration::ZERO);
        for client in clients {
            let client = client.await.unwrap();
            events.extend(client.events);
            responses.extend(client.responses);
            slowest = slowest.max(client.slowest);
        }
        // A look-up, a place in the queue, and the record.
        assert!(slowest <= DEADLINE * 5 + SLACK, "a request took {slowest:?}");
        let violations = check(&events, Demand::Together);
        assert!(violations.is_empty(), "{} violations: {}", violations.len(), violations[0]);

        world.direct.update(&world.actor, &id, KeyPatch::enable()).await.unwrap();
        recovers!("requests", { world.request(&secret, "/after").await == 200 });
        // After this time, no more records of requests that were given up are written.
        tokio::time::sleep(DEADLINE * 3).await;
        let rows = world.db.requests(id).await;
        assert!(rows.iter().all(|((path, ..), &rows)| rows == 1 || path == "/after"), "{rows:?}");
        let mut sent = 0;
        for (path, status) in &responses {
            let Some(outcome) = outcome_of(*status) else { continue };
            sent += 1;
            let row = (path.clone(), Some(*status), outcome.to_owned());
            assert!(rows.contains_key(&row), "no record of {row:?}");
        }
        let unavailable = responses.len() - sent;
        println!(
            "{round} rounds, {sent} responses with their records; {unavailable} more were 503, \
             of which {} have a record; the slowest request took {slowest:.1?}",
            rows.len() - sent - 1,
        );
        assert!(sent > 20 && unavailable > 5, "too little happened: {sent}, {unavailable}");
    })
    .await;
}
