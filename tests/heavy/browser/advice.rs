//! Advice: it names the right keys, can be dismissed, and does not block the user.

use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit_service};

/// The notes, from top to bottom.
async fn notes(browser: &Browser) -> Vec<String> {
    let script = "return [...document.querySelectorAll('.advice li')] \
        .filter((it) => it.checkVisibility()).map((it) => it.querySelector('span').innerText)";
    browser.list(script, &[]).await
}

#[test]
#[ignore = "needs chromium"]
fn advice_names_the_keys_that_need_care_and_no_others() {
    let before = |service: &Service| {
        let lan: &[&str] = &["192.0.2.0/24"];
        service.days_from_now(-120);
        service.create_with("Quiet", "1_year", lan);
        for days in [1, 89, 91] {
            service.create_with(&format!("Used {days} days ago"), "1_year", lan);
        }
        service.create_with("Expired", "1_day", &[]);
        service.create("Revoked");
        service.edit("Revoked", json!({ "status": "revoked" }));
        service.days_from_now(0);
        service.create_with("Ends soon", "1_week", lan);
        service.create_with("Ends later", "1_month", lan);
        service.create_with("Endless", "never", lan);
        service.create_with("Open", "1_year", &[]);
        for days in [1, 89, 91] {
            let update = "UPDATE keys SET last_used_at = (unixepoch() - ?1 * 86400) * 1000000 \
                WHERE name = 'Used ' || ?1 || ' days ago'";
            assert_eq!(service.database().execute(update, [days]).unwrap(), 1);
        }
    };
    visit_service(before, async |browser, _, ()| {
        browser.click(Role::SUMMARY, "Good practice (3)").await;
        let notes = notes(browser).await;
        for named in [
            "Expires within 7 days: “Ends soon”.",
            "Not used for 90 days: “Used 91 days ago”, “Quiet”.",
            "Never expires: “Endless”.",
            "Can be used from every address: “Open”.",
        ] {
            assert!(notes.iter().any(|note| note.starts_with(named)), "{named} {notes:#?}");
        }
        assert_eq!(notes.len(), 4);
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_note_is_dismissed_for_its_keys_and_blocks_nothing() {
    let before = |service: &Service| {
        for name in ["One", "Two", "Three", "Four", "Five"] {
            service.create_with(name, "never", &["192.0.2.1"]);
        }
        service.create_with("Six", "1_week", &["192.0.2.1"]);
    };
    visit_service(before, async |browser, service, ()| {
        browser.click(Role::SUMMARY, "Good practice (1)").await;
        let never = "Never expires: “Five”, “Four”, “Three”, and 2 more. \
             Set an expiration when you create a key, so that forgotten keys stop working.";
        let expiring = "Expires within 7 days: “Six”. Create its successor in time.";
        assert_eq!(notes(browser).await, [expiring, never]);

        browser.press(&format!("Dismiss: {expiring}")).await;
        browser.becomes("the notes", vec![never.to_owned()], async || notes(browser).await).await;
        assert_eq!(browser.focused().await, format!("Dismiss: {never}"));
        browser.press(&format!("Dismiss: {never}")).await;
        browser.becomes("the notes", vec![], async || notes(browser).await).await;
        browser.sees_focus("Create API Key").await;
        assert!(!browser.text().await.contains("Good practice"), "a heading without content");

        // A dismissed note stays away when the table is reloaded.
        browser.menu("Six", "Delete").await;
        browser.confirm("Six").await;
        browser.close_with("Delete key").await;
        assert_eq!(service.names().len(), 5);
        assert_eq!(notes(browser).await, [""; 0]);

        browser.reload().await;
        assert!(!browser.text().await.contains("Good practice"));
        // It comes back for another key.
        service.create_with("Seven", "never", &["192.0.2.1"]);
        browser.press("Refresh").await;
        browser.click(Role::SUMMARY, "Good practice (1)").await;
        let seven = never.replace("“Five”, “Four”, “Three”, and 2 more", "“Seven”");
        browser.becomes("the notes", vec![seven], async || notes(browser).await).await;
    });
}
