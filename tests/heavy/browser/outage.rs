//! The service is down, slow or has ended the login: the page reports it, keeps the typed
//! text, and continues without a reload.

use serde_json::json;

use crate::kit::Browser;
use crate::service::{Mode, Service, visit_service};

const DOWN: &str = "The server cannot be reached. Check your connection, then try again.";
const UNAVAILABLE: &str = "The service is not available right now. Try again in a moment.";
const LOGGED_OUT: &str = "You are no longer logged in. Log in, then reload this page.";

/// A mark that a reload would remove.
async fn mark(browser: &Browser) {
    browser.js("window.marked = true", &[]).await;
}

async fn assert_marked(browser: &Browser) {
    let marked = browser.js("return window.marked === true", &[]).await;
    assert_eq!(marked, true, "the page was reloaded");
}

fn one_key(service: &Service) {
    service.create("Key");
}

#[test]
#[ignore = "needs chromium"]
fn a_dialog_opens_for_the_first_time_after_the_server_is_back() {
    visit_service(one_key, async |browser, service, ()| {
        browser.expect_console("ERR_CONNECTION_REFUSED");
        mark(browser).await;
        for (item, title, leave) in [
            ("Edit", "Edit “Key”", "Cancel"),
            ("Rotate", "Rotate “Key”", "Cancel"),
            ("View Audit Log", "Audit log of “Key”", "Close"),
        ] {
            service.stop();
            browser.menu("Key", item).await;
            browser.sees(DOWN).await;
            assert_eq!(browser.rows().await, ["Key"], "the table is still shown");
            service.start();
            browser.press("Try again").await;
            browser.sees_no_more(DOWN).await;
            let focused = browser.focused().await;
            assert_ne!(focused, "nothing", "the focus was lost with the button");
            browser.menu("Key", item).await;
            browser.sees(title).await;
            browser.close_with(leave).await;
        }
        assert_marked(browser).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_partly_loaded_dialog_opens_after_the_server_is_back() {
    visit_service(one_key, async |browser, service, ()| {
        browser.expect_console("ERR_CONNECTION_REFUSED");
        mark(browser).await;
        // The dialog's own file loads, but a file that it imports does not.
        let part = |lost: bool| {
            let urls = if lost { json!(["*/allowlist.js*"]) } else { json!([]) };
            browser.cdp("Network.setBlockedURLs", json!({ "urls": urls }));
        };
        browser.cdp("Network.enable", json!({}));
        part(true);
        browser.press("Create API Key").await;
        browser.sees("Try again").await;
        part(false);
        service.stop();
        browser.press("Try again").await;
        browser.sees(DOWN).await;
        service.start();
        browser.press("Try again").await;
        browser.sees_no_more(DOWN).await;
        browser.press("Create API Key").await;
        browser.sees("Address or range").await;
        browser.close_with("Cancel").await;
        assert_marked(browser).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn typed_text_survives_an_outage_and_the_same_button_submits_it() {
    visit_service(one_key, async |browser, service, ()| {
        browser.expect_console("ERR_CONNECTION_REFUSED");
        mark(browser).await;
        browser.press("Create API Key").await;
        browser.fill("Name", "Typed before").await;
        browser.choose("Expiration", "1 Week").await;
        browser.fill("Address or range", "192.0.2.7").await;
        service.stop();
        browser.press("Create key").await;
        browser.sees(DOWN).await;
        assert_eq!(browser.value("Name").await, "Typed before");
        browser.sees("192.0.2.7").await;
        service.start();
        browser.press("Create key").await;
        browser.sees("Save your key").await;
        // The key can be copied, whatever happens now.
        service.stop();
        browser.press("Show key").await;
        let secret = browser.value("Your API key").await;
        assert!(secret.starts_with("vsp_sk_") && !secret.contains('•'), "{secret}");
        browser.done().await;
        service.start();
        browser.reload().await;
        assert_eq!(browser.rows().await, ["Typed before", "Key"]);
        mark(browser).await;

        browser.menu("Key", "Edit").await;
        browser.fill("Name", "Edited in an outage").await;
        browser.pick("Revoked: every request is refused").await;
        service.stop();
        browser.press("Save changes").await;
        browser.sees(DOWN).await;
        assert_eq!(browser.value("Name").await, "Edited in an outage");
        service.start();
        browser.close_with("Save changes").await;
        assert_eq!(browser.cell_text("Edited in an outage", "Status").await, "Revoked");
        assert_marked(browser).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_whose_answer_was_lost_is_not_created_twice() {
    visit_service(
        |_| (),
        async |browser, service, ()| {
            browser.expect_console("status of 409");
            browser.press("Create API Key").await;
            browser.fill("Name", "Once").await;
            let lost = "const real = fetch; window.fetch = async (...request) => { \
            await real(...request); window.fetch = real; throw new TypeError('lost'); }";
            browser.js(lost, &[]).await;
            browser.press("Create key").await;
            browser.sees(DOWN).await;
            browser.press("Create key").await;
            browser.sees("An earlier attempt has created a key").await;
            assert_eq!(service.names(), ["Once"]);
            browser.close_with("Cancel").await;
            browser.sees_rows(&["Once"]).await;
        },
    );
}

#[test]
#[ignore = "needs chromium"]
fn an_answer_that_is_not_the_services_is_not_taken_for_a_change() {
    visit_service(one_key, async |browser, service, ()| {
        for (answer, says) in [
            ("new Response('{\"hello\":1}')", "Something went wrong."),
            ("new Response('null')", "Something went wrong."),
            ("new Response('<h1>Login</h1>')", "You are no longer logged in."),
            ("new Response('', { status: 429 })", "There were too many requests."),
            ("new Response('<h1>No</h1>', { status: 403 })", "You are not allowed to do this."),
        ] {
            browser.menu("Key", "Revoke").await;
            let other = format!("window.real ??= fetch; window.fetch = async () => {answer}");
            browser.js(&other, &[]).await;
            browser.press("Revoke key").await;
            browser.sees(says).await;
            browser.js("window.fetch = window.real", &[]).await;
            browser.close_with("Cancel").await;
        }
        assert_eq!(service.key("Key")["status"], "active");
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_audit_log_stays_visible_in_an_outage_and_continues_afterwards() {
    let before = |service: &Service| {
        let key = service.create("Key");
        service.call(&key, "GET", "/v1/first", "192.0.2.1");
        key
    };
    visit_service(before, async |browser, service, key| {
        browser.expect_console("ERR_CONNECTION_REFUSED");
        browser.menu("Key", "View Audit Log").await;
        browser.sees("/v1/first").await;
        service.stop();
        browser.press("Refresh").await;
        browser.sees(DOWN).await;
        browser.sees("/v1/first").await;
        service.start();
        service.call(&key, "GET", "/v1/second", "192.0.2.1");
        browser.press("Refresh").await;
        browser.sees("/v1/second").await;
        browser.sees_no_more(DOWN).await;
        browser.close_with("Close").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_read_only_store_is_reported_as_unavailable() {
    visit_service(one_key, async |browser, service, ()| {
        browser.expect_console("status of 503");
        browser.menu("Key", "Edit").await;
        browser.fill("Name", "Later").await;
        let other = service.database();
        other.execute_batch("BEGIN EXCLUSIVE").unwrap();
        browser.press("Save changes").await;
        browser.sees(UNAVAILABLE).await;
        assert_eq!(browser.value("Name").await, "Later");
        other.execute_batch("ROLLBACK").unwrap();
        browser.close_with("Save changes").await;
        assert_eq!(browser.rows().await, ["Later"]);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_proxy_without_a_service_is_reported_as_unavailable() {
    visit_service(one_key, async |browser, service, ()| {
        browser.expect_console("status of 502");
        service.set_mode(Mode::BadGateway);
        browser.reload().await;
        browser.sees(UNAVAILABLE).await;
        assert!(!browser.text().await.contains("Loading"), "the page still shows Loading");
        service.set_mode(Mode::Open);
        browser.press("Try again").await;
        browser.sees_rows(&["Key"]).await;
        assert_ne!(browser.focused().await, "nothing");
    });
}

#[test]
#[ignore = "needs chromium"]
fn an_ended_login_is_reported_and_the_page_offers_to_reload() {
    for mode in [Mode::LoggedOut, Mode::LoginPage, Mode::SentToLogin] {
        visit_service(one_key, async |browser, service, ()| {
            if mode != Mode::SentToLogin {
                browser.expect_console("status of 401");
            }
            browser.menu("Key", "Edit").await;
            browser.fill("Name", "Typed").await;
            service.set_mode(mode);
            browser.press("Save changes").await;
            browser.sees(LOGGED_OUT).await;
            assert_eq!(browser.value("Name").await, "Typed");
            browser.close_with("Cancel").await;
            browser.sees(LOGGED_OUT).await;
            service.set_mode(Mode::Open);
            browser.press("Reload").await;
            browser.sees_no_more(LOGGED_OUT).await;
            browser.sees_rows(&["Key"]).await;
        });
    }
}

#[test]
#[ignore = "needs chromium"]
fn an_ended_login_is_reported_if_a_dialog_cannot_be_loaded() {
    visit_service(one_key, async |browser, service, ()| {
        // The request for the dialog's file is redirected to the login.
        browser.expect_console("status of 404");
        service.set_mode(Mode::SentToLogin);
        browser.menu("Key", "View Audit Log").await;
        browser.sees(LOGGED_OUT).await;
        service.set_mode(Mode::Open);
        browser.press("Reload").await;
        browser.sees_no_more(LOGGED_OUT).await;
        browser.sees_rows(&["Key"]).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn slow_operations_show_their_progress() {
    visit_service(one_key, async |browser, service, ()| {
        service.set_mode(Mode::Held);
        browser.client.refresh().await.unwrap();
        let loading = "const bone = document.querySelector('.bone'); \
            return Boolean(bone?.checkVisibility()) && document.querySelector('#page').ariaBusy === 'true'";
        browser.becomes("loading", json!(true), async || browser.js(loading, &[]).await).await;
        browser.sees("Loading…").await;
        browser.press("Create API Key").await;
        browser.sees("The keys are still loading. Try again in a moment.").await;
        service.set_mode(Mode::Open);
        browser.loaded().await;
        browser.sees_no_more("Loading…").await;
        assert_eq!(browser.rows().await, ["Key"]);

        service.set_mode(Mode::Held);
        browser.menu("Key", "View Audit Log").await;
        browser.sees("Loading…").await;
        service.set_mode(Mode::Open);
        browser.sees("No request has used this key yet.").await;
        browser.close_with("Close").await;

        // A second click does not create a second key.
        browser.press("Create API Key").await;
        browser.fill("Name", "Slow").await;
        service.set_mode(Mode::Held);
        browser.press("Create key").await;
        let busy = "return document.querySelector('dialog form').ariaBusy";
        browser.becomes("busy", json!("true"), async || browser.js(busy, &[]).await).await;
        browser.press("Create key").await;
        // The dialog cannot be closed while the answer with the key is under way.
        assert!(!browser.is_enabled("Cancel").await);
        for _ in 0..3 {
            browser.escape().await;
        }
        service.set_mode(Mode::Open);
        browser.done().await;
        assert_eq!(service.names(), ["Key", "Slow"]);
    });
}
