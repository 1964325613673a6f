//! The servers of a configuration.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};

use crate::store::postgres::error::{DbError, Result};

/// One of the hosts. tokio-postgres tries one after the other as well, but has no time
/// limit for a host that accepts the connection and then does not answer.
#[derive(Debug)]
pub(super) struct Server {
    /// Contains only this host, or none if addresses are to be added.
    config: Config,
    name: String,
    unresolved: Option<(String, u16)>,
    failed: AtomicBool,
}

impl Server {
    /// Host and port, for error messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the last attempt failed; such a server is tried last.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    pub(super) fn attempt(&self) -> Attempt<'_> {
        Attempt { server: self, failed: true }
    }

    /// A configuration for each address of the host's name.
    pub(super) async fn addresses(&self) -> Result<Vec<Config>> {
        let Some((host, port)) = self.unresolved.clone() else {
            return Ok(vec![self.config.clone()]);
        };
        let look_up = move || (host.as_str(), port).to_socket_addrs().map(Vec::from_iter);
        let found = tokio::task::spawn_blocking(look_up).await.map_err(|_| DbError::Ended)?;
        let mut addresses = found.map_err(DbError::NoAddress)?;
        if addresses.is_empty() {
            return Err(DbError::NoAddress(io::Error::from(io::ErrorKind::NotFound)));
        }
        if self.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
            shuffle(&mut addresses);
        }
        // A configuration cannot contain the zone of an IPv6 address.
        let zoned =
            |address: &SocketAddr| matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0);
        if addresses.iter().any(zoned) {
            return Ok(vec![self.config.clone()]);
        }
        let at = |ip: IpAddr| {
            let mut config = self.config.clone();
            config.hostaddr(ip);
            config
        };
        Ok(addresses.into_iter().map(|address| at(address.ip())).collect())
    }
}

/// Stores the result of an attempt. A dropped attempt counts as failed, since its caller
/// has waited for as long as it could.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    server: &'a Server,
    failed: bool,
}

impl Attempt<'_> {
    pub(super) fn succeeded(mut self) {
        self.failed = false;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.server.failed.store(self.failed, Ordering::Relaxed);
    }
}

/// Splits a configuration by server, or returns why it cannot be used.
pub(super) fn servers(config: &Config) -> Result<Vec<Server>, &'static str> {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err("it does not name a host");
    }
    if ![0, count].contains(&hosts.len()) || ![0, count].contains(&addresses.len()) {
        return Err("give as many addresses as hosts, or only one of the two lists");
    }
    let ports = config.get_ports();
    if ![0, 1, count].contains(&ports.len()) {
        return Err("give one port for each host, or one for all");
    }
    let server = |n: usize| {
        let (host, address) = (hosts.get(n), addresses.get(n));
        let port = ports.get(n).or(ports.first()).copied().unwrap_or(5432);
        let mut config = without_hosts(config);
        config.port(port);
        let mut unresolved = None;
        match host {
            Some(Host::Tcp(name)) => {
                config.host(name);
                if address.is_none() && name.parse::<IpAddr>().is_err() {
                    unresolved = Some((name.clone(), port));
                }
            }
            #[cfg(unix)]
            Some(Host::Unix(path)) => {
                config.host_path(path);
            }
            None => {}
        }
        if let Some(address) = address {
            config.hostaddr(*address);
        }
        let name = match (host, address) {
            (Some(Host::Tcp(name)), _) => name.clone(),
            #[cfg(unix)]
            (Some(Host::Unix(path)), _) => path.display().to_string(),
            (None, Some(address)) => address.to_string(),
            (None, None) => String::new(),
        };
        Server {
            config,
            name: if name.contains(':') {
                format!("[{name}]:{port}")
            } else {
                format!("{name}:{port}")
            },
            unresolved,
            failed: AtomicBool::new(false),
        }
    };
    Ok((0..count).map(server).collect())
}

/// All settings except hosts, which cannot be removed from a configuration. The dialer
/// enforces the connect timeout.
fn without_hosts(of: &Config) -> Config {
    let mut config = Config::new();
    if let Some(user) = of.get_user() {
        config.user(user);
    }
    if let Some(password) = of.get_password() {
        config.password(password);
    }
    if let Some(database) = of.get_dbname() {
        config.dbname(database);
    }
    if let Some(options) = of.get_options() {
        config.options(options);
    }
    if let Some(name) = of.get_application_name() {
        config.application_name(name);
    }
    if let Some(timeout) = of.get_tcp_user_timeout() {
        config.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = of.get_keepalives_interval() {
        config.keepalives_interval(interval);
    }
    if let Some(retries) = of.get_keepalives_retries() {
        config.keepalives_retries(retries);
    }
    config
        .ssl_mode(of.get_ssl_mode())
        .ssl_negotiation(of.get_ssl_negotiation())
        .keepalives(of.get_keepalives())
        .keepalives_idle(of.get_keepalives_idle())
        .target_session_attrs(of.get_target_session_attrs())
        .channel_binding(of.get_channel_binding())
        .load_balance_hosts(of.get_load_balance_hosts());
    config
}

/// Spreads the load; it need not be perfectly random.
pub(super) fn shuffle<T>(items: &mut [T]) {
    items.sort_by_cached_key(|_| getrandom::u64().unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(url: &str) -> Vec<Server> {
        servers(&url.parse().unwrap()).unwrap()
    }

    #[test]
    fn every_setting_is_copied() {
        let url = "postgres://u:p@h:5433/d?options=-cgeqo%3Doff&application_name=a&sslmode=require\
                   &sslnegotiation=direct&hostaddr=192.0.2.1&tcp_user_timeout=3&keepalives=0\
                   &keepalives_idle=4&keepalives_interval=5&keepalives_retries=6\
                   &target_session_attrs=read-only&channel_binding=require\
                   &load_balance_hosts=random";
        let whole: Config = url.parse().unwrap();
        let [server] = &split(url)[..] else { panic!("one host") };
        assert_eq!(server.config, whole);
        // This fails if a new version of tokio-postgres adds a setting.
        let text = format!("{:?}", Config::new());
        let settings = text.split(", ").filter(|part| part.contains(": ")).count();
        assert_eq!(settings, 18, "copy the new setting: {text}");
    }

    #[test]
    fn each_host_keeps_its_own_address_and_port() {
        let servers = split("postgres://a:1,b:2,[::1]:3/d?hostaddr=192.0.2.1,192.0.2.2,::1");
        let names: Vec<_> = servers.iter().map(Server::name).collect();
        assert_eq!(names, ["a:1", "b:2", "[::1]:3"]);
        for (n, server) in servers.iter().enumerate() {
            assert_eq!(server.config.get_ports(), [n as u16 + 1]);
            assert_eq!(server.config.get_hosts().len(), 1);
            assert_eq!(server.config.get_hostaddrs().len(), 1);
            assert_eq!(server.unresolved, None);
        }
        let servers = split("host=a,/run port=7");
        let names: Vec<_> = servers.iter().map(Server::name).collect();
        assert_eq!(names, ["a:7", "/run:7"]);
        assert_eq!(servers[0].unresolved, Some(("a".to_owned(), 7)));
        assert_eq!(servers[1].unresolved, None);
    }

    #[test]
    fn hosts_addresses_and_ports_that_do_not_match_are_refused() {
        for url in [
            "postgres:///d",
            "postgres://a,b/d?hostaddr=192.0.2.1",
            "postgres://a/d?hostaddr=192.0.2.1,192.0.2.2",
            "host=a,b,c port=1,2",
        ] {
            assert!(servers(&url.parse().unwrap()).is_err(), "{url}");
        }
    }

    #[tokio::test]
    async fn every_address_of_a_host_name_is_tried() {
        let [server] = &split("postgres://localhost:7/d")[..] else { panic!("one host") };
        let addresses = server.addresses().await.unwrap();
        assert!(!addresses.is_empty());
        for config in addresses {
            assert_eq!(config.get_hosts(), [Host::Tcp("localhost".to_owned())]);
            assert!(matches!(config.get_hostaddrs(), [address] if address.is_loopback()));
        }
    }
}
