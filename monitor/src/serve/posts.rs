//! What clients may post, marks of training loops and resets of detectors: it is left for the agent's loop, the one writer, and
//! never waits for it.

use super::{
    access::Caller,
    caller,
    problem::Problem,
    routes::{Given, Origin, Shared},
    select,
};
use crate::{
    ids::Tgid,
    mark::{Posted, Told},
    time::BootTime,
};
use axum::{
    Extension, Json,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest as _, Request, State},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;
use tokio::time::timeout;

/// Bytes of a body at most.
const BODY_BYTES: usize = 16 << 10;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds for what is posted.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_BYTES)
}

/// 202 with the mark as it was understood; the next snapshot carries it.
pub(super) async fn post_mark(
    State(shared): State<Shared>,
    caller: Option<Extension<Caller>>,
    given: Given,
    request: Request,
) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let Origin::Live { marks, .. } = &shared.origin else {
        return Err(Problem::query("a recording takes no marks"));
    };
    let Posted { mark, pid } = Posted::parse(&body(request).await?).map_err(Problem::query)?;
    let snapshot = shared.snapshot();
    let by = caller::marked(&snapshot, caller.map(|Extension(caller)| caller), pid)?;
    // Who is in no snapshot yet has a place of its own: the model will know its tree.
    let place = by.map(|id| snapshot.process(id.key()).map_or(id, |process| process.tree).key());
    let told = Told { time: BootTime::now(), by, mark: mark.clone() };
    marks.post(place, told).map_err(|refused| Problem::new(StatusCode::SERVICE_UNAVAILABLE, refused.to_string()))?;
    Ok((StatusCode::ACCEPTED, Json(mark)).into_response())
}

/// 202 with the root of the tree whose detectors begin anew at the next tick.
pub(super) async fn post_reset(
    State(shared): State<Shared>,
    caller: Option<Extension<Caller>>,
    given: Given,
    request: Request,
) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let Origin::Live { resets, .. } = &shared.origin else {
        return Err(Problem::query("a recording cannot be reset"));
    };
    let pid = reset_pid(&body(request).await?)?;
    let (_, process) = caller::asked(&shared, caller.map(|Extension(caller)| caller), pid).await?;
    if !resets.post(process.tree.key()) {
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many resets are waiting: post it again"));
    }
    Ok((StatusCode::ACCEPTED, Json(json!({ "tree": process.tree.tgid }))).into_response())
}

/// From nothing, or from an object with `pid` and nothing else.
fn reset_pid(body: &[u8]) -> Result<Option<Tgid>, Problem> {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Reset {
        pid: Option<u32>,
    }
    if body.is_empty() {
        return Ok(None);
    }
    let reset: Reset = serde_json::from_slice(body)
        .map_err(|error| Problem::query(format!("the body is not such as {{\"pid\": 1234}}: {error}")))?;
    Ok(reset.pid.map(Tgid))
}

/// Answers any other method.
pub(super) async fn post_only(method: Method, uri: Uri) -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes POST, not {method}", uri.path()));
    ([(header::ALLOW, "POST")], problem).into_response()
}

async fn body(request: Request) -> Result<Bytes, Problem> {
    let body = timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s"))?;
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES} bytes"))
        }
        status => Problem::new(status, rejection.body_text()),
    })
}
