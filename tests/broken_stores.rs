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
use std::fmt::Debug;

use broken::fault::{Fault, LogFault};
use broken::log::BrokenLog;
use broken::store::BrokenStore;
use keygate::conformance::{
    Report, Violations, check_audit_log, check_export, check_import, check_reopened_audit_log,
    check_reopened_store, check_search, check_store, only,
};
use tokio::task::JoinSet;

type Outcome = Result<Report, Violations>;

/// Runs the suite that has the property, on a store with that fault.
async fn store(fault: Fault, property: &str) -> Outcome {
    let store = BrokenStore::new(fault);
    match property.split("::").next() {
        Some("export") => check_export(|| async { BrokenStore::new(fault) }).await,
        Some("import") => check_import(|| async { BrokenStore::new(fault) }).await,
        Some("search") => check_search(|| async { BrokenStore::new(fault) }).await,
        Some("reopened") => check_reopened_store(|| async { store.open() }).await,
        _ => check_store(|| async { BrokenStore::new(fault) }).await,
    }
}

/// Runs the suite that has the property, on a log with that fault.
async fn log(fault: LogFault, property: &str) -> Outcome {
    let log = BrokenLog::new(fault);
    match property.starts_with("audit::reopened") {
        true => check_reopened_audit_log(|| async { log.open() }).await,
        false => check_audit_log(|| async { BrokenLog::new(fault) }).await,
    }
}

/// Checks that each fault is caught by each of its properties. Running the whole suite for
/// every fault would take minutes.
async fn all_are_caught<T: Copy + Debug, F>(
    faults: &[(T, &[&'static str])],
    check: fn(T, &'static str) -> F,
) where
    F: Future<Output = Outcome> + Send + 'static,
{
    let mut missed = Vec::new();
    for (fault, properties) in faults {
        let mut checks = JoinSet::new();
        for &name in *properties {
            let check = only(vec![name], check(*fault, name));
            checks.spawn(async move {
                let is_caught = check.await.is_err_and(|v| v.iter().any(|(n, _)| n == name));
                (name, is_caught)
            });
        }
        let passing = checks.join_all().await.into_iter().filter(|(_, is_caught)| !is_caught);
        missed.extend(passing.map(|(name, _)| (*fault, name)));
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_store_is_caught() {
    all_are_caught(Fault::ALL, store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_fault_of_a_log_is_caught() {
    all_are_caught(LogFault::ALL, log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_property_holds_without_a_fault_and_catches_at_least_one() {
    let reports = [
        store(Fault::Nothing, "").await,
        store(Fault::Nothing, "export").await,
        store(Fault::Nothing, "import").await,
        store(Fault::Nothing, "reopened").await,
        store(Fault::Nothing, "search").await,
        log(LogFault::Nothing, "").await,
        log(LogFault::Nothing, "audit::reopened").await,
    ]
    .map(Result::unwrap);
    let mut passed: Vec<_> =
        reports.iter().flat_map(Report::passed).map(|(name, _)| name).collect();
    passed.sort();
    let of_stores = Fault::ALL.iter().flat_map(|(_, properties)| *properties);
    let of_logs = LogFault::ALL.iter().flat_map(|(_, properties)| *properties);
    let catching: BTreeSet<_> = of_stores.chain(of_logs).copied().collect();
    assert_eq!(passed, Vec::from_iter(catching), "all properties, each with its own name");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_dropped_change_may_take_effect_after_a_later_call() {
    let dropped = [
        "calls::a_dropped_insert_does_no_harm",
        "calls::a_dropped_replace_does_no_harm",
        "calls::a_dropped_delete_does_no_harm",
    ];
    let report = only(dropped.to_vec(), store(Fault::ChangesAreLate, "")).await.unwrap();
    assert_eq!(report.passed().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_whole_suite_reports_exactly_the_violations() {
    let violations = store(Fault::KeyPrefixOfTwelve, "").await.unwrap_err();
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
        let violations = only(vec![property], store(fault, "")).await.unwrap_err();
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
    let violations =
        only(vec!["uses::a_use_shows"], store(Fault::UsesPanic, "")).await.unwrap_err();
    let found: Vec<&str> = violations.iter().map(|(_, violation)| violation.found()).collect();
    assert_eq!(found, ["a panic: not implemented: uses"]);
}
