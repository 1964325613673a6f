//! The settings page's answers, without a browser.
#![cfg(all(feature = "settings-page", feature = "tokio"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};

use axum::Router;
use axum::body::Body;
use axum::middleware::{self, Next};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use keygate::{Actor, KeyManager, MemoryStore, OrgId, SettingsPage};
use serde_json::{Value, json};
use tower::ServiceExt;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().unwrap());
        assert!(values.next().is_none(), "{name} twice");
        value
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

fn page() -> SettingsPage {
    SettingsPage::new(KeyManager::builder(MemoryStore::new()).build().unwrap())
}

async fn login(mut request: axum::extract::Request, next: Next) -> axum::response::Response {
    request.extensions_mut().insert(Actor::new(OrgId::new("demo").unwrap(), "a person"));
    next.run(request).await
}

/// The page at `/settings`.
fn app(page: SettingsPage) -> Router {
    Router::new().nest("/settings", page.router().layer(middleware::from_fn(login)))
}

async fn ask(app: &Router, request: Request<Body>) -> Answer {
    let (head, body) = app.clone().oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    Answer { status: head.status, headers: head.headers, body }
}

async fn get(app: &Router, target: &str) -> Answer {
    ask(app, Request::get(target).body(Body::empty()).unwrap()).await
}

async fn send(app: &Router, method: Method, target: &str, body: &Value) -> Answer {
    let request = Request::builder().method(method).uri(target);
    let request = request.header("content-type", "application/json");
    ask(app, request.body(body.to_string().into()).unwrap()).await
}

/// Every part of the text between `open` and `close`.
fn between<'a>(text: &'a str, open: &str, close: &str) -> Vec<&'a str> {
    let parts = text.split(open).skip(1);
    parts.filter_map(|part| part.split_once(close).map(|(inner, _)| inner)).collect()
}

/// The page and all files that it or another file refers to, by path.
async fn everything(app: &Router) -> BTreeMap<String, String> {
    let index = get(app, "/settings").await.body;
    let mut wanted: Vec<String> = [("src=\"./", "\""), ("href=\"./", "\"")]
        .iter()
        .flat_map(|(open, close)| between(&index, open, close))
        .map(|path| format!("/{path}"))
        .collect();
    let mut files = BTreeMap::from([("/settings".to_owned(), index)]);
    while let Some(path) = wanted.pop() {
        if files.contains_key(&path) {
            continue;
        }
        let answer = get(app, &path).await;
        assert_eq!(answer.status, 200, "{path}");
        for open in ["from \"./", "import(\"./", "import \"./"] {
            let names = between(&answer.body, open, "\"");
            wanted.extend(names.iter().map(|name| format!("/settings/assets/{name}")));
        }
        files.insert(path, answer.body);
    }
    files
}

/// The settings that the page's scripts receive.
fn settings(index: &str) -> Value {
    let open = "<script type=\"application/json\" id=\"settings\">";
    let found = between(index, open, "</script>");
    assert_eq!(found.len(), 1, "{index}");
    serde_json::from_str(found[0]).unwrap()
}

#[tokio::test]
async fn the_page_has_its_security_headers() {
    let answer = get(&app(page()), "/settings").await;
    assert_eq!(answer.status, 200);
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", POLICY),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cache-control", "no-cache"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn the_page_has_no_inline_script_style_or_handler() {
    let index = get(&app(page()), "/settings").await.body;
    for script in between(&index, "<script", ">") {
        assert!(script.contains("src=") || script.contains("application/json"), "{script}");
    }
    for word in ["<style", " style=", " onclick=", " onload=", " onerror=", "javascript:"] {
        assert!(!index.contains(word), "{word}");
    }
    assert!(
        index.contains("<link rel=\"icon\" href=\"data:,\">"),
        "the icon must not cause a request"
    );
}

#[tokio::test]
async fn files_have_their_types_and_are_revalidated() {
    let app = app(page());
    let files = everything(&app).await;
    assert_eq!(files.len(), 13, "{:?}", files.keys());
    for path in files.keys().filter(|path| *path != "/settings") {
        let answer = get(&app, path).await;
        let is_style = path.rsplit('.').next() == Some("css");
        let expected = if is_style { "text/css" } else { "text/javascript" };
        assert_eq!(answer.header("content-type"), Some(&*format!("{expected}; charset=utf-8")));
        assert_eq!(answer.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{path}");
    }
}

#[tokio::test]
async fn a_file_that_the_browser_has_is_not_sent_again() {
    let app = app(page());
    let mut tags = BTreeSet::new();
    for path in everything(&app).await.keys() {
        let tag = get(&app, path).await.header("etag").expect("a tag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 10, "{tag}");
        assert!(tags.insert(tag.clone()), "two files have the same tag");
        for known in [tag.clone(), format!("W/{tag}"), format!("\"other\", {tag}"), "*".to_owned()]
        {
            let request = Request::get(path).header("if-none-match", &known);
            let answer = ask(&app, request.body(Body::empty()).unwrap()).await;
            assert_eq!((answer.status.as_u16(), &*answer.body), (304, ""), "{path}, {known}");
            assert_eq!(answer.header("etag"), Some(&*tag));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
            assert_eq!(answer.header("content-type"), None);
        }
        let request = Request::get(path).header("if-none-match", "\"other\"");
        assert_eq!(ask(&app, request.body(Body::empty()).unwrap()).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn changed_settings_change_the_tag() {
    let tag = async |page| get(&app(page), "/settings").await.header("etag").unwrap().to_owned();
    let style = async |page| {
        let answer = get(&app(page), "/settings/assets/style.css").await;
        answer.header("etag").unwrap().to_owned()
    };
    assert_eq!(tag(page()).await, tag(page()).await);
    assert_ne!(tag(page()).await, tag(page().title("other")).await);
    assert_ne!(style(page()).await, style(page().accent("#0b6e4f").unwrap()).await);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let app = app(page());
    for path in everything(&app).await.keys() {
        let whole = get(&app, path).await;
        let head = ask(&app, Request::head(path).body(Body::empty()).unwrap()).await;
        assert_eq!((head.status.as_u16(), &*head.body), (200, ""), "{path}");
        for name in ["content-type", "etag", "cache-control", "content-security-policy"] {
            assert_eq!(head.header(name), whole.header(name), "{path}: {name}");
        }
        assert_eq!(head.header("content-length"), Some(&*whole.body.len().to_string()));
    }
}

#[tokio::test]
async fn other_paths_are_404() {
    let app = app(page());
    for path in ["", "x.js", "page.js/", "../page.js", "%2e%2e/page.js", "text.json", "index.html"]
    {
        let answer = get(&app, &format!("/settings/assets/{path}")).await;
        assert_eq!(answer.status, 404, "{path}");
    }
    for path in ["/settings", "/settings/assets/page.js"] {
        let answer = send(&app, Method::POST, path, &json!({})).await;
        assert_eq!(answer.status, 405, "{path}");
    }
}

#[tokio::test]
async fn only_the_keys_need_a_login() {
    let app = Router::new().nest("/settings", page().router());
    for path in everything(&app).await.keys() {
        assert_eq!(get(&app, path).await.status, 200, "{path}");
    }
    assert_eq!(get(&app, "/settings/api/keys").await.status, 401);
}

#[tokio::test]
async fn the_page_finds_its_files_at_any_path() {
    let nested = |path| Router::new().nest(path, page().router());
    for (app, target, below) in [
        (page().router(), "/", "./"),
        (nested("/account/keys"), "/account/keys", "./keys/"),
        (nested("/a/b"), "/a/b?c=/d", "./b/"),
        (nested("/s%20p"), "/s%20p", "./s%20p/"),
        (Router::new().nest("/a", nested("/b")), "/a/b", "./b/"),
    ] {
        let index = get(&app, target).await.body;
        for file in ["page.js", "style.css"] {
            assert!(index.contains(&format!("\"{below}assets/{file}\"")), "{target}: {index}");
        }
        let path = target.split('?').next().unwrap();
        let folder = &path[..=path.rfind('/').unwrap()];
        let file = format!("{folder}{}assets/page.js", &below[2..]);
        assert_eq!(get(&app, &file).await.status, 200, "{file}");
    }
}

#[tokio::test]
async fn settings_of_the_host_stay_text() {
    for title in [
        "Keys </title><script>alert(1)</script>",
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "\" onload=\"alert(1)\" x='",
        "{{title}} {{noscript}} {{settings}} {{",
        "a & b &lt; \u{2028}",
    ] {
        let page = page().title(title).translation("en", &json!({ "noscript": title }).to_string());
        let index = get(&app(page.unwrap()), "/settings").await.body;
        assert_eq!(index.matches("<script").count(), 2, "{title}: {index}");
        assert_eq!(index.matches("</script>").count(), 2, "{title}: {index}");
        let settings = settings(&index);
        assert_eq!(
            (&settings["title"], &settings["text"]["noscript"]),
            (&json!(title), &json!(title))
        );
        let mut escaped = String::new();
        for c in title.chars() {
            match c {
                '&' | '<' | '>' | '"' | '\'' | '{' => escaped += &format!("&#{};", u32::from(c)),
                c => escaped.push(c),
            }
        }
        assert_eq!(between(&index, "<title>", "</title>"), [&escaped]);
        assert_eq!(between(&index, "<h1>", "</h1>"), [&escaped]);
    }
}

#[tokio::test]
async fn a_title_may_be_the_name_of_the_last_placeholder() {
    let index = get(&app(page().title("a {{base}} b")), "/settings").await.body;
    assert_eq!(settings(&index)["title"], "a {{base}} b");
    assert_eq!(between(&index, "<h1>", "</h1>"), ["a &#123;&#123;base}} b"]);
}

#[tokio::test]
async fn the_page_may_be_below_a_path_with_parameters() {
    let app = Router::new().nest("/orgs/{org}/keys", page().router());
    assert_eq!(get(&app, "/orgs/acme/keys").await.status, 200);
    assert_eq!(get(&app, "/orgs/acme/keys/assets/page.js").await.status, 200);
}

#[tokio::test]
async fn no_file_refers_to_another_host() {
    for (path, content) in everything(&app(page())).await {
        for word in ["//cdn", "@import", "url(", "integrity=", "<iframe", "innerHTML", "outerHTML"]
        {
            assert!(!content.contains(word), "{path}: {word}");
        }
        for word in
            ["insertAdjacentHTML", "document.write", "eval(", "localStorage", "sessionStorage"]
        {
            assert!(!content.contains(word), "{path}: {word}");
        }
        // The only address is the namespace of a template.
        let addresses = content.matches("http://").count() + content.matches("https://").count();
        let own = content.matches("`http://[${").count();
        assert_eq!(addresses, own, "{path}");
    }
}

#[tokio::test]
async fn the_first_view_is_at_most_six_requests() {
    let app = app(page());
    let files = everything(&app).await;
    // The page, its stylesheet, the modules that are imported at once, the list of keys.
    let mut at_once = vec!["page.js".to_owned()];
    let mut next = 0;
    while let Some(name) = at_once.get(next) {
        let script = &files[&format!("/settings/assets/{name}")];
        let more: Vec<String> =
            between(script, "from \"./", "\"").into_iter().map(str::to_owned).collect();
        for name in more {
            if !at_once.contains(&name) {
                at_once.push(name);
            }
        }
        next += 1;
    }
    assert!(at_once.len() + 3 <= 6, "{at_once:?}");
    let bytes: usize = files.values().map(String::len).sum();
    assert!(bytes < 90_000, "{bytes} bytes");
}

/// String literals, and patterns: the text before and after the hole of a template.
fn names_in(script: &str) -> (BTreeSet<String>, BTreeSet<String>, Vec<(String, String)>) {
    let called = between(script, "text(\"", "\"").into_iter().map(str::to_owned).collect();
    let quoted = script.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    let mut patterns = Vec::new();
    for open in ["text(`", "text[`"] {
        for template in between(script, open, "`") {
            let (before, rest) = template.split_once("${").expect("a hole");
            let (_, behind) = rest.rsplit_once('}').expect("its end");
            patterns.push((before.to_owned(), behind.to_owned()));
        }
    }
    (called, quoted, patterns)
}

#[tokio::test]
async fn scripts_use_every_text_and_no_missing_one() {
    let files = everything(&app(page())).await;
    let texts = settings(&files["/settings"])["text"].clone();
    let texts: BTreeSet<String> = texts.as_object().unwrap().keys().cloned().collect();
    let (mut used, mut patterns) = (BTreeSet::from(["noscript".to_owned()]), Vec::new());
    for (path, script) in files.iter().filter(|(path, _)| path.ends_with(".js")) {
        let lines = script.lines().filter(|line| !line.trim_start().starts_with("//"));
        let script: String = lines.collect::<Vec<_>>().join("\n");
        let (called, quoted, found) = names_in(&script);
        for name in called {
            assert!(texts.contains(&name), "{path}: there is no text {name:?}");
        }
        for (before, behind) in &found {
            let fits = |name: &&String| name.starts_with(before) && name.ends_with(behind);
            assert!(texts.iter().any(|name| fits(&name)), "{path}: no text fits {before}…{behind}");
        }
        used.extend(quoted);
        patterns.extend(found);
    }
    for name in &texts {
        let fits = |(before, behind): &(String, String)| {
            name.starts_with(before.as_str()) && name.ends_with(behind.as_str())
        };
        assert!(used.contains(name) || patterns.iter().any(fits), "{name:?} is used nowhere");
    }
}

#[tokio::test]
async fn case_40_a_key_is_answered_with_no_store_and_without_a_redirect() {
    let app = app(page());
    let new = json!({ "name": "CI deploy", "expiration": "never" });
    let created = send(&app, Method::POST, "/settings/api/keys", &new).await;
    let id = created.json()["key"]["id"].as_str().unwrap().to_owned();
    let rotate = format!("/settings/api/keys/{id}/rotate");
    let rotated = send(&app, Method::POST, &rotate, &json!({ "confirm_name": "CI deploy" })).await;
    for (answer, status) in [(&created, 201), (&rotated, 200)] {
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(answer.header("refresh"), None);
        assert_eq!(answer.header("set-cookie"), None);
        let secret = answer.json()["secret"].as_str().unwrap().to_owned();
        assert!(!format!("{:?}", answer.headers).contains(&secret[12..]), "the key is in a header");
        // No later answer contains it.
        for path in ["/settings", "/settings/api/keys", &format!("/settings/api/keys/{id}")] {
            assert!(!get(&app, path).await.body.contains(&secret[12..]), "{path}");
        }
    }
    assert_eq!(rotated.header("location"), None);
}

#[tokio::test]
async fn the_keys_may_be_below_a_path_with_parameters() {
    let router = page().router().layer(middleware::from_fn(login));
    let app = Router::new().nest("/orgs/{org}/keys", router);
    let new = json!({ "name": "CI deploy", "expiration": "never" });
    let created = send(&app, Method::POST, "/orgs/acme/keys/api/keys", &new).await;
    assert_eq!(created.status, 201);
    let id = created.json()["key"]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&app, &format!("/orgs/acme/keys/api/keys/{id}")).await.status, 200);
}
