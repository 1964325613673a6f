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

async fn get_unless(app: &Router, target: &str, tag: &str) -> Answer {
    let request = Request::get(target).header("if-none-match", tag);
    ask(app, request.body(Body::empty()).unwrap()).await
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
        ("content-security-policy", POLICY),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
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
    // Only the keys need a login.
    let app = Router::new().nest("/settings", page().router());
    assert_eq!(get(&app, "/settings/api/keys").await.status, 401);
    let files = everything(&app).await;
    assert_eq!(files.len(), 16, "{:?}", files.keys());
    let bytes: usize = files.values().map(String::len).sum();
    assert!(bytes < 110_000, "{bytes} bytes");
    let mut tags = BTreeSet::new();
    for path in files.keys() {
        let whole = get(&app, path).await;
        let kind = match path.rsplit_once('.') {
            Some((_, "css")) => "text/css; charset=utf-8",
            Some(_) => "text/javascript; charset=utf-8",
            None => "text/html; charset=utf-8",
        };
        for (name, value) in [
            ("content-type", kind),
            ("cache-control", "no-cache"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(whole.header(name), Some(value), "{path}: {name}");
        }

        let head = ask(&app, Request::head(path).body(Body::empty()).unwrap()).await;
        assert_eq!((head.status.as_u16(), &*head.body), (200, ""), "{path}");
        for name in ["content-type", "etag", "cache-control", "content-security-policy"] {
            assert_eq!(head.header(name), whole.header(name), "{path}: {name}");
        }
        assert_eq!(head.header("content-length"), Some(&*whole.body.len().to_string()));

        // A file that the browser has is not sent again.
        let tag = whole.header("etag").expect("a tag");
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 10, "{tag}");
        assert!(tags.insert(tag.to_owned()), "two files have the same tag");
        for known in [tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
            let answer = get_unless(&app, path, known).await;
            assert_eq!((answer.status.as_u16(), &*answer.body), (304, ""), "{path}, {known}");
            assert_eq!(answer.header("etag"), Some(tag));
            assert_eq!(answer.header("cache-control"), Some("no-cache"));
            assert_eq!(answer.header("content-type"), None);
        }
        assert_eq!(get_unless(&app, path, "\"other\"").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn changed_settings_change_the_tag() {
    let tag = async |page, file: &str| {
        let answer = get(&app(page), &format!("/settings{file}")).await;
        answer.header("etag").unwrap().to_owned()
    };
    let style = "/assets/style.css";
    assert_eq!(tag(page(), "").await, tag(page(), "").await);
    assert_ne!(tag(page(), "").await, tag(page().title("other"), "").await);
    assert_ne!(tag(page(), style).await, tag(page().accent("#0b6e4f").unwrap(), style).await);
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
        "{{title}} {{noscript}} {{settings}} {{base}} {{",
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
async fn the_page_and_its_keys_may_be_below_a_path_with_parameters() {
    let router = page().router().layer(middleware::from_fn(login));
    let app = Router::new().nest("/orgs/{org}/keys", router);
    assert_eq!(get(&app, "/orgs/acme/keys/assets/page.js").await.status, 200);
    let new = json!({ "name": "CI deploy", "expiration": "never" });
    let created = send(&app, Method::POST, "/orgs/acme/keys/api/keys", &new).await;
    assert_eq!(created.status, 201);
    let id = created.json()["key"]["id"].as_str().unwrap().to_owned();
    assert_eq!(get(&app, &format!("/orgs/acme/keys/api/keys/{id}")).await.status, 200);
}

#[tokio::test]
async fn no_file_refers_to_another_host() {
    for (path, content) in everything(&app(page())).await {
        let words = "//cdn @import url( integrity= <iframe innerHTML outerHTML insertAdjacentHTML \
            document.write eval( localStorage sessionStorage";
        for word in words.split(' ') {
            assert!(!content.contains(word), "{path}: {word}");
        }
        // The only addresses are a template for IPv6 and the namespace of SVG.
        let addresses = content.matches("http://").count() + content.matches("https://").count();
        let own = content.matches("`http://[${").count()
            + content.matches("\"http://www.w3.org/2000/svg\"").count();
        assert_eq!(addresses, own, "{path}");
    }
}

#[tokio::test]
async fn scripts_use_every_text_and_no_missing_one() {
    let files = everything(&app(page())).await;
    let texts = settings(&files["/settings"])["text"].clone();
    let texts: BTreeSet<&str> = texts.as_object().unwrap().keys().map(String::as_str).collect();
    let mut used = BTreeSet::from(["noscript".to_owned(), "stuck".to_owned()]);
    for (path, script) in files.iter().filter(|(path, _)| path.ends_with(".js")) {
        let lines = script.lines().filter(|line| !line.trim_start().starts_with("//"));
        let script = lines.collect::<Vec<_>>().join("\n");
        for name in between(&script, "text(\"", "\"") {
            assert!(texts.contains(name), "{path}: there is no text {name:?}");
        }
        used.extend(script.split('"').skip(1).step_by(2).map(str::to_owned));
        // The name of a text may be a template with one hole.
        let open = ["text(`", "text[`", "sentence(`"];
        for template in open.iter().flat_map(|open| between(&script, open, "`")) {
            let (before, rest) = template.split_once("${").expect("a hole");
            let (_, behind) = rest.rsplit_once('}').expect("its end");
            let fits = |name: &&&str| name.starts_with(before) && name.ends_with(behind);
            let fitting: Vec<_> =
                texts.iter().filter(fits).map(|name| (*name).to_owned()).collect();
            assert!(!fitting.is_empty(), "{path}: no text fits {template:?}");
            used.extend(fitting);
        }
    }
    for name in texts {
        // A form of a text with a plural is used with the text.
        let name = name.strip_suffix(".one").unwrap_or(name);
        assert!(used.contains(name), "{name:?} is used nowhere");
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
