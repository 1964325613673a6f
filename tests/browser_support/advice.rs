//! Advice: it names the right keys, can be dismissed, and does not block the user.

use serde_json::json;

use crate::browser_support::Browser;
use crate::service::{Service, texts, visit_service};

/// The notes, from top to bottom.
async fn notes(browser: &Browser) -> Vec<String> {
    let script = "return [...document.querySelectorAll('.advice li')] \
        .filter((it) => it.checkVisibility()).map((it) => it.querySelector('span').innerText)";
    texts(&browser.js(script, &[]).await)
}

const EXPIRING: &str = "Expires within 7 days: ";
const UNUSED: &str = "Not used for 90 days: ";
const NEVER: &str = "Never expires: ";
const OPEN: &str = "Can be used from every address: ";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn advice_names_the_keys_that_need_care_and_no_others() {
    let before = |service: &Service| {
        let lan: &[&str] = &["192.0.2.0/24"];
        service.days_from_now(-100);
        service.create("Quiet", "1_year", lan);
        service.create("Used of old", "1_year", lan);
        service.create("Expired", "1_day", &[]);
        let revoked = service.create("Revoked", "never", &[]);
        service.edit(&revoked, json!({ "status": "revoked" }));
        service.days_from_now(0);
        service.create("Ends soon", "1_week", lan);
        service.create("Ends later", "1_month", lan);
        service.create("Endless", "never", lan);
        service.create("Open", "1_year", &[]);
        service.stop();
        // One key was used just now, so that its age alone causes no note.
        let recent =
            "UPDATE keys SET last_used_at = (unixepoch() - 86400) * 1000000 WHERE name = ?1";
        assert_eq!(service.database().execute(recent, ["Used of old"]).unwrap(), 1);
        service.start();
    };
    visit_service(before, async |browser, _, ()| {
        let notes = notes(browser).await;
        let named = |start: &str| {
            let note = notes.iter().find_map(|note| note.strip_prefix(start));
            note.unwrap_or_else(|| panic!("{start:?} is not in {notes:#?}"))
                .split('.')
                .next()
                .unwrap()
        };
        assert_eq!(named(EXPIRING), "“Ends soon”");
        assert_eq!(named(UNUSED), "“Quiet”");
        assert_eq!(named(NEVER), "“Endless”");
        assert_eq!(named(OPEN), "“Open”");
        assert_eq!(notes.len(), 4);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_last_use_ninety_days_ago_causes_a_note_and_one_last_week_does_not() {
    let before = |service: &Service| {
        service.days_from_now(-120);
        service.create("Key", "1_year", &["192.0.2.1"]);
        service.days_from_now(0);
    };
    visit_service(before, async |browser, service, ()| {
        for (days, noted) in [(89, false), (91, true)] {
            service.stop();
            let update = "UPDATE keys SET last_used_at = (unixepoch() - ?1 * 86400) * 1000000";
            service.database().execute(update, [days]).unwrap();
            service.start();
            browser.reload().await;
            browser.sees("Key").await;
            let is_noted = notes(browser).await.iter().any(|note| note.starts_with(UNUSED));
            assert_eq!(is_noted, noted, "after {days} days");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn a_note_is_dismissed_for_this_view_and_blocks_nothing() {
    let before = |service: &Service| {
        for name in ["One", "Two", "Three", "Four", "Five"] {
            service.create(name, "never", &["192.0.2.1"]);
        }
        service.create("Six", "1_week", &["192.0.2.1"]);
    };
    visit_service(before, async |browser, service, ()| {
        let never = "Never expires: “One”, “Two”, “Three”, and 2 more. \
             Set an expiration when you create a key, so that forgotten keys stop working.";
        let expiring = "Expires within 7 days: “Six”. Create its successor in time.";
        assert_eq!(notes(browser).await, [expiring, never]);

        browser.press(&format!("Dismiss: {expiring}")).await;
        browser.becomes("the notes", vec![never.to_owned()], async || notes(browser).await).await;
        assert_eq!(browser.focused().await, format!("Dismiss: {never}"));
        browser.press(&format!("Dismiss: {never}")).await;
        browser.becomes("the notes", vec![], async || notes(browser).await).await;
        browser.sees_focus("Create API key").await;
        assert!(!browser.text().await.contains("Good practice"), "a heading without content");

        // A dismissed note stays away when the table is reloaded.
        browser.menu("Six", "Delete").await;
        browser.fill("Type Six to confirm", "Six").await;
        browser.press("Delete key").await;
        browser.no_dialog().await;
        assert_eq!(service.names().len(), 5);
        assert_eq!(notes(browser).await, [""; 0]);

        browser.reload().await;
        browser.becomes("the notes", vec![never.to_owned()], async || notes(browser).await).await;
    })
    .await;
}
