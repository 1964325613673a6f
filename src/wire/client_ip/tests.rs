//! Client addresses in spellings that `tests/layer/client_ip.rs` does not send.

use super::*;
use http::{HeaderName, HeaderValue};
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
fn case_13_forwarded_is_parsed_strictly() {
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
fn case_52_client_input_in_forwarded_neither_hides_nor_forges_the_proxys_element() {
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
fn case_52_a_single_address_header_must_hold_exactly_one_address() {
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
        // This header is not a list of proxies: it names the client.
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
fn the_header_name_determines_its_format() {
    for (name, header) in [
        ("X-Forwarded-For", ProxyHeader::XForwardedFor),
        ("FORWARDED", ProxyHeader::Forwarded),
        ("X-Real-IP", ProxyHeader::SingleAddress(HeaderName::from_static("x-real-ip"))),
    ] {
        assert_eq!(ProxyHeader::from(name.parse::<HeaderName>().unwrap()), header);
    }
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
    fn no_header_makes_a_trusted_proxy_the_client(lines in proptest::collection::vec("[ -~]{0,60}|(for=|[0-9.,;:\"\\[\\]]){0,12}", 0..4)) {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for found in [xff(&lines), forwarded(&lines)].into_iter().flatten() {
            prop_assert!(!behind(ProxyHeader::Forwarded).trusts(found));
        }
    }
}
