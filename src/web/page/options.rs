//! The options of the page, and the router that serves it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use http::Extensions;
use http::header::{CACHE_CONTROL, HeaderMap};
use serde_json::json;
use thiserror::Error;

use crate::guard::ClientIp;
use crate::guard::config::peer_of;
use crate::manager::KeyManager;
use crate::web::admin::{self, Hosts};
use crate::web::page::files::{self, Accent, Files, Link, Shown};
use crate::web::unread::close_if_unread;

/// The settings page, with the management API that it uses: a router to mount at
/// any path, behind the host's own login.
///
/// ```
/// use axum::Router;
/// use axum::middleware::{self, Next};
/// use keygate::{Actor, KeyManager, MemoryStore, OrgId, SettingsPage};
///
/// # async fn login(
/// #     mut request: axum::extract::Request,
/// #     next: Next,
/// # ) -> axum::response::Response {
/// #     if let Ok(org) = OrgId::new("acme") {
/// #         request.extensions_mut().insert(Actor::new(org, "ada@acme.example"));
/// #     }
/// #     next.run(request).await
/// # }
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let keys = KeyManager::builder(MemoryStore::new()).build()?;
/// let page = SettingsPage::new(keys)
///     .title("Acme API keys")
///     .accent("#0b6e4f")?
///     .back_link("Acme", "/")?
///     .docs_link("https://docs.acme.example/api")?;
/// let app: Router =
///     Router::new().nest("/settings", page.router().layer(middleware::from_fn(login)));
/// # Ok(())
/// # }
/// ```
///
/// The login puts an [`Actor`](crate::Actor) into the request's extensions, as for
/// [`admin::router`](crate::admin::router), which is served under `api` next to the page.
/// The page itself and its files contain no data of any organisation.
///
/// Everything is embedded: there is no build step, and nothing is loaded from other hosts.
/// A content security policy allows only scripts and styles of this page, and forbids
/// frames.
#[derive(Debug)]
pub struct SettingsPage {
    keys: KeyManager,
    hosts: Hosts,
    accent: Option<Accent>,
    language: String,
    client_ip: Option<ClientIp>,
    shown: Shown,
}

impl SettingsPage {
    /// The page in English, titled "API keys".
    pub fn new(keys: KeyManager) -> Self {
        Self {
            keys,
            hosts: Hosts::default(),
            accent: None,
            language: "en".to_owned(),
            client_ip: None,
            shown: Shown {
                title: "API keys".to_owned(),
                back: None,
                docs: None,
                example: "/".to_owned(),
                address: false,
                text: files::texts(),
            },
        }
    }

    /// Sets the hosts under which the management API may be requested. The default is any
    /// host. [`router_on_hosts`](admin::router_on_hosts) explains the entries, and when to
    /// set this.
    pub fn hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        Self { hosts: Hosts::new(hosts), ..self }
    }

    /// Sets the heading and the title of the window.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.shown.title = title.into();
        self
    }

    /// Sets the colour of the main buttons, as `#rrggbb`. Their text is black or white,
    /// whichever is easier to read.
    ///
    /// # Errors
    ///
    /// [`SettingsPageError::Accent`] if it is not `#` and six hexadecimal digits.
    pub fn accent(mut self, colour: &str) -> Result<Self, SettingsPageError> {
        let accent = Accent::parse(colour).ok_or(SettingsPageError::Accent)?;
        self.accent = Some(accent);
        Ok(self)
    }

    /// Adds a link above the heading, back to the host's own pages.
    ///
    /// # Errors
    ///
    /// [`SettingsPageError::Link`] if the address is not `http://…`, `https://…` or a path
    /// that begins with `/`.
    pub fn back_link(
        mut self,
        label: impl Into<String>,
        address: impl Into<String>,
    ) -> Result<Self, SettingsPageError> {
        self.shown.back = Some(Link { label: label.into(), href: checked(address.into())? });
        Ok(self)
    }

    /// Adds a link to instructions for using a key, shown next to a new key.
    ///
    /// # Errors
    ///
    /// As for [`back_link`](Self::back_link).
    pub fn docs_link(mut self, address: impl Into<String>) -> Result<Self, SettingsPageError> {
        self.shown.docs = Some(checked(address.into())?);
        Ok(self)
    }

    /// Sets the address in the `curl` line shown next to a new key. The default is `/` on
    /// the page's own host.
    ///
    /// # Errors
    ///
    /// As for [`back_link`](Self::back_link).
    pub fn example_url(mut self, address: impl Into<String>) -> Result<Self, SettingsPageError> {
        self.shown.example = checked(address.into())?;
        Ok(self)
    }

    /// Lets a user add their own address to an allowlist with one click. `client_ip` finds it
    /// as for [`ApiKeyLayer::client_ip`](crate::ApiKeyLayer::client_ip). Without this, there is
    /// no such button.
    pub fn client_ip(mut self, client_ip: ClientIp) -> Self {
        self.shown.address = true;
        Self { client_ip: Some(client_ip), ..self }
    }

    /// Sets the page's language, as a tag such as `de`, `pt-BR` or `zh-Hant-TW` (RFC 5646:
    /// language, script, region), and its texts: a JSON object with the names and
    /// placeholders of `text.json` in this crate's `src/web/page/files`. Missing texts
    /// stay in English. Dates, the names of countries and the direction of the text follow
    /// the language automatically. Texts with a plural, those that have a form `….one`, may
    /// have all forms of the language: `….zero`, `….one`, `….two`, `….few` and `….many` (CLDR).
    ///
    /// ```
    /// # use keygate::{KeyManager, MemoryStore, SettingsPage};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let keys = KeyManager::builder(MemoryStore::new()).build()?;
    /// let page = SettingsPage::new(keys)
    ///     .title("API-Schlüssel")
    ///     .translation("de", r#"{"count": "{count} von {max} Schlüsseln"}"#)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Language`](SettingsPageError::Language) if the tag is invalid,
    /// [`Translation`](SettingsPageError::Translation) if the texts are not a JSON object
    /// of strings, [`UnknownText`](SettingsPageError::UnknownText) for a name that the page
    /// does not have.
    pub fn translation(
        mut self,
        language: impl Into<String>,
        texts: &str,
    ) -> Result<Self, SettingsPageError> {
        let language = language.into();
        if !is_tag(&language) {
            return Err(SettingsPageError::Language);
        }
        let texts: BTreeMap<String, String> =
            serde_json::from_str(texts).map_err(SettingsPageError::translation)?;
        for (name, text) in texts {
            if !self.shown.text.contains_key(&name) && !self.is_plural(&name) {
                return Err(SettingsPageError::UnknownText { name });
            }
            self.shown.text.insert(name, text);
        }
        self.language = language;
        Ok(self)
    }

    /// Whether this is a form of a text that has a plural.
    fn is_plural(&self, name: &str) -> bool {
        name.rsplit_once('.').is_some_and(|(base, form)| {
            ["zero", "two", "few", "many"].contains(&form)
                && self.shown.text.contains_key(&format!("{base}.one"))
        })
    }

    /// Serves the page at `/`, its files under `/assets`, the management API under `/api`,
    /// and the user's address at `/address` if [`client_ip`](Self::client_ip) was set.
    pub fn router(self) -> Router {
        let files = Files::new(&self.shown, &self.language, self.accent);
        let mut router = files::router(files).nest("/api", admin::guarded(self.keys, self.hosts));
        if let Some(client_ip) = self.client_ip {
            router = router.route("/address", get(address).with_state(Arc::new(client_ip)));
        }
        router.layer(middleware::from_fn(close_if_unread))
    }
}

/// The address that the request comes from; `null` if it is not known.
async fn address(
    State(client_ip): State<Arc<ClientIp>>,
    extensions: Extensions,
    headers: HeaderMap,
) -> Response {
    let ip = client_ip.resolve(peer_of(&extensions), &headers);
    ([(CACHE_CONTROL, "no-store")], Json(json!({ "ip": ip }))).into_response()
}

/// A language of two or three letters, an optional script of four letters, and an optional
/// region of two letters or three digits.
fn is_tag(language: &str) -> bool {
    let letters = |part: &str| part.bytes().all(|b| b.is_ascii_alphabetic());
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let mut parts = language.split('-').peekable();
    let known = parts.next().is_some_and(|part| matches!(part.len(), 2 | 3) && letters(part));
    parts.next_if(|part| part.len() == 4 && letters(part));
    parts.next_if(|part| match part.len() {
        2 => letters(part),
        3 => digits(part),
        _ => false,
    });
    known && parts.next().is_none()
}

/// A safe address for a link, which cannot run a script.
fn checked(address: String) -> Result<String, SettingsPageError> {
    let is_path = address.starts_with('/') && !address.starts_with("//");
    let is_url = ["http://", "https://"].iter().any(|scheme| address.starts_with(scheme));
    // The browser would refuse another host.
    let is_read = address.parse::<http::Uri>().is_ok();
    let is_plain = !address.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\');
    if (is_path || is_url) && is_plain && is_read {
        Ok(address)
    } else {
        Err(SettingsPageError::Link)
    }
}

/// Which option of the [`SettingsPage`] was invalid.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SettingsPageError {
    /// The accent colour.
    #[error("an accent colour must be # and six hexadecimal digits")]
    Accent,
    /// The address of a link.
    #[error("a link must be http://…, https://… or a path that begins with one /")]
    Link,
    /// The language's tag.
    #[error("a language must be a tag such as `en` or `pt-BR`")]
    Language,
    /// The texts are not a JSON object of strings.
    #[error("a translation must be a JSON object of strings")]
    Translation(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The page has no text of this name.
    #[error("the page has no text {name:?}; see `text.json` for the names")]
    UnknownText {
        /// The name.
        name: String,
    },
}

impl SettingsPageError {
    fn translation(error: serde_json::Error) -> Self {
        Self::Translation(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_has_at_most_a_script_and_a_region() {
        for tag in ["de", "pt-BR", "zh-Hant-TW", "es-419", "gsw", "sr-Latn"] {
            assert!(is_tag(tag), "{tag}");
        }
        for tag in ["", "e", "de-1", "x-klingon", "de-", "de-DE-1996", "BR-pt-de", "d3"] {
            assert!(!is_tag(tag), "{tag}");
        }
    }

    #[test]
    fn only_http_links_and_local_paths_are_accepted() {
        for fine in ["/", "/a?b#c", "https://a.example/", "http://localhost:3000"] {
            assert!(checked(fine.to_owned()).is_ok(), "{fine}");
        }
        for wrong in [
            "",
            "a",
            "//a.example",
            "javascript:alert(1)",
            " /",
            "/\\a.example",
            "data:,",
            "HTTPS",
            "/a\nb",
            "https://",
            "https://<tenant>.acme.example/v1",
        ] {
            assert!(checked(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
