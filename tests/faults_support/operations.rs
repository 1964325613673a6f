//! Each fault in the midst of each operation: the outcome in time, the truth afterwards, and recovery.

use std::time::Duration;

use keygate::manager::IssuedKey;
use keygate::store::{KeyDigest, PostgresOptions};
use keygate::{Denial, KeyPatch, ManageError, NewKey, VerifiedKey, VerifyError};

use crate::postgres_support::in_schema;
use crate::proxy::{Network, PlannedFault, Side};
use crate::world::{DEADLINE, SLACK, World, is_unavailable, recovers, within};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Verify,
    Revoke,
    Rotate,
    Delete,
    List,
    /// A request with its record, in strict delivery.
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
    /// How many pieces go each way, at the least.
    fn pieces(self) -> usize {
        match self {
            Self::Verify | Self::List => 1,
            // What it looks for, its record, and the change.
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 3,
            Self::Request => 2,
        }
    }

    /// Each of its calls has a deadline of its own; a record waits for room first.
    fn limit(self) -> Duration {
        let calls = match self {
            Self::Verify | Self::List => 1,
            Self::Request => 3,
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 5,
        };
        DEADLINE * 2 * calls + SLACK
    }
}

/// What an operation said.
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
                // A network that fails says nothing of a key.
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

/// One operation, and a fault in the midst of it.
async fn one(world: &World, operation: Operation, strike: PlannedFault) -> bool {
    let case = format!("{operation:?}, {strike:?}");
    let key = world.key().await;
    let revoked = world.key().await;
    world.sure.update(&world.actor, &revoked.key.id, KeyPatch::revoke()).await.unwrap();
    let (id, old) = (key.key.id, key.key.digest);
    let before = world.db.ids(world.actor.org()).await;
    let path = format!("/{operation:?}/{:?}/{}", strike.side, strike.packet);

    world.proxy.plan(strike);
    let said = within(&case, operation.limit(), perform(world, operation, &key, &path)).await;
    let struck = world.proxy.fault_occurred();
    // While it lasts, nobody is let in whom the database refuses.
    for _ in 0..2 {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None);
        let refused = within(&case, DEADLINE * 2 + SLACK, refused).await.unwrap_err();
        assert!(is_revoked(&refused) || refused.is_unavailable(), "{case}: {refused:?}");
    }

    world.proxy.set(Network::Intact);
    recovers!(&case, {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None).await.unwrap_err();
        is_revoked(&refused) && works(world).await
    });

    // What was acknowledged is there. What was not may be; but then with its record.
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
                // Its record may have become durable, later than it was waited for.
                _ => assert!(count <= 1, "{case}"),
            }
        }
        _ => {}
    }
    // So that there is room.
    for id in world.db.ids(world.actor.org()).await {
        world.sure.delete(&world.actor, &id.parse().unwrap()).await.unwrap();
    }
    struck
}

fn is_revoked(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Denied { denial: Denial::Revoked, .. })
}

/// Whether every operation does, in that organisation.
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
        // What was left by an attempt that failed half-way fills the organisation.
        Err(ManageError::LimitReached { .. }) => panic!("attempts that fail leave keys behind"),
        Err(error) => {
            assert!(is_unavailable(&error), "{error:?}");
            false
        }
    }
}

/// What the database says of the key; the manager says the same.
async fn agreed(world: &World, case: &str, key: &IssuedKey) -> Option<(String, KeyDigest)> {
    let mut agreed = None;
    recovers!(case, {
        let row = world.db.key(key.key.id).await;
        let verified = world.keys.verify(key.secret.expose_secret(), None).await;
        // What was given up on may still have been done in between.
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

/// The fault in the midst of every operation, with every piece in both directions.
async fn everywhere(network: Network, lasting: bool) {
    in_schema(move |options: PostgresOptions| async move {
        // So that those below find the tables there.
        drop(options.clone().connect().await.unwrap());
        let works = OPERATIONS.map(|operation| {
            let options = options.clone();
            tokio::spawn(async move {
                let world = World::new(&options).await;
                let (mut struck, mut cases) = (0, 0);
                for side in [Side::ToServer, Side::FromServer] {
                    for piece in 1..=operation.pieces() {
                        let strike = PlannedFault { side, packet: piece, network, lasting };
                        struck += usize::from(one(&world, operation, strike).await);
                        cases += 1;
                    }
                }
                // A statement is prepared but once, so that some come to nothing.
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
    case_32_a_server_that_is_gone_in_the_midst_of_each_operation: Network::Closed, true;
    case_32_a_connection_that_is_closed_in_the_midst_of_each_operation: Network::Closed, false;
    case_32_a_network_that_goes_silent_in_the_midst_of_each_operation: Network::Silent, true;
    case_32_a_black_hole_in_the_midst_of_each_operation: Network::BlackHole, true;
    case_32_a_connection_in_a_black_hole_in_the_midst_of_each_operation: Network::Silent, false;
    case_32_resets_in_the_midst_of_each_operation: Network::Reset, true;
    case_32_a_connection_that_is_reset_in_the_midst_of_each_operation: Network::Reset, false;
    case_32_a_half_closed_connection_in_the_midst_of_each_operation: Network::HalfClosed, false;
    case_32_half_closed_connections_in_the_midst_of_each_operation: Network::HalfClosed, true;
    case_32_truncated_packets_in_the_midst_of_each_operation: Network::Truncated(3), false;
    case_32_packets_that_are_all_truncated_in_the_midst_of_each_operation: Network::Truncated(7), true;
    case_32_packets_of_which_the_rest_never_comes_in_the_midst_of_each_operation: Network::Incomplete(11), false;
    case_32_a_latency_within_the_deadline_in_each_operation: Network::Slow(Duration::from_millis(60)), true;
    case_32_a_latency_beyond_the_deadline_in_each_operation: Network::Slow(Duration::from_millis(700)), true;
    case_32_a_narrow_network_in_each_operation: Network::Limited(2_000), true;
}

/// A process that is cut off has locked the organisation; its server session does
/// not learn of it. Other processes do not have to wait until it does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_32_a_process_that_is_cut_off_in_mid_create_does_not_keep_others_from_creating() {
    in_schema(|options| async move {
        let world = World::new(&options).await;
        for piece in 1..=Operation::Create.pieces() {
            let key = world.key().await;
            let strike = PlannedFault {
                side: Side::ToServer,
                packet: piece,
                network: Network::BlackHole,
                lasting: true,
            };
            world.proxy.plan(strike);
            let _ = perform(&world, Operation::Create, &key, "").await;
            let others = world.sure.create(&world.actor, NewKey::named("elsewhere").unwrap());
            let limit = DEADLINE * 4 + SLACK * 2;
            let created = tokio::time::timeout(limit, others).await;
            assert!(matches!(created, Ok(Ok(_))), "piece {piece}: {created:?}");
            world.proxy.set(Network::Intact);
            recovers!("after the cut", { works(&world).await });
            for id in world.db.ids(world.actor.org()).await {
                world.sure.delete(&world.actor, &id.parse().unwrap()).await.unwrap();
            }
        }
    })
    .await;
}
