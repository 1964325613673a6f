//! Determines the client's address, with or without proxies.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::network::{Network, parse_hop};

/// How the client's address is determined.
///
/// By default it is the peer's address, and all forwarding headers are ignored, since a
/// client can forge them. Behind proxies, set their networks and the one header that they
/// write ([`ProxyHeader`]). The addresses in the header's list, over all its lines, are
/// read from the right, skipping trusted proxies; the first other address is the client's.
/// Everything further left was sent by the client, and is not read.
///
/// If an address read this way does not parse, or all of them are proxies, the client's
/// address is unknown, and keys with an allowlist are refused.
///
/// ```
/// use keygate::guard::{ClientIp, ProxyHeader};
/// use keygate::Network;
/// use http::HeaderMap;
///
/// let proxy: Network = "10.0.0.0/8".parse()?;
/// let client_ip = ClientIp::behind([proxy], ProxyHeader::XForwardedFor);
///
/// let mut headers = HeaderMap::new();
/// headers.insert("x-forwarded-for", "6.6.6.6, 192.0.2.1, 10.0.0.9".parse()?);
/// let peer = Some("10.0.0.1".parse()?);
/// assert_eq!(client_ip.resolve(peer, &headers), Some("192.0.2.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ClientIp {
    proxies: Vec<Network>,
    header: ProxyHeader,
}

/// The header in which trusted proxies write the addresses of their clients. All others are
/// ignored, since a proxy forwards unchanged the headers that it does not write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyHeader {
    /// `X-Forwarded-For: client, proxy, proxy`
    #[default]
    XForwardedFor,
    /// `Forwarded: for=client, for=proxy` (RFC 7239)
    Forwarded,
    /// A header of this name that contains only the client's address, such as
    /// `CF-Connecting-IP` or `X-Real-IP`. If it has two lines or two addresses, the
    /// client's address is unknown.
    ///
    /// The proxy must replace this header if the client sends it.
    SingleAddress(HeaderName),
}

/// Recognises the names of the two lists; any other header has a single address.
impl From<HeaderName> for ProxyHeader {
    fn from(name: HeaderName) -> Self {
        match name.as_str() {
            "x-forwarded-for" => Self::XForwardedFor,
            "forwarded" => Self::Forwarded,
            _ => Self::SingleAddress(name),
        }
    }
}

impl ClientIp {
    /// Uses the peer's address.
    pub fn peer() -> Self {
        Self::default()
    }

    /// Trusts peers in these networks as proxies, which write this header.
    pub fn behind(proxies: impl IntoIterator<Item = Network>, header: ProxyHeader) -> Self {
        Self { proxies: proxies.into_iter().collect(), header }
    }

    /// The client's address; `None` if it is unknown. IPv4-mapped addresses are returned as
    /// IPv4.
    pub fn resolve(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<IpAddr> {
        let peer = peer?.to_canonical();
        if !self.trusts(peer) {
            return Some(peer);
        }
        match &self.header {
            ProxyHeader::XForwardedFor => self.client_in_x_forwarded_for(headers),
            ProxyHeader::Forwarded => self.client_in_forwarded(headers),
            ProxyHeader::SingleAddress(name) => single_address(headers, name),
        }
    }

    fn trusts(&self, ip: IpAddr) -> bool {
        self.proxies.iter().any(|proxy| proxy.contains(ip))
    }

    fn client_in_x_forwarded_for(&self, headers: &HeaderMap) -> Option<IpAddr> {
        for line in headers.get_all("x-forwarded-for").iter().rev() {
            for hop in line.as_bytes().rsplit(|b| *b == b',').map(<[u8]>::trim_ascii) {
                // Empty list elements are ignored (RFC 9110 § 5.6.1.2).
                if hop.is_empty() {
                    continue;
                }
                let ip = std::str::from_utf8(hop).ok().and_then(parse_hop)?;
                if !self.trusts(ip) {
                    return Some(ip);
                }
            }
        }
        None
    }

    fn client_in_forwarded(&self, headers: &HeaderMap) -> Option<IpAddr> {
        for line in headers.get_all("forwarded").iter().rev() {
            let mut rest = Some(line.as_bytes());
            while let Some(line) = rest {
                let element;
                (rest, element) = last_element(line);
                // Empty elements and empty pairs are ignored.
                if element.iter().all(|b| matches!(b, b' ' | b'\t' | b';')) {
                    continue;
                }
                let ip = parse_hop(&forwarded_for(&String::from_utf8_lossy(element))?)?;
                if !self.trusts(ip) {
                    return Some(ip);
                }
            }
        }
        None
    }
}

fn single_address(headers: &HeaderMap, name: &HeaderName) -> Option<IpAddr> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next().filter(|_| lines.next().is_none())?;
    parse_hop(line.to_str().ok()?.trim_ascii())
}

/// Splits the last element off a `Forwarded` line. Also returns the text before its comma,
/// if there is one.
///
/// The line is read from the right, where the well-formed elements of the proxies are: a
/// quoted string begins with a quotation mark after `=`, and quotation marks inside have a
/// backslash before them. A quotation mark that a client left open is further left.
fn last_element(line: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let mut quoted = false;
    for (at, byte) in line.iter().enumerate().rev() {
        let (before, from) = line.split_at(at);
        match byte {
            b',' if !quoted => return (Some(before), from.get(1..).unwrap_or_default()),
            b'"' => {
                let escapes = before.iter().rev().take_while(|b| **b == b'\\').count();
                quoted = !quoted || escapes % 2 == 1;
            }
            _ => {}
        }
    }
    (None, line)
}

/// The `for` of an element (RFC 7239 § 4); `None` if it is missing, repeated or malformed.
fn forwarded_for(element: &str) -> Option<String> {
    let (mut hop, mut rest) = (None, element);
    loop {
        rest = rest.trim_ascii_start();
        if !rest.starts_with(';') && !rest.is_empty() {
            let (name, after) = token(rest)?;
            let (value, after) = value(after.strip_prefix('=')?)?;
            if name.eq_ignore_ascii_case("for") && hop.replace(value).is_some() {
                return None;
            }
            rest = after.trim_ascii_start();
        }
        match rest.strip_prefix(';') {
            Some(next) => rest = next,
            None if rest.is_empty() => return hop,
            None => return None,
        }
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(token, _)| !token.is_empty())
}

fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        return token(text).map(|(value, rest)| (value.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests;
