//! The audit dialog: it shows every request once, with its details, as inert text.

use fantoccini::key::Key;
use serde_json::{Value, json};

use crate::kit::{Browser, Role};
use crate::service::{Mode, Service, visit_service};

const GERMAN: &str = "203.0.113.9";
const AMERICAN: &str = "198.51.100.7";

/// The endpoints that the dialog shows, from top to bottom.
async fn endpoints(browser: &Browser) -> Vec<String> {
    let script = "return [...document.querySelectorAll('dialog .scroll tbody tr')].map((row) => row.cells[2].innerText)";
    browser.list(script, &[]).await
}

/// Waits until the dialog shows these endpoints.
async fn shows(browser: &Browser, expected: impl IntoIterator<Item = usize>) {
    let expected: Vec<String> = expected.into_iter().map(endpoint).collect();
    browser.becomes("the endpoints", expected, async || endpoints(browser).await).await;
    let script = "return document.querySelector('dialog .scroll table').getAttribute('aria-busy')";
    browser.becomes("busy", json!("false"), async || browser.js(script, &[]).await).await;
}

fn endpoint(number: usize) -> String {
    format!("/v1/orders/{number:03}")
}

/// Requests with these numbers: answered 200 and 404, refused for their address, and revoked.
fn requests(service: &Service, secret: &str, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let (query, from, expected) = match number % 4 {
            0 => ("?status=200&page=2", GERMAN, 200),
            1 => ("?status=404", GERMAN, 404),
            2 => ("", AMERICAN, 403),
            _ => ("", GERMAN, 401),
        };
        let status = if expected == 401 { "revoked" } else { "active" };
        service.edit("Shop", json!({ "status": status }));
        let status = service.call(secret, "GET", &(endpoint(number) + query), from);
        assert_eq!(status, expected, "request {number}");
    }
}

/// The cell of the record with that endpoint, or an element in the cell.
async fn look(browser: &Browser, endpoint: &str, column: &str, of: &str) -> Value {
    let script = format!(
        "const [endpoint, column] = arguments; \
         const rows = [...document.querySelectorAll('dialog .scroll tbody tr')]; \
         const cell = rows.find((row) => row.cells[2].innerText === endpoint) \
             ?.querySelector(`[data-label=\"${{column}}\"]`); \
         return cell ? ({of}) : null"
    );
    browser
        .until(&format!("{column} of {endpoint}"), async || {
            let found = browser.js(&script, &[json!(endpoint), json!(column)]).await;
            (found != Value::Null).then_some(found)
        })
        .await
}

#[test]
#[ignore = "needs chromium"]
fn the_whole_log_is_read_in_both_directions_while_requests_arrive() {
    let before = |service: &Service| {
        let key = service.create_with("Shop", "1_year", &["203.0.113.0/24"]);
        requests(service, &key, 0..64);
        service.create("Idle");
        key
    };
    visit_service(before, async |browser, service, key| {
        browser.menu("Idle", "View Audit Log").await;
        browser.sees("No request has used this key yet.").await;
        for button in ["Previous", "Next"] {
            assert!(!browser.is_enabled(button).await, "{button}");
        }
        assert!(!browser.text().await.contains("Endpoint"), "a heading without content");
        browser.close_with("Close").await;

        browser.menu("Shop", "View Audit Log").await;
        shows(browser, (39..64).rev()).await;
        assert!(!browser.is_enabled("Previous").await, "there is no newer page");
        assert!(browser.is_enabled("Next").await);

        requests(service, &key, 64..67);
        browser.press("Next").await;
        shows(browser, (14..39).rev()).await;
        assert!(browser.is_enabled("Previous").await);
        requests(service, &key, 67..74);
        browser.press("Next").await;
        shows(browser, (0..14).rev()).await;
        assert!(!browser.is_enabled("Next").await, "there is no older page");

        browser.press("Previous").await;
        shows(browser, (14..39).rev()).await;
        assert!(browser.is_enabled("Next").await);
        browser.press("Previous").await;
        shows(browser, (39..64).rev()).await;
        // Ten requests arrived, less than a page, so this is now the first page.
        browser.press("Previous").await;
        shows(browser, (49..74).rev()).await;
        assert!(!browser.is_enabled("Previous").await);

        requests(service, &key, 74..76);
        browser.press("Refresh").await;
        shows(browser, (51..76).rev()).await;
        assert!(!browser.is_enabled("Previous").await);
        browser.close_with("Close").await;
        browser.sees_focus("Actions for Shop").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_record_shows_the_request_and_its_outcome() {
    let before = |service: &Service| {
        let key = service.create_with(
            "Shop",
            "1_year",
            &["203.0.113.0/24", "192.0.2.1", "2001:db8::/32"],
        );
        let call = |method, target, from| service.call(&key, method, target, from);
        assert_eq!(call("GET", "/v1/fine?api_token=hidden", GERMAN), 200);
        assert_eq!(call("PUT", "/v1/moved?status=304", "192.0.2.1"), 304);
        assert_eq!(call("DELETE", "/v1/missing?status=404", "2001:db8::5"), 404);
        assert_eq!(call("POST", "/v1/broken?status=500", GERMAN), 500);
        assert_eq!(call("GET", "/v1/elsewhere", AMERICAN), 403);
        service.edit("Shop", json!({ "status": "revoked" }));
        assert_eq!(call("GET", "/v1/revoked", GERMAN), 401);
        service.edit("Shop", json!({ "status": "active" }));
        service.days_from_now(400);
        assert_eq!(call("GET", "/v1/expired", GERMAN), 401);
        service.days_from_now(0);
        let database = service.database();
        let aborted = "UPDATE recent_0 SET outcome = 'aborted', status = NULL, ip = NULL, country = NULL \
             WHERE endpoint = '/v1/moved'";
        database.execute(aborted, []).unwrap();
        let sum = "UPDATE recent_0 SET count = 1234 WHERE endpoint = '/v1/revoked'";
        assert_eq!(database.execute(sum, []).unwrap(), 1);
        let instant = "UPDATE recent_0 SET at = ?1 WHERE endpoint = '/v1/fine'";
        // 14 March 2026, 15:09:26.535 UTC
        database.execute(instant, [1_773_500_966_535_000_i64]).unwrap();
    };
    visit_service(before, async |browser, _, ()| {
        let zone = json!({ "timezoneId": "America/New_York" });
        browser.cdp("Emulation.setTimezoneOverride", zone);
        browser.reload().await;
        browser.menu("Shop", "View Audit Log").await;

        const TEXT: &str = "cell.innerText.replace(/\\s+/g, ' ').trim()";
        const COLOUR: &str = "getComputedStyle(cell.querySelector('.badge')).color";
        let green = json!("rgb(18, 112, 58)");
        let red = json!("rgb(179, 38, 30)");
        for (endpoint, method, ip, status, colour) in [
            ("/v1/fine", "GET", GERMAN, "200", &green),
            ("/v1/moved", "PUT", "Unknown", "– aborted", &red),
            ("/v1/missing", "DELETE", "2001:db8::5", "404", &red),
            ("/v1/broken", "POST", GERMAN, "500", &red),
            ("/v1/elsewhere", "GET", "198.51.100.7 Allow this address", "403 IP not allowed", &red),
            ("/v1/revoked", "GET", GERMAN, "401 key revoked × 1,234", &red),
            ("/v1/expired", "GET", GERMAN, "401 key expired", &red),
        ] {
            for (column, expected) in [("Method", method), ("IP Address", ip), ("Status", status)] {
                let text = look(browser, endpoint, column, TEXT).await;
                assert_eq!(text, expected, "{endpoint}: {column}");
            }
            assert_eq!(&look(browser, endpoint, "Status", COLOUR).await, colour, "{endpoint}");
        }
        assert!(!browser.everything().await.contains("api_token"), "the query is shown");

        let time = "[cell.innerText, cell.querySelector('time').title, cell.querySelector('time').dateTime]";
        let shown = look(browser, "/v1/fine", "Timestamp", time).await;
        assert_eq!(
            shown[0].as_str().unwrap().replace('\u{202f}', " "),
            "Mar 14, 2026, 11:09:26 AM"
        );
        assert_eq!(shown[1], "2026-03-14 15:09:26.535 UTC");
        assert!(shown[2].as_str().unwrap().starts_with("2026-03-14T15:09:26.535"), "{shown}");

        for (endpoint, flag, name) in
            [("/v1/fine", "🇩🇪", "Germany"), ("/v1/elsewhere", "🇺🇸", "United States")]
        {
            assert_eq!(look(browser, endpoint, "Country", TEXT).await, flag);
            let labels =
                "[...cell.querySelectorAll('[role=img]')].map((it) => [it.ariaLabel, it.title])";
            assert_eq!(look(browser, endpoint, "Country", labels).await, json!([[name, name]]));
        }
        assert_eq!(look(browser, "/v1/missing", "Country", TEXT).await, "–");
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_log_is_filtered_exported_and_counted_and_shows_the_changes() {
    let before = |service: &Service| {
        let key = service.create_with("Shop", "1_year", &["203.0.113.0/24"]);
        requests(service, &key, 0..8);
        service.edit("Shop", json!({ "status": "active" }));
    };
    visit_service(before, async |browser, service, ()| {
        browser.menu("Shop", "View Audit Log").await;
        shows(browser, (0..8).rev()).await;
        // Each number as often as it was answered.
        browser.sees("Succeeded 2").await;
        browser.sees("Failed 2").await;
        browser.sees("Refused 4").await;
        let numbers =
            "return [...document.querySelectorAll('.usage td')].map((it) => it.textContent)";
        assert_eq!(browser.list(numbers, &[]).await, ["2", "2", "4"], "for screen readers");
        browser.click(Role::SUMMARY, "Filter").await;
        for (list, option, numbers) in [
            ("Outcome", "Refused", vec![7, 6, 3, 2]),
            ("Outcome", "Allowed", vec![5, 4, 1, 0]),
            ("Status code", "4xx", vec![5, 1]),
            ("Status code", "Any", vec![5, 4, 1, 0]),
            ("Method", "PUT", vec![]),
            ("Method", "Any", vec![5, 4, 1, 0]),
            ("Outcome", "Any", vec![7, 6, 5, 4, 3, 2, 1, 0]),
        ] {
            browser.choose(list, option).await;
            if numbers.is_empty() {
                browser.sees("No request matches.").await;
            } else {
                shows(browser, numbers).await;
            }
        }
        browser.fill("Address or range", "198.51.100.0/24").await;
        browser.key(Key::Enter).await;
        shows(browser, [6, 2]).await;
        let folder = tempfile::tempdir().unwrap();
        let allowed = json!({ "behavior": "allow", "downloadPath": folder.path() });
        browser.cdp("Browser.setDownloadBehavior", allowed);
        let files = || std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path());
        browser.press("Export CSV").await;
        let file = browser
            .until("a file", async || {
                files().find(|path| path.extension().is_some_and(|end| end == "csv"))
            })
            .await;
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.ends_with("-198.51.100.0_24.csv"), "{name}");
        assert_eq!(std::fs::read_to_string(file).unwrap().lines().count(), 1 + 2);
        browser.fill("Address or range", "198.51.100.0/33").await;
        browser.key(Key::Enter).await;
        browser.sees_error("Address or range", "the prefix length must be 0 to 32").await;
        // Instead of the file of another filter.
        browser.press("Export CSV").await;
        browser.expect_console("status of 401");
        service.set_mode(Mode::LoggedOut);
        browser.fill("Address or range", "").await;
        browser.key(Key::Enter).await;
        browser.press("Export CSV").await;
        browser.sees("You are no longer logged in.").await;
        service.set_mode(Mode::Open);
        assert_eq!(files().count(), 1);
        let times = "for (const it of document.querySelectorAll('[type=datetime-local]')) { \
            it.value = arguments[0]; it.dispatchEvent(new Event('change', { bubbles: true })); }";
        browser.js(times, &[json!("2027-01-02T10:00")]).await;
        browser.sees("The end must be later than the beginning.").await;
        browser.js(times, &[json!("")]).await;

        browser.click(Role::TAB, "Changes").await;
        browser.sees("Status: active → revoked").await;
        browser.sees("Status: revoked → active").await;
        browser.sees("demo user").await;
        browser.click(Role::TAB, "Requests").await;
        browser.fill("Address or range", "").await;
        browser.key(Key::Enter).await;
        shows(browser, (0..8).rev()).await;

        let allow = "document.querySelector('[aria-label=\"Allow this address: 198.51.100.7\"]')";
        browser.js(&format!("{allow}.scrollIntoView()"), &[]).await;
        // A double click is one change.
        browser.js(&format!("{allow}.click(); {allow}.click()"), &[]).await;
        browser.sees("198.51.100.7 was added to the allowlist.").await;
        let gone = format!("return {allow} === null");
        assert_eq!(browser.js(&gone, &[]).await, json!(true), "at each of its requests");
        let list = json!(["203.0.113.0/24", "198.51.100.7"]);
        assert_eq!(service.key("Shop")["ip_allowlist"], list);
        browser.close_with("Close").await;
        browser.sees("198.51.100.7 was added to the allowlist.").await;
        browser.press("Undo").await;
        browser.sees("The change was undone.").await;
        assert_eq!(service.key("Shop")["ip_allowlist"], json!(["203.0.113.0/24"]));
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_address_that_is_allowed_already_is_not_added() {
    for (name, list) in [("everybody", json!([])), ("a range", json!(["198.51.0.0/16"]))] {
        let before = |service: &Service| {
            let key = service.create_with("Shop", "1_year", &["203.0.113.0/24"]);
            requests(service, &key, 2..3);
            service.edit("Shop", json!({ "ip_allowlist": list }));
        };
        visit_service(before, async |browser, service, ()| {
            browser.menu("Shop", "View Audit Log").await;
            browser.click(Role::BUTTON, "Allow this address: 198.51.100.7").await;
            browser.sees("198.51.100.7 is allowed already.").await;
            assert_eq!(service.key("Shop")["ip_allowlist"], list, "{name}");
            browser.close_with("Close").await;
        });
    }
}

#[test]
#[ignore = "needs chromium"]
fn the_filter_that_was_chosen_last_is_shown_whatever_is_answered_first() {
    let before = |service: &Service| {
        let key = service.create_with("Shop", "1_year", &["203.0.113.0/24"]);
        requests(service, &key, 0..8);
        service.edit("Shop", json!({ "status": "active" }));
    };
    visit_service(before, async |browser, _, ()| {
        browser.menu("Shop", "View Audit Log").await;
        shows(browser, (0..8).rev()).await;
        browser.click(Role::SUMMARY, "Filter").await;
        // The answer to the first choice arrives after that to the second.
        let held = "const real = fetch; window.fetch = async (url, ...more) => { \
            const answer = await real(url, ...more); \
            if (url.search.includes('outcome') && !url.search.includes('status')) \
                await new Promise((go) => (window.go = go)); \
            return answer; }";
        browser.js(held, &[]).await;
        browser.choose("Outcome", "Allowed").await;
        let asked = "return typeof window.go === 'function'";
        browser
            .becomes("the first request", json!(true), async || browser.js(asked, &[]).await)
            .await;
        browser.choose("Status code", "4xx").await;
        shows(browser, [5, 1]).await;
        browser.js("window.go()", &[]).await;
        browser.choose("Status code", "404").await;
        shows(browser, [5, 1]).await;
        browser.close_with("Close").await;
    });
}
