//! The requests of the API, parsed from their fields.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde_json::Value;

use crate::allowlist::Allowlist;
use crate::audit::filter::{AuditFilter, OutcomeFilter, StatusFilter};
use crate::audit::log::{AuditCursor, AuditQuery, Position};
use crate::key::expiration::Expiration;
use crate::key::name::KeyName;
use crate::network::Network;
use crate::record::change::{KeyPatch, NewKey};
use crate::record::{Limits, Status};
use crate::runtime::clock::Timestamp;
use crate::scopes::Scopes;
use crate::web::admin::fields::Fields;
use crate::web::admin::input::Input;
use crate::web::admin::offer::Offer;

impl Input for NewKey {
    fn read(fields: &mut Fields, offer: &Offer) -> Option<Self> {
        fields.require(&["name", "expiration"]);
        if offer.scopes.is_some() {
            fields.require(&["scopes"]);
        }
        let name = fields.text("name", str::parse::<KeyName>);
        let expiration = fields.text("expiration", str::parse::<Expiration>);
        let allowlist = allowlist(fields, offer.limits).unwrap_or_default();
        let (environment, scopes) = (environment(fields, offer), scopes(fields, offer));
        let new = Self::new(name?).expires(expiration?).allowlist(allowlist);
        Some(Self { environment: environment.map(Into::into), scopes, ..new })
    }
}

/// The name of an environment. The field is unknown if there are none.
fn environment(fields: &mut Fields, offer: &Offer) -> Option<String> {
    if offer.environments.is_empty() {
        return None;
    }
    fields.text("environment", |name| {
        let known = offer.environments.iter().any(|one| one.name() == name);
        known.then(|| name.to_owned()).ok_or("is not one of the environments")
    })
}

impl Input for KeyPatch {
    fn read(fields: &mut Fields, offer: &Offer) -> Option<Self> {
        Some(Self {
            name: fields.text("name", str::parse::<KeyName>),
            status: fields.text("status", str::parse::<Status>),
            allowlist: allowlist(fields, offer.limits),
            scopes: scopes(fields, offer),
            ..Self::default()
        })
    }
}

/// The key's name, typed again as a confirmation.
pub(super) struct Confirmation(pub(super) String);

impl Input for Confirmation {
    fn read(fields: &mut Fields, _: &Offer) -> Option<Self> {
        const FIELD: &str = "confirm_name";
        fields.require(&[FIELD]);
        fields.text(FIELD, |name| Ok::<_, &str>(Self(name.to_owned())))
    }
}

/// A confirmed rotation, and how long the old secret works after it.
pub(super) struct Rotation {
    pub(super) confirmation: Confirmation,
    pub(super) overlap: Duration,
}

impl Input for Rotation {
    fn read(fields: &mut Fields, offer: &Offer) -> Option<Self> {
        let confirmation = Confirmation::read(fields, offer);
        const FIELD: &str = "overlap_seconds";
        let overlap = Duration::from_secs(fields.number(FIELD).unwrap_or(0));
        let max = offer.max_overlap;
        if overlap > max {
            fields.refuse(FIELD, format!("must be at most {}", max.as_secs()));
        }
        Some(Self { confirmation: confirmation?, overlap })
    }
}

/// The largest page of the audit log.
pub(super) const MAX_PAGE: usize = 200;

/// Which page of the audit log to read.
pub(super) struct Page {
    limit: Option<usize>,
    position: Position,
}

impl Page {
    pub(super) fn of(self, query: AuditQuery) -> AuditQuery {
        let query = query.at(self.position);
        match self.limit {
            Some(limit) => query.limit(limit),
            None => query,
        }
    }
}

impl Input for Page {
    fn read(fields: &mut Fields, _: &Offer) -> Option<Self> {
        let limit = fields.text("limit", number_up_to(MAX_PAGE));
        let before = fields.text("before", str::parse::<AuditCursor>);
        let after = fields.text("after", str::parse::<AuditCursor>);
        let position = match (before, after) {
            (None, None) => Position::Newest,
            (Some(cursor), None) => Position::Before(cursor),
            (None, Some(cursor)) => Position::After(cursor),
            (Some(_), Some(_)) => {
                fields.refuse("after", "must not be given together with before");
                return None;
            }
        };
        Some(Self { limit, position })
    }
}

impl Input for AuditFilter {
    fn read(fields: &mut Fields, _: &Offer) -> Option<Self> {
        let filter = Self {
            outcome: fields.text("outcome", str::parse::<OutcomeFilter>),
            status: fields.text("status", str::parse::<StatusFilter>),
            method: fields.text("method", method),
            ip: fields.text("ip", |text| text.trim().parse::<Network>()),
            since: fields.text("since", str::parse::<Timestamp>),
            until: fields.text("until", str::parse::<Timestamp>),
        };
        if filter.since.zip(filter.until).is_some_and(|(since, until)| until <= since) {
            fields.refuse("until", "must be later than since");
            return None;
        }
        Some(filter)
    }
}

impl<A: Input, B: Input> Input for (A, B) {
    fn read(fields: &mut Fields, offer: &Offer) -> Option<Self> {
        let (a, b) = (A::read(fields, offer), B::read(fields, offer));
        a.zip(b)
    }
}

/// A method (RFC 9110 § 5.6.2), no longer than those that are recorded in full.
fn method(text: &str) -> Result<String, &'static str> {
    match http::Method::from_bytes(text.as_bytes()) {
        Ok(_) if text.len() <= 64 => Ok(text.to_owned()),
        _ => Err("must be a method such as GET"),
    }
}

/// Parses a number from 1 to this one, in digits only.
fn number_up_to<N>(max: N) -> impl FnOnce(&str) -> Result<N, String>
where
    N: FromStr + PartialOrd + From<u8> + fmt::Display,
{
    move |text| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number
            .filter(|number| N::from(1) <= *number && *number <= max)
            .ok_or_else(|| format!("must be a number from 1 to {max}"))
    }
}

/// How many days of usage to read.
pub(super) struct Days(pub(super) u32);

impl Days {
    pub(super) const MAX: u32 = 90;
    pub(super) const DEFAULT: u32 = 30;
}

impl Input for Days {
    fn read(fields: &mut Fields, _: &Offer) -> Option<Self> {
        Some(Self(fields.text("days", number_up_to(Self::MAX)).unwrap_or(Self::DEFAULT)))
    }
}

/// Takes the allowlist, and adds an error for every invalid entry.
fn allowlist(fields: &mut Fields, limits: Limits) -> Option<Allowlist> {
    const FIELD: &str = "ip_allowlist";
    let entries = fields.list(FIELD)?;
    let max = limits.max_ips_per_key;
    if entries.len() > max as usize {
        fields.refuse(FIELD, format!("must have at most {max} entries"));
        return None;
    }
    let mut networks = Vec::with_capacity(entries.len());
    for (index, entry) in entries.iter().enumerate() {
        let Some(text) = entry.as_str() else {
            fields.refuse(FIELD, format!("entry {}: must be a string", index.saturating_add(1)));
            continue;
        };
        match Allowlist::entry(index, text.trim(), &networks) {
            Ok(network) => networks.push(network),
            Err(error) => fields.refuse(FIELD, error.to_string()),
        }
    }
    Some(networks.into_iter().collect())
}

/// Takes the scopes. A service without any leaves the field, which makes it unknown.
fn scopes(fields: &mut Fields, offer: &Offer) -> Option<Scopes> {
    const FIELD: &str = "scopes";
    offer.scopes.as_ref()?;
    let read = match fields.take(FIELD)? {
        Value::String(text) if text == "all" => Ok(Scopes::ALL),
        // An entry that is not a text is as invalid as an empty name.
        Value::Array(list) => {
            Scopes::only(list.iter().map(|entry| entry.as_str().unwrap_or_default()))
                .map_err(|error| error.to_string())
        }
        _ => Err("must be \"all\" or a list of scopes".to_owned()),
    };
    read.map_err(|message| fields.refuse(FIELD, message)).ok()
}
