//! The faults that a broken store or log can have, each with the properties that must catch it.

macro_rules! faults {
    ($name:ident: $($(#[$note:meta])* $fault:ident => $($property:literal),*;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name {
            $($(#[$note])* $fault,)*
        }

        impl $name {
            pub(crate) const ALL: &[(Self, &[&'static str])] =
                &[$((Self::$fault, &[$($property),*])),*];
        }
    };
}

faults! {
    Fault:
    Nothing => ;
    /// No fault: a change takes effect some time after the call, even if the caller drops it.
    ChangesAreLate => ;
    InsertOverwritesDigest =>
        "insert::a_taken_digest_is_a_conflict",
        "insert::a_digest_of_another_organisation_is_a_conflict",
        "creation_races::one_of_several_inserts_of_a_digest_wins";
    InsertOverwritesId =>
        "insert::a_taken_id_is_a_conflict",
        "insert::an_id_of_another_organisation_is_a_conflict",
        "creation_races::one_of_several_inserts_of_an_id_wins";
    DigestUniquePerOrg =>
        "insert::a_digest_of_another_organisation_is_a_conflict",
        "replace::a_taken_digest_is_a_conflict",
        "creation_races::one_of_several_inserts_of_a_digest_wins";
    SameKeyAgainIsFine => "insert::the_same_key_again_is_a_conflict";
    RefusedInsertTakesDigest => "insert::a_refused_insert_leaves_nothing_behind";
    NamesAreUnique => "insert::all_but_id_and_digest_may_repeat";
    ReplaceTakesTakenDigest =>
        "replace::a_taken_digest_is_a_conflict", "change_races::one_of_two_keys_gets_a_digest",
        "change_races::an_insert_or_a_replace_gets_a_digest";
    /// Has a unique index on each column, and none on both.
    PreviousDigestsAreSeparate =>
        "insert::a_taken_previous_digest_is_a_conflict",
        "replace::a_taken_previous_digest_is_a_conflict",
        "change_races::a_digest_becomes_current_or_previous",
        "change_races::an_insert_or_an_overlap_gets_a_digest";
    OldDigestStaysTaken => "replace::the_old_digest_is_free";
    DeletedIdStaysTaken => "delete::the_id_and_the_digest_are_free";
    LimitOffByOne => "limit::the_limit_is_reached_exactly";
    LimitZeroIsNone => "limit::a_limit_of_zero_admits_no_key";
    LimitNoneIsTwenty => "limit::without_a_limit_every_key_is_admitted";
    LimitIsSigned => "limit::the_largest_limit_admits";
    LimitIsComparedByEquality => "limit::a_lowered_limit_refuses";
    RevokedKeysDoNotCount => "limit::revoked_keys_count";
    ExpiredKeysDoNotCount => "limit::expired_keys_count";
    EveryWriteCounts => "limit::a_changed_key_counts_once";
    LimitCountsAllOrgs =>
        "limit::other_organisations_do_not_count",
        "creation_races::organisations_fill_up_independently";
    DeletedKeysCount =>
        "limit::a_deleted_key_makes_room_for_one",
        "creation_races::inserts_beside_deletes_keep_to_the_limit";
    EveryDeleteMakesRoom => "limit::a_deleted_key_makes_room_for_one";
    ConflictTakesAPlace => "limit::a_conflict_takes_no_place";
    UnknownIsAnError => "find::an_unknown_key_is_not_found";
    DigestsInPart => "find::digests_are_compared_in_full";
    IdsInPart => "find::ids_are_compared_in_full";
    FindSkipsRevoked => "find::revoked_and_expired_keys_are_found";
    FindIsCached =>
        "replace::a_change_shows_in_find_at_once",
        "delete::a_deleted_key_loses_all_its_digests",
        "read_races::a_finished_edit_is_seen_by_every_find";
    PreviousDigestIsNotFound =>
        "find::a_key_is_found_by_its_previous_digest", "fields::previous_secrets_are_kept",
        "replace::the_previous_digest_is_found_until_it_is_replaced",
        "read_races::an_overlap_has_no_gap";
    PreviousDigestEndsInTheStore => "find::a_key_is_found_by_its_previous_digest";
    ListNewestFirst => "find::the_list_begins_with_the_oldest";
    ListTiesAreSigned => "find::keys_of_one_instant_are_ordered_by_id";
    ListByLastChange => "find::the_list_keeps_its_order";
    ListStopsAtAHundred => "find::the_list_is_complete";
    Milliseconds => "fields::times_keep_their_microseconds";
    TimesFrom1970 => "fields::every_time_is_kept";
    MissingTimesAreZero => "fields::missing_times_stay_missing";
    NamesAreNormalised => "fields::names_are_kept_exactly";
    KeyPrefixOfTwelve => "fields::key_prefixes_are_kept_exactly";
    AllowlistIsSorted => "fields::fifty_networks_keep_their_order";
    AllowlistJoinedByCommas =>
        "fields::every_readable_allowlist_is_kept",
        "fields::an_unreadable_allowlist_stays_unreadable";
    NamesAreCheckedAnew => "fields::names_of_earlier_versions_are_kept";
    UnreadableAllowlistIsEmpty => "fields::an_unreadable_allowlist_stays_unreadable";
    RevisionIsSigned => "fields::every_revision_is_kept";
    InsertedKeysAreActive => "fields::every_status_is_kept";
    /// Keeps only the attributes that it knows, like a store with a column for each.
    UnknownAttributesAreDropped => "fields::attributes_are_kept_exactly";
    ReplaceForgetsExpiry => "replace::every_changeable_field_is_written";
    ReplaceMovesCreation => "replace::the_time_of_creation_stays";
    ReplaceWritesLastUse =>
        "replace::the_last_use_stays", "use_races::a_use_does_not_undo_a_revocation";
    ReplaceIgnoresRevision =>
        "replace::another_revision_is_a_conflict", "change_races::one_of_several_replaces_wins";
    ReplaceInserts =>
        "replace::an_unknown_key_is_not_found", "replace::a_deleted_key_is_not_found",
        "change_races::a_replace_does_not_undo_a_deletion";
    OldDigestLives =>
        "replace::the_old_digest_is_gone", "use_races::a_use_does_not_undo_a_rotation",
        "read_races::an_old_digest_is_gone_at_once";
    PreviousDigestLives => "replace::the_previous_digest_is_found_until_it_is_replaced";
    /// Removes the row and adds it again.
    RotationHasAGap => "read_races::an_overlap_has_no_gap";
    ReplaceTouchesAll => "replace::other_keys_stay";
    DeleteLeavesDigest =>
        "delete::a_deleted_key_is_gone", "read_races::a_deleted_key_is_gone_at_once";
    DeleteIgnoresRevision => "delete::another_revision_is_a_conflict";
    DeleteOfUnknownIsFine =>
        "delete::an_unknown_key_is_not_found", "delete::a_deleted_key_is_not_found",
        "change_races::one_of_several_deletions_wins";
    DeleteLeavesLastUse => "delete::a_reused_id_inherits_nothing";
    DeleteEmptiesOrg => "delete::other_keys_stay";
    UsesPanic => "uses::a_use_shows";
    UsesAreLost => "uses::a_use_shows";
    UsesGoBack =>
        "uses::the_time_does_not_move_back", "uses::a_time_far_in_the_future_does_not_stay",
        "uses::the_latest_use_in_a_batch_counts", "use_races::the_latest_of_several_uses_stays";
    FutureUseStays => "uses::a_time_far_in_the_future_does_not_stay";
    FirstUseIsComparedWithZero => "uses::the_first_use_counts_whenever_it_was";
    FirstUseInBatchCounts => "uses::the_latest_use_in_a_batch_counts";
    GoneKeyFailsBatch => "uses::keys_that_are_gone_are_skipped";
    GoneKeyEndsBatch => "uses::keys_that_are_gone_are_skipped";
    EmptyBatchFails => "uses::a_batch_without_stored_keys_is_no_error";
    UseRaisesRevision => "uses::nothing_but_the_time_changes";
    UsesOfActiveKeysOnly => "uses::revoked_and_expired_keys_are_recorded";
    BatchOfOneOrg => "uses::a_batch_crosses_organisations";
    BatchStopsAtFiveHundred => "uses::a_thousand_uses_fit_into_a_batch";
    GetIgnoresOrg => "isolation::get_gives_no_key_of_another";
    ListLeaks => "isolation::list_gives_no_key_of_another";
    ReplaceIgnoresOrg => "isolation::replace_touches_no_key_of_another";
    DeleteIgnoresOrg => "isolation::delete_touches_no_key_of_another";
    OrgsIgnoreCase =>
        "limit::other_organisations_do_not_count",
        "isolation::similar_organisations_are_separate_in_reads",
        "isolation::similar_organisations_are_separate_in_writes";
    OrgsAreTrimmed =>
        "limit::other_organisations_do_not_count",
        "isolation::similar_organisations_are_separate_in_reads",
        "isolation::similar_organisations_are_separate_in_writes";
    OrgsAreCutOff =>
        "limit::other_organisations_do_not_count",
        "isolation::similar_organisations_are_separate_in_reads",
        "isolation::similar_organisations_are_separate_in_writes";
    AnswersTooSoon =>
        "insert::a_new_key_is_there_at_once", "calls::a_finished_call_is_visible_to_every_task";
    HalfDoneWhenDropped =>
        "calls::a_dropped_insert_does_no_harm", "calls::a_dropped_replace_does_no_harm",
        "calls::a_dropped_delete_does_no_harm";
    BusyForEverWhenDropped =>
        "calls::a_dropped_insert_does_no_harm", "calls::a_dropped_replace_does_no_harm",
        "calls::a_dropped_delete_does_no_harm";
    CountThenInsert =>
        "creation_races::one_of_64_creators_gets_the_last_place",
        "creation_races::the_first_places_are_counted_too",
        "creation_races::organisations_fill_up_independently",
        "creation_races::inserts_beside_deletes_keep_to_the_limit";
    UniqueThenWrite =>
        "creation_races::one_of_several_inserts_of_a_digest_wins",
        "creation_races::one_of_several_inserts_of_an_id_wins",
        "change_races::one_of_two_keys_gets_a_digest",
        "change_races::an_insert_or_a_replace_gets_a_digest",
        "change_races::a_digest_becomes_current_or_previous",
        "change_races::an_insert_or_an_overlap_gets_a_digest";
    CheckThenReplace =>
        "change_races::one_of_several_replaces_wins",
        "change_races::a_rename_and_a_revocation_are_both_kept",
        "change_races::no_edit_is_lost", "change_races::a_replace_does_not_undo_a_deletion";
    CheckThenDelete => "change_races::one_of_several_deletions_wins";
    CheckRevisionThenDelete => "change_races::one_of_a_replace_and_a_delete_wins";
    OneWriterOrConflict => "change_races::edits_of_different_keys_do_not_collide";
    UseWritesWholeRecord =>
        "use_races::a_use_does_not_undo_a_revocation",
        "use_races::a_use_does_not_undo_a_rotation",
        "use_races::a_use_does_not_undo_a_deletion",
        "use_races::the_latest_of_several_uses_stays";
    UseHidesTheKey => "read_races::a_key_is_found_while_its_use_is_recorded";
    UsesLockKeyByKey => "use_races::batches_in_opposite_orders_do_not_deadlock";
    LateCacheFill =>
        "read_races::an_old_digest_is_gone_at_once",
        "read_races::a_finished_edit_is_seen_by_every_find",
        "read_races::a_deleted_key_is_gone_at_once";
    ExportRepeatsAfter => "export::every_key_is_exported_once";
    ExportIsSigned => "export::every_key_is_exported_once";
    ExportStopsAtAHundred => "export::a_page_holds_its_limit";
    ExportNeedsAfter => "export::the_first_page_begins_with_the_first";
    ExportOfOneOrg => "export::keys_of_every_organisation_are_exported";
    ExportOfActiveKeys => "export::every_field_is_exported";
    ExportKeepsDeleted => "export::deleted_keys_are_not_exported";
    ExportStartsOverAtGoneKey =>
        "export::deleted_keys_are_not_exported",
        "export::keys_may_be_added_and_deleted_between_pages";
    ExportEndsInAnError => "export::the_end_is_an_empty_page";
    ImportKeepsToTheLimit => "import::no_limit_applies";
    ImportedKeysDoNotCount => "import::imported_keys_count";
    ImportForgetsAttributes => "import::every_field_is_kept";
    ImportOverwritesId =>
        "import::a_taken_id_is_left_out", "import::the_first_of_two_alike_is_inserted";
    ImportIdUniquePerOrg => "import::a_taken_id_is_left_out";
    ImportOverwritesDigest =>
        "import::a_taken_digest_is_left_out", "import::the_first_of_two_alike_is_inserted";
    ImportIgnoresPrevious =>
        "import::a_taken_previous_digest_is_left_out",
        "import::the_others_of_a_batch_are_inserted";
    ImportFailsAtTaken =>
        "import::the_others_of_a_batch_are_inserted", "import::an_import_can_be_repeated";
    ImportStopsAtTaken => "import::the_others_of_a_batch_are_inserted";
    ImportSaysYes =>
        "import::the_others_of_a_batch_are_inserted",
        "import::one_of_several_imports_inserts_a_key";
    ImportAnswersBackwards => "import::the_others_of_a_batch_are_inserted";
    ImportUndoesChanges => "import::an_import_can_be_repeated";
    ImportOfNothingFails => "import::an_empty_batch_is_no_error";
    ImportChecksThenWrites => "import::one_of_several_imports_inserts_a_key";
    SearchFindsIdsOfOneOrg => "search::a_key_is_found_by_its_id";
    SearchPrefixIsABeginning => "search::a_prefix_is_compared_as_a_whole";
    SearchIncludesUntil => "search::expiries_are_found_in_order";
    SearchIgnoresUses => "search::unused_keys_are_found";
    SearchCursorIsATime => "search::every_key_is_met_once";
    ReopenedWithoutOrg => "reopened::every_field_comes_back";
    ReopenedWithoutName => "reopened::every_field_comes_back";
    ReopenedWithoutKeyPrefix => "reopened::every_field_comes_back";
    ReopenedWithoutDigest => "reopened::every_field_comes_back";
    ReopenedWithoutStatus => "reopened::every_field_comes_back", "reopened::changes_come_back";
    ReopenedWithoutAllowlist => "reopened::every_field_comes_back";
    ReopenedWithoutCreatedAt => "reopened::every_field_comes_back";
    ReopenedWithoutExpiresAt => "reopened::every_field_comes_back";
    ReopenedWithoutRotatedAt => "reopened::every_field_comes_back";
    ReopenedWithoutPrevious =>
        "reopened::every_field_comes_back", "reopened::changes_come_back";
    ReopenedWithoutLastUsedAt =>
        "reopened::every_field_comes_back", "reopened::last_uses_come_back";
    ReopenedWithoutRevision =>
        "reopened::every_field_comes_back", "reopened::changes_come_back";
    ReopenedWithoutAttributes => "reopened::every_field_comes_back";
    ReopenedWithDeletedKeys => "reopened::a_deleted_key_stays_gone";
    ReopenedWithFirstVersions =>
        "reopened::changes_come_back", "reopened::last_uses_come_back",
        "reopened::an_old_digest_stays_gone";
    ReopenedWithoutCount => "reopened::earlier_keys_are_counted_and_unique";
    ReopenedWithoutUniqueness => "reopened::earlier_keys_are_counted_and_unique";
    ReopenedStoreIsNotSaved => "reopened::a_store_can_be_reopened_again";
}

faults! {
    LogFault:
    Nothing => ;
    AnswersTooSoon => "audit::record::a_batch_can_be_read_at_once";
    EmptyBatchFails => "audit::record::an_empty_batch_is_no_error";
    BatchStopsAtFiveHundred => "audit::record::a_batch_of_a_thousand_is_kept";
    RepeatsAreStored =>
        "audit::record::a_repeated_batch_is_stored_once",
        "audit::record::a_record_twice_in_a_batch_is_stored_once",
        "audit::record::simultaneous_batches_are_all_kept";
    RepeatsFail => "audit::record::a_repeated_batch_is_stored_once";
    KnownRecordDropsBatch => "audit::record::the_new_part_of_a_batch_is_stored";
    RepeatsWithinABatch => "audit::record::a_record_twice_in_a_batch_is_stored_once";
    SameInstantIsSame => "audit::record::equal_records_with_different_ids_are_kept";
    CheckThenWrite => "audit::record::simultaneous_batches_are_all_kept";
    OldestFirst => "audit::pages::the_newest_comes_first";
    TiesAreSigned => "audit::pages::records_of_one_instant_are_ordered_by_id";
    CursorIsATime =>
        "audit::pages::paging_back_meets_every_record_once",
        "audit::pages::paging_forward_meets_every_record_once";
    CursorIsACount => "audit::pages::new_records_do_not_disturb_paging";
    FullPagesLeadOn => "audit::pages::the_ends_have_no_further_page";
    AfterGivesTheNewest =>
        "audit::pages::paging_forward_meets_every_record_once",
        "audit::pages::paging_back_and_forth_gives_the_same_page";
    EmptyLogIsAnError => "audit::pages::a_log_without_records_is_an_empty_page";
    EmptyPageLeadsNowhere => "audit::pages::an_empty_page_leads_back";
    CursorNeedsItsRecord => "audit::pages::a_cursor_needs_no_record";
    PagesOfAHundred => "audit::pages::a_page_holds_its_limit";
    FilterIsIgnored => "audit::filter::a_filter_finds_what_matches";
    FilterAfterThePage => "audit::filter::a_filter_finds_what_matches";
    ShortPagesAreTheLast => "audit::filter::a_rare_match_is_found";
    UntilIsIncluded => "audit::filter::times_limit_what_is_found";
    OrgIsIgnored => "audit::scope::organisations_do_not_see_each_other";
    OrgsIgnoreCase => "audit::scope::similar_organisations_are_separate";
    KeyIsIgnored => "audit::scope::a_key_has_its_own_records";
    OrgChangesOfOneKey => "audit::scope::org_changes_spans_all_keys";
    KindIsIgnored => "audit::scope::requests_and_changes_are_separate";
    KindIsFilteredAfterwards => "audit::scope::requests_and_changes_are_separate";
    MethodsInUpperCase => "audit::fields::methods_are_kept";
    EndpointsAreCutOff => "audit::fields::endpoints_are_kept";
    UnknownAddressIsZero => "audit::fields::addresses_are_kept";
    CountryIsForgotten => "audit::fields::countries_are_kept";
    NoStatusIsZero => "audit::fields::statuses_are_kept";
    CountIsOne => "audit::fields::counts_are_kept";
    SecretIsCurrent => "audit::fields::secrets_are_kept";
    AbortedIsAllowed => "audit::fields::outcomes_are_kept";
    AbandonedIsBegun => "audit::fields::actions_and_phases_are_kept";
    ActorsAreTrimmed => "audit::fields::actors_are_kept";
    FieldsAreTexts => "audit::fields::changed_fields_are_kept";
    Milliseconds => "audit::fields::times_and_ids_are_kept";
    TimesFrom1970 => "audit::fields::every_time_is_kept";
    CountsRecordsNotRequests => "audit::usage::every_request_is_counted";
    ChangesAreCounted => "audit::usage::every_request_is_counted";
    HoursAreRounded => "audit::usage::every_request_is_counted";
    RepeatsAreCounted => "audit::usage::a_repeated_record_is_counted_once";
    CountsAreReadAndWritten => "audit::usage::simultaneous_batches_are_counted";
    UsageIgnoresOrg => "audit::usage::keys_are_counted_apart";
    UntilIsCounted => "audit::usage::hours_limit_what_is_counted";
    PurgeTakesAllCounts => "audit::usage::later_counts_survive_a_purge";
    ReopenedWithoutCounts => "audit::reopened::counts_come_back";
    PurgeTakesTheInstant => "audit::purge::the_older_records_are_removed";
    PurgeKeepsChanges => "audit::purge::every_organisation_is_purged";
    PurgeTellsWhatIsLeft => "audit::purge::the_number_of_removed_records_is_returned";
    PurgeForbidsOldRecords => "audit::purge::old_records_may_be_written_after_a_purge";
    ReopenedWithoutCountries => "audit::reopened::every_field_comes_back";
    ReopenedWithoutPhases => "audit::reopened::every_field_comes_back";
    ReopenedOldestFirst => "audit::reopened::the_order_comes_back";
    ReopenedWithPurgedRecords => "audit::reopened::a_purged_record_stays_gone";
    ReopenedWithoutIds => "audit::reopened::a_repeated_batch_is_stored_once";
}
