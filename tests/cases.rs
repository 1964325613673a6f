//! The list of adversarial cases agrees with the tests.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The numbers of all `case_NN_…` at the start of a line, as a function or as a macro argument
/// that becomes one, with the files that contain them.
fn tests_below(folder: &Path, found: &mut BTreeMap<usize, BTreeSet<String>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().replace('\\', "/");
            for line in fs::read_to_string(&path).unwrap().lines() {
                let line = line.trim_start();
                let line = line.strip_prefix("async ").unwrap_or(line);
                let line = line.strip_prefix("fn ").unwrap_or(line);
                let number = line.strip_prefix("case_").and_then(|rest| rest.split_once('_'));
                if let Some(number) = number.and_then(|(number, _)| number.parse().ok()) {
                    found.entry(number).or_default().insert(name.clone());
                }
            }
        }
    }
}

#[test]
fn every_case_has_a_test_or_is_marked_as_open() {
    let mut tests = BTreeMap::new();
    for folder in ["tests", "src"] {
        tests_below(&Path::new(ROOT).join(folder), &mut tests);
    }
    let list = fs::read_to_string(Path::new(ROOT).join("tests/ADVERSARIAL.md")).unwrap();
    let cases = list.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let mut count = 0;
    for (case, number) in cases.zip(1..) {
        count = number;
        assert!(case.starts_with(&format!("{number}. ")), "not number {number}: {case}");
        let (_, places) = case.rsplit_once(" (").unwrap();
        let is_open = places == "open)" || places.starts_with("by hand: ");
        assert_eq!(
            is_open,
            !tests.contains_key(&number),
            "has no test and is not marked as open: {case}"
        );
        if !is_open {
            for file in places.split('`').skip(1).step_by(2) {
                let file = format!("tests/{file}");
                assert!(tests[&number].contains(&file), "{file} has no such test: {case}");
            }
        }
    }
    let unlisted: Vec<_> = tests.keys().filter(|number| !(1..=count).contains(*number)).collect();
    assert!(unlisted.is_empty(), "not in the list: {unlisted:?}");
}

/// Adds the Rust source below this folder.
fn source_below(folder: &Path, source: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_below(&path, source);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            source.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let mut source = String::new();
    for folder in ["tests", "src"] {
        source_below(&Path::new(ROOT).join(folder), &mut source);
    }
    let page = fs::read_to_string(Path::new(ROOT).join("src/guide/security.md")).unwrap();
    let is_test = |name: &&str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        name.chars().all(plain) && name.matches('_').count() >= 4
    };
    let named: BTreeSet<_> = page.split('`').filter(is_test).collect();
    assert!(named.len() > 10, "{named:?}");
    let missing: Vec<_> =
        named.into_iter().filter(|name| !source.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
}
