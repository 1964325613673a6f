//! A store whose calls another process makes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use keygate::conformance::{TwoHandles, check_store};
use keygate::store::{KeyDigest, KeyUse, OrgLimit, Revision, WithDigest};
use keygate::{ApiKey, KeyId, KeyStore, OrgId, SqliteStore, StoreError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::files::{new_store, peer};

#[derive(Deserialize, Serialize)]
enum Call {
    Insert(WithDigest, OrgLimit),
    Find([u8; 32]),
    Get(OrgId, KeyId),
    List(OrgId),
    Replace(WithDigest, Revision),
    Delete(OrgId, KeyId, Option<Revision>),
    Uses(Vec<KeyUse>),
}

/// What a call returns. Most return no keys or one.
type Answer = Result<Vec<WithDigest<ApiKey>>, Failure>;

#[derive(Deserialize, Serialize)]
enum Failure {
    LimitReached,
    NotFound,
    Conflict,
    Other(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LimitReached => Self::LimitReached,
            StoreError::NotFound => Self::NotFound,
            StoreError::Conflict => Self::Conflict,
            other => Self::Other(format!("{other:?}")),
        }
    }
}

impl From<Failure> for StoreError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::LimitReached => Self::LimitReached,
            Failure::NotFound => Self::NotFound,
            Failure::Conflict => Self::Conflict,
            Failure::Other(text) => Self::unavailable(text),
        }
    }
}

async fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(message).unwrap()).await?;
    stream.shutdown().await
}

async fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<T> {
    let mut message = Vec::new();
    stream.read_to_end(&mut message).await?;
    Ok(serde_json::from_slice(&message)?)
}

/// The socket at which the other process takes the calls.
fn socket(file: &Path) -> PathBuf {
    file.with_extension("socket")
}

/// Makes the calls that come, each on a connection of its own.
pub(crate) async fn serve(store: SqliteStore, file: &Path, ready: impl FnOnce()) {
    let listener = UnixListener::bind(socket(file)).unwrap();
    ready();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let store = store.clone();
        tokio::spawn(async move {
            // A caller that gives up neither finishes its call nor hears the answer.
            let Ok(call) = receive(&mut stream).await else { return };
            let answer: Answer = make(&store, call).await.map_err(Failure::from);
            let _ = send(&mut stream, &answer).await;
        });
    }
}

async fn make(store: &SqliteStore, call: Call) -> Result<Vec<WithDigest>, StoreError> {
    let none = |()| Vec::new();
    let found = match call {
        Call::Insert(key, limit) => return store.insert(&key.0, limit).await.map(none),
        Call::Replace(key, expected) => return store.replace(&key.0, expected).await.map(none),
        Call::Delete(org, id, expected) => {
            return store.delete(&org, &id, expected).await.map(none);
        }
        Call::Uses(uses) => return store.record_uses(&uses).await.map(none),
        Call::Find(digest) => {
            let digest = KeyDigest::from_slice(&digest).unwrap();
            store.find_by_digest(&digest).await?.into_iter().collect()
        }
        Call::Get(org, id) => store.get(&org, &id).await?.into_iter().collect(),
        Call::List(org) => store.list(&org).await?,
    };
    Ok(found.into_iter().map(|key| WithDigest(ApiKey::clone(&key))).collect())
}

/// The store of the other process on that file.
#[derive(Debug)]
struct Remote(PathBuf);

impl Remote {
    async fn call(&self, call: Call) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        let mut stream = UnixStream::connect(socket(&self.0)).await.unwrap();
        send(&mut stream, &call).await.unwrap();
        let answer: Answer = receive(&mut stream).await.unwrap();
        Ok(answer?.into_iter().map(|WithDigest(key)| Arc::new(key)).collect())
    }
}

#[async_trait]
impl KeyStore for Remote {
    async fn insert(&self, key: &ApiKey, limit: OrgLimit) -> Result<(), StoreError> {
        self.call(Call::Insert(WithDigest(key.clone()), limit)).await.map(drop)
    }

    async fn find_by_digest(&self, digest: &KeyDigest) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.call(Call::Find(*digest.as_bytes())).await?.pop())
    }

    async fn get(&self, org: &OrgId, id: &KeyId) -> Result<Option<Arc<ApiKey>>, StoreError> {
        Ok(self.call(Call::Get(org.clone(), *id)).await?.pop())
    }

    async fn list(&self, org: &OrgId) -> Result<Vec<Arc<ApiKey>>, StoreError> {
        self.call(Call::List(org.clone())).await
    }

    async fn replace(&self, key: &ApiKey, expected: Revision) -> Result<(), StoreError> {
        self.call(Call::Replace(WithDigest(key.clone()), expected)).await.map(drop)
    }

    async fn delete(
        &self,
        org: &OrgId,
        id: &KeyId,
        expected: Option<Revision>,
    ) -> Result<(), StoreError> {
        self.call(Call::Delete(org.clone(), *id, expected)).await.map(drop)
    }

    async fn record_uses(&self, uses: &[KeyUse]) -> Result<(), StoreError> {
        self.call(Call::Uses(uses.to_vec())).await.map(drop)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_processes_on_one_file_conform_together() {
    let (_folder, path, store) = new_store();
    let mut peer = peer("serve", &path);
    assert_eq!(peer.says(), "ready");
    let here: Arc<dyn KeyStore> = Arc::new(store);
    let there: Arc<dyn KeyStore> = Arc::new(Remote(path));
    check_store(|| async { TwoHandles::new(here.clone(), there.clone()) }).await.unwrap();
    peer.end();
}
