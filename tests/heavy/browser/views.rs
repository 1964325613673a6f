//! Every state of the page in sequence, with keys like those of real teams.

use serde_json::{Value, json};

use crate::kit::{Browser, Role};
use crate::service::{Mode, Service, visit, visit_service};

// In seconds.
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Keys of a team: one revoked, one expired, one near its end, one never used.
pub(crate) fn furnish(service: &Service) {
    let create =
        |days: i64, name: &'static str, expiration, allowlist: &[&str], used: Option<i64>| {
            service.days_from_now(-days);
            (service.create_with(name, expiration, allowlist), name, used)
        };
    let office: &[&str] = &["203.0.113.0/24", "198.51.100.7", "2001:db8:40::/48"];
    let keys = [
        create(80, "CI deploy", "1_year", office, Some(4 * MINUTE)),
        create(150, "Billing export (nightly)", "1_year", &["198.51.100.24"], Some(9 * HOUR)),
        create(86, "Mobile app backend", "3_months", &[], Some(MINUTE)),
        create(200, "Grafana dashboards", "never", &["203.0.113.44"], Some(3 * DAY)),
        create(120, "Load test", "1_month", &[], Some(95 * DAY)),
        create(60, "Partner: Nordwind Logistics", "1_year", &["192.0.2.0/28"], Some(12 * DAY)),
        create(0, "Data warehouse sync", "3_months", &[], None),
    ];
    service.days_from_now(0);
    service.edit(keys[5].1, json!({ "status": "revoked" }));
    for (method, path, from) in [
        ("POST", "/v1/releases", "203.0.113.40"),
        ("GET", "/v1/releases/2481", "203.0.113.40"),
        ("PUT", "/v1/releases/2481/artifacts/app-linux-x86_64.tar.gz", "198.51.100.7"),
        ("GET", "/v1/environments/staging/health", "2001:db8:40::17"),
        ("POST", "/v1/environments/staging/deployments", "203.0.113.41"),
        ("GET", "/v1/releases/2480?status=404", "203.0.113.40"),
        ("GET", "/v1/releases", "198.51.100.99"),
        ("DELETE", "/v1/environments/preview-1187?status=204", "203.0.113.40"),
        ("POST", "/v1/environments/production/deployments?status=503", "203.0.113.41"),
        ("POST", "/v1/environments/production/deployments?status=201", "203.0.113.41"),
    ] {
        service.call(&keys[0].0, method, path, from);
    }
    service.stop();
    let database = service.database();
    for (_, name, used) in &keys {
        let update = "UPDATE keys SET last_used_at = (unixepoch() - ?1) * 1000000 WHERE name = ?2";
        database.execute(update, rusqlite::params![used, name]).unwrap();
    }
    // With gaps like the requests of a pipeline.
    let apart = "UPDATE recent_0 SET at = at - 43000000 * \
        (SELECT count(*) FROM recent_0 AS later WHERE later.at > recent_0.at)";
    database.execute(apart, []).unwrap();
    service.start();
}

/// The display settings of a user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Screen {
    pub(crate) width: u32,
    height: u32,
    pub(crate) dark: bool,
}

impl Screen {
    pub(crate) const ALL: [Self; 5] = [
        Self { width: 1280, height: 800, dark: false },
        Self { width: 1280, height: 800, dark: true },
        Self { width: 360, height: 740, dark: false },
        Self { width: 360, height: 740, dark: true },
        Self { width: 768, height: 1024, dark: false },
    ];

    pub(crate) const fn theme(self) -> &'static str {
        if self.dark { "dark" } else { "light" }
    }

    pub(crate) fn set(self, browser: &Browser) {
        let Self { width, height, .. } = self;
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        browser.cdp("Emulation.setDeviceMetricsOverride", size);
        let theme = json!({ "name": "prefers-color-scheme", "value": self.theme() });
        let still = json!({ "name": "prefers-reduced-motion", "value": "reduce" });
        browser.cdp("Emulation.setEmulatedMedia", json!({ "features": [theme, still] }));
    }
}

/// Evaluates an expression, bypassing the page's content security policy.
pub(crate) fn evaluate(browser: &Browser, expression: &str) -> Value {
    let parameters =
        json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
    let answer = browser.cdp("Runtime.evaluate", parameters);
    assert!(answer["exceptionDetails"].is_null(), "{answer}");
    answer["result"]["value"].clone()
}

/// Calls `look` with the name of every state of the page, on each screen.
pub(crate) fn every_state(mut look: impl AsyncFnMut(&Browser, Screen, &str)) {
    for screen in Screen::ALL {
        visit_service(furnish, async |browser, service, ()| {
            browser.expect_console("status of 502");
            screen.set(browser);
            tour(browser, service, async |state| look(browser, screen, state).await).await;
        });
        visit(async |browser, _| {
            screen.set(browser);
            browser.sees("No API keys yet").await;
            look(browser, screen, "empty").await;
        });
    }
}

/// Visits the states of a page with keys and calls `stop` with the name of each.
pub(crate) async fn tour(browser: &Browser, service: &Service, mut stop: impl AsyncFnMut(&str)) {
    service.set_mode(Mode::Held);
    browser.client.refresh().await.unwrap();
    browser.sees("Loading…").await;
    stop("loading").await;
    service.set_mode(Mode::BadGateway);
    browser.sees("Try again").await;
    stop("error").await;
    service.set_mode(Mode::Open);
    browser.press("Try again").await;
    browser.sees("Data warehouse sync").await;
    browser.loaded().await;
    stop("table").await;

    browser.click(Role::SUMMARY, "Good practice (2)").await;
    stop("advice").await;
    browser.press("Actions for CI deploy").await;
    browser.sees("View Audit Log").await;
    stop("menu").await;
    browser.escape().await;

    browser.press("Create API Key").await;
    browser.add("203.0.113.7 2001:db8:40::/48").await;
    browser.fill("Name", "Staging smoke tests").await;
    stop("create").await;
    browser.escape().await;
    stop("create-discard").await;
    browser.press("Keep editing").await;
    browser.fill("Name", "").await;
    browser.fill("Address or range", "10.0.0.1/8").await;
    browser.press("Create key").await;
    browser.sees("Give the key a name.").await;
    stop("create-errors").await;
    browser.fill("Name", "Staging smoke tests").await;
    browser.fill("Address or range", "").await;
    browser.press("Create key").await;
    browser.sees("Save your key").await;
    stop("secret").await;
    browser.press("Done").await;
    stop("secret-question").await;
    browser.press("Back to the key").await;
    browser.press("Show key").await;
    stop("secret-shown").await;
    browser.done().await;
    stop("done").await;
    browser.menu("Staging smoke tests", "Delete").await;
    browser.fill("Type Staging smoke tests to confirm", "Staging smoke tests").await;
    stop("delete").await;
    browser.close_with("Delete key").await;

    for (key, item, shown, state, leave) in [
        ("CI deploy", "Edit", "Save changes", "edit", "Cancel"),
        ("Load test", "Edit", "Active, but expired", "edit-expired", "Cancel"),
        ("CI deploy", "Rotate", "Rotate key", "rotate", "Cancel"),
        ("Load test", "Rotate", "This key has expired.", "rotate-expired", "Cancel"),
        ("CI deploy", "Revoke", "Revoke key", "revoke", "Cancel"),
        ("Partner: Nordwind Logistics", "Re-enable", "Re-enable key", "enable", "Cancel"),
        ("CI deploy", "View Audit Log", "app-linux-x86_64.tar.gz", "audit", "Close"),
        ("Data warehouse sync", "View Audit Log", "No request has", "audit-empty", "Close"),
    ] {
        browser.menu(key, item).await;
        browser.sees(shown).await;
        stop(state).await;
        if state == "audit" {
            browser.click(Role::SUMMARY, "Filter").await;
            stop("audit-filter").await;
            browser.click(Role::TAB, "Changes").await;
            browser.sees("demo user").await;
            stop("audit-changes").await;
        }
        browser.close_with(leave).await;
    }
}
