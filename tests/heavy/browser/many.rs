//! Many keys: they are sorted and filtered, and a part of them is shown at a time.

use keygate::Limits;
use serde_json::json;

use crate::kit::{Browser, Role};
use crate::service::{Service, visit_service, visit_with};

const TEXT: &str = "Name, prefix or creator";

async fn first_row(browser: &Browser) -> String {
    browser.rows().await.first().cloned().unwrap_or_default()
}

#[test]
#[ignore = "needs chromium"]
fn more_than_ten_keys_are_filtered_by_state_and_text_and_all_can_be_sorted() {
    let before = |service: &Service| {
        service.days_from_now(-40);
        service.create_with("a expired", "1_day", &[]);
        service.days_from_now(0);
        service.create_with("b ends next", "1_week", &[]);
        for n in 0..8 {
            service.create(&format!("plain {n}"));
        }
    };
    visit_service(before, async |browser, service, ()| {
        assert!(browser.names(Role::TEXT_BOX).await.is_empty(), "ten keys need no filter");
        for (order, first) in [
            ("Name", "a expired"),
            ("Next to expire", "b ends next"),
            ("Last Used", "plain 7"),
            ("Newest first", "plain 7"),
        ] {
            browser.choose("Sort by", order).await;
            browser.becomes(order, first.to_owned(), async || first_row(browser).await).await;
        }
        service.create("Zebra");
        service.edit("Zebra", json!({ "status": "revoked" }));
        browser.press("Refresh").await;
        browser.sees("11 of 20 keys").await;
        browser.fill(TEXT, "ZEB").await;
        browser.sees_rows(&["Zebra"]).await;
        browser.sees("1 shown, 11 of 20 keys").await;
        browser.choose("State", "Active").await;
        browser.sees("No key matches").await;
        browser.fill(TEXT, "").await;
        browser.becomes("active keys", 9, async || browser.rows().await.len()).await;
        browser.choose("State", "Expired").await;
        browser.sees_rows(&["a expired"]).await;
        browser.choose("State", "Revoked").await;
        browser.sees_rows(&["Zebra"]).await;
        // A new key is shown whatever is filtered.
        browser.create("Brand new").await;
        browser.done().await;
        browser.until("its row", async || browser.rows().await.contains(&"Brand new".into())).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn three_thousand_keys_are_shown_a_hundred_at_a_time() {
    let before = |service: &Service| {
        service.create("first");
        let copies = "WITH RECURSIVE n(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM n WHERE n < 3000) \
            INSERT INTO keys (id, org, name, key_prefix, digest, status, allowlist, created_at, revision) \
            SELECT randomblob(16), org, 'key ' || n, key_prefix, randomblob(32), status, allowlist, \
                created_at + n, 1 FROM n, keys";
        assert_eq!(service.database().execute(copies, []).unwrap(), 2_999);
    };
    let many = |builder: keygate::manager::KeyManagerBuilder| {
        builder.limits(Limits::default().max_keys(5_000))
    };
    visit_with(many, before, async |browser, _, ()| {
        let watch = "new MutationObserver((_, watcher) => { \
            if (!document.querySelector('tr[data-key]')) return; \
            watcher.disconnect(); \
            requestAnimationFrame(() => setTimeout(() => (window.shownAt = performance.now()))); \
            }).observe(document, { childList: true, subtree: true })";
        browser.cdp("Page.addScriptToEvaluateOnNewDocument", json!({ "source": watch }));
        browser.reload().await;
        browser.sees("3,000 of 5,000 keys").await;
        let took = "return window.shownAt - performance.getEntriesByType('resource') \
            .find((it) => it.name.endsWith('/api/keys')).responseEnd";
        println!("3,000 keys are shown {} ms after the answer", browser.js(took, &[]).await);
        assert_eq!(browser.rows().await.len(), 100);
        assert_eq!(first_row(browser).await, "key 3000");
        browser.press("Show more (2,900)").await;
        browser.becomes("rows", 200, async || browser.rows().await.len()).await;
        browser.sees_focus("Actions for key 2900").await;
        browser.fill(TEXT, "key 2").await;
        browser.sees("1,111 shown, 3,000 of 5,000 keys").await;
        browser.fill(TEXT, "key 17 ").await;
        browser.fill(TEXT, "first").await;
        browser.sees_rows(&["first"]).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn the_first_click_after_a_filter_was_typed_counts_and_a_change_keeps_the_filter() {
    let before = |service: &Service| (0..12).for_each(|n| drop(service.create(&format!("k{n}"))));
    visit_service(before, async |browser, service, ()| {
        browser.fill(TEXT, "k1").await;
        browser.sees_rows(&["k11", "k10", "k1"]).await;
        browser.menu("k10", "Revoke").await;
        browser.press("Revoke key").await;
        browser.sees("Key “k10” was revoked.").await;
        assert_eq!(service.key("k10")["status"], "revoked");
        assert_eq!(browser.rows().await, ["k11", "k10", "k1"]);
        browser.choose("State", "Active").await;
        browser.sees_rows(&["k11", "k1"]).await;
        browser.menu("k11", "Revoke").await;
        browser.press("Revoke key").await;
        browser.sees_rows(&["k1"]).await;
        // A new key is shown, whatever is filtered.
        browser.create("new").await;
        browser.done().await;
        browser.sees_focus("Create API Key").await;
        assert!(browser.rows().await.contains(&"new".to_owned()));
    });
}
