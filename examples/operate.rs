//! A command line for support people:
//! `cargo run --example operate --all-features -- sqlite:keygate.db find vsp_sk_4fT9x`.
//!
//! | command | |
//! |---|---|
//! | `find TEXT` | finds keys by id, by the first 12 characters, or by the whole secret (`-`: read it from standard input) |
//! | `show ID` | a key, its use of the last day, its last requests and its changes |
//! | `list ORG` | the keys of an organisation |
//! | `revoke ID` | revokes a key |
//! | `revoke-all ORG` | revokes all keys of an organisation |
//! | `expire ID TIME` | sets when a key expires: an RFC 3339 time, or `never` |
//! | `expiring DAYS` | active keys that expire within so many days |
//! | `unused DAYS` | active keys that were not used for so many days |
//! | `revoke-unused DAYS` | revokes those |
//! | `purge DAYS` | removes audit records that are older than so many days |
//!
//! Options: `--json` prints a JSON value for each line; `--by NAME` is the name in the audit log,
//! by default `operator`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example prints")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use keygate::audit::{
    AuditEvent, AuditQuery, AuditRecord, AuditScope, ChangePhase, FieldValue, RequestEvent,
    UsageBucket,
};
use keygate::manager::Operator;
use keygate::store::{KeySearch, Search};
use keygate::{
    ApiKey, AuditLog, AuditSink, KeyId, KeyManager, KeyStore, ManageError, OrgId, PostgresStore,
    SqliteStore, Status, Timestamp,
};
use serde_json::{Value, json};

type Failure = Box<dyn Error>;

trait Store: KeyStore + KeySearch + AuditSink + AuditLog {}
impl<S: KeyStore + KeySearch + AuditSink + AuditLog> Store for S {}

const USAGE: &str = "usage: operate STORE [--json] [--by NAME] COMMAND [ARGUMENT…]\n\
    STORE is sqlite:FILE or postgres://…; the commands are find, show, list, revoke, revoke-all, \
    expire, expiring, unused, revoke-unused and purge.";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", told(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let json = take_flag(&mut arguments, "--json");
    let by = take_option(&mut arguments, "--by")?.unwrap_or("operator".to_owned());
    let [url, command, rest @ ..] = &arguments[..] else { return Err(USAGE.into()) };
    let store = open(url).await?;
    let keys = KeyManager::builder(Arc::clone(&store)).audit(Arc::clone(&store)).build()?;
    let desk = Desk { operator: keys.operator(&*by, Arc::clone(&store)), keys, store, json };
    let done = match (&**command, rest) {
        ("find", [text]) => desk.find(text).await,
        ("show", [id]) => desk.show(&key_id(id)?).await,
        ("list", [org]) => desk.list(&OrgId::new(org)?).await,
        ("revoke", [id]) => desk.revoke(&key_id(id)?).await,
        ("revoke-all", [org]) => desk.revoke_all(&OrgId::new(org)?).await,
        ("expire", [id, time]) => desk.expire(&key_id(id)?, time).await,
        ("expiring", [days]) => desk.expiring(ago_or_ahead(days)?).await,
        ("unused", [days]) => desk.unused(ago_or_ahead(days)?).await,
        ("revoke-unused", [days]) => desk.revoke_unused(ago_or_ahead(days)?).await,
        ("purge", [days]) => desk.purge(ago_or_ahead(days)?).await,
        _ => Err(USAGE.into()),
    };
    // Writes what is queued for the audit log.
    let report = desk.keys.shutdown(Duration::from_secs(5)).await;
    if !report.is_complete() {
        return Err(format!("not everything was written: {report:?}").into());
    }
    done
}

/// An error with its causes, in one line.
fn told(error: &dyn Error) -> String {
    error.source().map_or(error.to_string(), |source| format!("{error}: {}", told(source)))
}

fn take_flag(arguments: &mut Vec<String>, flag: &str) -> bool {
    let before = arguments.len();
    arguments.retain(|argument| argument != flag);
    arguments.len() < before
}

fn take_option(arguments: &mut Vec<String>, option: &str) -> Result<Option<String>, Failure> {
    let Some(at) = arguments.iter().position(|argument| argument == option) else {
        return Ok(None);
    };
    if at + 1 >= arguments.len() {
        return Err(format!("{option} needs a value").into());
    }
    arguments.remove(at);
    Ok(Some(arguments.remove(at)))
}

async fn open(url: &str) -> Result<Arc<dyn Store>, Failure> {
    // A missing file would be created.
    if let Some(path) = url.strip_prefix("sqlite:")
        && !Path::new(path.strip_prefix("//").unwrap_or(path)).exists()
    {
        return Err(format!("the file {path} does not exist").into());
    }
    match url.split(':').next() {
        Some("sqlite") => Ok(Arc::new(SqliteStore::open(url)?)),
        Some("postgres" | "postgresql") => Ok(Arc::new(PostgresStore::connect(url).await?)),
        _ => Err(format!("{url}: must begin with sqlite: or postgres://").into()),
    }
}

fn key_id(text: &str) -> Result<KeyId, Failure> {
    text.parse().map_err(|_| format!("{text}: not the id of a key; `find` finds it").into())
}

fn ago_or_ahead(days: &str) -> Result<Duration, Failure> {
    let days: u32 = days.parse().map_err(|_| format!("{days}: must be a number of days"))?;
    Ok(Duration::from_secs(24 * 60 * 60) * days)
}

struct Desk {
    keys: KeyManager,
    operator: Operator,
    store: Arc<dyn Store>,
    json: bool,
}

impl Desk {
    async fn find(&self, text: &str) -> Result<(), Failure> {
        let mut typed = text.to_owned();
        if text == "-" {
            typed.clear();
            io::stdin().read_to_string(&mut typed)?;
        }
        let typed = typed.trim();
        let mut found = Vec::new();
        if let Ok(id) = typed.parse() {
            found.extend(optional(self.operator.get(&id).await)?);
        }
        found.extend(self.all(&Search::KeyPrefix(typed.to_owned())).await?);
        found.extend(self.operator.find_by_secret(typed).await?);
        if found.is_empty() {
            return Err("no key has this id, these first characters or this secret".into());
        }
        found.iter().for_each(|key| self.print(key));
        Ok(())
    }

    async fn show(&self, id: &KeyId) -> Result<(), Failure> {
        let key = self.operator.get(id).await.map_err(not_found)?;
        self.print(&key);
        self.heading("Requests of the last day, by the hour:");
        if let Some(usage) = self.keys.usage(&key.org, id, 1).await {
            for UsageBucket { start, counts } in usage?.buckets {
                let (allowed, errors, refused) = (counts.allowed, counts.errors(), counts.refused);
                if allowed + errors + refused > 0 {
                    let text =
                        format!("{start}: {allowed} allowed, {errors} errors, {refused} refused");
                    let value = json!({
                        "hour": start, "allowed": allowed, "errors": errors, "refused": refused,
                    });
                    self.say(text, value);
                }
            }
        }
        let requests = self.latest(&key, AuditScope::KeyRequests(*id), 200).await?;
        self.heading(&format!("The addresses of its latest {} requests:", requests.len()));
        let mut addresses = BTreeMap::<_, (u64, Timestamp)>::new();
        for record in &requests {
            let AuditEvent::Request(request) = &record.event else { continue };
            let of_address = addresses.entry(request.ip).or_insert((0, record.at));
            of_address.0 += u64::from(request.count);
        }
        for (ip, (count, last)) in addresses {
            let text = format!("{}: {count} times, last {last}", shown(ip));
            self.say(text, json!({ "ip": ip, "count": count, "last": last }));
        }
        self.heading("Its latest requests:");
        requests.iter().take(10).try_for_each(|record| self.record(record))?;
        self.heading("Its latest changes:");
        let changes = self.latest(&key, AuditScope::KeyChanges(*id), 20).await?;
        changes.iter().try_for_each(|record| self.record(record))
    }

    /// The latest records, newest first.
    async fn latest(
        &self,
        key: &ApiKey,
        scope: AuditScope,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, Failure> {
        let query = AuditQuery::new(key.org.clone(), scope).limit(limit);
        Ok(match self.keys.audit_page(&query).await {
            Some(page) => page?.records,
            None => Vec::new(),
        })
    }

    fn record(&self, record: &AuditRecord) -> Result<(), Failure> {
        let at = record.at;
        let text = match &record.event {
            AuditEvent::Request(request) => {
                let RequestEvent { method, endpoint, outcome, count, .. } = request;
                let status = request.status.map(|status| format!(" {status}")).unwrap_or_default();
                let times = if *count > 1 { format!(", {count} times") } else { String::new() };
                let from = shown(request.ip);
                format!("{at}: {method} {endpoint} from {from}: {outcome}{status}{times}")
            }
            AuditEvent::Change(change) => {
                let fields = change.fields.iter().map(|field| match &field.before {
                    FieldValue::Absent => format!("{}: {}", field.name, field.after),
                    before => format!("{}: {before} -> {}", field.name, field.after),
                });
                let fields = fields.collect::<Vec<_>>().join(", ");
                let done = match change.phase {
                    ChangePhase::Abandoned => " (did not take place)",
                    _ => "",
                };
                format!("{at}: {} by {}{done}; {fields}", change.action, change.actor)
            }
            _ => return Ok(()),
        };
        self.say(text, serde_json::to_value(record)?);
        Ok(())
    }

    async fn list(&self, org: &OrgId) -> Result<(), Failure> {
        let keys = self.operator.list(org).await?;
        if keys.is_empty() {
            return Err(format!("{org} has no keys").into());
        }
        keys.iter().for_each(|key| self.print(key));
        Ok(())
    }

    async fn revoke(&self, id: &KeyId) -> Result<(), Failure> {
        let key = self.operator.revoke(id).await.map_err(not_found)?;
        self.print(&key);
        Ok(())
    }

    async fn revoke_all(&self, org: &OrgId) -> Result<(), Failure> {
        if self.operator.list(org).await?.is_empty() {
            return Err(format!("{org} has no keys").into());
        }
        let revoked = self.operator.revoke_all(org).await?;
        self.say(format!("{revoked} keys revoked"), json!({ "revoked": revoked }));
        Ok(())
    }

    async fn expire(&self, id: &KeyId, time: &str) -> Result<(), Failure> {
        let at = match time {
            "never" => None,
            time => Some(time.parse::<Timestamp>().map_err(|e| format!("{time}: {e}"))?),
        };
        let key = self.operator.set_expiry(id, at).await.map_err(not_found)?;
        self.print(&key);
        Ok(())
    }

    async fn expiring(&self, within: Duration) -> Result<(), Failure> {
        let now = self.keys.now();
        let search = Search::Expiring { from: now, until: now.saturating_add(within) };
        self.print_active(&search).await
    }

    async fn unused(&self, time: Duration) -> Result<(), Failure> {
        self.print_active(&Search::UnusedSince(self.keys.now().saturating_sub(time))).await
    }

    async fn revoke_unused(&self, time: Duration) -> Result<(), Failure> {
        let since = self.keys.now().saturating_sub(time);
        let revoked = self.operator.revoke_unused_since(since).await?;
        self.say(format!("{revoked} keys revoked"), json!({ "revoked": revoked }));
        Ok(())
    }

    async fn purge(&self, age: Duration) -> Result<(), Failure> {
        let purged = self.store.purge_before(self.keys.now().saturating_sub(age)).await?;
        self.say(format!("{purged} records removed"), json!({ "removed": purged }));
        Ok(())
    }

    async fn print_active(&self, search: &Search) -> Result<(), Failure> {
        let keys = self.all(search).await?;
        keys.iter().filter(|key| key.status == Status::Active).for_each(|key| self.print(key));
        Ok(())
    }

    /// All pages of a search.
    async fn all(&self, search: &Search) -> Result<Vec<Arc<ApiKey>>, Failure> {
        let (mut keys, mut after) = (Vec::new(), None);
        loop {
            let page = self.operator.search(search, after.as_ref(), Operator::MAX_PAGE).await?;
            keys.extend(page.keys);
            after = page.next;
            if after.is_none() {
                return Ok(keys);
            }
        }
    }

    fn print(&self, key: &ApiKey) {
        let time = |at: Option<Timestamp>| at.map_or("never".to_owned(), |at| at.to_string());
        let text = format!(
            "{} {} of {}: {:?}, {}, expires {}, last used {}",
            key.id,
            key.key_prefix,
            key.org.as_str(),
            key.name.as_str(),
            key.status,
            time(key.expires_at),
            time(key.last_used_at)
        );
        self.say(text, serde_json::to_value(key).unwrap_or_default());
    }

    fn heading(&self, text: &str) {
        if !self.json {
            println!("\n{text}");
        }
    }

    fn say(&self, text: String, value: Value) {
        if self.json {
            println!("{value}");
        } else {
            println!("{text}");
        }
    }
}

fn optional(found: Result<Arc<ApiKey>, ManageError>) -> Result<Option<Arc<ApiKey>>, ManageError> {
    match found {
        Ok(key) => Ok(Some(key)),
        Err(ManageError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn shown(ip: Option<IpAddr>) -> String {
    ip.map_or("an unknown address".to_owned(), |ip| ip.to_string())
}

fn not_found(error: ManageError) -> Failure {
    match error {
        ManageError::NotFound => "no key has this id".into(),
        other => other.into(),
    }
}
