//! Feature `serde`: everything that is written is read back, a digest is written only on
//! request, and errors do not repeat what they were given.
#![cfg(feature = "serde")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::fmt::Debug;
use std::sync::Arc;

use keygate::audit::{
    AuditCursor, AuditEvent, AuditId, AuditRecord, ChangeAction, ChangeEvent, ChangePhase,
    ChangedField, CountryCode, FieldValue, Outcome, RequestEvent, SecretUsed,
};
use keygate::store::{Attributes, KeyUse, OrgLimit, PreviousSecret, Revision, WithDigest};
use keygate::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Ends like a key, so that a part of it would be noticed.
const SECRET: &str = "vsp_sk_4fT9xQm2Lw8Rk5Vb1Nc7Hd3Js6Gp0ZtYaXeUiOoP9lKjMn4q";
const NUMBER: i64 = -9_876_543_210;

fn time(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn request() -> AuditRecord {
    let mut event = RequestEvent::new("GET", "/v1/reports", Outcome::IpNotAllowed);
    event.secret = SecretUsed::Previous;
    event.ip = Some("2001:db8::1".parse().unwrap());
    event.country = CountryCode::new("DE");
    event.status = Some(403);
    event.count = 7;
    record(AuditEvent::Request(event))
}

fn change() -> AuditRecord {
    let mut event = ChangeEvent::new("ada@acme.example", ChangeAction::Updated, ChangePhase::Begun);
    event.fields = [ChangedField {
        name: "ip_allowlist".into(),
        before: FieldValue::Absent,
        after: FieldValue::List(vec!["10.0.0.0/8".to_owned()]),
    }]
    .into_iter()
    .collect();
    record(AuditEvent::Change(event))
}

fn record(event: AuditEvent) -> AuditRecord {
    AuditRecord {
        id: AuditId::from_bytes([0xab; 16]),
        at: time("2026-01-31T12:00:00.000001Z"),
        org: OrgId::new("acme").unwrap(),
        key: KeyId::from_bytes([7; 16]),
        event,
    }
}

fn key() -> ApiKey {
    let mut key = ApiKey::sample(1);
    key.expires_at = Some(Timestamp::MAX);
    key.rotated_at = Some(time("2026-02-01T00:00:00Z"));
    key.last_used_at = Some(Timestamp::MIN);
    key.allowlist = Allowlist::parse(["10.0.0.0/8", "2001:db8::1"]).unwrap();
    key.attributes =
        r#"{"created_by":"ada","metadata":{"plan":"pro"},"later":{"a":[1]}}"#.parse().unwrap();
    key
}

fn key_as_json() -> Value {
    json!({
        "id": "00000000-0000-0000-0000-000000000001",
        "org": "acme",
        "name": "Deploy",
        "key_prefix": "vsp_sk_4fT9x",
        "status": "active",
        "created_at": "1970-01-01T00:00:01Z",
        "expires_at": "9999-12-31T23:59:59.999999Z",
        "rotated_at": "2026-02-01T00:00:00Z",
        "last_used_at": "0001-01-01T00:00:00Z",
        "allowlist": ["10.0.0.0/8", "2001:db8::1"],
        "revision": 1,
        "attributes": {"created_by": "ada", "metadata": {"plan": "pro"}, "later": {"a": [1]}},
        "previous_until": null,
    })
}

/// Asserts that a value is written as this JSON and read back, and that no error repeats a
/// value that replaces a part of the JSON.
fn comes_back<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, expected: Value) {
    assert_eq!(serde_json::to_value(&value).unwrap(), expected);
    let text = serde_json::to_string(&value).unwrap();
    assert_eq!(serde_json::from_str::<T>(&text).unwrap(), value);
    assert_eq!(serde_json::from_value::<T>(expected.clone()).unwrap(), value);
    let [named, compact] = [rmp_serde::to_vec_named(&value), rmp_serde::to_vec(&value)];
    assert_eq!(rmp_serde::from_slice::<T>(&named.unwrap()).unwrap(), value);
    assert_eq!(rmp_serde::from_slice::<T>(&compact.unwrap()).unwrap(), value);

    let strange = [json!(SECRET), json!(NUMBER), json!(-98_765.25), json!(true), json!(null)];
    let nested = [json!([SECRET]), json!({ SECRET: SECRET }), json!([NUMBER])];
    for strange in strange.iter().chain(&nested) {
        for pointer in pointers(&expected) {
            let mut damaged = expected.clone();
            *damaged.pointer_mut(&pointer).unwrap() = strange.clone();
            let errors = [
                serde_json::from_str::<T>(&damaged.to_string()).err(),
                serde_json::from_value::<T>(damaged).err(),
            ];
            for error in errors.into_iter().flatten().map(|error| error.to_string()) {
                let hidden = !["vsp_sk", "4q", "98765"].iter().any(|part| error.contains(part));
                assert!(hidden, "{pointer} = {strange}: {error}");
            }
        }
    }
}

/// The places of all parts, the whole included.
fn pointers(value: &Value) -> Vec<String> {
    let parts: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, part)| (name.clone(), part)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(n, p)| (n.to_string(), p)).collect(),
        _ => Vec::new(),
    };
    let below = parts.into_iter().flat_map(|(name, part)| {
        pointers(part).into_iter().map(move |rest| format!("/{name}{rest}"))
    });
    [String::new()].into_iter().chain(below).collect()
}

fn refusal<T: DeserializeOwned + Debug>(json: Value) -> String {
    serde_json::from_value::<T>(json).unwrap_err().to_string()
}

#[test]
fn single_values_are_texts_numbers_and_lists() {
    let id = KeyId::from_bytes([7; 16]);
    comes_back(id, json!("07070707-0707-0707-0707-070707070707"));
    comes_back(AuditId::from_bytes([0xab; 16]), json!("ab".repeat(16)));
    comes_back(AuditCursor::of(&request()), json!(AuditCursor::of(&request()).to_string()));
    comes_back(OrgId::new("acme").unwrap(), json!("acme"));
    comes_back(KeyName::new("CI deploy").unwrap(), json!("CI deploy"));
    comes_back(time("2026-01-31T13:00:00+01:00"), json!("2026-01-31T12:00:00Z"));
    comes_back("10.0.0.0/8".parse::<Network>().unwrap(), json!("10.0.0.0/8"));
    comes_back(Allowlist::default(), json!([]));
    comes_back(key().allowlist, json!(["10.0.0.0/8", "2001:db8::1"]));
    comes_back(CountryCode::new("de").unwrap(), json!("DE"));
    comes_back(Revision::new(u32::MAX), json!(u32::MAX));
    comes_back(OrgLimit::at_most(20), json!(20));
    comes_back(OrgLimit::NONE, json!(null));
    comes_back(Limits::default(), json!({"max_keys": 20, "max_ips_per_key": 50}));
    comes_back(Attributes::default(), json!({}));
    comes_back(key().attributes, key_as_json()["attributes"].clone());
    comes_back(key().attributes.metadata, json!({"plan": "pro"}));
    let ada = Actor::new(OrgId::new("acme").unwrap(), "ada");
    comes_back(ada, json!({"org": "acme", "name": "ada"}));
    let at = time("2026-01-31T12:00:00Z");
    comes_back(KeyUse { id, at }, json!({"id": id.to_string(), "at": "2026-01-31T12:00:00Z"}));
    comes_back(Expiration::At(at), json!("2026-01-31T12:00:00Z"));
    for choice in Expiration::CHOICES {
        comes_back(choice.parse::<Expiration>().unwrap(), json!(choice));
    }
}

#[test]
fn names_are_those_of_the_documentation_and_later_ones_are_unknown() {
    Status::ALL.iter().for_each(|name| comes_back(*name, json!(name.as_str())));
    Outcome::ALL.iter().for_each(|name| comes_back(*name, json!(name.as_str())));
    ChangeAction::ALL.iter().for_each(|name| comes_back(*name, json!(name.as_str())));
    ChangePhase::ALL.iter().for_each(|name| comes_back(*name, json!(name.as_str())));

    let mut later = serde_json::to_value(request()).unwrap();
    later["event"]["request"]["outcome"] = json!("quarantined");
    later["event"]["request"]["environment"] = json!("live");
    later["shard"] = json!(4);
    let read: AuditRecord = serde_json::from_value(later).unwrap();
    let AuditEvent::Request(event) = read.event else { panic!("not a request") };
    assert_eq!(event.outcome, Outcome::Unknown);
}

#[test]
fn audit_records_come_back() {
    let with = |event: Value| {
        json!({
            "id": "ab".repeat(16), "at": "2026-01-31T12:00:00.000001Z", "org": "acme",
            "key": "07070707-0707-0707-0707-070707070707", "event": event,
        })
    };
    let allowed = RequestEvent::new("PROPFIND", "/", Outcome::Aborted);
    let nothing = json!({
        "method": "PROPFIND", "endpoint": "/", "ip": null, "country": null, "status": null,
        "outcome": "aborted", "count": 1, "secret": "current",
    });
    comes_back(allowed, nothing);
    comes_back(
        request(),
        with(json!({"request": {
            "method": "GET", "endpoint": "/v1/reports", "ip": "2001:db8::1", "country": "DE",
            "status": 403, "outcome": "ip_not_allowed", "count": 7, "secret": "previous",
        }})),
    );
    comes_back(
        change(),
        with(json!({"change": {
            "actor": "ada@acme.example", "action": "updated", "phase": "begun",
            "fields": [{"name": "ip_allowlist", "before": null, "after": ["10.0.0.0/8"]}],
        }})),
    );
    let before_fields = json!({"actor": "ada", "action": "rotated", "phase": "begun"});
    let read: ChangeEvent = serde_json::from_value(before_fields).unwrap();
    assert_eq!(read, ChangeEvent::new("ada", ChangeAction::Rotated, ChangePhase::Begun));
}

#[test]
fn details_of_a_request_may_be_missing_but_nothing_else() {
    let short = json!({"method": "GET", "endpoint": "/", "outcome": "allowed", "count": 1});
    let read: RequestEvent = serde_json::from_value(short.clone()).unwrap();
    assert_eq!(read, RequestEvent::new("GET", "/", Outcome::Allowed));
    for field in ["method", "endpoint", "outcome", "count"] {
        let mut short = short.clone();
        short.as_object_mut().unwrap().remove(field);
        assert_eq!(refusal::<RequestEvent>(short), format!("missing field `{field}`"));
    }
}

#[test]
fn the_digest_of_a_key_is_written_on_request_only() {
    let (key, without) = (key(), key_as_json());
    assert_eq!(serde_json::to_value(&key).unwrap(), without);

    let mut with = without;
    with.as_object_mut().unwrap().remove("previous_until");
    with["previous"] = json!(null);
    with["digest"] = json!("cd2662154e6d76b2b2b92e70c0cac3ccf534f9b74eb5b89819ec509083d00a50");
    assert_eq!(serde_json::to_value(WithDigest(&key)).unwrap(), with);
    assert_eq!(serde_json::to_value(WithDigest(Arc::new(key.clone()))).unwrap(), with);
    comes_back(WithDigest(key.clone()), with.clone());
    let until = "2026-02-02T00:00:00Z".parse().unwrap();
    let previous = Some(PreviousSecret { digest: key.digest, until });
    let mut overlap = with.clone();
    overlap["previous"] = json!({"digest": with["digest"], "until": "2026-02-02T00:00:00Z"});
    comes_back(WithDigest(ApiKey { previous, ..key }), overlap);

    let digest = with["digest"].as_str().unwrap().to_owned();
    let (zeros, signed) = ("00".repeat(32), format!("+{}", &digest[1..]));
    for bad in ["", "00", "é", &zeros, &digest[1..], &format!("{digest}0"), &signed] {
        with["digest"] = json!(bad);
        let error = "a key digest is 64 hexadecimal digits, not all of them zero";
        assert_eq!(refusal::<WithDigest<ApiKey>>(with.clone()), error, "{bad}");
    }
    with.as_object_mut().unwrap().remove("digest");
    assert_eq!(refusal::<WithDigest<ApiKey>>(with), "missing field `digest`");
}

#[test]
fn stored_records_are_read_by_their_own_rules_and_other_values_as_input() {
    let mut json = serde_json::to_value(WithDigest(key())).unwrap();
    json["name"] = json!("zero\u{200b}width");
    json["allowlist"] = json!(["10.0.0.0/8", "10.0.0."]);
    json["attributes"]["metadata"]["plan"] = json!("x".repeat(600));
    comes_back(serde_json::from_value::<WithDigest>(json.clone()).unwrap(), json.clone());
    let WithDigest(key): WithDigest = serde_json::from_value(json.clone()).unwrap();
    assert!(!key.allowlist.is_readable() && !key.allowlist.allows(None));

    // By themselves, they are input.
    refusal::<KeyName>(json["name"].clone());
    refusal::<Allowlist>(json["allowlist"].clone());
    refusal::<Metadata>(json["attributes"]["metadata"].clone());
    let actor: Actor = serde_json::from_value(json!({"org": "acme", "name": "a\r\nb"})).unwrap();
    assert_eq!(actor.name(), "a  b");
}

#[test]
fn bad_input_is_refused_with_the_reason() {
    let list = json!(["10.0.0.0/8", SECRET]);
    let no_list = "invalid type: a text, expected a list of IP addresses and CIDR ranges";
    let no_time = "must be an RFC 3339 time, such as 2026-01-31T12:00:00Z";
    let metadata: Value = (0..17).map(|n| (n.to_string(), json!(""))).collect();
    for (refusal, reason) in [
        (refusal::<KeyId>(json!(SECRET)), "not a key id"),
        (refusal::<KeyId>(json!(7)), "invalid type: a number, expected a key id"),
        (refusal::<AuditId>(json!("")), "not the id of an audit record"),
        (refusal::<OrgId>(json!("")), "an organisation id must not be empty"),
        (refusal::<KeyName>(json!(" ")), "must not be empty"),
        (refusal::<Timestamp>(json!("2026-01-31")), no_time),
        (refusal::<CountryCode>(json!("D3")), "a country code is two letters"),
        (refusal::<Network>(json!("example.com")), "not an IP address or CIDR range"),
        (refusal::<Allowlist>(list), "entry 2: not an IP address or CIDR range"),
        (refusal::<Allowlist>(json!(["::1", "::1"])), "entry 2: already on the list"),
        (refusal::<Allowlist>(json!(SECRET)), no_list),
        (refusal::<Revision>(json!(-1)), "must be a whole number within its range"),
        (refusal::<AuditRecord>(json!(SECRET)), "invalid type: a text, expected an audit record"),
        (refusal::<Metadata>(metadata), "a key must have at most 16 metadata values"),
        // A key whose status is not known must not become usable.
        (refusal::<Status>(json!("paused")), "must be active or revoked"),
    ] {
        assert_eq!(refusal, reason);
    }
    let part = |record, name: &str| serde_json::to_value(record).unwrap()["event"][name].clone();
    let both = json!({"request": part(request(), "request"), "change": part(change(), "change")});
    for event in [json!({}), json!({ SECRET: {} }), both] {
        assert_eq!(refusal::<AuditEvent>(event), "an event is either a request or a change");
    }
}
