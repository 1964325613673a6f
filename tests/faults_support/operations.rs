//! Each fault during each operation: the outcome comes in time and is true, and service resumes.

use std::time::Duration;

use keygate::manager::IssuedKey;
use keygate::store::PostgresOptions;
use keygate::{Denial, KeyPatch, ManageError, NewKey, VerifyError};
use tokio::task::JoinSet;

use crate::postgres_support::in_schema;
use crate::proxy::{Network, PlannedFault, Side};
use crate::world::{DEADLINE, Row, SLACK, World, is_unavailable, recovers, within};

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

impl Operation {
    const ALL: [Self; 7] = [
        Self::Create,
        Self::Verify,
        Self::Revoke,
        Self::Rotate,
        Self::Delete,
        Self::List,
        Self::Request,
    ];

    /// The smallest number of packets in each direction.
    fn packets(self) -> usize {
        match self {
            Self::Verify | Self::List => 1,
            Self::Request => 2,
            // A look-up, the record and the change.
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 3,
        }
    }

    /// Each call of the store or the log has its own deadline, and a record also waits for a
    /// place in the queue.
    fn limit(self) -> Duration {
        let calls = match self {
            Self::Verify | Self::List => 1,
            Self::Request => 3,
            Self::Create | Self::Revoke | Self::Rotate | Self::Delete => 5,
        };
        DEADLINE * 2 * calls + SLACK
    }
}

enum Outcome {
    Issued(Box<IssuedKey>),
    Verified,
    Updated,
    Deleted,
    Listed(Vec<String>),
    Answered(u16),
    Unavailable,
}

async fn perform(world: &World, operation: Operation, key: &IssuedKey, path: &str) -> Outcome {
    let (keys, actor, id) = (&world.keys, &world.actor, &key.key.id);
    let issued = |issued| Outcome::Issued(Box::new(issued));
    let outcome = match operation {
        Operation::Verify => match keys.verify(key.secret.expose_secret(), None).await {
            Ok(_) => return Outcome::Verified,
            Err(VerifyError::Unavailable(_)) => return Outcome::Unavailable,
            Err(other) => panic!("a fault is no reason to refuse a key: {other:?}"),
        },
        Operation::Request => match world.request(key.secret.expose_secret(), path).await {
            503 => return Outcome::Unavailable,
            status => return Outcome::Answered(status),
        },
        Operation::Create => keys.create(actor, NewKey::named("CI").unwrap()).await.map(issued),
        Operation::Rotate => keys.rotate(actor, id).await.map(issued),
        Operation::Revoke => keys.revoke(actor, id).await.map(|_| Outcome::Updated),
        Operation::Delete => keys.delete(actor, id).await.map(|()| Outcome::Deleted),
        Operation::List => keys
            .list(actor.org())
            .await
            .map(|list| Outcome::Listed(list.iter().map(|key| key.id.to_string()).collect())),
    };
    outcome.unwrap_or_else(|error| {
        assert!(is_unavailable(&error), "{operation:?}: {error:?}");
        Outcome::Unavailable
    })
}

/// Performs the operation with the fault. Returns whether the fault occurred.
async fn assert_survives(world: &World, operation: Operation, fault: PlannedFault) -> bool {
    let case = format!("{operation:?}, {fault:?}");
    let (key, revoked) = (world.key().await, world.revoked_key().await);
    let id = key.key.id;
    let before = world.db.ids(world.actor.org()).await;
    let path = format!("/{operation:?}/{:?}/{}", fault.side, fault.packet);

    world.proxy.plan(fault);
    let performed = perform(world, operation, &key, &path);
    let outcome = within(&case, operation.limit(), performed).await;
    let occurred = world.proxy.fault_occurred();
    // During the fault, a revoked key is not accepted.
    for _ in 0..2 {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None);
        let refused = within(&case, DEADLINE * 2 + SLACK, refused).await.unwrap_err();
        assert!(is_revoked(&refused) || refused.is_unavailable(), "{case}: {refused:?}");
    }

    world.proxy.set(Network::Intact);
    recovers!(&case, {
        let refused = world.keys.verify(revoked.secret.expose_secret(), None).await.unwrap_err();
        is_revoked(&refused) && every_operation_works(world).await
    });

    // An acknowledged change was made. Another one may have been made, and then has its record.
    let row = row_of(world, &case, &key).await;
    let is_active = row.as_ref().is_some_and(|row| row.status == "active");
    let is_unavailable = matches!(outcome, Outcome::Unavailable);
    let begun = async |action| world.db.begun(id, action).await;
    match (operation, outcome) {
        (Operation::Create, Outcome::Issued(issued)) => {
            let row = world.db.key(issued.key.id).await.unwrap();
            assert_eq!((row.digest, &*row.status), (issued.key.digest, "active"), "{case}");
            world.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(world.db.begun(issued.key.id, "created").await, 1, "{case}");
        }
        (Operation::Create, _) => {
            let after = world.db.ids(world.actor.org()).await;
            let new: Vec<_> = after.iter().filter(|id| !before.contains(id)).collect();
            assert!(new.len() <= 1, "{case}: {new:?}");
            for id in new {
                assert_eq!(world.db.begun(id.parse().unwrap(), "created").await, 1, "{case}");
            }
        }
        (Operation::Revoke, _) => {
            assert!(!is_active || is_unavailable, "{case}: {row:?}");
            assert!(is_active || begun("updated").await == 1, "{case}");
        }
        (Operation::Rotate, Outcome::Issued(issued)) => {
            assert!(is_active && row.unwrap().digest == issued.key.digest, "{case}");
            world.keys.verify(issued.secret.expose_secret(), None).await.unwrap();
            assert_eq!(begun("rotated").await, 1, "{case}");
        }
        (Operation::Rotate, _) => {
            let is_rotated = row.unwrap().digest != key.key.digest;
            assert!(!is_rotated || begun("rotated").await == 1, "{case}");
        }
        (Operation::Delete, _) => {
            assert!(row.is_none() || is_unavailable, "{case}: {row:?}");
            assert!(row.is_some() || begun("deleted").await == 1, "{case}");
        }
        (Operation::List, Outcome::Listed(ids)) => assert_eq!(ids, before, "{case}"),
        (Operation::Request, outcome) => {
            let rows = world.db.requests(id).await;
            let row = (path, Some(200), "allowed".to_owned());
            let count = rows.get(&row).copied().unwrap_or_default();
            assert!(rows.len() == count && count <= 1, "{case}: at most one record: {rows:?}");
            if let Outcome::Answered(status) = outcome {
                assert_eq!((status, count), (200, 1), "{case}");
            }
        }
        _ => {}
    }
    world.delete_all_keys().await;
    occurred
}

fn is_revoked(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Denied { denial: Denial::Revoked, .. })
}

/// Whether every operation works for the organisation.
async fn every_operation_works(world: &World) -> bool {
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
        Err(ManageError::LimitReached { .. }) => panic!("failed attempts leave keys behind"),
        Err(error) => {
            assert!(is_unavailable(&error), "{error:?}");
            false
        }
    }
}

/// The key in the database. Checks that the manager agrees.
async fn row_of(world: &World, case: &str, key: &IssuedKey) -> Option<Row> {
    let mut agreed = None;
    recovers!(case, {
        let row = world.db.key(key.key.id).await;
        let verified = world.keys.verify(key.secret.expose_secret(), None).await;
        // A call that the manager gave up may still change the key in between.
        if row != world.db.key(key.key.id).await {
            return false;
        }
        let has_status = |status| {
            row.as_ref().is_some_and(|row| row.digest == key.key.digest && row.status == status)
        };
        let agrees = match &verified {
            Err(VerifyError::Unavailable(_)) => return false,
            Ok(_) => has_status("active"),
            Err(error) if is_revoked(error) => has_status("revoked"),
            Err(VerifyError::Unknown) => !has_status("active") && !has_status("revoked"),
            Err(_) => false,
        };
        assert!(agrees, "{case}: {row:?}, but {:?}", verified.map(|key| key.id()));
        agreed = row;
        true
    });
    agreed
}

/// Performs the operation with the fault at each packet in both directions.
async fn assert_operation_survives(
    options: PostgresOptions,
    operation: Operation,
    network: Network,
    lasting: bool,
) {
    let world = World::new(&options).await;
    let (mut occurred, mut cases) = (0, 0);
    for side in [Side::ToServer, Side::FromServer] {
        for packet in 1..=operation.packets() {
            let fault = PlannedFault { side, packet, network, lasting };
            occurred += usize::from(assert_survives(&world, operation, fault).await);
            cases += 1;
        }
    }
    println!(
        "{operation:?}, {network:?}, lasting {lasting}: {occurred} of {cases} faults occurred"
    );
    // A statement is prepared only once, so later operations send fewer packets.
    assert!(occurred * 3 >= cases * 2, "{operation:?}, {network:?}: {occurred} of {cases}");
}

/// Faults of one connection, and faults of the whole network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_32_each_operation_survives_each_fault() {
    in_schema(|options| async move {
        // Creates the tables.
        drop(options.clone().connect().await.unwrap());
        let mut runs = JoinSet::new();
        for (network, lasting) in [
            (Network::Closed, true),
            (Network::Closed, false),
            (Network::Silent, true),
            (Network::Silent, false),
            (Network::BlackHole, true),
            (Network::Reset, true),
            (Network::Reset, false),
            (Network::HalfClosed, true),
            (Network::HalfClosed, false),
            (Network::Truncated(3), false),
            (Network::Truncated(7), true),
            (Network::Incomplete(11), false),
            // Within the deadline, and beyond it.
            (Network::Slow(Duration::from_millis(60)), true),
            (Network::Slow(Duration::from_millis(700)), true),
            (Network::Limited(2_000), true),
        ] {
            for operation in Operation::ALL {
                let options = options.clone();
                runs.spawn(assert_operation_survives(options, operation, network, lasting));
            }
        }
        runs.join_all().await;
    })
    .await;
}

/// The server does not notice that the first process was cut off, whose session has locked the
/// organisation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn case_32_a_process_that_is_cut_off_during_a_create_does_not_keep_others_from_creating() {
    in_schema(|options| async move {
        let world = World::new(&options).await;
        for packet in 1..=Operation::Create.packets() {
            let key = world.key().await;
            let (side, network) = (Side::ToServer, Network::BlackHole);
            world.proxy.plan(PlannedFault { side, packet, network, lasting: true });
            let _ = perform(&world, Operation::Create, &key, "").await;
            let case = format!("a create by another process after packet {packet}");
            within(&case, DEADLINE * 4 + SLACK * 2, world.key()).await;
            world.proxy.set(Network::Intact);
            recovers!(&case, { every_operation_works(&world).await });
            world.delete_all_keys().await;
        }
    })
    .await;
}
