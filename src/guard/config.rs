//! The settings of a layer, and its request extensions.

use std::net::{IpAddr, SocketAddr};

use http::{Extensions, HeaderName};

use crate::manager::KeyManager;
use crate::scopes::Scope;
use crate::wire::client_ip::ClientIp;
use crate::wire::refusal::Refusals;

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) keys: KeyManager,
    pub(super) peer_from: Option<fn(&Extensions) -> Option<SocketAddr>>,
    pub(super) client_ip: ClientIp,
    pub(super) refusals: Refusals,
    /// Besides `Authorization`.
    pub(super) key_header: Option<HeaderName>,
    /// The only environment whose keys are admitted.
    pub(super) environment: Option<Box<str>>,
    pub(super) optional: bool,
    pub(super) ignores_foreign: bool,
    /// Whether the response gets the key, too.
    pub(super) key_in_response: bool,
    pub(super) scopes: Vec<Scope>,
}

/// The address of the peer. A server other than axum's puts it into the extensions of each
/// request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// The peer's address as the server has supplied it.
pub(crate) fn peer_of(extensions: &Extensions) -> Option<IpAddr> {
    #[cfg(feature = "axum")]
    if let Some(axum::extract::ConnectInfo(peer)) =
        extensions.get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(peer.ip());
    }
    extensions.get::<PeerAddr>().map(|PeerAddr(peer)| peer.ip())
}

/// Present in the extensions of a request without credentials that optional authentication
/// admitted: how the layer would have refused it.
#[derive(Clone, Debug)]
pub(crate) struct Anonymous(pub(crate) Refusals);
