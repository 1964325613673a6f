//! Decides whether a known key may be used now, from an address: a pure function.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::record::{ApiKey, SecretUsed, Status};
use crate::runtime::clock::Timestamp;

/// How far the clocks of two processes may be apart.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(5 * 60);

/// Checks status, expiry and address in this order, and returns the first reason for refusal.
///
/// A previous secret after its end counts as expired. `ip` is the client's address. If it
/// is `None`, only keys with an empty allowlist pass.
#[inline]
pub(crate) fn evaluate(
    key: &ApiKey,
    secret: SecretUsed,
    ip: Option<IpAddr>,
    now: Timestamp,
) -> Result<(), Denial> {
    let has_ended = match secret {
        SecretUsed::Current => false,
        // A rotation in the future was made by a clock that was wrong, and so is its end.
        SecretUsed::Previous => {
            key.previous.is_none_or(|previous| previous.until <= now)
                || key.rotated_at.is_some_and(|at| at > now.saturating_add(CLOCK_DIFFERENCE))
        }
    };
    if key.status != Status::Active {
        Err(Denial::Revoked)
    } else if key.is_expired(now) || has_ended {
        Err(Denial::Expired)
    } else if !key.allowlist.is_readable() {
        Err(Denial::AllowlistUnreadable)
    } else if !key.allowlist.allows(ip) {
        Err(Denial::IpNotAllowed)
    } else {
        Ok(())
    }
}

/// Why a known key was refused. For the operator and the audit log; the caller is told no
/// more than the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Denial {
    /// The owner has revoked the key.
    #[error("the key is revoked")]
    Revoked,
    /// The key is expired, which includes the instant `expires_at`, or its previous secret
    /// was used after its end.
    #[error("the key or its previous secret is expired")]
    Expired,
    /// The client's address is not on the key's allowlist or not known.
    #[error("the client's address is not on the key's allowlist")]
    IpNotAllowed,
    /// The stored allowlist does not parse, so it allows no address.
    #[error("the key's stored allowlist is unreadable")]
    AllowlistUnreadable,
    /// The key lacks a scope that [`ApiKeyLayer`](crate::ApiKeyLayer) requires.
    #[error("the key lacks a scope that the request needs")]
    InsufficientScope,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allowlist::Allowlist;
    use crate::key::digest::KeyDigest;
    use crate::key::id::KeyId;
    use crate::key::name::KeyName;
    use crate::org::OrgId;

    use proptest::prelude::*;

    use crate::record::PreviousSecret;
    use SecretUsed::{Current as CURRENT, Previous as PREVIOUS};

    fn key(status: Status, expires_at: Option<Timestamp>, allowlist: Allowlist) -> ApiKey {
        ApiKey {
            id: KeyId::from_bytes([1; 16]),
            org: OrgId::new("acme").unwrap(),
            name: KeyName::new("key").unwrap(),
            digest: KeyDigest::of("key"),
            status,
            allowlist,
            created_at: at(0),
            expires_at,
            ..ApiKey::sample(0)
        }
    }

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_unix_micros(micros).unwrap()
    }

    #[test]
    fn case_10_the_exact_instant_of_expiry_is_expired() {
        let key = key(Status::Active, Some(at(100)), Allowlist::default());
        assert_eq!(evaluate(&key, CURRENT, None, at(99)), Ok(()));
        assert_eq!(evaluate(&key, CURRENT, None, at(100)), Err(Denial::Expired));
        assert_eq!(evaluate(&key, CURRENT, None, at(101)), Err(Denial::Expired));
        assert_eq!(evaluate(&key, CURRENT, None, at(99)), Ok(()), "a clock that stepped back");
    }

    #[test]
    fn case_59_the_exact_instant_of_its_end_is_too_late_for_a_previous_secret() {
        let plain = key(Status::Active, Some(at(200)), Allowlist::default());
        let previous = Some(PreviousSecret { digest: KeyDigest::of("old"), until: at(100) });
        let overlap = ApiKey { previous, ..plain.clone() };
        assert_eq!(evaluate(&overlap, PREVIOUS, None, at(99)), Ok(()));
        assert_eq!(evaluate(&overlap, PREVIOUS, None, at(100)), Err(Denial::Expired));
        assert_eq!(evaluate(&overlap, CURRENT, None, at(100)), Ok(()));
        assert_eq!(evaluate(&plain, PREVIOUS, None, at(0)), Err(Denial::Expired), "none is stored");
        let revoked = ApiKey { status: Status::Revoked, ..overlap.clone() };
        assert_eq!(evaluate(&revoked, PREVIOUS, None, at(0)), Err(Denial::Revoked));
        let hour = 3_600_000_000;
        let future = ApiKey { rotated_at: Some(at(hour)), ..overlap.clone() };
        assert_eq!(evaluate(&future, PREVIOUS, None, at(0)), Err(Denial::Expired), "wrong clock");
        assert_eq!(evaluate(&future, CURRENT, None, at(0)), Ok(()));
        let ahead = ApiKey { rotated_at: Some(at(hour / 60)), ..overlap.clone() };
        assert_eq!(evaluate(&ahead, PREVIOUS, None, at(0)), Ok(()), "a minute ahead");
        let expired = ApiKey { expires_at: Some(at(50)), ..overlap };
        assert_eq!(evaluate(&expired, PREVIOUS, None, at(50)), Err(Denial::Expired));
    }

    #[test]
    fn case_17_an_unreadable_allowlist_refuses_every_address() {
        let key = key(Status::Active, None, Allowlist::restore(["10.0.0.0/8", "?"]));
        let ip = Some("10.0.0.1".parse().unwrap());
        assert_eq!(evaluate(&key, CURRENT, ip, at(0)), Err(Denial::AllowlistUnreadable));
        assert_eq!(evaluate(&key, CURRENT, None, at(0)), Err(Denial::AllowlistUnreadable));
    }

    proptest! {
        #[test]
        fn a_key_is_allowed_exactly_when_no_rule_denies_it(
            revoked: bool,
            expires in proptest::option::of(0i64..10),
            listed in proptest::option::of(any::<bool>()),
            ip: Option<IpAddr>,
            now in 0i64..10,
        ) {
            let other: IpAddr = "192.0.2.77".parse().unwrap();
            let list = match listed {
                None => Allowlist::default(),
                Some(true) => ip.unwrap_or(other).to_string().parse().map(|n| [n].into_iter().collect()).unwrap(),
                Some(false) => [other.into()].into_iter().collect(),
            };
            let passes = list.is_empty() || (listed == Some(true) && ip.is_some()) || ip == Some(other);
            let status = if revoked { Status::Revoked } else { Status::Active };
            let verdict = evaluate(&key(status, expires.map(at), list), CURRENT, ip, at(now));
            let expected = match (revoked, expires.is_some_and(|e| e <= now), passes) {
                (true, ..) => Err(Denial::Revoked),
                (_, true, _) => Err(Denial::Expired),
                (_, _, false) => Err(Denial::IpNotAllowed),
                _ => Ok(()),
            };
            prop_assert_eq!(verdict, expected);
        }
    }
}
