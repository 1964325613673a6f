//! Every fault during every operation: the outcome arrives in time, agrees with the database,
//! and service recovers.

use std::time::Duration;

use keygate::store::PostgresOptions;
use keygate::{
    Denial, IssuedKey, KeyDigest, KeyPatch, ManageError, NewKey, VerifiedKey, VerifyError,
};

use crate::postgres_support::in_schema;
use crate::proxy::{Network, Side, Strike};
use crate::world::{DEADLINE, SLACK, World, is_unavailable, recovers, within};

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
    fn pieces(self) -> usize {
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
enum Said {
    Created(Box<IssuedKey>),
    Verified,
    Revoked,
    Rotated(Box<IssuedKey>),
    Deleted,
    Listed(Vec<String>),
    Answered(u16),
    Unavailable,
}

async fn perform(world: &World, operation: Operation, key: &IssuedKey, path: &str) -> Said {
    let (keys, actor, id) = (&world.keys, &world.actor, &key.key.id);
    let managed = match operation {
        Operation::Create => {
            let new = NewKey::named("made in a storm").unwrap();
            keys.create(actor, new).await.map(|issued| Said::Created(Box::new(issued)))
        }
        Operation::Verify => {
            return match keys.verify(key.secret.expose_secret(), None).await {
                Ok(_) => Said::Verified,
                Err(VerifyError::Unavailable(_)) => Said::Unavailable,
                // A network failure says nothing about the key.
                Err(other) => panic!("{other:?}"),
            };
        }
        Operation::Revoke => {
            keys.update(actor, id, KeyPatch::revoke()).await.map(|_| Said::Revoked)
        }
        Operation::Rotate => {
            keys.rotate(actor, id).await.map(|issued| Said::Rotated(Box::new(issued)))
        }
        Operation::Delete => keys.delete(actor, id).await.map(|()| Said::Deleted),
        Operation::List => keys
            .list(actor.org())
            .await
            .map(|list| Said::Listed(list.iter().map(|key| key.id.to_string()).collect())),
        Operation::Request => {
            return match world.request(key.secret.expose_secret(), path).await {
                503 => Said::Unavailable,
                status => Said::Answered(status),
            };
        }
    };
    match managed {
        Ok(said) => said,
        Err(ManageError::Unavailable(_) | ManageError::InDoubt(_)) => Said::Unavailable,
        Err(other) => panic!("{operation:?}: {other:?}"),
    }
}

/// One operation with one fault during it.
async fn one(world: &World, operation: Operation, strike: Strike) -> bool {
    let case = format!("{operation:?}, {strike:?}");
    let key = world.key().await;
    let revoked = world.key().await;
    world.sure.update(&world.actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    let (id, old) = (key.key.id, key.key.digest);
    let before = world.db.ids(world.actor.org()).await;
    let path = format!("/{operation:?}/{:?}/{}", strike.side, strike.piece);

    world.proxy.strike(strike);
    let said = within(&case, operation.limit(), perform(world, operation, &key, &path)).await;
    let struck = world.proxy.has_struck();
    // While the fault lasts, a key that the database refuses is not admitted.
    for _ in 0..2 {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None);
        let refused = within(&case, DEADLINE * 2 + SLACK, refused).await.unwrap_err();
        assert!(is_revoked(&refused) || refused.is_unavailable(), "{case}: {refused:?}");
    }

    world.proxy.set(Network::Whole);
    recovers!(&case, {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None).await.unwrap_err();
        is_revoked(&refused) && works(world).await
    });

    // An acknowledged change is stored. Any other change may be stored, but then it has a
    // record.
    let row = agreed(world, &case, &key).await;
    let begun = async |action| world.db.begun(id, action).await;
    match (operation, said) {
        (Operation::Create, Said::Created(issued)) => {
            let row = world.db.key(issued.key.id).await.unwrap();
            assert_eq!((row.digest, &*row.status), (issued.key.digest, "active"), "{case}");
            world.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(world.db.begun(issued.key.id, "created").await, 1, "{case}");
        }
        (Operation::Create, Said::Unavailable) => {
            let after = world.db.ids(world.actor.org()).await;
            let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
            assert!(new.len() <= 1, "{case}: {new:?}");
            for id in new {
                assert_eq!(world.db.begun(id.parse().unwrap(), "created").await, 1, "{case}");
            }
        }
        (Operation::Revoke, said) => {
            let is = row.as_ref().is_some_and(|row| row.0 == "revoked");
            assert!(is || matches!(said, Said::Unavailable), "{case}: {row:?}");
            assert!(!is || begun("updated").await == 1, "{case}");
        }
        (Operation::Rotate, Said::Rotated(issued)) => {
            assert_eq!(row, Some(("active".to_owned(), issued.key.digest)), "{case}");
            world.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(begun("rotated").await, 1, "{case}");
        }
        (Operation::Rotate, _) => {
            let (_, digest) = row.unwrap();
            assert!(digest == old || begun("rotated").await == 1, "{case}");
        }
        (Operation::Delete, said) => {
            assert!(row.is_none() || matches!(said, Said::Unavailable), "{case}: {row:?}");
            assert!(row.is_some() || begun("deleted").await == 1, "{case}");
        }
        (Operation::List, Said::Listed(ids)) => assert_eq!(ids, before, "{case}"),
        (Operation::Request, said) => {
            let rows = world.db.requests(id).await;
            let row = (path, Some(200), "allowed".to_owned());
            let count = rows.get(&row).copied().unwrap_or_default();
            assert_eq!(rows.len(), count, "{case}: one path, once: {rows:?}");
            match said {
                Said::Answered(status) => assert_eq!((status, count), (200, 1), "{case}"),
                // The record may have become durable after the caller gave up.
                _ => assert!(count <= 1, "{case}"),
            }
        }
        _ => {}
    }
    // Make room for the next creation.
    for id in world.db.ids(world.actor.org()).await {
        world.sure.delete(&world.actor, &id.parse().unwrap()).await.unwrap();
    }
    struck
}

fn is_revoked(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Denied { denial: Denial::Revoked, .. })
}

/// Whether every operation works in that organisation.
async fn works(world: &World) -> bool {
    let (keys, actor) = (&world.keys, &world.actor);
    let done = async {
        let made = keys.create(actor, NewKey::named("after").unwrap()).await?;
        let status = world.request(made.secret.expose_secret(), "/after").await;
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
async fn agreed(world: &World, case: &str, key: &IssuedKey) -> Option<(String, KeyDigest)> {
    let mut agreed = None;
    recovers!(case, {
        let row = world.db.key(key.key.id).await;
        let verified = world.keys.verify(key.secret.expose_secret(), None).await;
        // A cancelled change may have been made in between.
        if row != world.db.key(key.key.id).await {
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
                let world = World::new(&options).await;
                let (mut struck, mut cases) = (0, 0);
                for side in [Side::There, Side::Back] {
                    for piece in 1..=operation.pieces() {
                        let strike = Strike { side, piece, network, lasting };
                        struck += usize::from(one(&world, operation, strike).await);
                        cases += 1;
                    }
                }
                // A statement is prepared only once, so some faults do not occur.
                assert!(struck * 3 >= cases * 2, "{operation:?}: {struck} of {cases} struck");
                struck
            })
        });
        let mut struck = 0;
        for work in works {
            struck += work.await.unwrap();
        }
        println!("{network:?}, lasting {lasting}: {struck} operations were struck");
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
    case_32_an_incomplete_packet_during_each_operation: Network::Torn(11), false;
    case_32_a_latency_within_the_deadline_during_each_operation: Network::Slow(Duration::from_millis(60)), true;
    case_32_a_latency_beyond_the_deadline_during_each_operation: Network::Slow(Duration::from_millis(700)), true;
    case_32_a_low_bandwidth_during_each_operation: Network::Narrow(2_000), true;
}

/// A process that is cut off has locked the organisation, and its server session does not
/// notice. Other processes must not wait for that session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_32_a_process_cut_off_during_a_creation_does_not_block_creations_of_others() {
    in_schema(|options| async move {
        let world = World::new(&options).await;
        for piece in 1..=Operation::Create.pieces() {
            let key = world.key().await;
            let strike =
                Strike { side: Side::There, piece, network: Network::BlackHole, lasting: true };
            world.proxy.strike(strike);
            let _ = perform(&world, Operation::Create, &key, "").await;
            let others = world.sure.create(&world.actor, NewKey::named("elsewhere").unwrap());
            let limit = DEADLINE * 4 + SLACK * 2;
            let created = tokio::time::timeout(limit, others).await;
            assert!(matches!(created, Ok(Ok(_))), "piece {piece}: {created:?}");
            world.proxy.set(Network::Whole);
            recovers!("after the cut", { works(&world).await });
            for id in world.db.ids(world.actor.org()).await {
                world.sure.delete(&world.actor, &id.parse().unwrap()).await.unwrap();
            }
        }
    })
    .await;
}
