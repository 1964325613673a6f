//! Scopes on the page of a service that offers some.

use keygate::manager::KeyManagerBuilder;
use keygate::{Actor, KeyManager, NewKey, OrgId, ScopeCatalog, Scopes, SqliteStore};
use serde_json::json;

use crate::accessibility::violations;
use crate::kit::{Browser, Role};
use crate::service::{Service, visit_with};

const FULL: &str = "Full access: everything that keys can be used for";
const ONLY: &str = "Only these scopes";
const READ: &str = "reports:read Read reports";
const WRITE: &str = "reports:write Change reports";

/// Runs a test on the page of a service with two scopes.
fn visit_scopes(test: impl AsyncFnOnce(&Browser, &Service)) {
    let configure = |builder: KeyManagerBuilder| {
        let scopes = [("reports:read", "Read reports"), ("reports:write", "Change reports")];
        builder.scopes(ScopeCatalog::new(scopes).unwrap())
    };
    let test = async |browser: &Browser, service: &Service, ()| test(browser, service).await;
    visit_with(configure, |_| (), test);
}

/// Creates a key with these scopes, as if the service offered one more.
async fn create(browser: &Browser, service: &Service, scopes: &[&str]) {
    let offered = ["reports:read", "reports:write", "old"].map(|name| (name, ""));
    let keys = KeyManager::builder(SqliteStore::open(service.file()).unwrap());
    let keys = keys.scopes(ScopeCatalog::new(offered).unwrap()).build().unwrap();
    let new = NewKey::named("key").unwrap().scopes(Scopes::only(scopes).unwrap());
    let actor = Actor::new(OrgId::new("demo").unwrap(), "another user");
    keys.create(&actor, new).await.unwrap();
    browser.reload().await;
}

async fn is_checked(browser: &Browser, role: Role, label: &str) -> bool {
    browser.find(role, label).await.is_selected().await.unwrap()
}

#[test]
#[ignore = "needs chromium"]
fn scopes_are_chosen_when_a_key_is_created_and_none_is_chosen_beforehand() {
    visit_scopes(async |browser, service| {
        browser.press("Create API Key").await;
        browser.fill("Name", "reader").await;
        for label in [FULL, ONLY] {
            assert!(!is_checked(browser, Role::RADIO, label).await, "{label}");
        }
        assert!(browser.names(Role::CHECK_BOX).await.is_empty(), "until they are asked for");
        browser.press("Create key").await;
        browser.sees("Choose full access or single scopes.").await;
        browser.pick(ONLY).await;
        browser.sees_no_more("Choose full access or single scopes.").await;
        assert_eq!(browser.names(Role::CHECK_BOX).await, [READ, WRITE]);
        for label in [READ, WRITE] {
            assert!(!is_checked(browser, Role::CHECK_BOX, label).await, "{label}");
        }
        browser.press("Create key").await;
        browser.sees("Choose at least one scope.").await;
        browser.click(Role::CHECK_BOX, READ).await;
        browser.press("Create key").await;
        browser.done().await;
        assert_eq!(service.key("reader")["scopes"], json!(["reports:read"]));
        assert!(browser.cell_text("reader", "Name").await.contains("Only reports:read"));

        browser.press("Create API Key").await;
        browser.fill("Name", "everything").await;
        browser.pick(FULL).await;
        browser.press("Create key").await;
        browser.done().await;
        assert_eq!(service.key("everything")["scopes"], "all");
        assert!(browser.cell_text("everything", "Name").await.contains("Full access"));
    });
}

#[test]
#[ignore = "needs chromium"]
fn scopes_are_edited_and_those_no_longer_offered_are_marked_and_kept() {
    visit_scopes(async |browser, service| {
        create(browser, service, &["old", "reports:read"]).await;
        let cell = browser.cell_text("key", "Name").await;
        assert!(cell.contains("Only old (no longer offered), reports:read"), "{cell}");
        browser.menu("key", "Edit").await;
        assert!(is_checked(browser, Role::RADIO, ONLY).await);
        assert_eq!(browser.names(Role::CHECK_BOX).await, [READ, WRITE, "old no longer offered"]);
        browser.press("Save changes").await;
        browser.sees("There are no changes to save.").await;
        browser.click(Role::CHECK_BOX, WRITE).await;
        browser.close_with("Save changes").await;
        let expected = json!(["old", "reports:read", "reports:write"]);
        assert_eq!(service.key("key")["scopes"], expected);

        browser.menu("key", "Edit").await;
        browser.click(Role::CHECK_BOX, "old no longer offered").await;
        browser.close_with("Save changes").await;
        browser.menu("key", "Edit").await;
        assert!(is_checked(browser, Role::RADIO, ONLY).await);
        assert_eq!(browser.names(Role::CHECK_BOX).await, [READ, WRITE], "it cannot come back");
        browser.pick(FULL).await;
        browser.close_with("Save changes").await;
        assert_eq!(service.key("key")["scopes"], "all");
    });
}

#[test]
#[ignore = "needs chromium"]
fn scopes_that_others_took_away_meanwhile_do_not_come_back() {
    visit_scopes(async |browser, service| {
        create(browser, service, &["reports:read", "reports:write"]).await;
        browser.expect_console("status of 412");
        browser.menu("key", "Edit").await;
        service.edit("key", json!({ "scopes": ["reports:read"] }));
        browser.fill("Name", "renamed").await;
        browser.press("Save changes").await;
        browser.sees("Another user changed this key").await;
        assert!(!is_checked(browser, Role::CHECK_BOX, WRITE).await);
        browser.close_with("Save changes").await;
        assert_eq!(service.key("renamed")["scopes"], json!(["reports:read"]));
    });
}

#[test]
#[ignore = "needs chromium, and axe-core in KEYGATE_AXE"]
fn axe_finds_nothing_about_scopes() {
    visit_scopes(async |browser, service| {
        create(browser, service, &["old", "reports:read"]).await;
        assert_eq!(violations(browser), [""; 0], "the table");
        browser.create("key").await;
        browser.sees("Choose full access or single scopes.").await;
        assert_eq!(violations(browser), [""; 0], "an error");
        browser.close_with("Cancel").await;
        browser.menu("key", "Edit").await;
        browser.sees("no longer offered").await;
        assert_eq!(violations(browser), [""; 0], "the list");
    });
}
