//! Refusals, and the isolation of organisations.

use keygate::audit::{AuditQuery, AuditScope, SecretUsed};
use keygate::error::{DeliveryError, MalformedKey};
use keygate::manager::AdmitError;
use keygate::*;

use crate::support::{Call, org};
use crate::{ada, assert_denied, assert_not_found, bench, change_first_key, ip, rename};

#[tokio::test]
async fn case_17_a_stored_allowlist_that_no_longer_parses_refuses_until_it_is_replaced() {
    let b = bench();
    let issued = b.create().await;
    let allowlist = Allowlist::restore(["10.0.0.0/8", "10.0.0."]);
    change_first_key(&b.store, |key| key.allowlist = allowlist).await;
    for from in [None, ip("10.0.0.1")] {
        let refused = b.keys.verify(issued.secret.expose_secret(), from).await.unwrap_err();
        assert_eq!(refused.http_status(), 403);
        assert_denied(Err(refused), Denial::AllowlistUnreadable);
    }
    // An edit of another field does not make the key usable.
    b.keys.update(&ada(), &issued.key.id, rename("b")).await.unwrap();
    assert_denied(b.verify(&issued).await, Denial::AllowlistUnreadable);
    let mended = KeyPatch::restrict(Allowlist::default());
    b.keys.update(&ada(), &issued.key.id, mended).await.unwrap();
    b.verify(&issued).await.unwrap();
}

#[tokio::test]
async fn each_refusal_has_its_http_status() {
    let key = bench().create().await.key;
    for (denial, status) in [
        (Denial::Revoked, 401),
        (Denial::Expired, 401),
        (Denial::IpNotAllowed, 403),
        (Denial::InsufficientScope, 403),
        (Denial::AllowlistUnreadable, 403),
    ] {
        let refused = VerifyError::Denied { denial, key: key.clone(), secret: SecretUsed::Current };
        assert_eq!((refused.http_status(), refused.is_unavailable()), (status, false));
        assert_eq!(AdmitError::from(refused).http_status(), status);
    }
    assert_eq!(VerifyError::Unknown.http_status(), 401);
    assert_eq!(VerifyError::Malformed(MalformedKey).http_status(), 401);
    let unavailable = VerifyError::Unavailable(StoreError::unavailable("down"));
    assert_eq!((unavailable.http_status(), unavailable.is_unavailable()), (503, true));
    assert_eq!(AdmitError::from(DeliveryError::Full).http_status(), 503);
}

#[tokio::test]
async fn case_19_another_organisations_key_does_not_exist() {
    let b = bench();
    let issued = b.create().await;
    let (before, records) = (b.snapshot().await, b.log.len());
    b.store.take_calls();
    for stranger in ["evil", "*", "%", "ACME"].map(|id| Actor::new(org(id), "eve")) {
        assert_not_found(&b, &stranger, &issued.key.id).await;
        assert!(b.keys.list(stranger.org()).await.unwrap().is_empty());
        let scopes = [
            AuditScope::OrgChanges,
            AuditScope::KeyChanges(issued.key.id),
            AuditScope::KeyRequests(issued.key.id),
        ];
        for scope in scopes {
            let query = AuditQuery::new(stranger.org().clone(), scope);
            assert!(b.keys.audit_page(&query).await.unwrap().unwrap().records.is_empty());
        }
    }
    let reads = [Call::Get, Call::List];
    assert!(b.store.take_calls().iter().all(|call| reads.contains(call)));
    assert_eq!((b.snapshot().await, b.log.len()), (before, records));
    b.verify(&issued).await.unwrap();
}
