//! `/v1/events`: the kept moments, then the live ones, a line each.

use crate::{event::Event, event_log::EventLog};
use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use std::sync::Arc;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

/// A line, or what keeps it from being written.
type Line = serde_json::Result<Bytes>;

/// The events still kept; then the answer ends.
pub(super) fn recent(events: &EventLog) -> Response {
    respond(Body::from_stream(stream::iter(events.recent().into_iter().map(|event| line(&event)))))
}

/// The events still kept and all later ones, until the client goes or the agent ends.
pub(super) fn followed(events: &EventLog, shutdown: watch::Receiver<bool>) -> Response {
    let (recent, later) = events.recent_and_subscribe();
    let recent = stream::iter(recent.into_iter().map(|event| line(&event)));
    let live = stream::unfold((later, shutdown), |(mut later, mut shutdown)| async move {
        let line = tokio::select! {
            line = next(&mut later) => line?,
            () = ended(&mut shutdown) => return None,
        };
        Some((line, (later, shutdown)))
    });
    respond(Body::from_stream(recent.chain(live)))
}

/// Waits until the agent ends.
pub(super) async fn ended(shutdown: &mut watch::Receiver<bool>) {
    // An error says that the sender has gone: the agent has ended.
    drop(shutdown.wait_for(|&ended| ended).await);
}

async fn next(later: &mut broadcast::Receiver<Arc<Event>>) -> Option<Line> {
    match later.recv().await {
        Ok(event) => Some(line(&event)),
        Err(RecvError::Lagged(count)) => Some(Ok(Bytes::from(format!("{{\"event\":\"lost\",\"count\":{count}}}\n")))),
        Err(RecvError::Closed) => None,
    }
}

fn line(event: &Event) -> Line {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    Ok(Bytes::from(line))
}

fn respond(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
