//! Every fault during every operation: the outcome arrives in time, agrees with the database,
//! and service recovers.

use std::time::Duration;

use keygate::store::PostgresOptions;
use keygate::{
    Denial, IssuedKey, KeyDigest, KeyPatch, ManageError, NewKey, VerifiedKey, VerifyError,
};

use crate::postgres_support::in_schema;
use crate::proxy::{Network, PlannedFault, Side};
use crate::setup::{DEADLINE, SLACK, Setup, is_unavailable, recovers, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Verify,
    Revoke,
    Rotate,
    Delete,
    List,
    /// A request with its record, with strict delivery.
    Request,
}

const OPERATIONS: [Operation; 7] = [
    Operation::Create,
    Operation::Verify,
    Operation::Revoke,
    Operation::Rotate,
    Operation::Delete,
    Operation::List,
    Operation::Request,
];

impl Operation {
    /// The minimum number of packets in each direction.
    fn packets(self) -> usize {
        match self {
            Self::Verify | Self::List => 1,
            // Its look-up, its record, and the change.
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 3,
            Self::Request => 2,
        }
    }

    /// Each call has its own deadline, and a record first waits for room.
    fn limit(self) -> Duration {
        let calls = match self {
            Self::Verify | Self::List => 1,
            Self::Request => 3,
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 5,
        };
        DEADLINE * 2 * calls + SLACK
    }
}

/// The outcome of an operation.
enum Outcome {
    Created(Box<IssuedKey>),
    Verified,
    Revoked,
    Rotated(Box<IssuedKey>),
    Deleted,
    Listed(Vec<String>),
    Answered(u16),
    Unavailable,
}

async fn perform(setup: &Setup, operation: Operation, key: &IssuedKey, path: &str) -> Outcome {
    let (keys, actor, id) = (&setup.keys, &setup.actor, &key.key.id);
    let managed = match operation {
        Operation::Create => {
            let new = NewKey::named("made during a fault").unwrap();
            keys.create(actor, new).await.map(|issued| Outcome::Created(Box::new(issued)))
        }
        Operation::Verify => {
            return match keys.verify(key.secret.expose_secret(), None).await {
                Ok(_) => Outcome::Verified,
                Err(VerifyError::Unavailable(_)) => Outcome::Unavailable,
                // A network failure says nothing about the key.
                Err(other) => panic!("{other:?}"),
            };
        }
        Operation::Revoke => {
            keys.update(actor, id, KeyPatch::revoke()).await.map(|_| Outcome::Revoked)
        }
        Operation::Rotate => {
            keys.rotate(actor, id).await.map(|issued| Outcome::Rotated(Box::new(issued)))
        }
        Operation::Delete => keys.delete(actor, id).await.map(|()| Outcome::Deleted),
        Operation::List => keys
            .list(actor.org())
            .await
            .map(|list| Outcome::Listed(list.iter().map(|key| key.id.to_string()).collect())),
        Operation::Request => {
            return match setup.request(key.secret.expose_secret(), path).await {
                503 => Outcome::Unavailable,
                status => Outcome::Answered(status),
            };
        }
    };
    match managed {
        Ok(outcome) => outcome,
        Err(ManageError::Unavailable(_) | ManageError::InDoubt(_)) => Outcome::Unavailable,
        Err(other) => panic!("{operation:?}: {other:?}"),
    }
}

/// One operation with one fault during it.
async fn one(setup: &Setup, operation: Operation, fault: PlannedFault) -> bool {
    let case = format!("{operation:?}, {fault:?}");
    let key = setup.key().await;
    let revoked = setup.key().await;
    setup.direct.update(&setup.actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    let (id, old) = (key.key.id, key.key.digest);
    let before = setup.db.ids(setup.actor.org()).await;
    let path = format!("/{operation:?}/{:?}/{}", fault.side, fault.packet);

    setup.proxy.plan(fault);
    let outcome = within(&case, operation.limit(), perform(setup, operation, &key, &path)).await;
    let occurred = setup.proxy.fault_occurred();
    // While the fault lasts, a key that the database refuses is not admitted.
    for _ in 0..2 {
        let refused = setup.keys.verify(revoked.secret.expose_secret(), None);
        let refused = within(&case, DEADLINE * 2 + SLACK, refused).await.unwrap_err();
        assert!(is_revoked(&refused) || refused.is_unavailable(), "{case}: {refused:?}");
    }

    setup.proxy.set(Network::Intact);
    recovers!(&case, {
        let refused = setup.keys.verify(revoked.secret.expose_secret(), None).await.unwrap_err();
        is_revoked(&refused) && works(setup).await
    });

    // An acknowledged change is stored. Any other change may be stored, but then it has a
    // record.
    let row = agreed(setup, &case, &key).await;
    let begun = async |action| setup.db.begun(id, action).await;
    match (operation, outcome) {
        (Operation::Create, Outcome::Created(issued)) => {
            let row = setup.db.key(issued.key.id).await.unwrap();
            assert_eq!((row.digest, &*row.status), (issued.key.digest, "active"), "{case}");
            setup.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(setup.db.begun(issued.key.id, "created").await, 1, "{case}");
        }
        (Operation::Create, Outcome::Unavailable) => {
            let after = setup.db.ids(setup.actor.org()).await;
            let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
            assert!(new.len() <= 1, "{case}: {new:?}");
            for id in new {
                assert_eq!(setup.db.begun(id.parse().unwrap(), "created").await, 1, "{case}");
            }
        }
        (Operation::Revoke, outcome) => {
            let is = row.as_ref().is_some_and(|row| row.0 == "revoked");
            assert!(is || matches!(outcome, Outcome::Unavailable), "{case}: {row:?}");
            assert!(!is || begun("updated").await == 1, "{case}");
        }
        (Operation::Rotate, Outcome::Rotated(issued)) => {
            assert_eq!(row, Some(("active".to_owned(), issued.key.digest)), "{case}");
            setup.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(begun("rotated").await, 1, "{case}");
        }
        (Operation::Rotate, _) => {
            let (_, digest) = row.unwrap();
            assert!(digest == old || begun("rotated").await == 1, "{case}");
        }
        (Operation::Delete, outcome) => {
            assert!(row.is_none() || matches!(outcome, Outcome::Unavailable), "{case}: {row:?}");
            assert!(row.is_some() || begun("deleted").await == 1, "{case}");
        }
        (Operation::List, Outcome::Listed(ids)) => assert_eq!(ids, before, "{case}"),
        (Operation::Request, outcome) => {
            let rows = setup.db.requests(id).await;
            let row = (path, Some(200), "allowed".to_owned());
            let count = rows.get(&row).copied().unwrap_or_default();
            assert_eq!(rows.len(), count, "{case}: one path, once: {rows:?}");
            match outcome {
                Outcome::Answered(status) => assert_eq!((status, count), (200, 1), "{case}"),
                // The record may have become durable after the caller gave up.
                _ => assert!(count <= 1, "{case}"),
            }
        }
        _ => {}
    }
    // Make room for the next creation.
    for id in setup.db.ids(setup.actor.org()).await {
        setup.direct.delete(&setup.actor, &id.parse().unwrap()).await.unwrap();
    }
    occurred
}

fn is_revoked(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Denied { denial: Denial::Revoked, .. })
}

/// Whether every operation works in that organisation.
async fn works(setup: &Setup) -> bool {
    let (keys, actor) = (&setup.keys, &setup.actor);
    let done = async {
        let made = keys.create(actor, NewKey::named("after").unwrap()).await?;
        let status = setup.request(made.secret.expose_secret(), "/after").await;
        keys.update(actor, &made.key.id, KeyPatch::revoke()).await?;
        keys.rotate(actor, &made.key.id).await?;
        keys.list(actor.org()).await?;
        keys.delete(actor, &made.key.id).await?;
        Ok::<_, ManageError>(status)
    };
    match done.await {
        Ok(status) => status == 200,
        // Keys left by failed attempts would fill the organisation.
        Err(ManageError::LimitReached { .. }) => panic!("attempts that fail leave keys behind"),
        Err(error) => {
            assert!(is_unavailable(&error), "{error:?}");
            false
        }
    }
}

/// Checks that the manager reports the same key as the database.
async fn agreed(setup: &Setup, case: &str, key: &IssuedKey) -> Option<(String, KeyDigest)> {
    let mut agreed = None;
    recovers!(case, {
        let row = setup.db.key(key.key.id).await;
        let verified = setup.keys.verify(key.secret.expose_secret(), None).await;
        // A cancelled change may have been made in between.
        if row != setup.db.key(key.key.id).await {
            return false;
        }
        let same = key.key.digest;
        let right = match (&row, &verified) {
            (_, Err(VerifyError::Unavailable(_))) => return false,
            (Some(row), Ok(_)) => row.digest == same && row.status == "active",
            (Some(row), Err(error)) if is_revoked(error) => {
                row.digest == same && row.status == "revoked"
            }
            (Some(row), Err(VerifyError::Unknown)) => row.digest != same,
            (None, Err(VerifyError::Unknown)) => true,
            _ => false,
        };
        assert!(right, "{case}: {row:?}, and {:?}", verified.map(|key: VerifiedKey| key.id()));
        agreed = row.map(|row| (row.status, row.digest));
        true
    });
    agreed
}

/// Injects the fault at every packet of every operation, in both directions.
async fn everywhere(network: Network, lasting: bool) {
    in_schema(move |options: PostgresOptions| async move {
        // Prepare the tables for the operations below.
        drop(options.clone().connect().await.unwrap());
        let works = OPERATIONS.map(|operation| {
            let options = options.clone();
            tokio::spawn(async move {
                let setup = Setup::new(&options).await;
                let (mut occurred, mut cases) = (0, 0);
                for side in [Side::ToServer, Side::FromServer] {
                    for packet in 1..=operation.packets() {
                        let fault = PlannedFault { side, packet, network, lasting };
                        occurred += usize::from(one(&setup, operation, fault).await);
                        cases += 1;
                    }
                }
                // A statement is prepared only once, so some faults do not occur.
                assert!(occurred * 3 >= cases * 2, "{operation:?}: {occurred} of {cases} occurred");
                occurred
            })
        });
        let mut occurred = 0;
        for work in works {
            occurred += work.await.unwrap();
        }
        println!("{network:?}, lasting {lasting}: {occurred} faults occurred");
    })
    .await;
}

macro_rules! faults {
    ($($name:ident: $network:expr, $lasting:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs PostgreSQL"]
            async fn $name() {
                everywhere($network, $lasting).await;
            }
        )*
    };
}

faults! {
    case_32_a_server_that_disappears_during_each_operation: Network::Closed, true;
    case_32_a_connection_closed_during_each_operation: Network::Closed, false;
    case_32_a_network_that_goes_silent_during_each_operation: Network::Silent, true;
    case_32_a_black_hole_during_each_operation: Network::BlackHole, true;
    case_32_a_connection_that_goes_silent_during_each_operation: Network::Silent, false;
    case_32_resets_during_each_operation: Network::Reset, true;
    case_32_a_connection_reset_during_each_operation: Network::Reset, false;
    case_32_a_half_closed_connection_during_each_operation: Network::HalfClosed, false;
    case_32_half_closed_connections_during_each_operation: Network::HalfClosed, true;
    case_32_a_truncated_packet_during_each_operation: Network::Truncated(3), false;
    case_32_truncation_of_all_packets_during_each_operation: Network::Truncated(7), true;
    case_32_an_incomplete_packet_during_each_operation: Network::Incomplete(11), false;
    case_32_a_latency_within_the_deadline_during_each_operation: Network::Slow(Duration::from_millis(60)), true;
    case_32_a_latency_beyond_the_deadline_during_each_operation: Network::Slow(Duration::from_millis(700)), true;
    case_32_a_low_bandwidth_during_each_operation: Network::Limited(2_000), true;
}

/// A process that is cut off has locked the organisation, and its server session does not
/// notice. Other processes must not wait for that session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_32_a_process_cut_off_during_a_creation_does_not_block_creations_of_others() {
    in_schema(|options| async move {
        let setup = Setup::new(&options).await;
        for packet in 1..=Operation::Create.packets() {
            let key = setup.key().await;
            let fault = PlannedFault {
                side: Side::ToServer,
                packet,
                network: Network::BlackHole,
                lasting: true,
            };
            setup.proxy.plan(fault);
            let _ = perform(&setup, Operation::Create, &key, "").await;
            let others = setup.direct.create(&setup.actor, NewKey::named("elsewhere").unwrap());
            let limit = DEADLINE * 4 + SLACK * 2;
            let created = tokio::time::timeout(limit, others).await;
            assert!(matches!(created, Ok(Ok(_))), "packet {packet}: {created:?}");
            setup.proxy.set(Network::Intact);
            recovers!("after the cut", { works(&setup).await });
            for id in setup.db.ids(setup.actor.org()).await {
                setup.direct.delete(&setup.actor, &id.parse().unwrap()).await.unwrap();
            }
        }
    })
    .await;
}
