//! A middleware for responses to requests whose body was not read.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use ::http_body::{Frame, SizeHint};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::wire::unread::{close, is_http_1};

/// Adds `Connection: close` to HTTP/1 responses if the body of the request was not read to
/// its end.
///
/// hyper closes such a connection in any case. Without the header the client does not know,
/// and its next request on the connection fails. [`ApiKeyLayer`](crate::ApiKeyLayer),
/// [`admin::router`](crate::admin::router) and the settings page do this by themselves;
/// this middleware does it for the rest of a service:
///
/// ```
/// use axum::{Router, middleware, routing::get};
///
/// let app: Router = Router::new()
///     .route("/", get(async || "Hello"))
///     .layer(middleware::from_fn(keygate::close_if_unread));
/// ```
pub async fn close_if_unread(request: Request, next: Next) -> Response {
    if !is_http_1(request.version()) || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let unread = Arc::new(AtomicBool::new(false));
    let watch = Arc::clone(&unread);
    let request = request.map(|body| Body::new(Watched { body, ended: false, unread: watch }));
    let mut response = next.run(request).await;
    // If the body is still being read, for a streaming response, it counts as in use.
    if unread.load(Ordering::Acquire) {
        close(&mut response);
    }
    response
}

/// A body that reports if it is dropped before its end.
struct Watched {
    body: Body,
    ended: bool,
    unread: Arc<AtomicBool>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        self.ended |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.unread.store(true, Ordering::Release);
        }
    }
}
