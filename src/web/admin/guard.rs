//! Checks every request before routing, and sets headers on every response.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, HOST, HeaderName, HeaderValue, ORIGIN};

use crate::manager::KeyManager;
use crate::manager::endpoint::endpoint;
use crate::org::Actor;
use crate::throttle::Throttle;
use crate::web::admin::problem::{Code, Problem};

/// The hosts under which the API may be requested; any host if the list is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Option<Arc<[String]>>);

/// What the guard of one router needs.
#[derive(Debug)]
pub(super) struct Guard {
    keys: KeyManager,
    hosts: Hosts,
    /// For requests without an actor.
    no_actor: Throttle,
    /// For requests under a host that is not listed.
    foreign_host: Throttle,
}

/// Admits only requests of a known actor that a browser does not make for another site.
/// Responses contain secrets and names of keys, so they must not be cached.
pub(super) async fn guard(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Guard {
    pub(super) fn new(keys: KeyManager, hosts: Hosts) -> Arc<Self> {
        let (no_actor, foreign_host) = (Throttle::default(), Throttle::default());
        Arc::new(Self { keys, hosts, no_actor, foreign_host })
    }

    fn check(&self, request: &Request) -> Result<(), Problem> {
        if request.extensions().get::<Actor>().is_none() {
            if let Some(left_out) = self.no_actor.pass() {
                tracing::warn!(
                    left_out,
                    "no Actor in the request: is the login middleware outside of the router?"
                );
            }
            return Err(Problem::unauthenticated());
        }
        if !self.hosts.have(request) {
            if let Some(left_out) = self.foreign_host.pass() {
                // Shown as a path is: bounded, visible, and without a key.
                let host = endpoint(host(request).into(), self.keys.formats());
                tracing::warn!(
                    host,
                    left_out,
                    "refused under a host that `SettingsPage::hosts` or `router_on_hosts` does not list"
                );
            }
            let detail = "The service does not list this host among its own.";
            return Err(Problem::new(Code::CrossSite, detail));
        }
        if is_cross_site(request) {
            let detail = "Changes are accepted only from pages of this site.";
            return Err(Problem::new(Code::CrossSite, detail));
        }
        Ok(())
    }
}

/// Whether this is a change that a page of another site may have requested.
///
/// Browsers say where a request comes from, and pages cannot forge that: in
/// `Sec-Fetch-Site`, or in older browsers in `Origin`. A client that sends neither is not a
/// browser, and sends only credentials that it was given.
fn is_cross_site(request: &Request) -> bool {
    if request.method().is_safe() {
        return false;
    }
    let headers = request.headers();
    let repeated = |name: HeaderName| headers.get_all(name).iter().count() > 1;
    if repeated(HOST) || repeated(ORIGIN) {
        return true;
    }
    let mut sites = headers.get_all("sec-fetch-site").iter().peekable();
    if sites.peek().is_some() {
        return !sites.all(|site| site == "same-origin" || site == "none");
    }
    let Some(origin) = headers.get(ORIGIN) else { return false };
    !is_of_host(text(origin), host(request))
}

fn host(request: &Request) -> &str {
    match request.headers().get(HOST) {
        Some(host) => text(host),
        // In HTTP/2 the URI contains the host.
        None => request.uri().authority().map_or("", |authority| authority.as_str()),
    }
}

impl Hosts {
    pub(crate) fn new<H: Into<String>>(hosts: impl IntoIterator<Item = H>) -> Self {
        Self(Some(hosts.into_iter().map(Into::into).collect()))
    }

    fn have(&self, request: &Request) -> bool {
        let Some(allowed) = &self.0 else { return true };
        let is_named_once = request.headers().get_all(HOST).iter().count() <= 1;
        is_named_once && allowed.iter().any(|allowed| is_allowed(allowed, host(request)))
    }
}

fn is_allowed(allowed: &str, host: &str) -> bool {
    let (Some((allowed, allowed_port)), Some((host, port))) =
        (host_and_port(allowed), host_and_port(host))
    else {
        return false;
    };
    let is_default = port.is_none() && matches!(allowed_port, Some(80 | 443));
    if allowed_port.is_some() && allowed_port != port && !is_default {
        return false;
    }
    let ip = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    allowed.eq_ignore_ascii_case(host)
        || ip(allowed).is_some_and(|ip| ip.is_unspecified()) && ip(host).is_some()
}

/// A header that is not ASCII equals no origin or host.
fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

/// Compares host and port. The scheme only determines the default port: behind a proxy that
/// terminates TLS, the service does not know its own scheme.
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let port_of = |port: Option<u16>| port.unwrap_or(default_port);
    match (host_and_port(authority), host_and_port(host)) {
        (Some((a, a_port)), Some((b, b_port))) => {
            a.eq_ignore_ascii_case(b) && port_of(a_port) == port_of(b_port)
        }
        _ => false,
    }
}

fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        // In `[::1]` the last colon does not precede a port.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    (!host.is_empty()).then_some((host, port))
}
