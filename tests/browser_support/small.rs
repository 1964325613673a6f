//! The page is small: six requests to its own host, and it fits on 360 pixels.

use serde_json::json;

use crate::browser_support::Browser;
use crate::service::{Service, texts, visit_service};
use crate::views::{Screen, furnish, tour};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn the_first_view_takes_six_requests_all_to_its_own_host() {
    visit_service(furnish, async |browser, service, ()| {
        browser.reload().await;
        browser.sees("CI deploy").await;
        let asked = "return [...performance.getEntriesByType('navigation'), \
            ...performance.getEntriesByType('resource')].map((it) => it.name)";
        let asked = texts(&browser.js(asked, &[]).await);
        // The icon is a `data:` URL and causes no request.
        let asked: Vec<_> = asked.iter().filter(|url| !url.starts_with("data:")).collect();
        assert!(asked.len() <= 6, "{asked:#?}");
        assert!(asked.len() >= 5, "the browser reports too few requests: {asked:#?}");
        let foreign: Vec<_> =
            asked.iter().filter(|url| !url.starts_with(&service.origin())).collect();
        assert!(foreign.is_empty(), "{foreign:#?}");
    })
    .await;
}

/// The elements that overflow the document, and the clickable ones that are not visible.
async fn assert_fits(browser: &Browser, state: &str) {
    let script = "
        const root = document.documentElement;
        const top = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body;
        const out = (element) => {
            element.scrollIntoView({ block: 'center', inline: 'nearest' });
            const box = element.getBoundingClientRect();
            return box.left < 0 || box.right > innerWidth || box.top < 0 || box.bottom > innerHeight;
        };
        const controls = [...top.querySelectorAll('button, input, select, a, pre, h2, time, .badge')]
            .filter((it) => it.checkVisibility({ visibilityProperty: true }));
        const problems = controls.filter(out).map((it) => `out of the window: ${it.outerHTML}`);
        for (const element of [root, ...top.querySelectorAll('*')]) {
            const style = getComputedStyle(element);
            // A dialog's body lets the audit table extend to the edge of the dialog.
            const hidden = element.matches('.unseen, .unseen *, thead, thead *, input, select, option, .dialog-body');
            const wide = element.scrollWidth - element.clientWidth;
            if (!hidden && style.display !== 'inline' && wide > 1 && element.clientWidth > 0)
                problems.push(`${wide} pixels too wide: ${element.outerHTML.slice(0, 200)}`);
        }
        if (root.scrollWidth > innerWidth) problems.push(`the document has ${root.scrollWidth}`);
        if (innerWidth !== 360) problems.push(`the window has ${innerWidth}`);
        scrollTo(0, 0);
        return problems";
    let problems = texts(&browser.js(script, &[]).await);
    assert!(problems.is_empty(), "{state}: {problems:#?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn nothing_overflows_at_360_pixels() {
    visit_service(furnish, async |browser, service, ()| {
        browser.expect_console("status of 502");
        Screen::ALL[2].set(browser);
        tour(browser, service, async |state| assert_fits(browser, state).await).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn long_names_and_addresses_do_not_overflow_at_360_pixels() {
    let long = "W".repeat(100);
    let ranges: Vec<String> =
        (0..12).map(|n| format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{:04x}", 0xff00 + n)).collect();
    let before = |service: &Service| {
        let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
        let key = service.create(&long, "never", &ranges);
        let path = format!("/v1/{}", "endpoint".repeat(60));
        service.call(&key, "GET", &path, ranges[0]);
        service.call(&key, "PROPPATCH", &path, "192.0.2.1");
        service.edit(&key, json!({ "status": "revoked" }));
        service.call(&key, "GET", "/v1/x", ranges[0]);
        service.edit(&key, json!({ "status": "active" }));
    };
    visit_service(before, async |browser, _, ()| {
        Screen::ALL[2].set(browser);
        assert_fits(browser, "table").await;
        browser.press(&format!("Actions for {long}")).await;
        assert_fits(browser, "menu").await;
        browser.key(fantoccini::key::Key::Escape.into()).await;
        for (item, seen) in [
            ("Edit", "Save changes"),
            ("Rotate", "Rotate key"),
            ("View audit log", "key revoked"),
            ("Delete", "Delete key"),
        ] {
            browser.menu(&long, item).await;
            browser.sees(seen).await;
            assert_fits(browser, item).await;
            let button = if item == "View audit log" { "Close" } else { "Cancel" };
            browser.press(button).await;
            browser.no_dialog().await;
        }
        browser.press("Create API key").await;
        browser.fill("Name", &long).await;
        browser.fill("Address or range", &ranges.join(" ")).await;
        browser.press("Add").await;
        assert_fits(browser, "create").await;
        browser.press("Create key").await;
        browser.sees("Save your key").await;
        browser.press("Show").await;
        assert_fits(browser, "secret").await;
        browser.press("Done").await;
        browser.no_dialog().await;
    })
    .await;
}
