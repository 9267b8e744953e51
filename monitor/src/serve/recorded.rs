//! Answers from a recording, by the same endpoints as the socket's.

use super::routes::{self, Origin, Shared};
use crate::{config::Config, history::Recorded};
use axum::{
    body::Body,
    http::{Request, Uri},
    response::Response,
};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::watch;
use tower::ServiceExt as _;

/// What the agent that recorded would have answered at that moment. Only what is told of the answering itself differs.
pub async fn answer_recorded(recorded: Recorded, path: &Uri) -> Response {
    let Recorded { origin, picture, events } = recorded;
    let ((_, pictures), (_, shutdown)) = (watch::channel(picture), watch::channel(true));
    let config = Config::default();
    let shared = Shared {
        pictures,
        sinks: Arc::default(),
        events,
        doctor: origin.doctor.into(),
        origin: Origin::Recorded(origin.agent),
        metrics_top: config.metrics.top as usize,
        socket: config.socket.into(),
        patience: Duration::ZERO,
        shutdown,
    };
    let mut request = Request::new(Body::empty());
    *request.uri_mut() = path.clone();
    let answer: Result<Response, Infallible> = routes::router(shared).oneshot(request).await;
    answer.unwrap_or_else(|never| match never {})
}
