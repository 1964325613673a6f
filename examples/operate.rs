//! A command line for support people:
//! `cargo run --example operate --all-features -- sqlite:keygate.db find vsp_sk_4fT9x`.
//!
//! | command | |
//! |---|---|
//! | `find TEXT` | finds keys by id, by the first characters, or by the whole secret (`-`: it is asked for) |
//! | `show ID` | a key, its use of the last day, its addresses, its last requests and its changes |
//! | `list ORG` | the keys of an organisation |
//! | `revoke ID` | revokes a key |
//! | `revoke-all ORG` | revokes all keys of an organisation |
//! | `expire ID TIME` | sets when a key expires: an RFC 3339 time, `now` or `never` |
//! | `expiring DAYS` | active keys that expire within so many days |
//! | `unused DAYS` | keys that are not revoked and were not used for so many days |
//! | `revoke-unused DAYS` | revokes those |
//! | `purge DAYS` | removes audit records, of requests and of changes, that are older than so many days |
//!
//! Options: `--json` prints a JSON object on each line, whose `type` says what it is; `--by NAME` is
//! the name in the audit log, by default `operator`; `--yes` allows 0 days where that takes everything.
//!
//! A SQLite file is opened for writing by every command: an older schema is migrated.
#![allow(clippy::print_stderr, reason = "an example prints")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use keygate::audit::{
    AuditEvent, AuditQuery, AuditRecord, AuditScope, ChangeAction, ChangePhase, ChangedField,
    FieldValue, RequestEvent, SecretUsed, UsageBucket,
};
use keygate::existing::AdoptedKey;
use keygate::manager::Operator;
use keygate::store::{KeyDigest, KeySearch, Search};
use keygate::{
    ApiKey, AuditLog, AuditSink, KeyId, KeyManager, KeyStore, ManageError, OrgId, PostgresStore,
    SqliteStore, Status, Timestamp,
};
use serde::Serialize;
use serde_json::{Value, json};

type Failure = Box<dyn Error>;
/// A line of the output, for people and for programs.
type Line = (String, Value);

trait Store: KeyStore + KeySearch + AuditSink + AuditLog {}
impl<S: KeyStore + KeySearch + AuditSink + AuditLog> Store for S {}

const USAGE: &str = "usage: operate STORE [--json] [--by NAME] [--yes] COMMAND [ARGUMENT…]\n\
    STORE is sqlite:FILE or postgres://…; the commands are find, show, list, revoke, revoke-all, \
    expire, expiring, unused, revoke-unused and purge.";

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        // The reader, such as `head`, has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", told(&*error));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Failure> {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let json = take_flag(&mut arguments, "--json");
    let yes = take_flag(&mut arguments, "--yes");
    let by = take_option(&mut arguments, "--by")?.unwrap_or("operator".to_owned());
    let [url, command, rest @ ..] = &arguments[..] else { return Err(USAGE.into()) };
    let store = open(url).await?;
    let keys = KeyManager::builder(Arc::clone(&store)).audit(Arc::clone(&store)).build()?;
    let desk = Desk { operator: keys.operator(&*by, Arc::clone(&store)), keys, store, json };
    let done = desk.run(command, rest, yes).await;
    // Writes what is queued for the audit log.
    let report = desk.keys.shutdown(Duration::from_secs(5)).await;
    if !report.is_complete() {
        return Err(format!("not everything was written: {report:?}").into());
    }
    done
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
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
    // A missing file would be created, and an empty one made a database.
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(format!("the file {path} does not exist").into());
            }
            Ok(file) if file.is_file() && file.len() == 0 => {
                return Err(format!("the file {path} is empty: not a keygate database").into());
            }
            _ => {}
        }
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

fn time_of(days: &str) -> Result<Duration, Failure> {
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
    async fn run(&self, command: &str, rest: &[String], yes: bool) -> Result<(), Failure> {
        match (command, rest) {
            ("revoke-unused" | "purge", [days]) if time_of(days)?.is_zero() && !yes => {
                Err(format!("{command} {days} takes everything; add --yes if you mean that").into())
            }
            ("find", [text]) => self.find(text).await,
            ("show", [id]) => self.show(&key_id(id)?).await,
            ("list", [org]) => self.list(&OrgId::new(org)?).await,
            ("revoke", [id]) => self.revoke(&key_id(id)?).await,
            ("revoke-all", [org]) => self.revoke_all(&OrgId::new(org)?).await,
            ("expire", [id, time]) => self.expire(&key_id(id)?, time).await,
            ("expiring", [days]) => self.expiring(time_of(days)?).await,
            ("unused", [days]) => self.unused(time_of(days)?).await,
            ("revoke-unused", [days]) => self.revoke_unused(time_of(days)?).await,
            ("purge", [days]) => self.purge(time_of(days)?).await,
            _ => Err(USAGE.into()),
        }
    }

    async fn find(&self, text: &str) -> Result<(), Failure> {
        let typed = if text == "-" { pasted()? } else { text.to_owned() };
        let typed = typed.trim();
        let mut found = Vec::new();
        if let Ok(id) = typed.parse() {
            found.extend(optional(self.operator.get(&id).await)?);
        }
        if found.is_empty() {
            let key = self.operator.find_by_secret(typed).await?;
            let previous = key.as_ref().and_then(|key| key.previous);
            if previous.is_some_and(|previous| previous.digest == KeyDigest::of(typed)) {
                eprintln!("this is the previous secret of the key:");
            }
            found.extend(key);
        }
        // A whole secret is not sent to the database.
        if found.is_empty() && typed.len() <= AdoptedKey::MAX_KEY_PREFIX_LEN {
            found = self.all(&Search::KeyPrefix(typed.to_owned())).await?;
        }
        if found.is_empty() {
            let shown = shown_prefix(typed);
            found = self.all(&Search::KeyPrefix(shown.clone())).await?;
            if !found.is_empty() {
                eprintln!("no key has this secret; those that begin with {shown}:");
            }
        }
        if found.is_empty() {
            return Err("no key has this id, this secret or these first characters; \
                give at least as many as the settings page shows. A key that was rotated has others \
                now: its old secret is found as a whole, and its old first characters are among its \
                changes"
                .into());
        }
        self.say_keys(&found)
    }

    async fn show(&self, id: &KeyId) -> Result<(), Failure> {
        let key = self.operator.get(id).await.map_err(not_found)?;
        self.say(self.line(&key))?;
        let usage = match self.keys.usage(&key.org, id, 1).await {
            Some(usage) => usage?.buckets,
            None => Vec::new(),
        };
        let hours = usage.into_iter().filter_map(hour).collect();
        self.section("Requests of the last day, by the hour:", hours)?;
        let requests = self.latest(&key, AuditScope::KeyRequests(*id), 200).await?;
        let heading =
            format!("The addresses in its latest {}:", counted(requests.len() as u64, "record"));
        self.section(&heading, addresses(&requests))?;
        self.section(
            "Its latest requests:",
            requests.iter().take(10).filter_map(record).collect(),
        )?;
        let changes = self.latest(&key, AuditScope::KeyChanges(*id), 20).await?;
        self.section("Its latest changes:", changes.iter().filter_map(record).collect())
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

    async fn list(&self, org: &OrgId) -> Result<(), Failure> {
        self.say_keys(&self.operator.list(org).await?)
    }

    async fn revoke(&self, id: &KeyId) -> Result<(), Failure> {
        let before = self.operator.get(id).await.map_err(not_found)?;
        let key = self.operator.revoke(id).await.map_err(not_found)?;
        let was_active = before.status == Status::Active;
        let text = if was_active { "revoked:" } else { "was revoked already:" };
        self.say((text.to_owned(), json!({ "type": "result", "revoked": u8::from(was_active) })))?;
        self.say(self.line(&key))
    }

    async fn revoke_all(&self, org: &OrgId) -> Result<(), Failure> {
        if self.operator.list(org).await?.is_empty() {
            return Err(format!("{org} has no keys").into());
        }
        self.say_revoked(self.operator.revoke_all(org).await?)
    }

    async fn expire(&self, id: &KeyId, time: &str) -> Result<(), Failure> {
        let at = match time {
            "never" => None,
            "now" => Some(self.keys.now()),
            time => Some(time.parse::<Timestamp>().map_err(|e| format!("{time}: {e}"))?),
        };
        let key = self.operator.set_expiry(id, at).await.map_err(not_found)?;
        self.say(self.line(&key))
    }

    async fn expiring(&self, within: Duration) -> Result<(), Failure> {
        let now = self.keys.now();
        self.say_active(&Search::Expiring { from: now, until: now.saturating_add(within) }).await
    }

    async fn unused(&self, time: Duration) -> Result<(), Failure> {
        self.say_active(&Search::UnusedSince(self.keys.now().saturating_sub(time))).await
    }

    async fn revoke_unused(&self, time: Duration) -> Result<(), Failure> {
        let since = self.keys.now().saturating_sub(time);
        self.say_revoked(self.operator.revoke_unused_since(since).await?)
    }

    async fn purge(&self, age: Duration) -> Result<(), Failure> {
        let purged = self.store.purge_before(self.keys.now().saturating_sub(age)).await?;
        let text = format!("{} removed", counted(purged, "record"));
        self.say((text, json!({ "type": "result", "removed": purged })))
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

    fn line(&self, key: &ApiKey) -> Line {
        let is_expired = key.is_expired(self.keys.now());
        let time = |at: Option<Timestamp>| at.map_or("never".to_owned(), seconds);
        let mut text = format!(
            "{} {} of {}: {:?}, {}, expires {}, last used {}, created {}",
            key.id,
            key.key_prefix,
            key.org.as_str(),
            key.name.as_str(),
            if is_expired && key.status == Status::Active {
                "expired"
            } else {
                key.status.as_str()
            },
            time(key.expires_at),
            time(key.last_used_at),
            seconds(key.created_at),
        );
        if let Some(name) = &key.attributes.created_by {
            text += &format!(" by {name}");
        }
        if let Some(scopes) = key.attributes.scopes.named() {
            let names: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
            text += &format!(", scopes: {}", names.join(" "));
        }
        if let Some(until) = key.previous_until(self.keys.now()) {
            text += &format!(", its previous secret works until {}", seconds(until));
        }
        if !key.allowlist.is_empty() {
            text += &format!(", only from: {}", key.allowlist.entries().join(" "));
        }
        (text, with(with(key, "type", "key"), "expired", is_expired))
    }

    async fn say_active(&self, search: &Search) -> Result<(), Failure> {
        let mut keys = self.all(search).await?;
        keys.retain(|key| key.status == Status::Active);
        self.say_keys(&keys)
    }

    fn say_keys(&self, keys: &[Arc<ApiKey>]) -> Result<(), Failure> {
        if keys.is_empty() {
            eprintln!("no keys");
        }
        keys.iter().try_for_each(|key| self.say(self.line(key)))
    }

    fn say_revoked(&self, keys: u64) -> Result<(), Failure> {
        let text = format!("{} revoked", counted(keys, "key"));
        self.say((text, json!({ "type": "result", "revoked": keys })))
    }

    fn section(&self, heading: &str, lines: Vec<Line>) -> Result<(), Failure> {
        if !self.json {
            let none = if lines.is_empty() { "\nnone" } else { "" };
            writeln!(io::stdout(), "\n{heading}{none}")?;
        }
        lines.into_iter().try_for_each(|line| self.say(line))
    }

    fn say(&self, (text, value): Line) -> Result<(), Failure> {
        // Not `println`, which panics when the reader is gone.
        let line = if self.json { value.to_string() } else { text };
        Ok(writeln!(io::stdout(), "{line}")?)
    }
}

/// A line of standard input.
fn pasted() -> io::Result<String> {
    if io::stdin().is_terminal() {
        eprintln!("Paste the secret and press Enter. It stays visible in this terminal.");
    }
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line)
}

/// The part of a key that is shown: 5 characters after its prefix, which ends with `_`, and at
/// least 12.
fn shown_prefix(typed: &str) -> String {
    let prefix = typed.rfind('_').map_or(0, |at| at + 1);
    typed.chars().take(usize::max(prefix + 5, 12)).collect()
}

fn hour(UsageBucket { start, counts }: UsageBucket) -> Option<Line> {
    let (allowed, errors, refused) = (counts.allowed, counts.errors(), counts.refused);
    let text = format!("{start}: {allowed} allowed, {errors} with errors, {refused} refused");
    let value = json!({
        "type": "hour", "hour": start, "allowed": allowed, "errors": errors, "refused": refused,
    });
    (allowed + errors + refused > 0).then_some((text, value))
}

/// How often each address occurs in requests, newest first, and since when. A record that sums
/// up refusals has only the last of their addresses.
fn addresses(requests: &[AuditRecord]) -> Vec<Line> {
    let mut addresses = BTreeMap::<_, (u64, Timestamp, Timestamp)>::new();
    let mut summed = 0;
    for record in requests {
        let AuditEvent::Request(request) = &record.event else { continue };
        let (count, first, _) = addresses.entry(request.ip).or_insert((0, record.at, record.at));
        *count += 1;
        *first = record.at;
        summed += u64::from(request.count.saturating_sub(1));
    }
    let line = |(ip, (count, first, last))| {
        let (requests, from) = (counted(count, "request"), shown(ip));
        let text = format!("{from}: {requests}, first {}, last {}", seconds(first), seconds(last));
        let value =
            json!({ "type": "address", "ip": ip, "count": count, "first": first, "last": last });
        (text, value)
    };
    let mut lines: Vec<Line> = addresses.into_iter().map(line).collect();
    if summed > 0 {
        let text = format!(
            "{} more, summed up, from these or other addresses",
            counted(summed, "refusal")
        );
        lines.push((text, json!({ "type": "summed", "count": summed })));
    }
    lines
}

fn record(record: &AuditRecord) -> Option<Line> {
    let at = seconds(record.at);
    match &record.event {
        AuditEvent::Request(request) => {
            let RequestEvent { method, endpoint, outcome, count, secret, .. } = request;
            let status = request.status.map(|status| format!(" {status}")).unwrap_or_default();
            let times = if *count > 1 { format!(", {count} times") } else { String::new() };
            let (from, old) = (shown(request.ip), *secret == SecretUsed::Previous);
            let with_old = if old { ", with the previous secret" } else { "" };
            let text = format!(
                "{at}: {method} {endpoint} from {from}: {outcome}{status}{times}{with_old}"
            );
            Some((text, with(record, "type", "request")))
        }
        AuditEvent::Change(change) => {
            let fields = change.fields.iter().map(|field| match &field.before {
                FieldValue::Absent if change.action == ChangeAction::Created => {
                    format!("{}: {}", field.name, told_value(field, &field.after))
                }
                before => {
                    let (before, after) =
                        (told_value(field, before), told_value(field, &field.after));
                    format!("{}: {before} -> {after}", field.name)
                }
            });
            let fields = fields.collect::<Vec<_>>().join(", ");
            let done = match change.phase {
                ChangePhase::Abandoned => " (did not take place)",
                _ => "",
            };
            let text = format!("{at}: {} by {}{done}; {fields}", change.action, change.actor);
            Some((text, with(record, "type", "change")))
        }
        _ => None,
    }
}

/// A record as JSON, with one more field.
fn with(record: impl Serialize, field: &str, of: impl Into<Value>) -> Value {
    let mut record = serde_json::to_value(record).unwrap_or_default();
    if let Value::Object(fields) = &mut record {
        fields.insert(field.to_owned(), of.into());
    }
    record
}

fn told_value(field: &ChangedField, value: &FieldValue) -> String {
    if field.name == "expires_at" && *value == FieldValue::Absent {
        return "never".to_owned();
    }
    let text = value.to_string();
    text.parse().map_or(text, seconds)
}

/// A time without its fraction of a second.
fn seconds(at: Timestamp) -> String {
    let micros = at.unix_micros();
    Timestamp::from_unix_micros(micros - micros.rem_euclid(1_000_000)).unwrap_or(at).to_string()
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn shown(ip: Option<IpAddr>) -> String {
    ip.map_or("an unknown address".to_owned(), |ip| ip.to_string())
}

fn optional(found: Result<Arc<ApiKey>, ManageError>) -> Result<Option<Arc<ApiKey>>, ManageError> {
    match found {
        Ok(key) => Ok(Some(key)),
        Err(ManageError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn not_found(error: ManageError) -> Failure {
    match error {
        ManageError::NotFound => "no key has this id".into(),
        other => other.into(),
    }
}
