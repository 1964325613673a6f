//! Hostile names, paths and sites.

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use serde_json::json;

use crate::browser_support::{Browser, Server, serve, visit};

const IMAGE: &str = "<img src=x onerror=\"window.hit=1\">";

async fn assert_inert(browser: &Browser) {
    let state = browser
        .js(
            "return [window.hit ?? null, document.querySelectorAll('img, svg, iframe').length]",
            &[],
        )
        .await;
    assert_eq!(state, json!([null, 0]));
}

/// Sends a request with the key, then changes its recorded path to one that no client can
/// send.
fn record(server: &Server, secret: &str, endpoint: &str) {
    assert_eq!(server.whoami(secret), 200);
    let file = rusqlite::Connection::open(server.file()).unwrap();
    crate::support::poll("the record", || {
        let changed = file.execute("UPDATE requests SET endpoint = ?1", [endpoint]).unwrap();
        (changed == 1).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_41_markup_in_a_name_or_a_path_stays_text() {
    visit(async |browser, server| {
        let secret = server.create(IMAGE);
        record(server, &secret, &format!("/v1/{IMAGE}\r\nSet-Cookie: a=b"));
        browser.reload().await;
        assert_eq!(browser.rows().await, [IMAGE]);
        assert_inert(browser).await;

        for (item, title) in [
            ("Edit", format!("Edit “{IMAGE}”")),
            ("Rotate", format!("Rotate “{IMAGE}”")),
            ("Delete", format!("Delete “{IMAGE}”")),
        ] {
            browser.menu(IMAGE, item).await;
            browser.sees(&title).await;
            assert_inert(browser).await;
            browser.press("Cancel").await;
            browser.no_dialog().await;
        }
        browser.menu(IMAGE, "View audit log").await;
        browser.sees(&format!("Audit log of “{IMAGE}”")).await;
        browser.sees(&format!("/v1/{IMAGE}")).await;
        assert_inert(browser).await;
        browser.press("Close").await;
        browser.no_dialog().await;

        // The messages that contain it, and the deletion under that name.
        browser.menu(IMAGE, "Delete").await;
        browser.fill(&format!("Type {IMAGE} to confirm"), IMAGE).await;
        browser.press("Delete key").await;
        browser.no_dialog().await;
        browser.sees(&format!("Key “{IMAGE}” was deleted.")).await;
        assert_inert(browser).await;
        browser.press("Create API key").await;
        browser.fill("Address or range", "<img/src=x/onerror=window.hit=1>").await;
        browser.press("Add").await;
        browser.sees_error("Address or range", "<img/src=x/onerror=window.hit=1>: not an IP").await;
        assert_inert(browser).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_42_another_origin_cannot_frame_the_page() {
    visit(async |own, server| {
        own.sees("No API keys yet").await;
        let frame = format!("<!doctype html><title>a trap</title><iframe src=\"{}\"></iframe>", server.page());
        let trap = serve(Router::new().route("/", get(async || Html(frame)))).await;
        own.client.goto(&trap).await.unwrap();
        own.expect_console("frame-ancestors");
        own.client.enter_frame(0).await.unwrap();
        own.until("the frame to be refused", async || {
            let here = "return [document.readyState === 'complete', location.protocol, !!document.querySelector('#page')]";
            (own.js(here, &[]).await == json!([true, "chrome-error:", false])).then_some(())
        })
        .await;
        own.client.enter_parent_frame().await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_42_no_inline_script_or_style_has_an_effect() {
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
        browser
            .becomes("eval", refused, async || {
                browser.js("return [window.refused ?? null, window.hit ?? null]", &[]).await
            })
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs chromium"]
async fn case_25_another_site_cannot_have_a_browser_create_a_key() {
    visit(async |browser, server| {
        let trap = serve(Router::new().route("/", get(async || Html("<!doctype html><title>a trap</title>")))).await;
        // Another origin, and with `localhost` also another site.
        browser.client.goto(&trap.replace("127.0.0.1", "localhost")).await.unwrap();
        let api = format!("{}/settings/api/keys", server.origin());
        let send = "const [url, type, done] = arguments; \
            fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include', headers: { 'Content-Type': type }, \
            body: JSON.stringify({ name: 'theirs', expiration: 'never' }) }).then((it) => done(it.type), (e) => done(String(e)))";
        for kind in ["text/plain", "application/json"] {
            browser.client.execute_async(send, vec![json!(api), json!(kind)]).await.unwrap();
        }
        browser.expect_console("status of 403");
        assert_eq!(server.keys().len(), 0);
    })
    .await;
}
