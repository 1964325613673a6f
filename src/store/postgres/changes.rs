//! The change feed: the database's announcements, received on a separate connection.

use std::fmt;
use std::future::{pending, poll_fn};
use std::mem::take;
use std::time::Duration;

use async_trait::async_trait;
use getrandom::SysRng;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client, Notification};

use crate::key::id::KeyId;
use crate::store::feed::{ChangeFeed, News};
use crate::store::postgres::dial::Wire;
use crate::store::postgres::error::{DbError, Result};
use crate::store::postgres::statements::Sql;
use crate::store::postgres::store::PostgresStore;
use crate::text::with_causes;

/// The shortest time after which a heartbeat counts as lost. It is also at least four
/// intervals.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
/// The first pause between two attempts to listen; doubled each time.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How many announcements may wait for a call of `next`. A listener that falls further
/// behind is closed, since the server would have to keep them for all listeners.
const ROOM: usize = 10_000;

impl PostgresStore {
    /// Announces changes of keys by any process, for a cache in front of this store. It has
    /// a separate connection.
    #[cfg(feature = "cache")]
    #[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
    pub fn changes(&self) -> PostgresChanges {
        let heartbeat = Duration::from_millis(250);
        PostgresChanges { store: self.clone(), heartbeat, listening: None }
    }
}

/// Announces changes to the keys of a [`PostgresStore`] by any process. Created by
/// [`PostgresStore::changes`].
///
/// With it, no process accepts a key later than the cache's `max_staleness` after its
/// revocation was acknowledged, whatever fails; normally it takes milliseconds. This
/// requires a database that keeps acknowledged commits: a failover that loses commits also
/// loses revocations.
///
/// Triggers announce each change by `NOTIFY`, in the transaction that makes it, so manual
/// changes are announced as well. The channel has a random name, stored in the table
/// `schema_version`: a role that changes keys must be able to read it, and no other role
/// can guess it. Changes made while triggers are disabled are not announced. After such
/// changes, clear every cache with this statement:
///
/// ```sql
/// SELECT pg_notify(channel || ' ' || tableoid, '*') FROM keygate.schema_version;
/// ```
///
/// It is not needed after restoring a backup that replaced the tables ([how to restore
/// one](crate::guide::restore)): heartbeats then stop arriving, and the cache is cleared. A
/// cache is cleared at most once per heartbeat, however often the statement runs.
///
/// The connection only listens. Heartbeats are sent over the store's connections. A
/// heartbeat that arrives, after all changes that were finished earlier, proves that none
/// was missed. A connection on which heartbeats do not arrive is replaced: one that is
/// half-open, one to a server that the store no longer uses, or one through a pooler that
/// assigns server sessions by transaction. Through such a pooler there is never a proof,
/// and the cache stays empty; use the feed of another store then, whose URL bypasses the
/// pooler.
///
/// ```no_run
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use keygate::{CachedStore, KeyManager, PostgresStore};
///
/// let store = PostgresStore::connect("postgres://app:password@localhost/app").await?;
/// let cached = CachedStore::builder(store.clone(), Duration::from_secs(2))
///     .feed(store.changes())
///     .build()?;
/// let keys = KeyManager::builder(cached).audit(store).build()?;
/// # Ok(())
/// # }
/// ```
pub struct PostgresChanges {
    store: PostgresStore,
    heartbeat: Duration,
    listening: Option<Listening>,
}

/// The task that listens; it stops when this is dropped.
struct Listening {
    news: Receiver<News>,
    _task: JoinSet<()>,
}

impl PostgresChanges {
    /// The time between two heartbeats: from 10 ms to 5 seconds. The default is 250 ms. It
    /// should be at most a quarter of the cache's `max_staleness`.
    ///
    /// Each heartbeat is a small transaction and wakes every listener of the database. With
    /// very many processes, choose a second.
    pub fn heartbeat(self, interval: Duration) -> Self {
        Self {
            heartbeat: interval.clamp(Duration::from_millis(10), Duration::from_secs(5)),
            ..self
        }
    }
}

#[async_trait]
impl ChangeFeed for PostgresChanges {
    async fn next(&mut self) -> News {
        let (store, heartbeat) = (&self.store, self.heartbeat);
        let listening = self.listening.get_or_insert_with(|| {
            let (tell, news) = mpsc::channel(1);
            let mut task = JoinSet::new();
            // On the store's runtime, since the caller may use another one.
            task.spawn_on(listen(store.clone(), heartbeat, tell), &store.inner.lookups.runtime);
            Listening { news, _task: task }
        });
        match listening.news.recv().await {
            Some(news) => news,
            // The runtime has stopped, and the store with it.
            None => pending().await,
        }
    }
}

impl fmt::Debug for PostgresChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresChanges")
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

/// Why a connection was given up.
enum End {
    Refused(DbError),
    Closed,
    /// A heartbeat did not arrive.
    Silent,
    /// The feed was dropped.
    Unwanted,
}

/// Listens forever, on one connection after the other.
async fn listen(store: PostgresStore, heartbeat: Duration, news: Sender<News>) {
    let mut listener = Listener {
        store,
        heartbeat,
        patience: SHORTEST_PATIENCE.max(heartbeat.saturating_mul(4)),
        own_channel: own_channel().await,
        news,
        heartbeats: 0,
        proofs: 0,
    };
    let mut pause = SHORTEST_PAUSE;
    let mut is_said = false;
    loop {
        let proofs = listener.proofs;
        let end = listener.listen_once().await;
        if matches!(end, End::Unwanted) {
            return;
        }
        if listener.proofs > proofs {
            (pause, is_said) = (SHORTEST_PAUSE, false);
        }
        if !is_said {
            is_said = true;
            tracing::warn!(reason = end.reason(), "keygate: the change feed was interrupted");
        }
        // Random, so that processes that lost their connections together do not reconnect
        // together.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        sleep(pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

/// Random, so that no one else can send our heartbeat. The same for all connections, since
/// a pooler may keep a session that listens to it.
async fn own_channel() -> String {
    loop {
        match KeyId::random(&mut SysRng) {
            Ok(id) => return format!("keygate heartbeat {id}"),
            Err(_) => sleep(LONGEST_PAUSE).await,
        }
    }
}

impl End {
    fn reason(&self) -> String {
        match self {
            Self::Refused(fault) => with_causes(&fault),
            Self::Closed => "the connection is closed".to_owned(),
            Self::Silent => {
                "no heartbeat arrives; is there a pooler in between, is the network down, or were the \
                 tables replaced?"
                    .to_owned()
            }
            Self::Unwanted => String::new(),
        }
    }
}

struct Listener {
    store: PostgresStore,
    heartbeat: Duration,
    patience: Duration,
    own_channel: String,
    news: Sender<News>,
    /// How many were sent; also the number of the last one.
    heartbeats: u64,
    /// How many of them arrived.
    proofs: u64,
}

/// The heartbeat that has not arrived yet.
struct Sent {
    number: u64,
    at: Instant,
}

impl Listener {
    /// Connects, and reports what arrives until the connection fails.
    async fn listen_once(&mut self) -> End {
        // All tasks of this connection end with it.
        let mut tasks = JoinSet::new();
        let (client, wire) = match self.store.inner.dialer.dial_bare().await {
            Ok(parts) => parts,
            Err(fault) => return End::Refused(fault),
        };
        let (hear, mut heard) = mpsc::channel(ROOM);
        tasks.spawn(forward(wire, hear));
        let channel = match timeout(self.patience, self.begin(&client)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(fault)) => return End::Refused(fault),
            Err(_) => return End::Refused(DbError::Late(self.patience)),
        };
        if !self.tell(News::Missed).await {
            return End::Unwanted;
        }
        let end = self.tell_all(&channel, &mut heard, &mut tasks).await;
        // Dropped at once, since nothing more can arrive.
        drop((client, tasks));
        if self.tell(News::Missed).await { end } else { End::Unwanted }
    }

    /// Listens to the channel on which changes are announced, and returns its name. Once
    /// the channel has changed, no heartbeat arrives.
    async fn begin(&self, client: &Client) -> Result<String> {
        let read = self.store.inner.dialer.texts.of(Sql::Channel);
        let rows = client.query_typed(read, &[]).await?;
        let unreadable = DbError::Unreadable { row: "schema_version", column: "channel" };
        let channel: String = rows.first().ok_or(unreadable)?.try_get(0)?;
        // No further statement runs here, but the session is in use. Servers before version
        // 14 do not have the setting.
        let sql = format!(
            "LISTEN \"{channel}\"; LISTEN \"{}\"; SELECT set_config(name, '0', false) \
             FROM pg_catalog.pg_settings WHERE name = 'idle_session_timeout'",
            self.own_channel
        );
        client.batch_execute(&sql).await?;
        Ok(channel)
    }

    async fn tell_all(
        &mut self,
        channel: &str,
        heard: &mut Receiver<Notification>,
        tasks: &mut JoinSet<()>,
    ) -> End {
        let mut sent: Option<Sent> = None;
        let mut all_changed = false;
        let mut due = Instant::now();
        loop {
            let until = match &sent {
                Some(sent) => sent.at + self.patience,
                None if due <= Instant::now() => {
                    let at = Instant::now();
                    due = at + self.heartbeat;
                    self.heartbeats += 1;
                    sent = Some(Sent { number: self.heartbeats, at });
                    while tasks.try_join_next().is_some() {}
                    tasks.spawn(send(
                        self.store.clone(),
                        self.own_channel.clone(),
                        self.heartbeats,
                        channel.to_owned(),
                    ));
                    at + self.patience
                }
                None => due,
            };
            let news = match timeout_at(until, heard.recv()).await {
                Ok(None) => return End::Closed,
                Err(_) if sent.is_some() => return End::Silent,
                Err(_) => continue,
                Ok(Some(notification)) if notification.channel() == self.own_channel => {
                    let number = notification.payload().parse();
                    let Some(sent) = sent.take_if(|sent| number == Ok(sent.number)) else {
                        continue;
                    };
                    self.proofs += 1;
                    if take(&mut all_changed) && !self.tell(News::Missed).await {
                        return End::Unwanted;
                    }
                    News::UpToDate { as_of: sent.at.into_std() }
                }
                Ok(Some(notification)) => match notification.payload().parse() {
                    Ok(id) => News::Changed(id),
                    // All keys have changed, or a later version sent an unknown
                    // announcement. Reported with the next proof, so that a flood of these
                    // costs no more.
                    Err(_) => {
                        all_changed = true;
                        continue;
                    }
                },
            };
            if !self.tell(news).await {
                return End::Unwanted;
            }
        }
    }

    /// Whether the feed is still in use.
    async fn tell(&self, news: News) -> bool {
        self.news.send(news).await.is_ok()
    }
}

/// Drives the connection, and passes on the announcements.
async fn forward(mut wire: Wire, hear: Sender<Notification>) {
    while let Some(Ok(message)) = poll_fn(|cx| wire.poll_message(cx)).await {
        if let AsyncMessage::Notification(notification) = message
            && hear.try_send(notification).is_err()
        {
            return;
        }
    }
}

/// Never sent over the connection that listens. A pooler in between would assign it a
/// server session for that statement: the heartbeat would arrive, although announcements
/// were lost.
async fn send(store: PostgresStore, own_channel: String, number: u64, channel: String) {
    let number = number.to_string();
    let parameters =
        [(&own_channel as _, Type::TEXT), (&number as _, Type::TEXT), (&channel as _, Type::TEXT)];
    // A heartbeat that is not sent does not arrive either, which is noticed.
    let _: Result<_> = store.inner.lookups.query(Sql::Notify, &parameters).await;
}
