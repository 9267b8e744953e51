//! What clients may post, marks of training loops, requests that programs count and resets of detectors: it is left for the
//! agent's loop, the one writer, and never waits for it.

use super::{
    access::Caller,
    caller,
    problem::Problem,
    routes::{Given, Origin, Shared},
    select,
};
use crate::{
    detect::Resets,
    ids::Tgid,
    inbox::Refused,
    mark,
    tally::{self, Tally},
    time::BootTime,
};
use axum::{
    Json,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts as _, Request},
    http::{Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;

/// Bytes of a body at most.
const BODY_BYTES: usize = 16 << 10;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// Holds for what is posted.
pub(super) fn body_limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(BODY_BYTES)
}

/// Where what is posted waits for the agent's loop.
#[derive(Clone, Debug, Default)]
pub struct Inboxes {
    /// Marks of training loops.
    pub marks: Arc<mark::Marks>,
    /// Requests that programs count themselves.
    pub tallies: Arc<tally::Tallies>,
    /// Wishes that detectors begin anew.
    pub resets: Arc<Resets>,
}

impl Inboxes {
    /// Those of another socket, with room of their own for all that is kept, so that nobody keeps out another socket's.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self { resets: Arc::clone(&self.resets), ..Self::default() }
    }

    /// From here on nothing is taken.
    pub fn close(&self) {
        self.marks.close();
        self.tallies.close();
        self.resets.close();
    }
}

/// What somebody posted to an agent that runs.
pub(super) struct Post {
    shared: Shared,
    inboxes: Inboxes,
    caller: Option<Caller>,
    body: Bytes,
}

impl FromRequest<Shared> for Post {
    type Rejection = Problem;

    async fn from_request(request: Request, shared: &Shared) -> Result<Self, Problem> {
        let caller = request.extensions().get().copied();
        let (mut parts, body) = request.into_parts();
        select::no_parameters(Given::from_request_parts(&mut parts, shared).await?.parameters())?;
        let Origin::Live { inboxes, .. } = &shared.origin else {
            return Err(Problem::query("a recording takes nothing that is posted"));
        };
        let body = read(Request::from_parts(parts, body)).await?;
        Ok(Self { shared: shared.clone(), inboxes: inboxes.clone(), caller, body })
    }
}

/// 202 with the mark as it was understood; the next snapshot carries it.
pub(super) async fn post_mark(Post { shared, inboxes, caller, body }: Post) -> Result<Response, Problem> {
    let mark::Posted { mark, pid } = mark::Posted::parse(&body).map_err(Problem::query)?;
    let snapshot = shared.snapshot();
    let by = caller::marked(&snapshot, caller, pid)?;
    // Who is in no snapshot yet has a place of its own: the model will know its tree.
    let place = by.map(|id| snapshot.process(id.key()).map_or(id, |process| process.tree).key());
    let told = mark::Told { time: BootTime::now(), by, mark: mark.clone() };
    inboxes.marks.post(place, told).map_err(|why| refusal(why, "marks"))?;
    Ok((StatusCode::ACCEPTED, Json(mark)).into_response())
}

/// 202 with the process that the requests are counted for.
pub(super) async fn post_requests(Post { shared, inboxes, caller, body }: Post) -> Result<Response, Problem> {
    let time = BootTime::now();
    let tally::Posted { count, pid, labels } = tally::Posted::parse(&body).map_err(Problem::query)?;
    let (_, process) = caller::asked(&shared, caller, pid).await?;
    let tally = Tally { time, by: process.id, count, labels };
    inboxes.tallies.post(tally).map_err(|why| refusal(why, "counts of requests"))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "pid": process.id.tgid, "count": count }))).into_response())
}

/// 202 with the root of the tree whose detectors begin anew at the next tick.
pub(super) async fn post_reset(Post { shared, inboxes, caller, body }: Post) -> Result<Response, Problem> {
    let (_, process) = caller::asked(&shared, caller, reset_pid(&body)?).await?;
    inboxes.resets.post(process.tree.key()).map_err(|why| refusal(why, "resets"))?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "tree": process.tree.tgid }))).into_response())
}

fn refusal(why: Refused, posts: &str) -> Problem {
    let detail = match why {
        Refused::Full => format!("too many {posts} are waiting: post it again"),
        Refused::Closed => "the agent is ending: post it to the next".to_owned(),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
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

async fn read(request: Request) -> Result<Bytes, Problem> {
    let body = timeout(BODY_TIMEOUT, Bytes::from_request(request, &())).await;
    let body = body.map_err(|_| Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come within 5 s"))?;
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES} bytes"))
        }
        status => Problem::new(status, rejection.body_text()),
    })
}
