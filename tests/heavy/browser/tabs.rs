//! Two tabs on one page: neither overwrites the changes of the other.

use fantoccini::wd::WindowHandle;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit_service};

/// Opens the page in another tab and switches to it. Returns the first tab's handle.
async fn other_tab(browser: &Browser, service: &Service) -> WindowHandle {
    let first = browser.client.window().await.unwrap();
    let second = browser.client.new_window(true).await.unwrap();
    browser.client.switch_to_window(second.handle).await.unwrap();
    browser.goto(&service.page()).await;
    first
}

/// The entries of the allowlist in the dialog.
async fn entries(browser: &Browser) -> Vec<String> {
    let script =
        "return [...document.querySelectorAll('dialog .entries code')].map((it) => it.innerText)";
    browser.list(script, &[]).await
}

#[test]
#[ignore = "needs chromium"]
fn two_tabs_that_edit_one_key_lose_nothing() {
    let before = |service: &Service| {
        service.create_with("Shared", "1_year", &["192.0.2.1", "192.0.2.2"]);
    };
    visit_service(before, async |browser, service, ()| {
        browser.menu("Shared", "Edit").await;
        browser.press("Remove 192.0.2.1").await;
        browser.add("192.0.2.8").await;
        browser.pick("Revoked: every request is refused").await;

        let first = other_tab(browser, service).await;
        browser.menu("Shared", "Edit").await;
        browser.fill("Name", "Renamed elsewhere").await;
        browser.add("192.0.2.9").await;
        browser.close_with("Save changes").await;

        browser.client.switch_to_window(first).await.unwrap();
        browser.expect_console("status of 412");
        browser.press("Save changes").await;
        browser.sees("Another user changed this key while you were editing it.").await;
        browser
            .sees("It is now called “Renamed elsewhere” (status: Active, allowed addresses: 3).")
            .await;
        let now = service.key("Renamed elsewhere");
        assert_eq!(now["status"], "active", "saved in spite of the conflict");
        // The name of the other tab, the status of this one, and both changes of the list.
        assert_eq!(browser.value("Name").await, "Renamed elsewhere");
        let revoked = browser.find(Role::RADIO, "Revoked: every request is refused").await;
        assert!(revoked.is_selected().await.unwrap());
        assert_eq!(entries(browser).await, ["192.0.2.2", "192.0.2.9", "192.0.2.8"]);

        browser.close_with("Save changes").await;
        let now = service.key("Renamed elsewhere");
        assert_eq!(now["status"], "revoked");
        assert_eq!(now["ip_allowlist"], json!(["192.0.2.2", "192.0.2.9", "192.0.2.8"]));
        assert_eq!(browser.rows().await, ["Renamed elsewhere"]);
        assert_eq!(browser.cell_text("Renamed elsewhere", "Status").await, "Revoked");
    });
}

#[test]
#[ignore = "needs chromium"]
fn after_a_conflict_the_typed_name_is_kept_and_saved_on_the_second_attempt() {
    let before = |service: &Service| _ = service.create("Shared");
    visit_service(before, async |browser, service, ()| {
        browser.menu("Shared", "Edit").await;
        browser.fill("Name", "Mine").await;
        let theirs = json!({ "name": "Theirs", "status": "revoked", "ip_allowlist": ["::1"] });
        service.edit("Shared", theirs);
        browser.expect_console("status of 412");
        browser.press("Save changes").await;
        browser.sees("It is now called “Theirs” (status: Revoked, allowed addresses: 1).").await;
        assert_eq!(browser.value("Name").await, "Mine");
        assert_eq!(service.names(), ["Theirs"]);
        browser.close_with("Save changes").await;
        let now = service.key("Mine");
        assert_eq!(now["status"], "revoked");
        assert_eq!(now["ip_allowlist"], json!(["::1"]));
    });
}

#[test]
#[ignore = "needs chromium"]
fn a_key_deleted_in_another_tab_is_reported_and_leaves_the_table() {
    let before = |service: &Service| {
        for name in ["Edited", "Rotated", "Deleted", "Audited", "Stays"] {
            service.create(name);
        }
    };
    visit_service(before, async |browser, service, ()| {
        browser.expect_console("status of 404");
        for (name, item, button, leave, next) in [
            ("Edited", "Edit", "Save changes", "Cancel", "Rotated"),
            ("Rotated", "Rotate", "Rotate key", "Cancel", "Deleted"),
            ("Deleted", "Delete", "Delete key", "Cancel", "Audited"),
            ("Audited", "View Audit Log", "Refresh", "Close", "Stays"),
        ] {
            browser.menu(name, item).await;
            match item {
                "Edit" => browser.fill("Name", "Too late").await,
                "View Audit Log" => browser.sees("No request has used this key yet.").await,
                _ => browser.confirm(name).await,
            }
            let first = other_tab(browser, service).await;
            browser.menu(name, "Delete").await;
            browser.confirm(name).await;
            browser.close_with("Delete key").await;
            browser.client.close_window().await.unwrap();
            browser.client.switch_to_window(first).await.unwrap();

            browser.press(button).await;
            browser.sees("This key no longer exists.").await;
            browser.close_with(leave).await;
            browser.until("no row", async || !browser.rows().await.contains(&name.into())).await;
            browser.sees_focus(&format!("Actions for {next}")).await;
        }
        assert_eq!(browser.rows().await, ["Stays"]);
    });
}
