//! The future of a guarded request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;
use tracing::Span;
use tracing::field::Empty;

use crate::audit::delivery::DeliveryError;
use crate::audit::record::Outcome;
use crate::guard::body::ResponseBody;
use crate::guard::config::Config;
use crate::manager::admission::{Admission, NotAdmitted};
use crate::manager::rate::RateStatus;
use crate::runtime::spawn::BoxFuture;
use crate::throttle::Throttle;
use crate::wire::refusal::{Asked, Refusal, set_rate};

static WITHHELD: LazyLock<Throttle> = LazyLock::new(Throttle::default);

pin_project! {
    /// The future of [`ApiKeyService`](crate::guard::ApiKeyService). If it is dropped before it
    /// completes, the audit record is marked as aborted.
    pub struct ResponseFuture<S: Service<Request<ReqBody>>, ReqBody, ResBody> {
        pub(super) config: Arc<Config>,
        pub(super) asked: Asked,
        #[pin]
        pub(super) state: State<S, S::Future, Request<ReqBody>, ResBody>,
    }
}

pin_project! {
    #[project = StateProjection]
    pub(super) enum State<S, F, R, B> {
        /// Waiting for the store, or for room in the audit queue.
        Admitting {
            admission: BoxFuture<'static, Result<Admission, NotAdmitted>>,
            inner: S,
            request: Option<R>,
        },
        Serving { #[pin] response: F, admission: Option<Admission>, span: Span },
        /// The response waits until its audit record is durable.
        Recording {
            recorded: BoxFuture<'static, Result<(), DeliveryError>>,
            response: Option<Response<B>>,
            rate: Option<Box<RateStatus>>,
        },
        Refused { refusal: Refusal, rate: Option<Box<RateStatus>> },
    }
}

impl<S, ReqBody, ResBody> Future for ResponseFuture<S, ReqBody, ResBody>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Admitting { admission, inner, request } => {
                    match (ready!(admission.as_mut().poll(cx)), request.take()) {
                        (Ok(admission), Some(request)) => admission.serve(inner, request),
                        (Err(NotAdmitted { error, rate }), _) => {
                            let refusal = Refusal::of(error, &this.config.scopes);
                            State::Refused { refusal, rate }
                        }
                        // Polled after completion.
                        (Ok(_), None) => {
                            State::Refused { refusal: Refusal::Unavailable, rate: None }
                        }
                    }
                }
                StateProjection::Serving { response, admission, span } => {
                    let _entered = span.enter();
                    let mut response = ready!(response.poll(cx))?;
                    let status = this.asked.status_of(&response);
                    let lacks_scope = this.config.refusals.complete(&mut response, *this.asked);
                    let rate = admission.as_mut().and_then(Admission::take_rate);
                    if let Some(rate) = &rate {
                        set_rate(response.headers_mut(), rate);
                    }
                    let recorded = admission.take().and_then(|admission| {
                        if this.config.key_in_response {
                            response.extensions_mut().insert(admission.key().clone());
                        }
                        let (outcome, recorded) = if lacks_scope {
                            (Outcome::InsufficientScope, admission.close_without_scope(status))
                        } else {
                            (Outcome::Allowed, admission.close(status))
                        };
                        span.record("outcome", outcome.as_str());
                        recorded
                    });
                    match recorded {
                        None => return Poll::Ready(Ok(this.config.sent(response, *this.asked))),
                        Some(recorded) => {
                            State::Recording { recorded, response: Some(response), rate }
                        }
                    }
                }
                StateProjection::Recording { recorded, response, rate } => {
                    match (ready!(recorded.as_mut().poll(cx)), response.take()) {
                        (Ok(()), Some(response)) => {
                            return Poll::Ready(Ok(this.config.sent(response, *this.asked)));
                        }
                        (Ok(()), None) => {}
                        (Err(error), _) => {
                            if let Some(left_out) = WITHHELD.pass() {
                                tracing::error!(%error, left_out, "a response was withheld because its audit record could not be written");
                            }
                        }
                    }
                    State::Refused { refusal: Refusal::Unavailable, rate: rate.take() }
                }
                StateProjection::Refused { refusal, rate } => {
                    let mut refused = this.config.refusals.response(refusal, *this.asked);
                    if let Some(rate) = rate {
                        set_rate(refused.headers_mut(), rate);
                    }
                    return Poll::Ready(Ok(refused.map(ResponseBody::refusal)));
                }
            };
            this.state.set(next);
        }
    }
}

impl Config {
    /// The response as it is sent.
    fn sent<B>(&self, mut response: Response<B>, asked: Asked) -> Response<ResponseBody<B>> {
        match self.refusals.rewritten(&mut response, asked) {
            Some(own) => own.map(ResponseBody::refusal),
            None => response.map(ResponseBody::service),
        }
    }
}

impl Admission {
    /// Passes the request to the service, with its key.
    pub(super) fn serve<S, ReqBody, ResBody>(
        self,
        inner: &mut S,
        mut request: Request<ReqBody>,
    ) -> State<S, S::Future, Request<ReqBody>, ResBody>
    where
        S: Service<Request<ReqBody>>,
    {
        request.extensions_mut().insert(self.key().clone());
        let key = self.key();
        let span =
            tracing::info_span!("request", org = %key.org(), key = %key.id(), outcome = Empty);
        let entered = span.enter();
        let response = inner.call(request);
        drop(entered);
        State::Serving { response, admission: Some(self), span }
    }
}

impl<S: Service<Request<ReqBody>>, ReqBody, ResBody> fmt::Debug
    for ResponseFuture<S, ReqBody, ResBody>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
