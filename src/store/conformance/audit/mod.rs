//! Properties of an audit log.

use crate::store::conformance::handles::SinkAndLog;
use crate::store::conformance::property::{Property, properties};

mod fields;
mod filter;
mod fixtures;
mod pages;
mod purge;
mod record;
mod reopened;
mod scope;
mod usage;

pub(super) const ALL: &[Property<dyn SinkAndLog>] = properties! { open: "audit::"
    record {
        a_batch_can_be_read_at_once,
        an_empty_batch_is_no_error,
        a_batch_of_a_thousand_is_kept,
        a_repeated_batch_is_stored_once,
        the_new_part_of_a_batch_is_stored,
        a_record_twice_in_a_batch_is_stored_once,
        equal_records_with_different_ids_are_kept,
        simultaneous_batches_are_all_kept,
    }
    pages {
        the_newest_comes_first,
        records_of_one_instant_are_ordered_by_id,
        paging_back_meets_every_record_once,
        paging_forward_meets_every_record_once,
        new_records_do_not_disturb_paging,
        the_ends_have_no_further_page,
        paging_back_and_forth_gives_the_same_page,
        a_log_without_records_is_an_empty_page,
        an_empty_page_leads_back,
        a_cursor_needs_no_record,
        a_page_holds_its_limit,
    }
    filter {
        a_filter_finds_what_matches,
        a_rare_match_is_found,
        times_limit_what_is_found,
    }
    scope {
        organisations_do_not_see_each_other,
        similar_organisations_are_separate,
        a_key_has_its_own_records,
        org_changes_spans_all_keys,
        requests_and_changes_are_separate,
    }
    fields {
        methods_are_kept,
        endpoints_are_kept,
        addresses_are_kept,
        countries_are_kept,
        statuses_are_kept,
        outcomes_are_kept,
        counts_are_kept,
        secrets_are_kept,
        actions_and_phases_are_kept,
        actors_are_kept,
        changed_fields_are_kept,
        times_and_ids_are_kept,
        every_time_is_kept,
    }
    usage {
        every_request_is_counted,
        a_repeated_record_is_counted_once,
        simultaneous_batches_are_counted,
        keys_are_counted_apart,
        hours_limit_what_is_counted,
        later_counts_survive_a_purge,
    }
    purge {
        the_older_records_are_removed,
        every_organisation_is_purged,
        the_number_of_removed_records_is_returned,
        old_records_may_be_written_after_a_purge,
    }
};

pub(super) const REOPENED: &[Property<dyn SinkAndLog>] = properties! { reopen: "audit::"
    reopened {
        every_field_comes_back,
        the_order_comes_back,
        a_purged_record_stays_gone,
        a_repeated_batch_is_stored_once,
        counts_come_back,
    }
};
