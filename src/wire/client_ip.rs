//! The client's address, behind proxies or not.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName};

use crate::network::{Network, parse_hop};

/// How the client's address is found.
///
/// By default it is the address of the peer, and every forwarding header is
/// ignored: anybody can write one. Behind proxies, name them and the one header
/// that they write ([`ProxyHeader`]). The addresses in a list, of all its lines, are
/// then walked from the right, past those of trusted proxies; the first other one is
/// the client's. What stands further left is the client's own claim, well-formed or
/// not, and is not looked at.
///
/// Where an address on that walk does not parse, or all of them are proxies, the
/// client's address is not known, and keys with an allowlist are refused.
///
/// ```
/// use keygate::{ClientIp, Network, ProxyHeader};
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

/// The header in which trusted proxies write the addresses that they serve. All
/// others are ignored: proxies pass on what they do not write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyHeader {
    /// `X-Forwarded-For: client, proxy, proxy`
    #[default]
    XForwardedFor,
    /// `Forwarded: for=client, for=proxy` (RFC 7239)
    Forwarded,
    /// A header of that name with the client's address and nothing else, such as
    /// `CF-Connecting-IP` or `X-Real-IP`. With two lines or two addresses, the
    /// client's address is not known.
    ///
    /// The proxy must replace the header that a client sends.
    SingleAddress(HeaderName),
}

/// The two lists by their names; any other header has a single address.
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
    /// The peer's address is the client's.
    pub fn peer() -> Self {
        Self::default()
    }

    /// Peers in these networks are proxies, and write that header.
    pub fn behind(proxies: impl IntoIterator<Item = Network>, header: ProxyHeader) -> Self {
        Self { proxies: proxies.into_iter().collect(), header }
    }

    /// The client's address; `None` where it is not known. IPv4-mapped addresses
    /// come out as IPv4.
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
                // Empty list elements are no elements (RFC 9110 § 5.6.1.2).
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
                // Empty elements, and in those empty pairs, are none.
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

/// Splits the last element off a `Forwarded` line; with it, what is before its comma,
/// if it has one.
///
/// Read from the right, the elements of the proxies come first, and are well-formed:
/// a quoted string begins with a quotation mark behind `=`, and those within it have a
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

/// The `for` of an element (RFC 7239 § 4); `None` where it has not exactly one, or is
/// not in order.
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
