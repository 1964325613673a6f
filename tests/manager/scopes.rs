//! Scopes as keys are given them: what the catalogue offers, and what stays.

use super::*;

fn catalog(names: &[&'static str]) -> ScopeCatalog {
    ScopeCatalog::new(names.iter().map(|name| (*name, ""))).unwrap()
}

fn only(names: &[&str]) -> Scopes {
    Scopes::only(names).unwrap()
}

fn manager(store: &Arc<SpyStore>, offered: Option<&[&'static str]>) -> KeyManager {
    let builder = KeyManager::builder(Arc::clone(store));
    match offered {
        Some(names) => builder.scopes(catalog(names)).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

#[tokio::test]
async fn with_a_catalogue_a_creation_has_to_say_which_scopes() {
    let store = Arc::new(SpyStore::default());
    let keys = manager(&store, Some(&["read", "write"]));
    let missing = keys.create(&ada(), new_key()).await;
    assert!(matches!(missing, Err(ManageError::ScopesMissing)), "{missing:?}");
    for (names, position) in [(&["admin"][..], 1), (&["read", "writ", "x"], 2)] {
        let refused = keys.create(&ada(), new_key().scopes(only(names))).await.unwrap_err();
        assert!(matches!(refused, ManageError::ScopeNotOffered { position: p } if p == position));
        assert!(!refused.to_string().contains(names[position - 1]), "{refused}");
    }
    assert!(store.snapshot(&org("acme")).await.is_empty(), "nothing was stored");

    let issued = keys.create(&ada(), new_key().scopes(only(&["write", "read"]))).await.unwrap();
    let key = keys.verify(issued.secret.expose_secret(), None).await.unwrap();
    assert_eq!(key.scopes(), &only(&["write", "read"]));
    assert!(key.has_scope("read") && !key.has_scope("rea") && !key.has_scope("read:all"));
    let issued = keys.create(&ada(), new_key().scopes(Scopes::ALL)).await.unwrap();
    let key = keys.verify(issued.secret.expose_secret(), None).await.unwrap();
    assert!(key.has_scope("read") && key.scopes().is_all());
}

#[tokio::test]
async fn without_a_catalogue_keys_have_full_access_and_no_scope_is_offered() {
    let store = Arc::new(SpyStore::default());
    let keys = manager(&store, None);
    assert_eq!(keys.scopes(), None);
    let issued = keys.create(&ada(), new_key()).await.unwrap();
    assert_eq!(issued.key.attributes.scopes, Scopes::ALL);
    keys.create(&ada(), new_key().scopes(Scopes::ALL)).await.unwrap();
    let refused = keys.create(&ada(), new_key().scopes(only(&["read"]))).await;
    assert!(matches!(refused, Err(ManageError::ScopeNotOffered { position: 1 })));
    // A catalogue that comes later changes no key.
    let later = manager(&store, Some(&["read"]));
    let key = later.verify(issued.secret.expose_secret(), None).await.unwrap();
    assert!(key.has_scope("read") && key.has_scope("write"));
}

#[tokio::test]
async fn a_scope_that_left_the_catalogue_is_kept_and_not_given_anew() {
    let store = Arc::new(SpyStore::default());
    let before = manager(&store, Some(&["old", "read"]));
    let old = before.create(&ada(), new_key().scopes(only(&["old"]))).await.unwrap();
    let other = before.create(&ada(), new_key().scopes(only(&["read"]))).await.unwrap();
    let all = before.create(&ada(), new_key().scopes(Scopes::ALL)).await.unwrap();

    let keys = manager(&store, Some(&["read", "write"]));
    let update = |key: &IssuedKey, scopes| {
        let (keys, id) = (keys.clone(), key.key.id);
        async move { keys.update(&ada(), &id, KeyPatch::scopes(scopes)).await }
    };
    assert!(keys.verify(old.secret.expose_secret(), None).await.unwrap().has_scope("old"));
    let renamed = keys.update(&ada(), &old.key.id, rename("kept")).await.unwrap();
    assert_eq!(renamed.attributes.scopes, only(&["old"]));
    let more = update(&old, only(&["write", "old"])).await.unwrap();
    assert_eq!(more.attributes.scopes, only(&["write", "old"]));
    for key in [&other, &all] {
        let refused = update(key, only(&["read", "old"])).await;
        assert!(matches!(refused, Err(ManageError::ScopeNotOffered { position: 2 })));
    }
    update(&old, only(&["read"])).await.unwrap();
    let refused = update(&old, only(&["old"])).await;
    assert!(matches!(refused, Err(ManageError::ScopeNotOffered { position: 1 })), "once gone");
    let rotated = keys.rotate(&ada(), &old.key.id).await.unwrap();
    assert_eq!(rotated.key.attributes.scopes, only(&["read"]), "a rotation changes no scope");
}

#[tokio::test]
async fn a_scope_that_another_edit_took_away_meanwhile_is_not_given_anew() {
    let store = Arc::new(SpyStore::default());
    let before = manager(&store, Some(&["old", "read"]));
    let issued = before.create(&ada(), new_key().scopes(only(&["old"]))).await.unwrap();
    // Another process replaces the scopes between this one's read and its write.
    let keys = manager(&store, Some(&["read"]));
    interfere(&store, Call::Replace, |store| async move {
        change_first_key(&store, |key| key.attributes.scopes = only(&["read"])).await;
    });
    let patch = KeyPatch::scopes(only(&["old", "read"]));
    let refused = keys.update(&ada(), &issued.key.id, patch).await;
    assert!(matches!(refused, Err(ManageError::ScopeNotOffered { position: 1 })), "{refused:?}");
    assert_eq!(store.snapshot(&org("acme")).await[0].attributes.scopes, only(&["read"]));
}
