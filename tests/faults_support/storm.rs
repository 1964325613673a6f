//! Faults of all kinds, one after the other, while keys are used here and changed elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use keygate::manager::{Admission, AdmitError, RequestInfo};
use keygate::{ApiKey, KeyManager, KeyPatch, Status, VerifyError};

use crate::checker::{Demand, check};
use crate::event::{Deed, Event, Patch, Span, State, Version};
use crate::postgres_support::in_schema;
use crate::proxy::{Network, Side};
use crate::world::{DEADLINE, Db, SLACK, World, ip, recovers};

const STORM: Duration = Duration::from_secs(12);
const CLIENTS: usize = 8;

const WEATHER: [Network; 9] = [
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
    let state =
        State { secret: 1, previous: None, revoked, home_only: false, reads: true, name: 0 };
    Version { revision: key.revision.get(), state }
}

/// What one client was answered.
#[derive(Default)]
struct Client {
    events: Vec<Event>,
    /// Path and status of each answer.
    answers: Vec<(String, u16)>,
    slowest: Duration,
}

/// What stands in the record of such an answer; none is owed where it was 503.
fn outcome_of(status: u16) -> Option<&'static str> {
    match status {
        200 => Some("allowed"),
        401 => Some("revoked"),
        503 => None,
        other => panic!("an answer with {other}"),
    }
}

/// Requests, one after the other, as long as the storm goes on.
async fn requests(
    keys: KeyManager,
    db: Arc<Db>,
    secret: Arc<str>,
    number: usize,
    epoch: Instant,
    over: Arc<AtomicBool>,
) -> Client {
    let mut client = Client::default();
    let nanos = || u64::try_from(epoch.elapsed().as_nanos()).unwrap();
    while !over.load(Ordering::Relaxed) {
        let path = format!("/{number}/{}", client.answers.len());
        let info = RequestInfo::new("GET", path.as_str()).from_ip(Some(ip()));
        let begun = Instant::now();
        let call = nanos();
        let admitted: Result<Admission, AdmitError> = keys.admit(&secret, info).await;
        let span = Span { call, back: nanos() };
        let deed = match &admitted {
            Ok(admission) => Some(Deed::Accepted {
                secret: 1,
                home: true,
                seen: version(admission.key().record()),
            }),
            Err(AdmitError::Refused(VerifyError::Denied { denial, key, .. })) => {
                Some(Deed::Denied { secret: 1, home: true, seen: version(key), denial: *denial })
            }
            Err(AdmitError::Refused(VerifyError::Unavailable(_)) | AdmitError::NotRecorded(_)) => {
                None
            }
            Err(other) => panic!("a storm says nothing of a key: {other:?}"),
        };
        client.events.extend(deed.map(|deed| Event { span, deed }));
        let status = match admitted {
            Ok(admission) => match admission.finish(200).await {
                Ok(()) => 200,
                Err(_) => 503,
            },
            Err(error) => error.http_status(),
        };
        client.slowest = client.slowest.max(begun.elapsed());
        // Durable before the answer leaves.
        if let Some(outcome) = outcome_of(status) {
            assert!(
                db.has_request(&path, status, outcome).await,
                "{path}: {status} is not on record"
            );
        }
        client.answers.push((path, status));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_35_in_a_storm_nobody_is_admitted_but_by_the_database_and_every_answer_is_on_record() {
    in_schema(|options| async move {
        let world = World::new(&options).await;
        let issued = world.key().await;
        let (id, secret) = (issued.key.id, Arc::<str>::from(issued.secret.expose_secret()));
        let (epoch, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let nanos = || u64::try_from(epoch.elapsed().as_nanos()).unwrap();
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (keys, secret, over) = (world.keys.clone(), secret.clone(), over.clone());
                tokio::spawn(requests(keys, world.db.clone(), secret, number, epoch, over))
            })
            .collect();
        let created = Deed::Created(version(&issued.key));
        let mut events = vec![Event { span: Span { call: 0, back: 0 }, deed: created }];
        let mut round = 0;
        while epoch.elapsed() < STORM {
            // What others change, they change over a network of their own.
            let revoked = round % 2 == 0;
            let asked = if revoked { KeyPatch::revoke() } else { KeyPatch::enable() };
            let call = nanos();
            let updated = world.sure.update(&world.actor, &id, asked).await.unwrap();
            let patch = Patch { revoked: Some(revoked), ..Patch::default() };
            let deed = Deed::Updated(patch, version(&updated));
            events.push(Event { span: Span { call, back: nanos() }, deed });
            let mut byte = [0; 2];
            getrandom::fill(&mut byte).unwrap();
            // Now and then something gets through; a key that is revoked is so in the
            // midst of a fault, and one that is active sees both.
            let fault = WEATHER[usize::from(byte[0]) % WEATHER.len()];
            let weather = if matches!(round % 4, 0 | 3) { fault } else { Network::Intact };
            match byte[1] % 3 {
                0 => world.proxy.set_on(Side::ToServer, weather),
                1 => world.proxy.set_on(Side::FromServer, weather),
                _ => world.proxy.set(weather),
            }
            tokio::time::sleep(Duration::from_millis(60 + 3 * u64::from(byte[1]))).await;
            round += 1;
        }
        world.proxy.set(Network::Intact);
        over.store(true, Ordering::Relaxed);
        let (mut answers, mut slowest) = (Vec::new(), Duration::ZERO);
        for client in clients {
            let client = client.await.unwrap();
            events.extend(client.events);
            answers.extend(client.answers);
            slowest = slowest.max(client.slowest);
        }
        // Look-up, room in the queue, and record.
        assert!(slowest <= DEADLINE * 5 + SLACK, "a request took {slowest:?}");
        let violations = check(&events, None, Demand::Together);
        assert!(violations.is_empty(), "{} violations: {}", violations.len(), violations[0]);

        world.sure.update(&world.actor, &id, KeyPatch::enable()).await.unwrap();
        recovers!("the storm is over", { world.request(&secret, "/after").await == 200 });
        // What gave up waiting is written by now, or never.
        tokio::time::sleep(DEADLINE * 3).await;
        let rows = world.db.requests(id).await;
        assert!(rows.iter().all(|((path, ..), &rows)| rows == 1 || path == "/after"), "{rows:?}");
        let (mut sent, mut on_record) = (0, 0);
        for (path, status) in &answers {
            let Some(outcome) = outcome_of(*status) else { continue };
            sent += 1;
            let row = (path.clone(), Some(*status), outcome.to_owned());
            assert!(rows.contains_key(&row), "{row:?} was sent and is not on record");
            on_record += rows[&row];
        }
        assert_eq!(sent, on_record);
        let refused = answers.len() - sent;
        println!(
            "{round} changes of key and weather, {sent} answers, each with its record; \
             {refused} were 503, of which {} have one; the slowest request took {slowest:.1?}",
            rows.len() - sent - 1,
        );
        assert!(sent > 20 && refused > 5, "no storm, or nothing else: {sent}, {refused}");
    })
    .await;
}
