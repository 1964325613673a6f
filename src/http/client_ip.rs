//! The client's address, behind proxies or not.

use std::net::IpAddr;

use ::http::{HeaderMap, HeaderName};

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
mod tests {
    use super::*;
    use ::http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        let lines = lines.iter().map(|l| HeaderValue::from_bytes(l.as_bytes()).unwrap());
        lines.map(|line| (HeaderName::from_static(name), line)).collect()
    }

    fn behind(header: ProxyHeader) -> ClientIp {
        let proxies = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|net| net.parse().unwrap());
        ClientIp::behind(proxies, header)
    }

    fn xff(lines: &[&str]) -> Option<IpAddr> {
        let headers = headers("x-forwarded-for", lines);
        behind(ProxyHeader::XForwardedFor).resolve(Some(ip("10.0.0.1")), &headers)
    }

    fn forwarded(lines: &[&str]) -> Option<IpAddr> {
        let headers = headers("forwarded", lines);
        behind(ProxyHeader::Forwarded).resolve(Some(ip("10.0.0.1")), &headers)
    }

    #[test]
    fn case_11_a_forged_leftmost_entry_is_ignored() {
        assert_eq!(xff(&["6.6.6.6, 192.0.2.1"]), Some(ip("192.0.2.1")));
        assert_eq!(xff(&["6.6.6.6", "192.0.2.1, 10.0.0.3"]), Some(ip("192.0.2.1")));
        assert_eq!(xff(&["junk\", 192.0.2.1"]), Some(ip("192.0.2.1")));
        assert_eq!(forwarded(&["for=6.6.6.6, for=192.0.2.1"]), Some(ip("192.0.2.1")));
    }

    #[test]
    fn case_12_a_peer_that_is_no_proxy_is_the_client() {
        let headers = headers("x-forwarded-for", &["192.0.2.1"]);
        let peer = Some(ip("203.0.113.5"));
        assert_eq!(behind(ProxyHeader::XForwardedFor).resolve(peer, &headers), peer);
        assert_eq!(ClientIp::peer().resolve(peer, &headers), peer);
        let proxy = Some(ip("10.0.0.1"));
        assert_eq!(ClientIp::peer().resolve(proxy, &headers), proxy, "nobody is trusted unnamed");
    }

    #[test]
    fn case_12_the_other_header_is_ignored() {
        let headers = headers("forwarded", &["for=192.0.2.1"]);
        assert_eq!(
            behind(ProxyHeader::XForwardedFor).resolve(Some(ip("10.0.0.1")), &headers),
            None
        );
    }

    #[test]
    fn case_13_every_spelling_gives_the_right_address_or_none() {
        for (lines, client) in [
            (&["192.0.2.1:4711"][..], Some("192.0.2.1")),
            (&["[2001:db8::1]:443"], Some("2001:db8::1")),
            (&["2001:db8::1"], Some("2001:db8::1")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (&["192.0.2.1,, ,10.1.1.1,"], Some("192.0.2.1")),
            (&["192.0.2.1", ""], Some("192.0.2.1")),
            (&["192.0.2.1, unknown"], None),
            (&["192.0.2.1, _obf"], None),
            (&["192.0.2.1, 10.0.0.256"], None),
            (&["192.0.2.1, \u{e9}"], None),
            (&["unknown, 192.0.2.1"], Some("192.0.2.1")),
        ] {
            assert_eq!(xff(lines), client.map(ip), "{lines:?}");
        }
    }

    #[test]
    fn case_13_forwarded_is_read_strictly() {
        for (lines, client) in [
            (&["for=192.0.2.1;proto=https;by=10.0.0.2"][..], Some("192.0.2.1")),
            (&["proto=https;FOR=\"[2001:db8::1]:443\""], Some("2001:db8::1")),
            (&["for=\"192.0.2.1:80\" , for=10.9.9.9"], Some("192.0.2.1")),
            (&["for=192.0.2.1", "for=10.9.9.9"], Some("192.0.2.1")),
            (&["for=\"192.0.2.\\1\""], Some("192.0.2.1")),
            (&["for=6.6.6.6, , for=192.0.2.1;"], Some("192.0.2.1")),
            (&["for=192.0.2.1, proto=https"], None),
            (&["for=192.0.2.1, for=unknown"], None),
            (&["for=192.0.2.1, for=_obf"], None),
            (&["for=6.6.6.6;for=192.0.2.1"], None),
            (&["for=[2001:db8::1]"], None),
            (&["for =192.0.2.1"], None),
            (&["for=192.0.2.1 x"], None),
            (&["for=192.0.2.1", "for=\"10.9.9.9"], None),
            (&["192.0.2.1"], None),
        ] {
            assert_eq!(forwarded(lines), client.map(ip), "{lines:?}");
        }
    }

    #[test]
    fn case_52_what_the_client_wrote_in_forwarded_neither_hides_nor_forges_the_proxys_element() {
        let claims = [
            "for=\"6.6.6.6",
            "for=6.6.6.6;host=\"",
            "\"",
            "\\",
            "\"\\",
            "for=\"6.6.6.6\\\"",
            "for=6.6.6.6, \"",
            "for",
            "=;=,;",
            "for=6.6.6.6;for=6.6.6.6",
            "for=\u{e9}",
            "\u{e9}\"",
            "",
        ];
        let elements = [
            "for=192.0.2.1",
            "for=\"192.0.2.1:443\";proto=https",
            "host=\"a, for=6.6.6.6\";for=192.0.2.1",
            "for=192.0.2.1;host=\"\\\", for=6.6.6.6;x=\\\"\"",
            "for=192.0.2.1;host=\"\\\\\"",
            "for=192.0.2.1;host=\"\\\\\\\", for=6.6.6.6\"",
            "for=192.0.2.1;host=\"\u{e9}, for=6.6.6.6\"",
        ];
        for element in elements {
            assert_eq!(forwarded(&[element]), Some(ip("192.0.2.1")), "{element}");
            for claim in claims {
                let joined = format!("{claim}, {element}");
                let twice = format!("{joined}, for=10.0.0.2");
                for lines in [
                    &[claim, element][..],
                    &[claim, claim, element],
                    &[&joined],
                    &[claim, &joined],
                    &[&twice],
                    &[&joined, "for=10.0.0.2"],
                ] {
                    assert_eq!(forwarded(lines), Some(ip("192.0.2.1")), "{lines:?}");
                }
            }
        }
    }

    #[test]
    fn case_52_a_header_with_one_address_has_exactly_one() {
        let single = |lines: &[&str]| {
            let header = ProxyHeader::from(HeaderName::from_static("cf-connecting-ip"));
            let headers = headers("cf-connecting-ip", lines);
            behind(header).resolve(Some(ip("10.0.0.1")), &headers)
        };
        for (lines, client) in [
            (&["192.0.2.1"][..], Some("192.0.2.1")),
            (&[" 2001:db8::1 "], Some("2001:db8::1")),
            (&["::ffff:192.0.2.1"], Some("192.0.2.1")),
            (&["192.0.2.1:4711"], Some("192.0.2.1")),
            // It is not a list of proxies: whom it names is the client.
            (&["10.0.0.9"], Some("10.0.0.9")),
            (&[], None),
            (&[""], None),
            (&["192.0.2.1", "192.0.2.1"], None),
            (&["192.0.2.1", ""], None),
            (&["192.0.2.1, 192.0.2.1"], None),
            (&["192.0.2.1 192.0.2.1"], None),
            (&["192.0.2.1,"], None),
            (&["unknown"], None),
            (&["\u{e9}"], None),
        ] {
            assert_eq!(single(lines), client.map(ip), "{lines:?}");
        }
        let other = headers("x-real-ip", &["192.0.2.1"]);
        let header = ProxyHeader::from(HeaderName::from_static("cf-connecting-ip"));
        assert_eq!(behind(header.clone()).resolve(Some(ip("10.0.0.1")), &other), None);
        let peer = Some(ip("203.0.113.5"));
        let claimed = headers("cf-connecting-ip", &["192.0.2.1"]);
        assert_eq!(behind(header).resolve(peer, &claimed), peer);
    }

    #[test]
    fn a_name_says_which_kind_of_header_it_is() {
        for (name, header) in [
            ("X-Forwarded-For", ProxyHeader::XForwardedFor),
            ("FORWARDED", ProxyHeader::Forwarded),
            ("X-Real-IP", ProxyHeader::SingleAddress(HeaderName::from_static("x-real-ip"))),
        ] {
            assert_eq!(ProxyHeader::from(name.parse::<HeaderName>().unwrap()), header);
        }
    }

    #[test]
    fn case_14_all_hops_trusted_or_no_peer_is_no_known_address() {
        assert_eq!(xff(&["10.0.0.2, 10.0.0.3"]), None);
        assert_eq!(xff(&[]), None);
        assert_eq!(forwarded(&["for=10.0.0.2"]), None);
        let headers = headers("x-forwarded-for", &["192.0.2.1"]);
        assert_eq!(behind(ProxyHeader::XForwardedFor).resolve(None, &headers), None);
        assert_eq!(ClientIp::peer().resolve(None, &headers), None);
    }

    proptest! {
        #[test]
        fn the_rightmost_untrusted_hop_is_found(
            forged in "[ -~]{0,40}|[,;=\"\\\\ ]{0,20}",
            client: IpAddr,
            port in proptest::option::of(any::<u16>()),
            proxies in proptest::collection::vec(0u8..=255, 0..5),
        ) {
            prop_assume!(!behind(ProxyHeader::Forwarded).trusts(client));
            let hop = match (client, port) {
                (ip, None) => ip.to_string(),
                (IpAddr::V4(v4), Some(port)) => format!("{v4}:{port}"),
                (IpAddr::V6(v6), Some(port)) => format!("[{v6}]:{port}"),
            };
            let quoted = match client {
                IpAddr::V6(v6) if port.is_none() => format!("for=\"[{v6}]\""),
                _ => format!("for=\"{hop}\""),
            };
            let tail: String = proxies.iter().map(|n| format!(", 10.0.0.{n}")).collect();
            let found = xff(&[&format!("{forged}, {hop}{tail}")]);
            prop_assert_eq!(found, Some(client.to_canonical()));
            let tail: String = proxies.iter().map(|n| format!(", for=10.0.0.{n}")).collect();
            let found = forwarded(&[&forged, &format!("{forged}, {quoted}{tail}")]);
            prop_assert_eq!(found, Some(client.to_canonical()));
        }

        #[test]
        fn no_line_makes_a_trusted_proxy_the_client(lines in proptest::collection::vec("[ -~]{0,60}|(for=|[0-9.,;:\"\\[\\]]){0,12}", 0..4)) {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            for found in [xff(&lines), forwarded(&lines)].into_iter().flatten() {
                prop_assert!(!behind(ProxyHeader::Forwarded).trusts(found));
            }
        }
    }
}
