//! The page is small: six requests to its own host, and it fits on 360 pixels.

use serde_json::json;

use crate::kit::Browser;
use crate::service::{Service, visit_service};
use crate::views::{Screen, furnish, tour};

#[test]
#[ignore = "needs chromium"]
fn the_first_view_takes_six_requests_all_to_its_own_host() {
    visit_service(furnish, async |browser, service, ()| {
        browser.reload().await;
        browser.sees("CI deploy").await;
        // What is asked for after the keys have arrived is not part of the first view.
        let asked = "const all = performance.getEntriesByType('resource'); \
            const keys = all.find((it) => it.name.endsWith('/api/keys')); \
            const first = all.filter((it) => it.startTime <= keys.startTime); \
            return [...performance.getEntriesByType('navigation'), ...first].map((it) => it.name)";
        let mut asked = browser.list(asked, &[]).await;
        // The icon is a `data:` URL and causes no request.
        asked.retain(|url| !url.starts_with("data:"));
        assert!(matches!(asked.len(), 5 | 6), "{asked:#?}");
        assert!(asked.iter().all(|url| url.starts_with(&service.origin())), "{asked:#?}");
        // Each module is asked for before another one has arrived.
        let at_once = "const modules = performance.getEntriesByType('resource') \
                .filter((it) => /(page|ui|api)\\.js$/.test(it.name)); \
            const arrived = Math.min(...modules.map((it) => it.responseEnd)); \
            return modules.length === 3 && modules.every((it) => it.startTime <= arrived)";
        assert_eq!(browser.js(at_once, &[]).await, true);
    });
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
    let problems = browser.list(script, &[]).await;
    assert!(problems.is_empty(), "{state}: {problems:#?}");
}

#[test]
#[ignore = "needs chromium"]
fn at_360_pixels_nothing_overflows_and_dialogs_and_the_table_keep_their_roles() {
    let is_named = "const dialog = document.querySelector('dialog[open]'); \
        return !dialog || document.getElementById(dialog.getAttribute('aria-labelledby')).innerText \
            === dialog.querySelector('h2').innerText";
    visit_service(furnish, async |browser, service, ()| {
        browser.expect_console("status of 502");
        Screen::ALL[2].set(browser);
        tour(browser, service, async |state| {
            assert_fits(browser, state).await;
            assert_eq!(browser.js(is_named, &[]).await, true, "{state}: the name of the dialog");
        })
        .await;
        let tree = browser.cdp("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes");
        let count = |role: &str| nodes.iter().filter(|it| it["role"]["value"] == role).count();
        let counts = ["table", "columnheader", "row", "cell"].map(count);
        assert_eq!(counts, [1, 6, 8, 35], "seven keys below the headings");
        assert_eq!(count("rowheader"), 7);
    });
}

#[test]
#[ignore = "needs chromium"]
fn long_names_and_addresses_do_not_overflow_at_360_pixels() {
    let long = "W".repeat(100);
    let ranges: Vec<String> =
        (0..12).map(|n| format!("2001:db8:ffff:ffff:ffff:ffff:ffff:{:04x}", 0xff00 + n)).collect();
    let before = |service: &Service| {
        let ranges: Vec<&str> = ranges.iter().map(String::as_str).collect();
        let key = service.create_with(&long, "never", &ranges);
        let path = format!("/v1/{}", "endpoint".repeat(60));
        service.call(&key, "GET", &path, ranges[0]);
        service.call(&key, "PROPPATCH", &path, "192.0.2.1");
        service.edit(&long, json!({ "status": "revoked" }));
        service.call(&key, "GET", "/v1/x", ranges[0]);
        service.edit(&long, json!({ "status": "active" }));
    };
    visit_service(before, async |browser, _, ()| {
        Screen::ALL[2].set(browser);
        assert_fits(browser, "table").await;
        browser.press(&format!("Actions for {long}")).await;
        assert_fits(browser, "menu").await;
        browser.escape().await;
        for (item, seen, leave) in [
            ("Edit", "Save changes", "Cancel"),
            ("Rotate", "Rotate key", "Cancel"),
            ("View Audit Log", "key revoked", "Close"),
            ("Delete", "Delete key", "Cancel"),
        ] {
            browser.menu(&long, item).await;
            browser.sees(seen).await;
            assert_fits(browser, item).await;
            browser.close_with(leave).await;
        }
        browser.press("Create API Key").await;
        browser.fill("Name", &long).await;
        browser.add(&ranges.join(" ")).await;
        assert_fits(browser, "create").await;
        browser.press("Create key").await;
        browser.sees("Save your key").await;
        browser.press("Show key").await;
        assert_fits(browser, "secret").await;
        browser.done().await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn for_fingers_every_target_has_44_pixels() {
    visit_service(furnish, async |browser, service, ()| {
        browser.expect_console("status of 502");
        browser.cdp("Emulation.setTouchEmulationEnabled", json!({ "enabled": true }));
        Screen::ALL[2].set(browser);
        let low = "const top = [...document.querySelectorAll('dialog[open]')].at(-1) ?? document.body; \
            return [...top.querySelectorAll('button, select, input[type=text], summary, .choice')] \
                .filter((it) => it.checkVisibility() && it.getBoundingClientRect().height < 44) \
                .map((it) => it.outerHTML.slice(0, 120))";
        tour(browser, service, async |state| {
            assert_eq!(browser.list(low, &[]).await, [""; 0], "{state}");
        })
        .await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn dialogs_stay_where_they_are_and_menus_stay_in_the_window() {
    let top = "return document.querySelector('dialog').getBoundingClientRect().top";
    for screen in Screen::ALL.into_iter().filter(|screen| !screen.dark) {
        visit_service(furnish, async |browser, _, ()| {
            screen.set(browser);
            // The last row is at the lower edge of the window.
            let edge = "const rows = [...document.querySelectorAll('tr')]; \
                scrollBy(0, rows.at(-1).getBoundingClientRect().bottom - innerHeight)";
            browser.js(edge, &[]).await;
            browser.press("Actions for Grafana dashboards").await;
            let inside = "const box = document.querySelector('[role=menu]:not([hidden])').getBoundingClientRect(); \
                return box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth";
            assert_eq!(browser.js(inside, &[]).await, true, "{screen:?}");
            browser.escape().await;

            browser.press("Create API Key").await;
            browser.sees("Address or range").await;
            let before = browser.js(top, &[]).await;
            let scrolled = browser.js("return scrollY", &[]).await;
            browser.add("192.0.2.1 192.0.2.2 192.0.2.3").await;
            assert_eq!(browser.js(top, &[]).await, before, "{screen:?}: the dialog moved");
            browser.cdp(
                "Input.dispatchMouseEvent",
                json!({
                    "type": "mouseWheel", "x": 5, "y": 5, "deltaX": 0, "deltaY": -400,
                }),
            );
            assert_eq!(
                browser.js("return scrollY", &[]).await,
                scrolled,
                "{screen:?}: the page moved"
            );
            browser.close_with("Cancel").await;

            // The log has the same size on a full and on an empty page, and no column is cut off.
            let mut sizes = Vec::new();
            for key in ["CI deploy", "Data warehouse sync"] {
                browser.menu(key, "View Audit Log").await;
                browser
                    .sees(if key == "CI deploy" { "/v1/releases" } else { "No request has" })
                    .await;
                let size = "const box = document.querySelector('dialog').getBoundingClientRect(); \
                    const list = document.querySelector('dialog .scroll'); \
                    return [box.width, box.height, list.scrollWidth - list.clientWidth]";
                sizes.push(browser.js(size, &[]).await);
                browser.close_with("Close").await;
            }
            assert_eq!(sizes[0], sizes[1], "{screen:?}");
            assert_eq!(sizes[0][2], 0, "{screen:?}: a column is cut off");
        });
    }
}

#[test]
#[ignore = "needs chromium"]
fn the_log_is_printed_whole_and_without_controls() {
    visit_service(furnish, async |browser, _, ()| {
        browser.menu("CI deploy", "View Audit Log").await;
        browser.sees("/v1/releases").await;
        browser.cdp("Emulation.setEmulatedMedia", json!({ "media": "print" }));
        let script = "const list = document.querySelector('dialog .scroll'); \
            return [list.scrollHeight - list.clientHeight, \
                [...document.querySelectorAll('button, select')].filter((it) => it.checkVisibility()).length]";
        browser.becomes("the print", json!([0, 0]), async || browser.js(script, &[]).await).await;
    });
}
