//! `ClientIp::resolve` on hostile headers, one line of the header a line of input:
//! `cargo +nightly fuzz run client_ip -- -max_total_time=60 -dict=fuzz/dictionaries/client_ip.dict`.
//!
//! The first byte says which header the proxies write. The answer is the right-most
//! hop that is no proxy, as a naive second reading finds it: never a proxy's address,
//! never changed by what stands further left, nor by another header. A header with a
//! single address has one line with one.
#![no_main]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::LazyLock;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use keygate::Network;
use keygate::guard::{ClientIp, ProxyHeader};
use libfuzzer_sys::fuzz_target;

const XFF: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");

const SINGLE: HeaderName = HeaderName::from_static("cf-connecting-ip");

static RESOLVERS: LazyLock<[(ClientIp, HeaderName); 3]> = LazyLock::new(|| {
    let proxies: [Network; 2] = ["10.0.0.0/8", "2001:db8:aaaa::/48"].map(|n| n.parse().unwrap());
    [XFF, FORWARDED, SINGLE]
        .map(|name| (ClientIp::behind(proxies, ProxyHeader::from(name.clone())), name))
});

fuzz_target!(|input: &[u8]| {
    let Some((which, text)) = input.split_first() else { return };
    let (resolver, name) = &RESOLVERS[usize::from(which % 3)];
    let lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    let values = lines.iter().map(|line| HeaderValue::from_bytes(line).ok());
    let Some(values) = values.collect::<Option<Vec<_>>>() else { return };
    let mut headers: HeaderMap = values.into_iter().map(|v| (name.clone(), v)).collect();

    let proxy: Option<IpAddr> = Some("10.0.0.1".parse().unwrap());
    let found = resolver.resolve(proxy, &headers);
    let expected = match name.as_str() {
        "x-forwarded-for" => by_x_forwarded_for(&lines),
        "forwarded" => by_forwarded(&lines),
        _ => by_single_address(&lines),
    };
    assert_eq!(found, expected, "{headers:?}");
    assert!(*name == SINGLE || !found.is_some_and(is_proxy));

    // Who is no proxy is the client, whatever it says.
    let peer: Option<IpAddr> = Some("::ffff:192.0.2.99".parse().unwrap());
    assert_eq!(resolver.resolve(peer, &headers), Some("192.0.2.99".parse().unwrap()));
    assert_eq!(resolver.resolve(None, &headers), None);
    assert_eq!(ClientIp::peer().resolve(proxy, &headers), proxy);

    // Other headers count for nothing.
    for other in [XFF, FORWARDED, SINGLE].into_iter().filter(|other| other != name) {
        headers.insert(other.clone(), HeaderValue::from_static("for=6.6.6.6"));
        assert_eq!(resolver.resolve(proxy, &headers), found);
        headers.insert(other, HeaderValue::from_static("6.6.6.6"));
        assert_eq!(resolver.resolve(proxy, &headers), found);
    }

    // Nor does what a client puts further left, well-formed or not, once an address is found.
    if found.is_some() && *name != SINGLE {
        for forged in ["6.6.6.6", "for=6.6.6.6", "for=\"", "\\"] {
            let mut longer = HeaderMap::new();
            longer.append(name, HeaderValue::from_static(forged));
            for line in headers.get_all(name) {
                longer.append(name, line.clone());
            }
            assert_eq!(resolver.resolve(proxy, &longer), found);
        }
    }
});

fn is_proxy(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 10,
        IpAddr::V6(ip) => ip.segments()[..3] == [0x2001, 0xdb8, 0xaaaa],
    }
}

/// The last hop that is no proxy; nobody if one that cannot be read comes before it.
fn last(hops: impl DoubleEndedIterator<Item = Option<IpAddr>>) -> Option<IpAddr> {
    hops.rev().find(|hop| !hop.is_some_and(is_proxy)).flatten()
}

fn by_x_forwarded_for(lines: &[&[u8]]) -> Option<IpAddr> {
    let joined = lines.join(&b',');
    let items = joined.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|i| !i.is_empty());
    let items: Vec<_> = items.map(|item| hop(std::str::from_utf8(item).ok()?)).collect();
    last(items.into_iter())
}

fn by_single_address(lines: &[&[u8]]) -> Option<IpAddr> {
    let [line] = lines else { return None };
    hop(std::str::from_utf8(line.trim_ascii()).ok()?)
}

/// From the right, each time the shortest text behind a comma that is an element.
fn by_forwarded(lines: &[&[u8]]) -> Option<IpAddr> {
    for line in lines.iter().rev() {
        let mut rest = Some(String::from_utf8_lossy(line).into_owned());
        while let Some(line) = rest.take() {
            let commas = line.match_indices(',').map(|(at, _)| at).rev();
            let starts = commas.map(|at| (Some(at), at + 1)).chain([(None, 0)]);
            let mut elements =
                starts.filter_map(|(end, start)| Some((end, element(&line[start..])?)));
            let (end, client) = elements.next()?;
            rest = end.map(|end| line[..end].to_owned());
            match client {
                None => {}
                Some(client) => {
                    let ip = hop(&client)?;
                    if !is_proxy(ip) {
                        return Some(ip);
                    }
                }
            }
        }
    }
    None
}

/// The one `for` of an element; `Some(None)` for an empty one.
fn element(text: &str) -> Option<Option<String>> {
    let mut clients = Vec::new();
    let mut pairs = 0;
    for pair in outside_quotes(text, ';')? {
        let pair = pair.trim_matches([' ', '\t']);
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=').filter(|(name, _)| is_token(name))?;
        let value = if is_token(value) { value.to_owned() } else { unquoted(value)? };
        pairs += 1;
        if name.eq_ignore_ascii_case("for") {
            clients.push(value);
        }
    }
    match clients.as_slice() {
        [] if pairs == 0 => Some(None),
        [client] => Some(Some(client.clone())),
        _ => None,
    }
}

/// The parts between separators that stand in no quotes; `None` for quotes left open.
fn outside_quotes(text: &str, separator: char) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        if c == separator && !quoted {
            parts.push(String::new());
            continue;
        }
        if escaped {
            escaped = false;
        } else if c == '"' {
            quoted = !quoted;
        } else if c == '\\' && quoted {
            escaped = true;
        }
        parts.last_mut()?.push(c);
    }
    (!quoted).then_some(parts)
}

fn unquoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.as_str().is_empty().then_some(value),
            '\\' => value.push(chars.next()?),
            _ => value.push(c),
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_graphic() && !"\"(),/:;<=>?@[\\]{}".contains(c);
    !text.is_empty() && text.chars().all(is_part)
}

/// An address, one with a port, or an IPv6 one in brackets; without a zone.
fn hop(text: &str) -> Option<IpAddr> {
    let plain = text.parse().ok();
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || {
        let inner = text.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
    };
    let ip = plain.or_else(with_port).or_else(bracketed).filter(|_| !text.contains('%'))?;
    Some(ip.to_canonical())
}
