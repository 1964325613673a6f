//! Environments: several prefixes in one manager, or one store for several managers.

use std::sync::Arc;
use std::time::Duration;

use keygate::error::{BuildError, EnvironmentError};
use keygate::*;

use crate::{ada, assert_denied, assert_gone, bench_with, new_key};

fn format(prefix: &str) -> KeyFormat {
    KeyFormat::new(prefix).unwrap()
}

#[tokio::test]
async fn a_key_keeps_the_environment_that_was_chosen_for_it() {
    let b = bench_with(|builder| {
        builder.environment("live", format("vsp_sk_")).environment("test", format("vsp_sk_test_"))
    });
    for (new, name, prefix) in [
        (NewKey::named("a").unwrap(), "live", "vsp_sk_"),
        (NewKey::named("b").unwrap().environment("live"), "live", "vsp_sk_"),
        (NewKey::named("c").unwrap().environment("test"), "test", "vsp_sk_test_"),
    ] {
        let issued = b.keys.create(&ada(), new).await.unwrap();
        let id = issued.key.id;
        let rotated = b.keys.rotate(&ada(), &id).await.unwrap();
        for issued in [issued, rotated] {
            let secret = issued.secret.expose_secret();
            assert!(secret.starts_with(prefix) && secret.len() == prefix.len() + 48, "{name}");
            assert_eq!(b.keys.environment_of(&issued.key), Some(name));
        }
        let key = b.keys.get(ada().org(), &id).await.unwrap();
        assert!(key.key_prefix.starts_with(prefix));
    }
    let other = NewKey::named("d").unwrap().environment("staging");
    let refused = b.keys.create(&ada(), other).await;
    assert!(matches!(refused, Err(ManageError::UnknownEnvironment)), "{refused:?}");
    assert_eq!(b.keys.list(ada().org()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn case_58_managers_with_different_prefixes_do_not_see_each_others_keys() {
    let store = Arc::new(MemoryStore::new());
    let [live, test] = ["vsp_sk_", "vsp_sk_test_"]
        .map(|prefix| KeyManager::builder(store.clone()).format(format(prefix)).build().unwrap());
    let issued = test.create(&ada(), new_key()).await.unwrap();
    let (id, secret) = (issued.key.id, issued.secret.expose_secret());

    assert!(live.list(ada().org()).await.unwrap().is_empty());
    assert_gone(live.get(ada().org(), &id).await);
    assert_gone(live.revoke(&ada(), &id).await);
    assert_gone(live.rotate(&ada(), &id).await);
    assert_gone(live.delete(&ada(), &id).await);
    assert!(matches!(live.verify(secret, None).await, Err(VerifyError::Malformed(_))));

    let key = test.verify(secret, None).await.unwrap();
    assert_eq!((key.record(), key.environment()), (&*issued.key, None));

    // After a restore, the keys of every prefix are revoked.
    let later = live.now().saturating_add(Duration::from_secs(1));
    assert_eq!(live.revoke_issued_before(&*store, later, "restore").await.unwrap(), 1);
    assert_denied(test.verify(secret, None).await, Denial::Revoked);
}

#[tokio::test]
async fn environments_that_are_alike_keep_the_manager_from_starting() {
    let built = KeyManager::builder(MemoryStore::new())
        .environment("live", format("a_"))
        .environment("test", format("a_"))
        .build();
    let twice = EnvironmentError::Twice { name: "test".into() };
    assert!(matches!(built, Err(BuildError::Environment(error)) if error == twice));
}
