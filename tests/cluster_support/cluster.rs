//! The test's own PostgreSQL server, which can be killed and restarted.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::cluster_support::port::free_port;
use crate::cluster_support::process::{
    children, command, folder, give_away, print_log, program, run, signal, spawn, write,
};
use crate::support::poll;

/// Every connection from this machine is accepted, including those of standbys.
const TRUST: &str = "local all all trust\nhost all all 127.0.0.1/32 trust\n\
                     host replication all 127.0.0.1/32 trust\n";

/// Runs until it is dropped, and removes its files then.
#[derive(Debug)]
pub(crate) struct Cluster {
    folder: TempDir,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        Self::with(&[], TRUST, |_| {})
    }

    /// With lines of `postgresql.conf`, all of `pg_hba.conf`, and other files in the data
    /// folder.
    pub(crate) fn with(settings: &[&str], access: &str, prepare: impl FnOnce(&Path)) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        run(command(folder.path(), &binary("initdb"))
            .args(["--username", "postgres", "--auth", "trust", "--encoding", "UTF8"])
            .args(["--locale", "C", "--no-sync", "-D"])
            .arg(&data));
        write(&data, "keygate.conf", &(own_settings(folder.path()) + &settings.join("\n")));
        let config = std::fs::read_to_string(data.join("postgresql.conf")).unwrap();
        write(&data, "postgresql.conf", &(config + "\ninclude 'keygate.conf'\n"));
        write(&data, "pg_hba.conf", access);
        prepare(&data);
        let mut cluster = Self { folder, port: free_port(), server: None };
        cluster.run();
        cluster
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The URL of the database `postgres`, with this suffix.
    pub(crate) fn url(&self, query: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres{query}", self.port)
    }

    /// Runs statements as the superuser, through the socket. Returns the result as text.
    pub(crate) fn ask(&self, statements: &str) -> String {
        let mut psql = Command::new(binary("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only"])
            .args(["--username", "postgres", "--dbname", "postgres"])
            .args(["--set", "ON_ERROR_STOP=1", "--command", statements, "--host"])
            .arg(self.folder.path())
            .args(["--port", &self.port.to_string()]);
        run(&mut psql).trim().to_owned()
    }

    /// Kills the server and all its sessions at once, like a power failure.
    pub(crate) fn kill(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        let mut all = children(server.id());
        all.push(server.id());
        signal("KILL", &all);
        server.wait().unwrap();
    }

    /// Starts it on the existing data and waits until it accepts sessions.
    pub(crate) fn run(&mut self) {
        assert!(self.server.is_none(), "the server is already running");
        let (data, log) = (self.folder.path().join("data"), self.folder.path().join("log"));
        let port = self.port.to_string();
        let mut postgres = command(self.folder.path(), &binary("postgres"));
        postgres.arg("-D").arg(data).args(["-p", &port]);
        let ready = || {
            let mut ask = Command::new(binary("pg_isready"));
            ask.args(["--quiet", "--host", "127.0.0.1", "--port", &port]);
            ask.status().unwrap().success()
        };
        poll("the server runs", || {
            // It exits at once while a session of a killed server is still ending.
            let runs = self.server.as_mut().is_some_and(|s| s.try_wait().unwrap().is_none());
            if !runs {
                self.server = Some(spawn(&mut postgres, &log));
            }
            ready().then_some(())
        });
        give_away(self.folder.path(), &log);
    }
}

#[allow(dead_code, reason = "not every test crate fails over")]
impl Cluster {
    /// A server whose commits wait until a standby has them too. It needs a standby soon:
    /// until then no change succeeds.
    pub(crate) fn synchronous() -> Self {
        let settings = ["synchronous_standby_names = '*'", "synchronous_commit = on"];
        Self::with(&settings, TRUST, |_| {})
    }

    /// A standby that streams from this server and has caught up. After its promotion it waits
    /// for no other standby.
    pub(crate) fn standby(&self) -> Self {
        let folder = folder();
        let data = folder.path().join("data");
        let primary = format!("host=127.0.0.1 port={} user=postgres", self.port);
        run(command(folder.path(), &binary("pg_basebackup"))
            .args(["--write-recovery-conf", "--wal-method", "stream", "--checkpoint", "fast"])
            .args(["--no-sync", "--dbname", &primary, "--pgdata"])
            .arg(&data));
        write(&data, "keygate.conf", &own_settings(folder.path()));
        let mut standby = Self { folder, port: free_port(), server: None };
        standby.run();
        poll("the standby streams", || {
            let state = "SELECT state || ' ' || sync_state FROM pg_stat_replication";
            (self.ask(state) == "streaming sync").then_some(())
        });
        standby
    }

    /// Promotes a standby to primary. Returns when it accepts writes.
    pub(crate) fn promote(&self) {
        run(command(self.folder.path(), &binary("pg_ctl"))
            .args(["promote", "--wait", "--pgdata"])
            .arg(self.folder.path().join("data")));
    }

    /// A killed server's shared memory exists until the next server starts on the same data,
    /// or until a reboot.
    fn left_memory(&self) -> Option<String> {
        let file = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).ok()?;
        Some(file.lines().nth(6)?.split_whitespace().nth(1)?.to_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Ends the sessions and frees the shared memory.
            signal("QUIT", &[server.id()]);
            let _ = server.wait();
        } else if let Some(memory) = self.left_memory() {
            let _ = Command::new("ipcrm").args(["--shmem-id", &memory]).output();
        }
        print_log("the server", self.folder.path());
    }
}

/// fsync stays on, as in production.
fn own_settings(folder: &Path) -> String {
    format!(
        "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
         dynamic_shared_memory_type = mmap\n",
        folder.display()
    )
}

/// Of the version in the folder `KEYGATE_TEST_POSTGRES_BIN`, or else the newest installed one.
fn binary(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("KEYGATE_TEST_POSTGRES_BIN") {
        return PathBuf::from(folder).join(name);
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions.map(|version| version.path().join("bin")).collect();
    let number =
        |folder: &PathBuf| -> Option<u32> { folder.parent()?.file_name()?.to_str()?.parse().ok() };
    folders.sort_by_key(|folder| std::cmp::Reverse(number(folder)));
    program(name, &folders, "postgresql")
}
