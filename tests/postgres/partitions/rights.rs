//! Partitions are made and dropped by roles that do not own the log.

use keygate::{AuditError, AuditLog, AuditSink};

use crate::partitions::{
    HOUR, WEEK, YEAR, hourly, hours_ago, left_over, now, older, read, record_hours, request,
};
use crate::postgres_support::{Role, Schema};

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_role_that_does_not_own_the_tables_makes_and_drops_partitions_if_it_may_write_and_delete()
{
    let (schema, role) = (Schema::new(), Role::new().await);
    let (owner, db) = hourly(&schema).await;
    record_hours(&owner, 5).await;
    let run = async |sql: &str| {
        let sql = sql.replace("{schema}", &schema.name).replace("{role}", &role.name);
        db.batch_execute(&sql).await.unwrap();
    };
    run("GRANT USAGE ON SCHEMA {schema} TO {role}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}")
    .await;
    let options = schema.options_at(&role.url()).partition_width(HOUR);
    let store = options.connect().await.unwrap();
    assert_eq!(store.purge_before(hours_ago(3)).await.unwrap(), 2);
    assert_eq!((older(&db, hours_ago(3)).await, left_over(&db).await), (vec![], 0));
    store.record(&[request(9, now().saturating_add(WEEK))]).await.unwrap();

    // A role that may not delete requests drops none, and one that may not insert adds none.
    run("REVOKE DELETE ON requests FROM {role}").await;
    let refused = store.purge_before(hours_ago(1)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(older(&db, hours_ago(1)).await.len(), 2);
    run("REVOKE INSERT ON requests FROM {role}").await;
    let add = format!("SELECT make_partitions('{}', '{{1}}', 1, false)", schema.name);
    for (become_it, reset) in [
        ("SET SESSION AUTHORIZATION {role}", "RESET SESSION AUTHORIZATION"),
        ("SET ROLE {role}", "RESET ROLE"),
    ] {
        run(become_it).await;
        let refused = db.batch_execute(&add).await.unwrap_err();
        assert!(format!("{refused:?}").contains("lacks INSERT"), "{become_it}: {refused:?}");
        run(reset).await;
    }

    // Without the right to execute the function, records of times without partition wait.
    run("GRANT INSERT ON requests TO {role}; \
         REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC")
    .await;
    let ahead = request(1, now().saturating_add(YEAR));
    let waits = store.record(std::slice::from_ref(&ahead)).await;
    assert!(matches!(waits, Err(AuditError::Unavailable(_))), "{waits:?}");
    assert!(format!("{waits:?}").contains("make_partitions"), "{waits:?}");
    run("GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}").await;
    store.record(std::slice::from_ref(&ahead)).await.unwrap();
    assert_eq!(read(&owner).await[0], ahead);
}

/// Otherwise whoever may create a schema could run statements with the owner's rights.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn the_functions_change_no_table_of_another_owner() {
    let (schema, role) = (Schema::new(), Role::new().await);
    drop(schema.store().await);
    let db = schema.db().await;
    let other = Schema::new();
    let set_up = format!(
        "GRANT USAGE ON SCHEMA {0} TO {1}; CREATE SCHEMA {2} AUTHORIZATION {1}; \
         SET SESSION AUTHORIZATION {1}; \
         CREATE TABLE {2}.requests (at bigint NOT NULL) PARTITION BY RANGE (at)",
        schema.name, role.name, other.name
    );
    db.batch_execute(&set_up).await.unwrap();
    for call in [
        "make_partitions('{other}', '{1}', 3600000000, false)",
        "detach_partitions('{other}', 1)",
        "drop_partition('{other}', '{other}.requests')",
    ] {
        let call = format!("SELECT {}.{}", schema.name, call.replace("{other}", &other.name));
        let refused = db.batch_execute(&call).await.unwrap_err();
        assert!(format!("{refused:?}").contains("does not belong to"), "{call}: {refused:?}");
    }
}
