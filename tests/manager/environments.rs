//! Environments: several prefixes in one manager, or one store for several managers.

use keygate::error::{BuildError, EnvironmentError};
use keygate::manager::KeyManagerBuilder;
use keygate::*;

use crate::{ada, bench_with};

fn format(prefix: &str) -> KeyFormat {
    KeyFormat::new(prefix).unwrap()
}

fn live_and_test(builder: KeyManagerBuilder) -> KeyManagerBuilder {
    builder.environment("live", format("vsp_sk_")).environment("test", format("vsp_sk_test_"))
}

#[tokio::test]
async fn a_key_keeps_the_environment_that_was_chosen_for_it() {
    let b = bench_with(live_and_test);
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
    let store = std::sync::Arc::new(MemoryStore::new());
    let manager =
        |prefix| KeyManager::builder(store.clone()).format(format(prefix)).build().unwrap();
    let (live, test) = (manager("vsp_sk_"), manager("vsp_sk_test_"));
    let issued = test.create(&ada(), NewKey::named("key").unwrap()).await.unwrap();
    let (id, secret) = (issued.key.id, issued.secret.expose_secret());

    assert!(live.list(ada().org()).await.unwrap().is_empty());
    let not_found = |result: Result<(), ManageError>| {
        assert!(matches!(result, Err(ManageError::NotFound)), "{result:?}");
    };
    not_found(live.get(ada().org(), &id).await.map(drop));
    not_found(live.revoke(&ada(), &id).await.map(drop));
    not_found(live.rotate(&ada(), &id).await.map(drop));
    not_found(live.delete(&ada(), &id).await);
    assert!(matches!(live.verify(secret, None).await, Err(VerifyError::Malformed(_))));

    let key = test.verify(secret, None).await.unwrap();
    assert_eq!((key.record(), key.environment()), (&*issued.key, None));
}

#[tokio::test]
async fn after_a_restore_keys_of_every_prefix_are_revoked() {
    let store = std::sync::Arc::new(MemoryStore::new());
    let manager =
        |prefix| KeyManager::builder(store.clone()).format(format(prefix)).build().unwrap();
    let (live, test) = (manager("vsp_sk_"), manager("vsp_sk_test_"));
    let issued = test.create(&ada(), NewKey::named("key").unwrap()).await.unwrap();
    let later = live.now().saturating_add(std::time::Duration::from_secs(1));
    assert_eq!(live.revoke_issued_before(&*store, later, "restore").await.unwrap(), 1);
    let refused = test.verify(issued.secret.expose_secret(), None).await;
    assert!(matches!(refused, Err(VerifyError::Denied { denial: Denial::Revoked, .. })));
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
