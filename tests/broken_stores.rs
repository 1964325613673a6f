//! The conformance suite catches every fault of a broken store, and every property catches at
//! least one.
#![cfg(feature = "conformance")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may fail"
)]

mod broken;

use std::collections::BTreeSet;

use broken::fault::{Fault, Field, LogFault};
use broken::log::BrokenLog;
use broken::store::BrokenStore;
use keygate::conformance::{
    Report, Violations, check_audit_log, check_export, check_import, check_reopened_audit_log,
    check_reopened_store, check_store, only,
};
use tokio::task::JoinSet;

/// Every fault with the properties that must catch it.
const FAULTS: &[(Fault, &[&str])] = &[
    (
        Fault::InsertOverwritesDigest,
        &[
            "insert::a_taken_digest_is_a_conflict",
            "insert::a_digest_of_another_organisation_is_a_conflict",
            "creation_races::one_of_several_inserts_of_a_digest_wins",
        ],
    ),
    (
        Fault::InsertOverwritesId,
        &[
            "insert::a_taken_id_is_a_conflict",
            "insert::an_id_of_another_organisation_is_a_conflict",
            "creation_races::one_of_several_inserts_of_an_id_wins",
        ],
    ),
    (
        Fault::DigestUniquePerOrg,
        &[
            "insert::a_digest_of_another_organisation_is_a_conflict",
            "replace::a_taken_digest_is_a_conflict",
            "creation_races::one_of_several_inserts_of_a_digest_wins",
        ],
    ),
    (Fault::SameKeyAgainIsFine, &["insert::the_same_key_again_is_a_conflict"]),
    (Fault::RefusedInsertTakesDigest, &["insert::a_refused_insert_leaves_nothing_behind"]),
    (Fault::NamesAreUnique, &["insert::all_but_id_and_digest_may_repeat"]),
    (
        Fault::ReplaceTakesTakenDigest,
        &[
            "replace::a_taken_digest_is_a_conflict",
            "change_races::one_of_two_keys_gets_a_digest",
            "change_races::an_insert_or_a_replace_gets_a_digest",
        ],
    ),
    (
        Fault::PreviousDigestsAreSeparate,
        &[
            "insert::a_taken_previous_digest_is_a_conflict",
            "replace::a_taken_previous_digest_is_a_conflict",
            "change_races::a_digest_becomes_current_or_previous",
            "change_races::an_insert_or_an_overlap_gets_a_digest",
        ],
    ),
    (Fault::OldDigestStaysTaken, &["replace::the_old_digest_is_free"]),
    (Fault::DeletedIdStaysTaken, &["delete::the_id_and_the_digest_are_free"]),
    (Fault::LimitOffByOne, &["limit::the_limit_is_reached_exactly"]),
    (Fault::LimitZeroIsNone, &["limit::a_limit_of_zero_admits_no_key"]),
    (Fault::LimitNoneIsTwenty, &["limit::without_a_limit_every_key_is_admitted"]),
    (Fault::LimitIsSigned, &["limit::the_largest_limit_admits"]),
    (Fault::LimitIsComparedByEquality, &["limit::a_lowered_limit_refuses"]),
    (Fault::RevokedKeysDoNotCount, &["limit::revoked_keys_count"]),
    (Fault::ExpiredKeysDoNotCount, &["limit::expired_keys_count"]),
    (Fault::EveryWriteCounts, &["limit::a_changed_key_counts_once"]),
    (
        Fault::LimitCountsAllOrgs,
        &[
            "limit::other_organisations_do_not_count",
            "creation_races::organisations_fill_up_independently",
        ],
    ),
    (
        Fault::DeletedKeysCount,
        &[
            "limit::a_deleted_key_makes_room_for_one",
            "creation_races::inserts_beside_deletes_keep_to_the_limit",
        ],
    ),
    (Fault::EveryDeleteMakesRoom, &["limit::a_deleted_key_makes_room_for_one"]),
    (Fault::ConflictTakesAPlace, &["limit::a_conflict_takes_no_place"]),
    (Fault::UnknownIsAnError, &["find::an_unknown_key_is_not_found"]),
    (Fault::DigestsInPart, &["find::digests_are_compared_in_full"]),
    (Fault::IdsInPart, &["find::ids_are_compared_in_full"]),
    (Fault::FindSkipsRevoked, &["find::revoked_and_expired_keys_are_found"]),
    (
        Fault::FindIsCached,
        &[
            "replace::a_change_shows_in_find_at_once",
            "delete::a_deleted_key_loses_all_its_digests",
            "read_races::a_finished_edit_is_seen_by_every_find",
        ],
    ),
    (
        Fault::PreviousDigestIsNotFound,
        &[
            "find::a_key_is_found_by_its_previous_digest",
            "fields::previous_secrets_are_kept",
            "replace::the_previous_digest_is_found_until_it_is_replaced",
            "read_races::an_overlap_has_no_gap",
        ],
    ),
    (Fault::PreviousDigestEndsInTheStore, &["find::a_key_is_found_by_its_previous_digest"]),
    (Fault::ListNewestFirst, &["find::the_list_begins_with_the_oldest"]),
    (Fault::ListTiesAreSigned, &["find::keys_of_one_instant_are_ordered_by_id"]),
    (Fault::ListByLastChange, &["find::the_list_keeps_its_order"]),
    (Fault::ListStopsAtAHundred, &["find::the_list_is_complete"]),
    (Fault::Milliseconds, &["fields::times_keep_their_microseconds"]),
    (Fault::TimesFrom1970, &["fields::every_time_is_kept"]),
    (Fault::MissingTimesAreZero, &["fields::missing_times_stay_missing"]),
    (Fault::NamesAreNormalised, &["fields::names_are_kept_exactly"]),
    (Fault::KeyPrefixOfTwelve, &["fields::key_prefixes_are_kept_exactly"]),
    (Fault::AllowlistIsSorted, &["fields::fifty_networks_keep_their_order"]),
    (
        Fault::AllowlistJoinedByCommas,
        &[
            "fields::every_readable_allowlist_is_kept",
            "fields::an_unreadable_allowlist_stays_unreadable",
        ],
    ),
    (Fault::NamesAreCheckedAnew, &["fields::names_of_earlier_versions_are_kept"]),
    (Fault::UnreadableAllowlistIsEmpty, &["fields::an_unreadable_allowlist_stays_unreadable"]),
    (Fault::RevisionIsSigned, &["fields::every_revision_is_kept"]),
    (Fault::InsertedKeysAreActive, &["fields::every_status_is_kept"]),
    (Fault::UnknownAttributesAreDropped, &["fields::attributes_are_kept_exactly"]),
    (Fault::ReplaceForgetsExpiry, &["replace::every_changeable_field_is_written"]),
    (Fault::ReplaceMovesCreation, &["replace::the_time_of_creation_stays"]),
    (
        Fault::ReplaceWritesLastUse,
        &["replace::the_last_use_stays", "use_races::a_use_does_not_undo_a_revocation"],
    ),
    (
        Fault::ReplaceIgnoresRevision,
        &["replace::another_revision_is_a_conflict", "change_races::one_of_several_replaces_wins"],
    ),
    (
        Fault::ReplaceInserts,
        &[
            "replace::an_unknown_key_is_not_found",
            "replace::a_deleted_key_is_not_found",
            "change_races::a_replace_does_not_undo_a_deletion",
        ],
    ),
    (
        Fault::OldDigestLives,
        &[
            "replace::the_old_digest_is_gone",
            "use_races::a_use_does_not_undo_a_rotation",
            "read_races::an_old_digest_is_gone_at_once",
        ],
    ),
    (Fault::PreviousDigestLives, &["replace::the_previous_digest_is_found_until_it_is_replaced"]),
    (Fault::RotationHasAGap, &["read_races::an_overlap_has_no_gap"]),
    (Fault::ReplaceTouchesAll, &["replace::other_keys_stay"]),
    (
        Fault::DeleteLeavesDigest,
        &["delete::a_deleted_key_is_gone", "read_races::a_deleted_key_is_gone_at_once"],
    ),
    (Fault::DeleteIgnoresRevision, &["delete::another_revision_is_a_conflict"]),
    (
        Fault::DeleteOfUnknownIsFine,
        &[
            "delete::an_unknown_key_is_not_found",
            "delete::a_deleted_key_is_not_found",
            "change_races::one_of_several_deletions_wins",
        ],
    ),
    (Fault::DeleteLeavesLastUse, &["delete::a_reused_id_inherits_nothing"]),
    (Fault::DeleteEmptiesOrg, &["delete::other_keys_stay"]),
    (Fault::UsesAreLost, &["uses::a_use_shows"]),
    (
        Fault::UsesGoBack,
        &[
            "uses::the_time_does_not_move_back",
            "uses::a_time_far_in_the_future_does_not_stay",
            "uses::the_latest_use_in_a_batch_counts",
            "use_races::the_latest_of_several_uses_stays",
        ],
    ),
    (Fault::FutureUseStays, &["uses::a_time_far_in_the_future_does_not_stay"]),
    (Fault::FirstUseIsComparedWithZero, &["uses::the_first_use_counts_whenever_it_was"]),
    (Fault::FirstUseInBatchCounts, &["uses::the_latest_use_in_a_batch_counts"]),
    (Fault::GoneKeyFailsBatch, &["uses::keys_that_are_gone_are_skipped"]),
    (Fault::GoneKeyEndsBatch, &["uses::keys_that_are_gone_are_skipped"]),
    (Fault::EmptyBatchFails, &["uses::a_batch_without_stored_keys_is_no_error"]),
    (Fault::UseRaisesRevision, &["uses::nothing_but_the_time_changes"]),
    (Fault::UsesOfActiveKeysOnly, &["uses::revoked_and_expired_keys_are_recorded"]),
    (Fault::BatchOfOneOrg, &["uses::a_batch_crosses_organisations"]),
    (Fault::BatchStopsAtFiveHundred, &["uses::a_thousand_uses_fit_into_a_batch"]),
    (Fault::GetIgnoresOrg, &["isolation::get_gives_no_key_of_another"]),
    (Fault::ListLeaks, &["isolation::list_gives_no_key_of_another"]),
    (Fault::ReplaceIgnoresOrg, &["isolation::replace_touches_no_key_of_another"]),
    (Fault::DeleteIgnoresOrg, &["isolation::delete_touches_no_key_of_another"]),
    (Fault::OrgsIgnoreCase, ORGS_ALIKE),
    (Fault::OrgsAreTrimmed, ORGS_ALIKE),
    (Fault::OrgsAreCutOff, ORGS_ALIKE),
    (
        Fault::AnswersTooSoon,
        &["insert::a_new_key_is_there_at_once", "calls::a_finished_call_is_visible_to_every_task"],
    ),
    (Fault::HalfDoneWhenDropped, DROPPED),
    (Fault::BusyForEverWhenDropped, DROPPED),
    (
        Fault::CountThenInsert,
        &[
            "creation_races::one_of_64_creators_gets_the_last_place",
            "creation_races::the_first_places_are_counted_too",
            "creation_races::organisations_fill_up_independently",
            "creation_races::inserts_beside_deletes_keep_to_the_limit",
        ],
    ),
    (
        Fault::UniqueThenWrite,
        &[
            "creation_races::one_of_several_inserts_of_a_digest_wins",
            "creation_races::one_of_several_inserts_of_an_id_wins",
            "change_races::one_of_two_keys_gets_a_digest",
            "change_races::an_insert_or_a_replace_gets_a_digest",
            "change_races::a_digest_becomes_current_or_previous",
            "change_races::an_insert_or_an_overlap_gets_a_digest",
        ],
    ),
    (
        Fault::CheckThenReplace,
        &[
            "change_races::one_of_several_replaces_wins",
            "change_races::a_rename_and_a_revocation_are_both_kept",
            "change_races::no_edit_is_lost",
            "change_races::a_replace_does_not_undo_a_deletion",
        ],
    ),
    (Fault::CheckThenDelete, &["change_races::one_of_several_deletions_wins"]),
    (Fault::CheckRevisionThenDelete, &["change_races::one_of_a_replace_and_a_delete_wins"]),
    (Fault::OneWriterOrConflict, &["change_races::edits_of_different_keys_do_not_collide"]),
    (
        Fault::UseWritesWholeRecord,
        &[
            "use_races::a_use_does_not_undo_a_revocation",
            "use_races::a_use_does_not_undo_a_rotation",
            "use_races::a_use_does_not_undo_a_deletion",
            "use_races::the_latest_of_several_uses_stays",
        ],
    ),
    (Fault::UseHidesTheKey, &["read_races::a_key_is_found_while_its_use_is_recorded"]),
    (Fault::UsesLockKeyByKey, &["use_races::batches_in_opposite_orders_do_not_deadlock"]),
    (
        Fault::LateCacheFill,
        &[
            "read_races::an_old_digest_is_gone_at_once",
            "read_races::a_finished_edit_is_seen_by_every_find",
            "read_races::a_deleted_key_is_gone_at_once",
        ],
    ),
];

const EXPORT_FAULTS: &[(Fault, &[&str])] = &[
    (Fault::ExportRepeatsAfter, &["export::every_key_is_exported_once"]),
    (Fault::ExportIsSigned, &["export::every_key_is_exported_once"]),
    (Fault::ExportStopsAtAHundred, &["export::a_page_holds_its_limit"]),
    (Fault::ExportNeedsAfter, &["export::the_first_page_begins_with_the_first"]),
    (Fault::ExportOfOneOrg, &["export::keys_of_every_organisation_are_exported"]),
    (Fault::ExportOfActiveKeys, &["export::every_field_is_exported"]),
    (Fault::ExportKeepsDeleted, &["export::deleted_keys_are_not_exported"]),
    (
        Fault::ExportStartsOverAtGoneKey,
        &[
            "export::deleted_keys_are_not_exported",
            "export::keys_may_be_added_and_deleted_between_pages",
        ],
    ),
    (Fault::ExportEndsInAnError, &["export::the_end_is_an_empty_page"]),
];

const IMPORT_FAULTS: &[(Fault, &[&str])] = &[
    (Fault::ImportKeepsToTheLimit, &["import::no_limit_applies"]),
    (Fault::ImportedKeysDoNotCount, &["import::imported_keys_count"]),
    (Fault::ImportForgetsAttributes, &["import::every_field_is_kept"]),
    (
        Fault::ImportOverwritesId,
        &["import::a_taken_id_is_left_out", "import::the_first_of_two_alike_is_inserted"],
    ),
    (Fault::ImportIdUniquePerOrg, &["import::a_taken_id_is_left_out"]),
    (
        Fault::ImportOverwritesDigest,
        &["import::a_taken_digest_is_left_out", "import::the_first_of_two_alike_is_inserted"],
    ),
    (
        Fault::ImportIgnoresPrevious,
        &[
            "import::a_taken_previous_digest_is_left_out",
            "import::the_others_of_a_batch_are_inserted",
        ],
    ),
    (
        Fault::ImportFailsAtTaken,
        &["import::the_others_of_a_batch_are_inserted", "import::an_import_can_be_repeated"],
    ),
    (Fault::ImportStopsAtTaken, &["import::the_others_of_a_batch_are_inserted"]),
    (
        Fault::ImportSaysYes,
        &[
            "import::the_others_of_a_batch_are_inserted",
            "import::one_of_several_imports_inserts_a_key",
        ],
    ),
    (Fault::ImportAnswersBackwards, &["import::the_others_of_a_batch_are_inserted"]),
    (Fault::ImportUndoesChanges, &["import::an_import_can_be_repeated"]),
    (Fault::ImportOfNothingFails, &["import::an_empty_batch_is_no_error"]),
    (Fault::ImportChecksThenWrites, &["import::one_of_several_imports_inserts_a_key"]),
];

const ORGS_ALIKE: &[&str] = &[
    "limit::other_organisations_do_not_count",
    "isolation::similar_organisations_are_separate_in_reads",
    "isolation::similar_organisations_are_separate_in_writes",
];

const DROPPED: &[&str] = &[
    "calls::a_dropped_insert_does_no_harm",
    "calls::a_dropped_replace_does_no_harm",
    "calls::a_dropped_delete_does_no_harm",
];

const LOG_FAULTS: &[(LogFault, &[&str])] = &[
    (LogFault::AnswersTooSoon, &["audit::record::a_batch_can_be_read_at_once"]),
    (LogFault::EmptyBatchFails, &["audit::record::an_empty_batch_is_no_error"]),
    (LogFault::BatchStopsAtFiveHundred, &["audit::record::a_batch_of_a_thousand_is_kept"]),
    (
        LogFault::RepeatsAreStored,
        &[
            "audit::record::a_repeated_batch_is_stored_once",
            "audit::record::a_record_twice_in_a_batch_is_stored_once",
            "audit::record::simultaneous_batches_are_all_kept",
        ],
    ),
    (LogFault::RepeatsFail, &["audit::record::a_repeated_batch_is_stored_once"]),
    (LogFault::KnownRecordDropsBatch, &["audit::record::the_new_part_of_a_batch_is_stored"]),
    (LogFault::RepeatsWithinABatch, &["audit::record::a_record_twice_in_a_batch_is_stored_once"]),
    (LogFault::SameInstantIsSame, &["audit::record::equal_records_with_different_ids_are_kept"]),
    (LogFault::CheckThenWrite, &["audit::record::simultaneous_batches_are_all_kept"]),
    (LogFault::OldestFirst, &["audit::pages::the_newest_comes_first"]),
    (LogFault::TiesAreSigned, &["audit::pages::records_of_one_instant_are_ordered_by_id"]),
    (
        LogFault::CursorIsATime,
        &[
            "audit::pages::paging_back_meets_every_record_once",
            "audit::pages::paging_forward_meets_every_record_once",
        ],
    ),
    (LogFault::CursorIsACount, &["audit::pages::new_records_do_not_disturb_paging"]),
    (LogFault::FullPagesLeadOn, &["audit::pages::the_ends_have_no_further_page"]),
    (
        LogFault::AfterGivesTheNewest,
        &[
            "audit::pages::paging_forward_meets_every_record_once",
            "audit::pages::paging_back_and_forth_gives_the_same_page",
        ],
    ),
    (LogFault::EmptyLogIsAnError, &["audit::pages::a_log_without_records_is_an_empty_page"]),
    (LogFault::EmptyPageLeadsNowhere, &["audit::pages::an_empty_page_leads_back"]),
    (LogFault::CursorNeedsItsRecord, &["audit::pages::a_cursor_needs_no_record"]),
    (LogFault::PagesOfAHundred, &["audit::pages::a_page_holds_its_limit"]),
    (LogFault::OrgIsIgnored, &["audit::scope::organisations_do_not_see_each_other"]),
    (LogFault::OrgsIgnoreCase, &["audit::scope::similar_organisations_are_separate"]),
    (LogFault::KeyIsIgnored, &["audit::scope::a_key_has_its_own_records"]),
    (LogFault::OrgChangesOfOneKey, &["audit::scope::org_changes_spans_all_keys"]),
    (LogFault::KindIsIgnored, &["audit::scope::requests_and_changes_are_separate"]),
    (LogFault::KindIsFilteredAfterwards, &["audit::scope::requests_and_changes_are_separate"]),
    (LogFault::MethodsInUpperCase, &["audit::fields::methods_are_kept"]),
    (LogFault::EndpointsAreCutOff, &["audit::fields::endpoints_are_kept"]),
    (LogFault::UnknownAddressIsZero, &["audit::fields::addresses_are_kept"]),
    (LogFault::CountryIsForgotten, &["audit::fields::countries_are_kept"]),
    (LogFault::NoStatusIsZero, &["audit::fields::statuses_are_kept"]),
    (LogFault::CountIsOne, &["audit::fields::counts_are_kept"]),
    (LogFault::SecretIsCurrent, &["audit::fields::secrets_are_kept"]),
    (LogFault::AbortedIsAllowed, &["audit::fields::outcomes_are_kept"]),
    (LogFault::AbandonedIsBegun, &["audit::fields::actions_and_phases_are_kept"]),
    (LogFault::ActorsAreTrimmed, &["audit::fields::actors_are_kept"]),
    (LogFault::Milliseconds, &["audit::fields::times_and_ids_are_kept"]),
    (LogFault::TimesFrom1970, &["audit::fields::every_time_is_kept"]),
    (LogFault::PurgeTakesTheInstant, &["audit::purge::the_older_records_are_removed"]),
    (LogFault::PurgeKeepsChanges, &["audit::purge::every_organisation_is_purged"]),
    (LogFault::PurgeTellsWhatIsLeft, &["audit::purge::the_number_of_removed_records_is_returned"]),
    (LogFault::PurgeForbidsOldRecords, &["audit::purge::old_records_may_be_written_after_a_purge"]),
];

/// Every fault of a reopened store with the properties that must catch it.
const REOPENING_FAULTS: &[(Fault, &[&str])] = &[
    (Fault::ReopenedWithout(Field::Org), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::Name), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::KeyPrefix), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::Digest), &["reopened::every_field_comes_back"]),
    (
        Fault::ReopenedWithout(Field::Status),
        &["reopened::every_field_comes_back", "reopened::changes_come_back"],
    ),
    (Fault::ReopenedWithout(Field::Allowlist), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::CreatedAt), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::ExpiresAt), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithout(Field::RotatedAt), &["reopened::every_field_comes_back"]),
    (
        Fault::ReopenedWithout(Field::Previous),
        &["reopened::every_field_comes_back", "reopened::changes_come_back"],
    ),
    (
        Fault::ReopenedWithout(Field::LastUsedAt),
        &["reopened::every_field_comes_back", "reopened::last_uses_come_back"],
    ),
    (
        Fault::ReopenedWithout(Field::Revision),
        &["reopened::every_field_comes_back", "reopened::changes_come_back"],
    ),
    (Fault::ReopenedWithout(Field::Attributes), &["reopened::every_field_comes_back"]),
    (Fault::ReopenedWithDeletedKeys, &["reopened::a_deleted_key_stays_gone"]),
    (
        Fault::ReopenedWithFirstVersions,
        &[
            "reopened::changes_come_back",
            "reopened::last_uses_come_back",
            "reopened::an_old_digest_stays_gone",
        ],
    ),
    (Fault::ReopenedWithoutCount, &["reopened::earlier_keys_are_counted_and_unique"]),
    (Fault::ReopenedWithoutUniqueness, &["reopened::earlier_keys_are_counted_and_unique"]),
    (Fault::ReopenedStoreIsNotSaved, &["reopened::a_store_can_be_reopened_again"]),
];

const REOPENING_LOG_FAULTS: &[(LogFault, &[&str])] = &[
    (LogFault::ReopenedWithoutCountries, &["audit::reopened::every_field_comes_back"]),
    (LogFault::ReopenedWithoutPhases, &["audit::reopened::every_field_comes_back"]),
    (LogFault::ReopenedOldestFirst, &["audit::reopened::the_order_comes_back"]),
    (LogFault::ReopenedWithPurgedRecords, &["audit::reopened::a_purged_record_stays_gone"]),
    (LogFault::ReopenedWithoutIds, &["audit::reopened::a_repeated_batch_is_stored_once"]),
];

type Outcome = Result<Report, Violations>;

async fn store(fault: Fault) -> Outcome {
    check_store(|| async { BrokenStore::new(fault) }).await
}

async fn export(fault: Fault) -> Outcome {
    check_export(|| async { BrokenStore::new(fault) }).await
}

async fn import(fault: Fault) -> Outcome {
    check_import(|| async { BrokenStore::new(fault) }).await
}

async fn reopened_store(fault: Fault) -> Outcome {
    let store = BrokenStore::new(fault);
    check_reopened_store(|| async { store.open() }).await
}

async fn log(fault: LogFault) -> Outcome {
    check_audit_log(|| async { BrokenLog::new(fault) }).await
}

async fn reopened_log(fault: LogFault) -> Outcome {
    let log = BrokenLog::new(fault);
    check_reopened_audit_log(|| async { log.open() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_store_is_caught() {
    all_are_caught(FAULTS, store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_an_export_is_caught() {
    all_are_caught(EXPORT_FAULTS, export).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_an_import_is_caught() {
    all_are_caught(IMPORT_FAULTS, import).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_reopened_store_is_caught() {
    all_are_caught(REOPENING_FAULTS, reopened_store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_log_is_caught() {
    all_are_caught(LOG_FAULTS, log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_reopened_log_is_caught() {
    all_are_caught(REOPENING_LOG_FAULTS, reopened_log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_property_holds_without_a_fault_and_catches_at_least_one() {
    assert_eq!(passed(store(Fault::Nothing).await), catching(FAULTS));
    assert_eq!(passed(export(Fault::Nothing).await), catching(EXPORT_FAULTS));
    assert_eq!(passed(import(Fault::Nothing).await), catching(IMPORT_FAULTS));
    assert_eq!(passed(reopened_store(Fault::Nothing).await), catching(REOPENING_FAULTS));
    assert_eq!(passed(log(LogFault::Nothing).await), catching(LOG_FAULTS));
    assert_eq!(passed(reopened_log(LogFault::Nothing).await), catching(REOPENING_LOG_FAULTS));
}

fn passed(outcome: Outcome) -> BTreeSet<&'static str> {
    outcome.unwrap().passed().map(|(name, _)| name).collect()
}

fn catching<F>(faults: &[(F, &[&'static str])]) -> BTreeSet<&'static str> {
    faults.iter().flat_map(|(_, properties)| properties.iter().copied()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_reports_exactly_the_violations() {
    let broken = || async { BrokenStore::new(Fault::KeyPrefixOfTwelve) };
    let violations = check_store(broken).await.unwrap_err();
    let failed: Vec<&str> = violations.iter().map(|(property, _)| property).collect();
    assert_eq!(failed, ["fields::key_prefixes_are_kept_exactly"]);
    let text = format!("{violations:?}");
    for part in [
        " properties does not hold:\n",
        "\nfields::key_prefixes_are_kept_exactly\n",
        "    expected: get to give key_prefix \"abcdefghij_klmnopqrs_tu_0Zz9A\"\n",
        "    found:    key_prefix \"abcdefghij_k\"\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wrong_list_is_told_in_a_line() {
    for (fault, property, expected, found) in [
        (
            Fault::ListNewestFirst,
            "find::the_list_begins_with_the_oldest",
            "list to be ordered by (created_at, id)",
            "position 1 should be ",
        ),
        (
            Fault::ListStopsAtAHundred,
            "find::the_list_is_complete",
            "list to give the organisation's 150 keys",
            "100 keys, without ",
        ),
    ] {
        let violations = only(vec![property], store(fault)).await.unwrap_err();
        let (_, violation) = violations.iter().next().unwrap();
        assert_eq!(violation.expected(), expected);
        assert!(violation.found().starts_with(found), "{violation}");
        assert!(violation.found().len() < 120, "{violation}");
        let text = violations.to_string();
        assert!(text.starts_with("1 of 1 property does not hold:\n"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_panic_is_a_violation() {
    let violations = only(vec!["uses::a_use_shows"], store(Fault::UsesPanic)).await.unwrap_err();
    let found: Vec<&str> = violations.iter().map(|(_, violation)| violation.found()).collect();
    assert_eq!(found, ["a panic: not implemented: uses"]);
}

/// Checks that each fault is caught by each of its listed properties.
async fn all_are_caught<T, F>(faults: &'static [(T, &[&'static str])], check: impl Fn(T) -> F)
where
    T: Copy + std::fmt::Debug,
    F: Future<Output = Outcome> + Send + 'static,
{
    let mut missed = Vec::new();
    for (fault, properties) in faults {
        // Running the whole suite for every fault would take minutes.
        let mut checks = JoinSet::new();
        for name in *properties {
            let check = only(vec![*name], check(*fault));
            checks.spawn(async move {
                let is_caught = check.await.is_err_and(|v| v.iter().any(|(n, _)| n == *name));
                (*name, is_caught)
            });
        }
        let passing = checks.join_all().await.into_iter().filter(|(_, is_caught)| !is_caught);
        missed.extend(passing.map(|(name, _)| (*fault, name)));
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
