//! The suite that every store and every audit log should pass: one public async
//! function a property, races included.
//!
//! [`check_store`] runs all properties of a [`KeyStore`], [`check_audit_log`]
//! those of an [`AuditSink`] that is an [`AuditLog`] as well. In a test of yours:
//!
//! ```
//! # mod my {
//! use keygate::MemoryStore;
//! use keygate::conformance::check_store;
//!
//! # /*
//! #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
//! # */
//! async fn my_store_conforms() {
//!     check_store(|| async { MemoryStore::new() }).await.unwrap();
//! }
//! # #[tokio::main(worker_threads = 4)]
//! # pub async fn main() { my_store_conforms().await }
//! # }
//! # fn main() { my::main() }
//! ```
//!
//! Three things to know:
//!
//! - **The runtime** has to be tokio's multi-thread one, with timers and at least
//!   two workers: on one thread nothing races.
//! - **The store need not be empty**, and others may work on it meanwhile, this
//!   suite included: every property makes organisations, ids and digests of its
//!   own. It leaves them behind, so take a database made for tests. The audit
//!   suite purges records of 1971 and earlier.
//! - **The factory is called for every property.** It may make a new store each
//!   time, or connect to the same database. [`TwoHandles`] checks one database
//!   through two connections.
//!
//! To run one property, or all but one, see [`store_properties`] and
//! [`audit_log_properties`]; or call its function, which has the name that a
//! [`Violation`] is reported under.

use std::sync::Arc;

use crate::audit::log::AuditLog;
use crate::audit::sink::AuditSink;
use crate::store::contract::KeyStore;

pub mod audit;
pub mod calls;
pub mod change_races;
pub mod creation_races;
pub mod delete;
mod expect;
pub mod fields;
pub mod find;
mod fixtures;
mod fresh;
mod handles;
pub mod insert;
pub mod isolation;
pub mod limit;
mod property;
mod race;
pub mod read_races;
pub mod replace;
pub mod use_races;
pub mod uses;
mod violation;

pub use handles::{SinkAndLog, TwoHandles};
pub use property::Property;
pub use violation::{Report, Violation, Violations};

/// Checks all [`store_properties`], each on a store that the factory makes or
/// connects to.
///
/// # Errors
///
/// Every property that does not hold; or that the runtime cannot run the races.
pub async fn check_store<S, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    S: KeyStore,
    F: Future<Output = S>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn KeyStore> };
    property::check_all(store_properties(), factory).await
}

/// Checks all [`audit_log_properties`], each on a log that the factory makes or
/// connects to.
///
/// # Errors
///
/// Every property that does not hold; or that the runtime cannot run the races.
pub async fn check_audit_log<L, F>(factory: impl Fn() -> F) -> Result<Report, Violations>
where
    L: AuditSink + AuditLog,
    F: Future<Output = L>,
{
    let factory = || async { Arc::new(factory().await) as Arc<dyn SinkAndLog> };
    property::check_all(audit_log_properties(), factory).await
}

/// Names the functions of several modules once, as paths and as texts.
macro_rules! properties {
    ($($($module:ident)::+ { $($name:ident,)+ })+) => {
        &[$($(Property::new(
            properties!(@text $($module)::+, $name),
            |subject| Box::pin($($module)::+::$name(subject)),
        ),)+)+]
    };
    (@text $first:ident $(:: $next:ident)*, $name:ident) => {
        concat!(stringify!($first), $("::", stringify!($next),)* "::", stringify!($name))
    };
}

/// All properties of a [`KeyStore`], to run one by one or in part:
///
/// ```
/// use std::sync::Arc;
/// use keygate::MemoryStore;
/// use keygate::conformance::store_properties;
///
/// # #[tokio::main(worker_threads = 4)]
/// # async fn main() {
/// for property in store_properties().iter().filter(|p| p.name().starts_with("limit::")) {
///     property.check(Arc::new(MemoryStore::new())).await.unwrap();
/// }
/// # }
/// ```
pub fn store_properties() -> &'static [Property<dyn KeyStore>] {
    properties! {
        insert {
            a_new_key_is_there_at_once,
            a_taken_digest_is_a_conflict,
            a_taken_id_is_a_conflict,
            a_digest_of_another_organisation_is_a_conflict,
            an_id_of_another_organisation_is_a_conflict,
            the_same_key_again_is_a_conflict,
            a_refused_insert_leaves_nothing_behind,
            all_but_id_and_digest_may_repeat,
        }
        limit {
            the_limit_is_reached_exactly,
            a_limit_of_zero_admits_nobody,
            no_limit_admits_everybody,
            the_largest_limit_admits,
            a_lowered_limit_refuses,
            revoked_keys_count,
            expired_keys_count,
            a_changed_key_counts_once,
            other_organisations_do_not_count,
            a_deleted_key_makes_room_for_one,
            a_conflict_takes_no_place,
        }
        find {
            what_is_unknown_is_not_found,
            digests_are_compared_in_full,
            ids_are_compared_in_full,
            revoked_and_expired_keys_are_found,
            the_list_begins_with_the_oldest,
            keys_of_one_instant_are_ordered_by_id,
            the_list_keeps_its_order,
            the_list_is_complete,
        }
        fields {
            times_keep_their_microseconds,
            every_time_is_kept,
            missing_times_stay_missing,
            names_are_kept_exactly,
            key_prefixes_are_kept_exactly,
            fifty_networks_keep_their_order,
            every_readable_allowlist_is_kept,
            an_unreadable_allowlist_stays_unreadable,
            every_revision_is_kept,
            every_status_is_kept,
        }
        replace {
            every_changeable_field_is_written,
            the_time_of_creation_stays,
            the_last_use_stays,
            another_revision_is_a_conflict,
            an_unknown_key_is_not_found,
            a_deleted_key_is_not_found,
            the_old_digest_is_gone,
            a_change_shows_in_find_at_once,
            a_taken_digest_is_a_conflict,
            the_old_digest_is_free,
            other_keys_stay,
        }
        delete {
            a_deleted_key_is_gone,
            an_unknown_key_is_not_found,
            a_deleted_key_is_not_found,
            a_rotated_key_goes_with_all_its_digests,
            the_id_and_the_digest_are_free,
            nothing_is_inherited,
            other_keys_stay,
        }
        uses {
            a_use_shows_everywhere,
            the_time_never_moves_back,
            the_first_use_counts_whenever_it_was,
            the_latest_use_in_a_batch_counts,
            keys_that_are_gone_are_skipped,
            a_batch_may_come_to_nothing,
            nothing_but_the_time_changes,
            revoked_and_expired_keys_are_recorded,
            a_batch_crosses_organisations,
            a_thousand_uses_fit_into_a_batch,
        }
        isolation {
            get_gives_no_key_of_another,
            list_gives_no_key_of_another,
            replace_touches_no_key_of_another,
            delete_touches_no_key_of_another,
            organisations_much_alike_read_apart,
            organisations_much_alike_write_apart,
        }
        calls {
            a_finished_call_is_visible_to_every_task,
            a_dropped_insert_does_no_harm,
            a_dropped_replace_does_no_harm,
            a_dropped_delete_does_no_harm,
        }
        creation_races {
            one_of_64_creators_gets_the_last_place,
            the_first_places_are_counted_too,
            organisations_fill_up_side_by_side,
            one_of_several_inserts_of_a_digest_wins,
            one_of_several_inserts_of_an_id_wins,
            a_churning_organisation_keeps_to_its_limit,
        }
        change_races {
            one_of_several_replaces_wins,
            one_of_two_keys_gets_a_digest,
            an_insert_or_a_replace_gets_a_digest,
            a_rename_and_a_revocation_both_stay,
            no_edit_is_lost,
            a_replace_does_not_undo_a_deletion,
            one_of_several_deletions_wins,
            edits_of_different_keys_do_not_collide,
        }
        use_races {
            a_use_does_not_undo_a_revocation,
            a_use_does_not_undo_a_rotation,
            a_use_does_not_undo_a_deletion,
            the_latest_of_several_uses_stays,
            batches_in_opposite_orders_do_not_deadlock,
        }
        read_races {
            a_rotated_secret_is_dead_at_once,
            a_finished_edit_is_seen_by_every_find,
            a_deleted_key_is_dead_at_once,
            a_finished_use_is_seen_by_every_find,
        }
    }
}

/// All properties of an audit log that can be written and read.
pub fn audit_log_properties() -> &'static [Property<dyn SinkAndLog>] {
    properties! {
        audit::record {
            a_batch_can_be_read_at_once,
            an_empty_batch_is_no_error,
            a_batch_of_a_thousand_is_kept,
            a_repeated_batch_is_stored_once,
            the_new_part_of_a_batch_is_stored,
            a_record_twice_in_a_batch_is_stored_once,
            records_alike_are_all_kept,
            batches_at_once_are_all_kept,
        }
        audit::pages {
            the_newest_comes_first,
            records_of_one_instant_are_ordered_by_id,
            paging_back_meets_every_record_once,
            paging_forward_meets_every_record_once,
            new_records_do_not_disturb_paging,
            the_ends_lead_no_further,
            back_and_forth_is_the_same_page,
            a_log_without_records_is_an_empty_page,
            an_empty_page_leads_back,
            a_cursor_needs_no_record,
            a_page_holds_its_limit,
        }
        audit::scope {
            organisations_do_not_see_each_other,
            organisations_much_alike_are_apart,
            a_key_has_its_own_records,
            org_changes_spans_all_keys,
            requests_and_changes_are_apart,
        }
        audit::fields {
            methods_are_kept,
            endpoints_are_kept,
            addresses_are_kept,
            countries_are_kept,
            statuses_are_kept,
            outcomes_are_kept,
            actions_and_phases_are_kept,
            actors_are_kept,
            times_and_ids_are_kept,
            every_time_is_kept,
        }
        audit::purge {
            the_older_records_are_removed,
            every_organisation_is_purged,
            the_number_of_removed_records_is_told,
            old_records_may_be_written_after_a_purge,
        }
    }
}
