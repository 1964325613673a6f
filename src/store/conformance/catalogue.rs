//! The lists of all properties of stores.

use crate::store::conformance::handles::{StoreAndExport, StoreAndImport, StoreAndSearch};
use crate::store::conformance::property::{Property, properties};
use crate::store::conformance::{
    calls, change_races, creation_races, delete, export, fields, find, import, insert, isolation,
    limit, read_races, reopened, replace, search, use_races, uses,
};
use crate::store::key_store::KeyStore;

pub(super) const STORE: &[Property<dyn KeyStore>] = properties! { open: ""
    insert {
        a_new_key_is_there_at_once,
        a_taken_digest_is_a_conflict,
        a_taken_previous_digest_is_a_conflict,
        a_taken_id_is_a_conflict,
        a_digest_of_another_organisation_is_a_conflict,
        an_id_of_another_organisation_is_a_conflict,
        the_same_key_again_is_a_conflict,
        a_refused_insert_leaves_nothing_behind,
        all_but_id_and_digest_may_repeat,
    }
    limit {
        the_limit_is_reached_exactly,
        a_limit_of_zero_admits_no_key,
        without_a_limit_every_key_is_admitted,
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
        an_unknown_key_is_not_found,
        a_key_is_found_by_its_previous_digest,
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
        names_of_earlier_versions_are_kept,
        key_prefixes_are_kept_exactly,
        fifty_networks_keep_their_order,
        every_readable_allowlist_is_kept,
        an_unreadable_allowlist_stays_unreadable,
        every_revision_is_kept,
        every_status_is_kept,
        attributes_are_kept_exactly,
        previous_secrets_are_kept,
    }
    replace {
        every_changeable_field_is_written,
        the_time_of_creation_stays,
        the_last_use_stays,
        another_revision_is_a_conflict,
        an_unknown_key_is_not_found,
        a_deleted_key_is_not_found,
        the_old_digest_is_gone,
        the_previous_digest_is_found_until_it_is_replaced,
        a_change_shows_in_find_at_once,
        a_taken_digest_is_a_conflict,
        a_taken_previous_digest_is_a_conflict,
        the_old_digest_is_free,
        other_keys_stay,
    }
    delete {
        a_deleted_key_is_gone,
        another_revision_is_a_conflict,
        an_unknown_key_is_not_found,
        a_deleted_key_is_not_found,
        a_deleted_key_loses_all_its_digests,
        the_id_and_the_digest_are_free,
        a_reused_id_inherits_nothing,
        other_keys_stay,
    }
    uses {
        a_use_shows,
        the_time_does_not_move_back,
        a_time_far_in_the_future_does_not_stay,
        the_first_use_counts_whenever_it_was,
        the_latest_use_in_a_batch_counts,
        keys_that_are_gone_are_skipped,
        a_batch_without_stored_keys_is_no_error,
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
        similar_organisations_are_separate_in_reads,
        similar_organisations_are_separate_in_writes,
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
        organisations_fill_up_independently,
        one_of_several_inserts_of_a_digest_wins,
        one_of_several_inserts_of_an_id_wins,
        inserts_beside_deletes_keep_to_the_limit,
    }
    change_races {
        one_of_several_replaces_wins,
        one_of_two_keys_gets_a_digest,
        an_insert_or_a_replace_gets_a_digest,
        a_digest_becomes_current_or_previous,
        an_insert_or_an_overlap_gets_a_digest,
        a_rename_and_a_revocation_are_both_kept,
        no_edit_is_lost,
        a_replace_does_not_undo_a_deletion,
        one_of_a_replace_and_a_delete_wins,
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
        an_old_digest_is_gone_at_once,
        an_overlap_has_no_gap,
        a_finished_edit_is_seen_by_every_find,
        a_deleted_key_is_gone_at_once,
        a_key_is_found_while_its_use_is_recorded,
    }
};

pub(super) const REOPENED_STORE: &[Property<dyn KeyStore>] = properties! { reopen: ""
    reopened {
        every_field_comes_back,
        changes_come_back,
        last_uses_come_back,
        a_deleted_key_stays_gone,
        an_old_digest_stays_gone,
        earlier_keys_are_counted_and_unique,
        a_store_can_be_reopened_again,
    }
};

pub(super) const EXPORT: &[Property<dyn StoreAndExport>] = properties! { open: ""
    export {
        every_key_is_exported_once,
        a_page_holds_its_limit,
        the_first_page_begins_with_the_first,
        keys_of_every_organisation_are_exported,
        every_field_is_exported,
        deleted_keys_are_not_exported,
        keys_may_be_added_and_deleted_between_pages,
        the_end_is_an_empty_page,
    }
};

pub(super) const IMPORT: &[Property<dyn StoreAndImport>] = properties! { open: ""
    import {
        no_limit_applies,
        imported_keys_count,
        every_field_is_kept,
        a_taken_id_is_left_out,
        a_taken_digest_is_left_out,
        a_taken_previous_digest_is_left_out,
        the_others_of_a_batch_are_inserted,
        the_first_of_two_alike_is_inserted,
        an_import_can_be_repeated,
        an_empty_batch_is_no_error,
        one_of_several_imports_inserts_a_key,
    }
};

pub(super) const SEARCH: &[Property<dyn StoreAndSearch>] = properties! { open: ""
    search {
        a_key_is_found_by_its_id,
        a_prefix_is_compared_as_a_whole,
        expiries_are_found_in_order,
        unused_keys_are_found,
        every_key_is_met_once,
    }
};
