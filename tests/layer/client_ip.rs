//! The client's address, and its check against the allowlist.

use std::net::IpAddr;

use getrandom::SysRng;
use http::StatusCode;
use keygate::audit::Outcome;
use keygate::guard::{PeerAddr, ProxyHeader};
use keygate::store::OrgLimit;
use keygate::{Allowlist, ApiKey, ApiKeyLayer, KeyFormat, KeyStore, OrgId};

use crate::support::{log_lines, logs};
use crate::{
    World, XFF, bearer, behind_proxies, forwarded, from_peer, hosts, in_axum, ip, router,
    with_header,
};

/// Sends requests with a key for `192.0.2.0/24` and `2001:db8::/32` only, and returns the
/// results.
async fn decide(
    world: &World,
    layer: &ApiKeyLayer,
    peer: &str,
    header: &'static str,
    lines: &[&str],
) -> (u16, Option<IpAddr>) {
    let (record, key) = world.key_for(&["192.0.2.0/24", "2001:db8::/32"]).await;
    let mut results = Vec::new();
    for (_, ask) in hosts(layer) {
        let answer = ask(forwarded(&key, peer, header, lines)).await;
        let event = world.last_request(record.id).await;
        assert_eq!(event.status, Some(answer.status.as_u16()));
        let allowed = answer.status == StatusCode::OK;
        let outcome = if allowed { Outcome::Allowed } else { Outcome::IpNotAllowed };
        assert_eq!(event.outcome, outcome);
        results.push((answer.status.as_u16(), event.ip));
    }
    world.delete(&record).await;
    assert_eq!(results[0], results[1], "axum and tower agree");
    results[0]
}

#[tokio::test]
async fn case_11_a_forged_leftmost_entry_is_neither_used_nor_recorded() {
    let world = World::new();
    let layer = behind_proxies(&world, ProxyHeader::XForwardedFor);
    for (lines, decision) in [
        // The client claims an allowed address, but the proxy saw another one.
        (&["192.0.2.1, 203.0.113.9"][..], (403, ip("203.0.113.9"))),
        (&["192.0.2.1", "203.0.113.9"], (403, ip("203.0.113.9"))),
        (&["192.0.2.1, 203.0.113.9, 10.0.0.2"], (403, ip("203.0.113.9"))),
        (&["6.6.6.6, 192.0.2.1"], (200, ip("192.0.2.1"))),
    ] {
        let (status, ip) = decide(&world, &layer, "10.0.0.1", XFF, lines).await;
        assert_eq!((status, ip), (decision.0, Some(decision.1)), "{lines:?}");
    }
}

#[tokio::test]
async fn the_log_tells_an_unknown_address_from_one_that_is_not_listed() {
    const UNKNOWN: &str = "the client's address is not known";
    let world = World::new();
    let (_, key) = world.key_for(&["192.0.2.0/24"]).await;
    let ask = in_axum(router().layer(world.layer()));
    assert_eq!(ask(from_peer(bearer(&key), "203.0.113.9")).await.status, StatusCode::FORBIDDEN);
    assert_eq!(log_lines(&["DEBUG", "address is not on the key's allowlist"]), 1, "{}", logs());
    assert_eq!(log_lines(&[UNKNOWN]), 0, "{}", logs());
    for _ in 0..2 {
        let mut request = bearer(&key);
        request.extensions_mut().remove::<PeerAddr>();
        assert_eq!(ask(request).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(log_lines(&["DEBUG", UNKNOWN]), 2, "{}", logs());
    assert_eq!(log_lines(&["WARN", UNKNOWN, "PeerAddr"]), 1, "{}", logs());
    assert_eq!(log_lines(&["address is not on the key's allowlist"]), 1, "{}", logs());
}

#[tokio::test]
async fn case_12_forwarding_headers_of_untrusted_peers_are_ignored() {
    let world = World::new();
    let xff = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let rfc = behind_proxies(&world, ProxyHeader::Forwarded);
    let claim = &["192.0.2.1"];
    let forwarded = &["for=192.0.2.1"];
    // The peer is not a proxy: its own address counts, whatever it claims.
    for (layer, header, lines) in [
        (&xff, XFF, claim),
        (&rfc, "forwarded", forwarded),
        (&world.layer(), XFF, claim),
        (&world.layer(), "forwarded", forwarded),
        (&world.layer(), "x-real-ip", claim),
    ] {
        let decision = decide(&world, layer, "203.0.113.5", header, lines).await;
        assert_eq!(decision, (403, Some(ip("203.0.113.5"))), "{header}");
    }
    // No proxy is trusted by default.
    let decision = decide(&world, &world.layer(), "10.0.0.1", XFF, claim).await;
    assert_eq!(decision, (403, Some(ip("10.0.0.1"))));
    // A trusted proxy without the configured header: the address is unknown.
    for (layer, header, lines) in
        [(&xff, "forwarded", forwarded), (&rfc, XFF, claim), (&xff, "x-real-ip", claim)]
    {
        let decision = decide(&world, layer, "10.0.0.1", header, lines).await;
        assert_eq!(decision, (403, None), "{header}");
    }
}

#[tokio::test]
async fn case_13_every_spelling_gives_the_right_address_or_none() {
    let world = World::new();
    let xff = behind_proxies(&world, ProxyHeader::XForwardedFor);
    let known = |status, text: &str| (status, Some(ip(text)));
    for (lines, decision) in [
        (&["192.0.2.1:4711"][..], known(200, "192.0.2.1")),
        (&["[2001:db8::1]:443"], known(200, "2001:db8::1")),
        (&["2001:DB8:0::1"], known(200, "2001:db8::1")),
        (&["::ffff:192.0.2.1"], known(200, "192.0.2.1")),
        (&["192.0.2.1", "10.9.9.9"], known(200, "192.0.2.1")),
        (&["6.6.6.6", "192.0.2.1", "2001:db8:aaaa::1"], known(200, "192.0.2.1")),
        (&["192.0.2.1,, ,10.1.1.1,"], known(200, "192.0.2.1")),
        (&["192.0.2.1", "", " , "], known(200, "192.0.2.1")),
        (&["unknown, 192.0.2.1"], known(200, "192.0.2.1")),
        (&["192.0.2.1, unknown"], (403, None)),
        (&["192.0.2.1, _obf"], (403, None)),
        (&["192.0.2.1, 10.0.0.256"], (403, None)),
        (&["192.0.2.1, \u{e9}"], (403, None)),
        (&["junk\", 192.0.2.1"], known(200, "192.0.2.1")),
        (&["192.0.2.1", "010.0.0.1"], (403, None)),
        (&["192.0.2.1, 10.0.0.1%eth0"], (403, None)),
        (&["192.0.2.1;10.0.0.1"], (403, None)),
    ] {
        let found = decide(&world, &xff, "10.0.0.1", XFF, lines).await;
        assert_eq!(found, decision, "{lines:?}");
    }
    let rfc = behind_proxies(&world, ProxyHeader::Forwarded);
    for (lines, decision) in [
        (&["for=192.0.2.1;proto=https"][..], known(200, "192.0.2.1")),
        (&["for=6.6.6.6, FOR=\"[2001:db8::1]:443\""], known(200, "2001:db8::1")),
        (&["for=192.0.2.1", "for=10.0.0.3"], known(200, "192.0.2.1")),
        (&["for=192.0.2.1, for=_hidden"], (403, None)),
        (&["for=192.0.2.1;for=192.0.2.1"], (403, None)),
        (&["for=\"192.0.2.1"], (403, None)),
        (&["for=192.0.2.1", "for=\"10.0.0.3"], (403, None)),
        (&["for=\"10.0.0.3", "for=192.0.2.1"], known(200, "192.0.2.1")),
    ] {
        let found = decide(&world, &rfc, "10.0.0.1", "forwarded", lines).await;
        assert_eq!(found, decision, "{lines:?}");
    }
}

#[tokio::test]
async fn case_14_an_unknown_address_is_on_no_allowlist() {
    let world = World::new();
    let layer = behind_proxies(&world, ProxyHeader::XForwardedFor);
    for lines in [&["10.0.0.2, 10.0.0.3"][..], &[], &[""]] {
        let decision = decide(&world, &layer, "10.0.0.1", XFF, lines).await;
        assert_eq!(decision, (403, None), "{lines:?}");
    }
    // Not even on an allowlist with every address.
    let (everybody, key) = world.key_for(&["0.0.0.0/0", "::/0"]).await;
    let (free, free_key) = world.key().await;
    for layer in [world.layer(), layer] {
        for (host, ask) in hosts(&layer) {
            let no_peer = |key: &str| {
                let mut request = bearer(key);
                request.extensions_mut().remove::<PeerAddr>();
                with_header(request, XFF, "192.0.2.1")
            };
            let answer = ask(no_peer(&key)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host}");
            assert_eq!(world.last_request(everybody.id).await.ip, None);
            assert_eq!(ask(no_peer(&free_key)).await.status, StatusCode::OK, "{host}");
            assert_eq!(world.last_request(free.id).await.ip, None);
            assert_eq!(ask(bearer(&key)).await.status, StatusCode::OK, "{host}");
        }
    }
}

#[tokio::test]
async fn case_15_a_mapped_address_equals_the_ipv4_address() {
    let world = World::new();
    for list in [&["10.0.0.0/8"][..], &["::ffff:10.0.0.0/104"], &["::ffff:10.0.0.1"]] {
        let (record, key) = world.key_for(list).await;
        for (host, ask) in hosts(&world.layer()) {
            for (peer, status) in [
                ("::ffff:10.0.0.1", StatusCode::OK),
                ("10.0.0.1", StatusCode::OK),
                ("::ffff:11.0.0.1", StatusCode::FORBIDDEN),
                ("::10.0.0.1", StatusCode::FORBIDDEN),
            ] {
                let answer = ask(from_peer(bearer(&key), peer)).await;
                assert_eq!(answer.status, status, "{host} {peer} {list:?}");
                let shown = world.last_request(record.id).await.ip;
                assert_eq!(shown, Some(ip(peer).to_canonical()), "{host} {peer}");
            }
        }
        let shown = world.stored(record.id).await.allowlist.entries();
        assert!(shown.iter().all(|entry| entry.starts_with("10.0.0.")), "{shown:?}");
    }
}

#[tokio::test]
async fn case_17_a_stored_allowlist_that_does_not_parse_allows_no_request() {
    let world = World::new();
    let lists = [&["10.0.0.0/8", "10.0.0."][..], &[""], &["0.0.0.0/0", "x"], &["null"]];
    for (damaged, number) in lists.into_iter().zip(1..) {
        let secret = KeyFormat::default().generate(&mut SysRng).unwrap();
        let allowlist = Allowlist::restore(damaged);
        let key = ApiKey { digest: secret.digest(), allowlist, ..ApiKey::sample(number) };
        world.store.insert(&key, OrgLimit::NONE).await.unwrap();
        for (host, ask) in hosts(&world.layer()) {
            for peer in ["10.0.0.1", "192.0.2.7", "::1"] {
                let answer = ask(from_peer(bearer(secret.expose_secret()), peer)).await;
                assert_eq!(answer.status, StatusCode::FORBIDDEN, "{host} {peer} {damaged:?}");
                assert_eq!(world.last_request(key.id).await.outcome, Outcome::IpNotAllowed);
            }
        }
    }
}

#[test]
fn case_20_an_organisation_without_a_name_cannot_be_made() {
    assert!(OrgId::new("").is_err());
    assert!(OrgId::new("\0").is_err());
}
