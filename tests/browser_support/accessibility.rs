//! axe-core finds no violation in any state of the page, light or dark, wide or narrow.
//!
//! `KEYGATE_AXE` is the path of `axe.min.js` from the package `axe-core`:
//! `npm pack axe-core && tar xzf axe-core-*.tgz`, then `KEYGATE_AXE=$PWD/package/axe.min.js`.

use serde_json::Value;

use crate::browser_support::Browser;
use crate::service::{Service, texts, visit_service};
use crate::views::{Screen, evaluate, furnish, tour};

/// What axe-core finds of any weight, an element each.
pub(crate) fn violations(browser: &Browser, axe: &str) -> Vec<String> {
    if evaluate(browser, "typeof axe") == "undefined" {
        evaluate(browser, axe);
    }
    let found = "axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => \
        violations.flatMap(({ impact, id, nodes }) => \
            nodes.map((node) => `${impact} ${id}: ${node.html} ${node.failureSummary}`)))";
    texts(&evaluate(browser, found))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium, and axe-core in KEYGATE_AXE"]
async fn axe_finds_nothing_in_any_state() {
    let path = std::env::var("KEYGATE_AXE").expect("KEYGATE_AXE is the path of axe.min.js");
    // The value of the script need not be returned.
    let axe = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")) + "\n;0";
    let mut found = Vec::new();
    let mut look = |browser: &Browser, screen: Screen, state: &str| {
        let place = format!("{state}, {} pixels, {}", screen.width, screen.theme());
        let violations = violations(browser, &axe).into_iter();
        found.extend(violations.map(|what| format!("{place}: {what}")));
    };
    for screen in Screen::ALL {
        visit_service(furnish, async |browser, service, ()| {
            browser.expect_console("status of 502");
            screen.set(browser);
            tour(browser, service, async |state| look(browser, screen, state)).await;
        })
        .await;
        visit_service(
            |_: &Service| (),
            async |browser, _, ()| {
                screen.set(browser);
                browser.sees("No API keys yet").await;
                look(browser, screen, "empty");
            },
        )
        .await;
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn dialogs_are_named_by_their_title_and_the_table_has_its_role_at_any_width() {
    visit_service(furnish, async |browser, service, ()| {
        browser.expect_console("status of 502");
        Screen::ALL[2].set(browser);
        let name = "const dialog = document.querySelector('dialog[open]'); \
            return dialog && document.getElementById(dialog.getAttribute('aria-labelledby')).innerText \
                === dialog.querySelector('h2').innerText";
        tour(browser, service, async |state| {
            let named = browser.js(name, &[]).await;
            assert!(named == true || named == Value::Null, "{state}: {named}");
        })
        .await;
        let tree = browser.cdp("Accessibility.getFullAXTree", serde_json::json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes");
        let count = |role: &str| nodes.iter().filter(|it| it["role"]["value"] == role).count();
        assert_eq!(count("table"), 1);
        assert_eq!(count("row"), 8, "seven keys below the headings");
        assert_eq!(count("columnheader"), 6);
        assert_eq!(count("cell"), 42);
    })
    .await;
}
