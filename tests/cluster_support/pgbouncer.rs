//! PgBouncer in transaction mode, in front of a server.

use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Child;

use tempfile::TempDir;

use crate::cluster_support::cluster::Cluster;
use crate::cluster_support::port::free_port;
use crate::cluster_support::process::{command, folder, print_log, program, signal, spawn, write};
use crate::support::poll;

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    folder: TempDir,
    port: u16,
    process: Child,
}

impl PgBouncer {
    /// With this many sessions at the server for all clients, and further settings.
    pub(crate) fn start(cluster: &Cluster, sessions: u16, settings: &str) -> Self {
        let (folder, port, server) = (folder(), free_port(), cluster.port());
        let config = format!(
            "[databases]\npostgres = host=127.0.0.1 port={server} dbname=postgres user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = {sessions}\n\
             max_client_conn = 200\n{settings}\n"
        );
        let config = write(folder.path(), "pgbouncer.ini", &config);
        let binary = program("pgbouncer", &[PathBuf::from("/usr/sbin")], "pgbouncer");
        let log = folder.path().join("log");
        let process = spawn(command(folder.path(), &binary).arg(config), &log);
        let mut this = Self { folder, port, process };
        poll("PgBouncer listens", || {
            assert_eq!(this.process.try_wait().unwrap(), None, "PgBouncer ended");
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        this
    }

    pub(crate) fn url(&self, query: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres{query}", self.port)
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        signal("KILL", &[self.process.id()]);
        let _ = self.process.wait();
        print_log("PgBouncer", self.folder.path());
    }
}
