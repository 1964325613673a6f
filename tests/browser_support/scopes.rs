//! Scopes on the page of a service that has some, and of one that has none.

use std::sync::Arc;

use axum::{Router, middleware};
use keygate::{
    Actor, ApiKey, KeyManager, KeyPatch, MemoryAuditLog, MemoryStore, NewKey, OrgId, ScopeCatalog,
    Scopes, SettingsPage,
};

use crate::accessibility::violations;
use crate::browser_support::{Browser, Role, login, serve, visit, visit_at};

const FULL: &str = "Full access: everything that keys can be used for";
const ONLY: &str = "Only these scopes";
const READ: &str = "reports:read Read reports";
const WRITE: &str = "reports:write Change reports";

/// A service with scopes, and what a test does behind its page.
struct Service {
    store: Arc<MemoryStore>,
    actor: Actor,
}

impl Service {
    fn new() -> Self {
        let actor = Actor::new(OrgId::new("demo").unwrap(), "somebody else");
        Self { store: Arc::default(), actor }
    }

    fn keys(&self, scopes: &[(&str, &str)]) -> KeyManager {
        let builder = KeyManager::builder(Arc::clone(&self.store)).audit(MemoryAuditLog::new());
        builder.scopes(ScopeCatalog::new(scopes.iter().copied()).unwrap()).build().unwrap()
    }

    /// Its address, while it offers two scopes.
    async fn page(&self) -> String {
        let keys =
            self.keys(&[("reports:read", "Read reports"), ("reports:write", "Change reports")]);
        let page = SettingsPage::new(keys).router().layer(middleware::from_fn(login));
        serve(Router::new().nest("/settings", page)).await + "/settings"
    }

    /// A key made while the service offered one more scope.
    async fn key(&self, name: &str, scopes: Scopes) -> Arc<ApiKey> {
        let keys = self.keys(&[("reports:read", ""), ("reports:write", ""), ("old", "")]);
        let new = NewKey::named(name).unwrap().scopes(scopes);
        keys.create(&self.actor, new).await.unwrap().key
    }

    async fn scopes_of(&self, name: &str) -> Scopes {
        let keys = self.keys(&[("x", "")]).list(self.actor.org()).await.unwrap();
        let named = keys.iter().find(|key| key.name.as_str() == name).expect("the key");
        named.attributes.scopes.clone()
    }
}

fn only(names: &[&str]) -> Scopes {
    Scopes::only(names).unwrap()
}

async fn is_checked(browser: &Browser, role: Role, label: &str) -> bool {
    browser.find(role, label).await.is_selected().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn scopes_are_chosen_when_a_key_is_created_and_none_is_chosen_beforehand() {
    let service = Service::new();
    visit_at(&service.page().await, async |browser| {
        browser.press("Create API key").await;
        browser.fill("Name", "reader").await;
        for label in [FULL, ONLY] {
            assert!(!is_checked(browser, Role::Radio, label).await, "{label}");
        }
        assert!(browser.names(Role::CheckBox).await.is_empty(), "until they are asked for");
        browser.press("Create key").await;
        browser.sees("Choose full access or single scopes.").await;
        browser.pick(ONLY).await;
        browser.sees_no_more("Choose full access or single scopes.").await;
        assert_eq!(browser.names(Role::CheckBox).await, [READ, WRITE]);
        for label in [READ, WRITE] {
            assert!(!is_checked(browser, Role::CheckBox, label).await, "{label}");
        }
        browser.press("Create key").await;
        browser.sees("Choose at least one scope.").await;
        browser.tick(READ).await;
        browser.press("Create key").await;
        browser.sees("Save your key").await;
        browser.press("Done").await;
        browser.no_dialog().await;
        assert_eq!(service.scopes_of("reader").await, only(&["reports:read"]));
        assert!(browser.cell_text("reader", "Name").await.contains("Only reports:read"));

        browser.press("Create API key").await;
        browser.fill("Name", "everything").await;
        browser.pick(FULL).await;
        browser.press("Create key").await;
        browser.sees("Save your key").await;
        browser.press("Done").await;
        browser.no_dialog().await;
        assert_eq!(service.scopes_of("everything").await, Scopes::ALL);
        assert!(browser.cell_text("everything", "Name").await.contains("Full access"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn scopes_are_edited_and_those_no_longer_offered_are_marked_and_kept() {
    let service = Service::new();
    service.key("key", only(&["old", "reports:read"])).await;
    visit_at(&service.page().await, async |browser| {
        let cell = browser.cell_text("key", "Name").await;
        assert!(cell.contains("Only old (no longer offered), reports:read"), "{cell}");
        browser.menu("key", "Edit").await;
        assert!(is_checked(browser, Role::Radio, ONLY).await);
        assert_eq!(browser.names(Role::CheckBox).await, [READ, WRITE, "old no longer offered"]);
        browser.press("Save changes").await;
        browser.sees("There are no changes to save.").await;
        browser.tick(WRITE).await;
        browser.press("Save changes").await;
        browser.no_dialog().await;
        let expected = only(&["old", "reports:read", "reports:write"]);
        assert_eq!(service.scopes_of("key").await, expected);

        browser.menu("key", "Edit").await;
        browser.tick("old no longer offered").await;
        browser.press("Save changes").await;
        browser.no_dialog().await;
        browser.menu("key", "Edit").await;
        assert!(is_checked(browser, Role::Radio, ONLY).await);
        assert_eq!(browser.names(Role::CheckBox).await, [READ, WRITE], "it cannot come back");
        browser.pick(FULL).await;
        browser.press("Save changes").await;
        browser.no_dialog().await;
        assert_eq!(service.scopes_of("key").await, Scopes::ALL);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn scopes_that_others_took_away_meanwhile_do_not_come_back() {
    let service = Service::new();
    let key = service.key("key", only(&["reports:read", "reports:write"])).await;
    visit_at(&service.page().await, async |browser| {
        browser.expect_console("status of 412");
        browser.menu("key", "Edit").await;
        let theirs = KeyPatch::scopes(only(&["reports:read"]));
        service.keys(&[("x", "")]).update(&service.actor, &key.id, theirs).await.unwrap();
        browser.fill("Name", "renamed").await;
        browser.press("Save changes").await;
        browser.sees("Another user changed this key").await;
        assert!(!is_checked(browser, Role::CheckBox, WRITE).await);
        browser.press("Save changes").await;
        browser.no_dialog().await;
        assert_eq!(service.scopes_of("renamed").await, only(&["reports:read"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn without_scopes_the_page_says_nothing_of_them() {
    visit(async |browser, server| {
        server.create("key");
        browser.reload().await;
        for open in [true, false] {
            if open {
                browser.press("Create API key").await;
                browser.sees_focus("Name").await;
                assert!(browser.names(Role::Radio).await.is_empty());
            } else {
                browser.menu("key", "Edit").await;
                browser.sees_focus("Name").await;
                assert_eq!(browser.names(Role::Radio).await.len(), 2, "active and revoked");
            }
            assert!(!browser.text().await.to_lowercase().contains("scope"));
            browser.press("Cancel").await;
            browser.no_dialog().await;
        }
        assert!(!browser.text().await.contains("Full access"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium, and axe-core in KEYGATE_AXE"]
async fn axe_finds_nothing_about_scopes() {
    let path = std::env::var("KEYGATE_AXE").expect("KEYGATE_AXE is the path of axe.min.js");
    let axe = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")) + "\n;0";
    let service = Service::new();
    service.key("key", only(&["old", "reports:read"])).await;
    visit_at(&service.page().await, async |browser| {
        let none: [String; 0] = [];
        assert_eq!(violations(browser, &axe), none, "the table");
        browser.press("Create API key").await;
        browser.fill("Name", "key").await;
        browser.press("Create key").await;
        browser.sees("Choose full access or single scopes.").await;
        assert_eq!(violations(browser, &axe), none, "an error");
        browser.press("Cancel").await;
        browser.no_dialog().await;
        browser.menu("key", "Edit").await;
        browser.sees("no longer offered").await;
        assert_eq!(violations(browser, &axe), none, "the list");
    })
    .await;
}
