//! A tower middleware that admits only requests with a valid key.

pub(crate) mod body;
pub(crate) mod config;
pub(crate) mod future;
pub(crate) mod layer;
pub(crate) mod scope;
pub(crate) mod service;

pub use crate::guard::body::ResponseBody;
pub use crate::guard::config::PeerAddr;
pub use crate::guard::future::ResponseFuture;
pub use crate::guard::scope::{RequireScope, RequireScopeFuture, RequireScopeService};
pub use crate::guard::service::ApiKeyService;
pub use crate::wire::client_ip::{ClientIp, ProxyHeader};
pub use crate::wire::refusal::Refusal;
