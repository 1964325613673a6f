//! The dialog that creates a key, up to the creation.

use fantoccini::key::Key;
use keygate::{Expiration, Timestamp};
use serde_json::{Value, json};

use crate::kit::Role;
use crate::service::{Service, visit, visit_key, visit_service};

#[test]
#[ignore = "needs chromium"]
fn a_key_is_created_with_each_of_the_six_expirations() {
    let expirations = [
        ("1 Day", "1_day"),
        ("1 Week", "1_week"),
        ("1 Month", "1_month"),
        ("3 Months", "3_months"),
        ("1 Year", "1_year"),
        ("No Expiry", "never"),
    ];
    let time = |time: &Value| time.as_str().map(|time| time.parse::<Timestamp>().unwrap());
    visit(async |browser, service| {
        for (label, value) in expirations {
            browser.press("Create API Key").await;
            let list = browser.find(Role::COMBO_BOX, "Expiration").await;
            let lists = browser.names(Role::COMBO_BOX).await;
            assert_eq!(lists, ["Expiration"], "the host has no environments");
            assert_eq!(list.text().await.unwrap().lines().count(), 6);
            assert_eq!(list.prop("value").await.unwrap().as_deref(), Some("3_months"));
            browser.fill("Name", label).await;
            browser.choose("Expiration", label).await;
            let never = browser.text().await.contains("A key that never expires works until");
            assert_eq!(never, value == "never", "the hint, at {label}");
            let text = browser.text().await;
            let until = text.lines().find_map(|line| line.strip_prefix("The key works until "));
            browser.press("Create key").await;
            browser.done().await;
            let key = service.key(label);
            let created = time(&key["created_at"]).unwrap();
            let expires = value.parse::<Expiration>().unwrap().after(created);
            assert_eq!(time(&key["expires_at"]), expires, "{label}");
            // The hint was read a moment before the key was created.
            let days = "const [until] = arguments; \
                return [0, 60_000].map((ago) => new Date(new Date(until) - ago)) \
                    .map((date) => new Intl.DateTimeFormat('en', { dateStyle: 'medium' }).format(date) + '.')";
            match until {
                Some(until) => {
                    let days = browser.list(days, &[key["expires_at"].clone()]).await;
                    assert!(days.iter().any(|day| day == until), "{label}: {until} and {days:?}");
                }
                None => assert_eq!(value, "never"),
            }
            assert_eq!(key["ip_allowlist"], json!([]));
            let shown = browser.cell_text(label, "Expires").await;
            assert_eq!(shown == "Never", value == "never", "{label}: {shown}");
        }
        let mut newest_first = expirations.map(|(label, _)| label);
        newest_first.reverse();
        assert_eq!(browser.rows().await, newest_first);
        browser.sees("6 of 20 keys").await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_wrong_name_is_reported_at_the_field() {
    visit(async |browser, service| {
        browser.expect_console("status of 422");
        browser.press("Create API Key").await;
        browser.sees_focus("Name").await;
        for empty in ["", "   "] {
            browser.fill("Name", empty).await;
            browser.press("Create key").await;
            browser.sees_error("Name", "Give the key a name.").await;
            browser.sees_focus("Name").await;
        }
        // Only the service refuses this one.
        browser.fill("Name", "CI\u{202e}yolped").await;
        browser.press("Create key").await;
        browser.sees_error("Name", "202").await;
        browser.fill("Name", &"é".repeat(101)).await;
        // The error is shown while typing, and again after an attempt to submit.
        browser.sees_error("Name", "A name has at most 100 characters.").await;
        browser.press("Create key").await;
        browser.sees_error("Name", "A name has at most 100 characters.").await;
        browser.key(Key::Backspace).await;
        assert_eq!(browser.error_at("Name").await, "", "the error disappears when it is fixed");
        assert_eq!(service.keys().len(), 0);
        browser.press("Create key").await;
        browser.done().await;
        assert_eq!(service.names(), ["é".repeat(100)]);
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_21st_key_is_refused_and_the_page_explains_it_beforehand() {
    let before = |service: &Service| (1..20).for_each(|n| _ = service.create(&format!("key {n}")));
    visit_service(before, async |browser, service, ()| {
        browser.expect_console("status of 409");
        browser.press("Create API Key").await;
        browser.fill("Name", "one more").await;
        assert!(!browser.text().await.contains("reached the limit"));
        service.create("a key of another user");
        browser.press("Create key").await;
        browser.sees("Your organisation has reached its limit of keys.").await;
        assert_eq!(browser.value("Name").await, "one more", "the typed text is kept");
        assert_eq!(service.keys().len(), 20);

        browser.reload().await;
        browser.sees("20 of 20 keys").await;
        browser.sees("You have reached the limit of 20 keys. Delete one to create another.").await;
        assert!(!browser.is_enabled("Create API Key").await);
    });
}

#[test]
#[ignore = "needs chromium"]
fn cancel_and_escape_leave_a_dialog_change_nothing_and_return_the_focus() {
    visit_key(async |browser, service, secret| {
        let confirm = "Type CI deploy to confirm";
        for (item, field, before, typed) in [
            ("Create", "Name", "", "another"),
            ("Edit", "Name", "CI deploy", "another"),
            ("Rotate", confirm, "", "CI deploy"),
            ("Delete", confirm, "", "CI deploy"),
        ] {
            for cancel in [true, false] {
                if item == "Create" {
                    browser.press("Create API Key").await;
                } else {
                    browser.menu("CI deploy", item).await;
                }
                assert_eq!(browser.value(field).await, before, "{item}: a new form");
                // The host has no scopes. An edit chooses between active and revoked.
                assert!(!browser.text().await.to_lowercase().contains("scope"));
                let radios = if item == "Edit" { 2 } else { 0 };
                assert_eq!(browser.names(Role::RADIO).await.len(), radios, "{item}");
                browser.fill(field, typed).await;
                if cancel {
                    browser.press("Cancel").await;
                } else {
                    browser.escape().await;
                    if ["Create", "Edit"].contains(&item) {
                        browser.sees("Discard what you entered?").await;
                        browser.press("Keep editing").await;
                        assert_eq!(browser.value(field).await, typed);
                        browser.escape().await;
                        browser.sees_focus("Discard").await;
                        // Another Escape keeps what was entered, too.
                        browser.escape().await;
                        browser.sees_no_more("Discard what you entered?").await;
                        browser.sees_focus(field).await;
                        browser.escape().await;
                        browser.press("Discard").await;
                    }
                }
                browser.no_dialog().await;
                let focus =
                    if item == "Create" { "Create API Key" } else { "Actions for CI deploy" };
                browser.sees_focus(focus).await;
            }
        }
        assert!(!browser.text().await.contains("Full access"));
        assert_eq!(service.whoami(&secret), 200);
        assert_eq!(service.keys().len(), 1);
        assert_eq!(service.key("CI deploy")["revision"], 1);
    });
}
