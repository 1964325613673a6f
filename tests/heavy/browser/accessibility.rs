//! axe-core finds no violation in any state of the page, light or dark, wide or narrow.
//!
//! `KEYGATE_AXE` is the path of `axe.min.js` from the package `axe-core`:
//! `npm pack axe-core && tar xzf axe-core-*.tgz`, then `KEYGATE_AXE=$PWD/package/axe.min.js`.

use crate::kit::{Browser, texts};
use crate::views::{evaluate, every_state};

/// What axe-core finds of any weight, an element each.
pub(crate) fn violations(browser: &Browser) -> Vec<String> {
    if evaluate(browser, "typeof axe") == "undefined" {
        let path = std::env::var("KEYGATE_AXE").expect("KEYGATE_AXE is the path of axe.min.js");
        let axe = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        // The value of the script need not be returned.
        evaluate(browser, &(axe + "\n;0"));
    }
    let found = "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => \
        violations.flatMap(({ impact, id, nodes }) => \
            nodes.map((node) => `${impact} ${id}: ${node.html} ${node.failureSummary}`)))";
    texts(evaluate(browser, found))
}

#[test]
#[ignore = "needs chromium, and axe-core in KEYGATE_AXE"]
fn axe_finds_nothing_in_any_state() {
    let mut found = Vec::new();
    every_state(async |browser, screen, state| {
        let violations = violations(browser).into_iter();
        found.extend(violations.map(|what| format!("{state}, {screen:?}: {what}")));
    });
    assert!(found.is_empty(), "{found:#?}");
}
