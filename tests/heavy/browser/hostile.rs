//! Hostile names, paths and sites.

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use serde_json::json;

use crate::kit::{Browser, serve};
use crate::service::{Service, visit, visit_service};

const IMAGE: &str = "<img src=x onerror=\"window.hit=1\">";

async fn assert_inert(browser: &Browser) {
    let script = "return [window.hit ?? null, \
        document.querySelectorAll('img, svg:not(.chart, .eye), iframe, dialog script').length]";
    assert_eq!(browser.js(script, &[]).await, json!([null, 0]));
}

/// A site of another origin.
async fn trap(body: &str) -> String {
    let page = Html(format!("<!doctype html><title>a trap</title>{body}"));
    serve(Router::new().route("/", get(async || page))).await
}

#[test]
#[ignore = "needs chromium"]
fn case_41_markup_in_a_name_or_a_path_stays_text() {
    // No client can send this path and method, but another program may write them.
    let path = format!("/v1/{IMAGE}\r\nSet-Cookie: a=b");
    let before = |service: &Service| {
        assert_eq!(service.whoami(&service.create(IMAGE)), 200);
        let update = "UPDATE recent_0 SET endpoint = ?1, method = ?2";
        assert_eq!(service.database().execute(update, [&path, IMAGE]).unwrap(), 1);
    };
    visit_service(before, async |browser, _, ()| {
        assert_eq!(browser.rows().await, [IMAGE]);
        assert_inert(browser).await;
        for (item, title, leave) in [
            ("Edit", format!("Edit “{IMAGE}”"), "Cancel"),
            ("Rotate", format!("Rotate “{IMAGE}”"), "Cancel"),
            ("Delete", format!("Delete “{IMAGE}”"), "Cancel"),
            ("View Audit Log", format!("Audit log of “{IMAGE}”"), "Close"),
        ] {
            browser.menu(IMAGE, item).await;
            browser.sees(&title).await;
            if item == "View Audit Log" {
                browser.sees(&format!("/v1/{IMAGE}")).await;
                assert_eq!(browser.text().await.matches(IMAGE).count(), 3, "title, method, path");
            }
            assert_inert(browser).await;
            browser.close_with(leave).await;
        }
        // The messages that contain it, and the deletion under that name.
        browser.menu(IMAGE, "Delete").await;
        browser.confirm(IMAGE).await;
        browser.close_with("Delete key").await;
        browser.sees(&format!("Key “{IMAGE}” was deleted.")).await;
        assert_inert(browser).await;
        browser.press("Create API Key").await;
        browser.add("<img/src=x/onerror=window.hit=1>").await;
        browser.sees_error("Address or range", "<img/src=x/onerror=window.hit=1>: not an IP").await;
        assert_inert(browser).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn case_42_another_origin_cannot_frame_the_page() {
    visit(async |browser, service| {
        browser.sees("No API keys yet").await;
        let trap = trap(&format!("<iframe src=\"{}\"></iframe>", service.page())).await;
        browser.client.goto(&trap).await.unwrap();
        browser.expect_console("frame-ancestors");
        browser.client.enter_frame(0).await.unwrap();
        let here = "return [document.readyState === 'complete', location.protocol, \
            !!document.querySelector('#page')]";
        let refused = json!([true, "chrome-error:", false]);
        browser.becomes("the frame", refused, async || browser.js(here, &[]).await).await;
        browser.client.enter_parent_frame().await.unwrap();
    });
}

#[test]
#[ignore = "needs chromium"]
fn case_42_no_inline_script_or_style_has_an_effect() {
    visit(async |browser, _| {
        for part in [
            "CSP: script-src-elem inline",
            "CSP: script-src-attr inline",
            "CSP: script-src-elem https://evil.example",
            "CSP: script-src eval",
            "CSP: style-src-elem inline",
            "CSP: style-src-attr inline",
            "Content Security Policy",
        ] {
            browser.expect_console(part);
        }
        // What an attacker with markup in the page would try.
        let attack = r#"
            const script = document.createElement("script");
            script.textContent = "window.hit = 1";
            document.body.append(script);
            const box = document.createElement("div");
            box.innerHTML = '<p id="styled" style="color: rgb(1, 2, 3)" onclick="window.hit = 2"><style>p { color: rgb(1, 2, 3) }</style></p>';
            document.body.append(box);
            box.querySelector("p").click();
            const link = document.createElement("script");
            link.src = "https://evil.example/x.js";
            document.body.append(link);
            // Bypass the driver's own script, which is allowed.
            setTimeout(() => { try { window.hit = eval("3"); } catch (error) { window.refused = error.name; } });
            return [window.hit ?? null, getComputedStyle(box.querySelector("p")).color === "rgb(1, 2, 3)"];
        "#;
        assert_eq!(browser.js(attack, &[]).await, json!([null, false]));
        let refused = json!(["EvalError", null]);
        let state = "return [window.refused ?? null, window.hit ?? null]";
        browser.becomes("eval", refused, async || browser.js(state, &[]).await).await;
    });
}

#[test]
#[ignore = "needs chromium"]
fn case_25_another_site_cannot_have_a_browser_create_a_key() {
    visit(async |browser, service| {
        let trap = trap("").await;
        // Another origin, and with `localhost` also another site.
        browser.client.goto(&trap.replace("127.0.0.1", "localhost")).await.unwrap();
        let api = format!("{}/settings/api/keys", service.origin());
        let send = "const [url, type, done] = arguments; \
            fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include', headers: { 'Content-Type': type }, \
            body: JSON.stringify({ name: 'theirs', expiration: 'never' }) }).then((it) => done(it.type), (e) => done(String(e)))";
        for kind in ["text/plain", "application/json"] {
            browser.client.execute_async(send, vec![json!(api), json!(kind)]).await.unwrap();
        }
        browser.expect_console("status of 403");
        assert_eq!(service.keys().len(), 0);
    });
}
