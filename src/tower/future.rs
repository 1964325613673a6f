//! The future of a guarded request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::http::Response;

use crate::runtime::BoxFuture;
use crate::tower::body::ResponseBody;

/// The future of [`ApiKeyService`](crate::ApiKeyService). Dropped before it is
/// done, it leaves an audit record marked as aborted.
pub struct ResponseFuture<B, E> {
    pub(super) inner: BoxFuture<'static, Result<Response<ResponseBody<B>>, E>>,
}

impl<B, E> Future for ResponseFuture<B, E> {
    type Output = Result<Response<ResponseBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}

impl<B, E> fmt::Debug for ResponseFuture<B, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
