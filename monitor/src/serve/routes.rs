//! The endpoints.

use super::{
    Inboxes,
    access::Caller,
    alerts::AlertsView,
    answer,
    budget::BudgetsView,
    caller, events,
    findings::FindingsView,
    health::HealthView,
    loopback,
    metrics::{self, Format, Teller},
    posts,
    problem::Problem,
    select::{self, Parameters, Selected, Selection},
    stats::Stats,
    view::WholeHostView,
};
use crate::{
    alert::SinkStatus,
    event_log::EventLog,
    gpu::Gpu,
    history::{Identity, Status},
    model::snapshot::{BlockDevice, Cgroup, Process, Snapshot, Tree},
    picture::Picture,
    time::BootTime,
};
use axum::{
    Extension, Router,
    body::Bytes,
    extract::{FromRequestParts, Query, State},
    http::{HeaderMap, Method, StatusCode, Uri, header, request::Parts},
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::json;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::watch;

/// The endpoints and what they answer, as `/` lists them.
pub(super) const ENDPOINTS: &[(&str, &str)] = &[
    ("/v1/health", "whether all is well, what the agent costs, which sources count"),
    ("/v1/snapshot", "everything known after the last tick"),
    ("/v1/host", "the machine: processors, memory, pressure, disks, interfaces, and what is counted of it"),
    ("/v1/processes", "processes; ?pid= &tree= &cgroup= &container= &sort= &limit="),
    ("/v1/trees", "process trees; ?sort= &limit="),
    ("/v1/cgroups", "cgroups, each with all below it; ?container= &sort= &limit="),
    ("/v1/block_devices", "block devices; ?sort= &limit="),
    ("/v1/gpus", "GPUs and their MIG instances; ?sort= &limit="),
    ("/v1/findings", "what the detectors claim, such as who leaks; the worst first"),
    ("/v1/alerts", "what is, or was lately, out of the ordinary for long enough; the worst first"),
    (
        "/v1/oom",
        "why the kernel killed processes for want of memory: the limit, who grew, and whom it hit; the latest first",
    ),
    (RECOMMENDATIONS, "what memory request and limit each container, service and process tree should get; ?policy="),
    (
        "/v1/budget",
        "what servers' memory is made of, how many workers and requests fit the limit, and what a leak or preloading comes to; ?pid=",
    ),
    (STATS, "memory and processes of the asking process's tree, for a server to forward; ?pid="),
    ("/v1/events", "the last moments, a line each; ?follow=true goes on with those to come"),
    (
        "/metrics",
        "the costly few and the sums as metrics: OpenMetrics, or Prometheus' text format where only that is accepted",
    ),
    ("/v1/doctor", "what this host offers, and how each source was attached"),
    (
        MARKS,
        "POST {\"step\", \"epoch\", \"labels\"}: where a training loop is, for the snapshots to come; \"pid\" for another tree's",
    ),
    (
        REQUESTS,
        "POST {\"count\", \"labels\"}: requests that a program counts itself, for the asking process; \"pid\" for another",
    ),
    (RESET, "POST {\"pid\"}: the detectors forget what they saw of that process's tree, or of the asking process's"),
];

/// What a server forwards of itself.
pub(super) const STATS: &str = "/v1/stats";

/// What memory everybody should get.
const RECOMMENDATIONS: &str = "/v1/recommendations";

/// Takes POST only.
pub(super) const MARKS: &str = "/v1/marks";
/// Takes POST only.
pub(super) const REQUESTS: &str = "/v1/requests";
/// Takes POST only.
pub(super) const RESET: &str = "/v1/detectors/reset";

/// What the endpoints answer from.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) pictures: watch::Receiver<Arc<Picture>>,
    pub(super) sinks: Arc<[Arc<SinkStatus>]>,
    pub(super) events: Arc<EventLog>,
    /// The doctor's report as JSON: it does not change, but for how GPUs stand, which is added.
    pub(super) doctor: Bytes,
    pub(super) origin: Origin,
    /// So many of each kind have metrics of their own.
    pub(super) metrics_top: usize,
    /// The socket where everything is told.
    pub(super) socket: Arc<Path>,
    /// How long who asks about itself may wait for the first snapshot that has it.
    pub(super) patience: Duration,
    pub(super) shutdown: watch::Receiver<bool>,
}

/// Whose answers these are.
#[derive(Clone)]
pub(super) enum Origin {
    /// This agent's, now.
    Live {
        /// The recording that it makes.
        recording: Option<Arc<Status>>,
        /// Where what clients post goes.
        inboxes: Inboxes,
    },
    /// Those that another one would have given.
    Recorded(Identity),
}

impl Shared {
    pub(super) fn picture(&self) -> Arc<Picture> {
        Arc::clone(&self.pictures.borrow())
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.pictures.borrow().snapshot)
    }

    /// When this is answered; in a recording, when it would have been.
    fn now(&self, snapshot: &Snapshot) -> BootTime {
        match self.origin {
            Origin::Live { .. } => BootTime::now(),
            Origin::Recorded(_) => snapshot.time,
        }
    }

    fn health<'a>(&self, snapshot: &'a Snapshot) -> HealthView<'a> {
        let (agent, recording) = match &self.origin {
            Origin::Live { recording, .. } => (Identity::own(), recording.as_ref().map(|recording| recording.told())),
            Origin::Recorded(agent) => (agent.clone(), None),
        };
        HealthView::of(snapshot, self.now(snapshot), agent, recording)
    }
}

/// All endpoints.
pub(super) fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/v1/health", get(health))
        .route("/v1/snapshot", get(snapshot))
        .route("/v1/host", get(host))
        .route("/v1/processes", get(list::<Process>))
        .route("/v1/trees", get(list::<Tree>))
        .route("/v1/cgroups", get(list::<Cgroup>))
        .route("/v1/block_devices", get(list::<BlockDevice>))
        .route("/v1/gpus", get(list::<Gpu>))
        .route("/v1/findings", get(findings))
        .route("/v1/alerts", get(alerts))
        .route("/v1/oom", get(oom))
        .route(RECOMMENDATIONS, get(recommendations))
        .route("/v1/budget", get(budget))
        .route(STATS, get(stats))
        .route("/v1/events", get(moments))
        .route("/v1/doctor", get(doctor))
        .route(MARKS, post(posts::post_mark).layer(posts::body_limit()).fallback(posts::post_only))
        .route(REQUESTS, post(posts::post_requests).layer(posts::body_limit()).fallback(posts::post_only))
        .route(RESET, post(posts::post_reset).layer(posts::body_limit()).fallback(posts::post_only))
        .route("/metrics", get(exposition))
        .fallback(nowhere)
        .method_not_allowed_fallback(not_allowed)
        .with_state(shared)
}

/// What a workload may ask and post for its own tree.
pub(super) fn workload_router(shared: Shared) -> Router {
    Router::new()
        .route(STATS, get(stats))
        .route(MARKS, post(posts::post_mark).layer(posts::body_limit()).fallback(posts::post_only))
        .route(REQUESTS, post(posts::post_requests).layer(posts::body_limit()).fallback(posts::post_only))
        .route(RESET, post(posts::post_reset).layer(posts::body_limit()).fallback(posts::post_only))
        .fallback(elsewhere)
        .method_not_allowed_fallback(not_allowed)
        .with_state(shared)
}

/// Metrics only, for whoever is on this machine.
pub(super) fn metrics_router(shared: Shared) -> Router {
    Router::new()
        .route("/metrics", get(exposition))
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing here but /metrics") })
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn(loopback::check_host))
        .with_state(shared)
}

/// A request's query, decoded.
pub(super) struct Given(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Given {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let Query(pairs) = Query::try_from_uri(&parts.uri).map_err(|error| Problem::query(error.body_text()))?;
        Ok(Self(pairs))
    }
}

impl Given {
    pub(super) fn parameters(&self) -> &Parameters {
        &self.0
    }
}

async fn index(given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let endpoints: Vec<_> = ENDPOINTS.iter().map(|(path, answers)| json!({"path": path, "answers": answers})).collect();
    Ok(answer::document(&json!({"name": "monitor", "version": env!("CARGO_PKG_VERSION"), "endpoints": endpoints})))
}

async fn health(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let snapshot = shared.snapshot();
    Ok(answer::document(&shared.health(&snapshot)))
}

async fn exposition(State(shared): State<Shared>, headers: HeaderMap, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let picture = shared.picture();
    let snapshot = &picture.snapshot;
    let format = Format::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    let (now, health) = (shared.now(snapshot), shared.health(snapshot));
    let teller = Teller {
        version: health.version(),
        is_healthy: health.is_well(),
        uptime: now.since(snapshot.since),
        age: now.since(snapshot.time),
        sinks: &shared.sinks,
    };
    let text = metrics::exposition(&picture, teller, shared.metrics_top, format);
    Ok(([(header::CONTENT_TYPE, format.media_type())], text).into_response())
}

async fn snapshot(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    Ok(answer::whole(shared.snapshot()))
}

async fn findings(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    Ok(answer::document(&FindingsView::of(&shared.picture().findings)))
}

async fn alerts(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    Ok(answer::document(&AlertsView::of(&shared.picture().alerts, &shared.sinks)))
}

async fn oom(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let picture = shared.picture();
    Ok(answer::document(&json!({ "time_ns": picture.snapshot.time, "stories": *picture.stories })))
}

async fn recommendations(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    let picture = shared.picture();
    let policy = select::policy(given.parameters())?.unwrap_or_else(|| picture.advisor.policy());
    // It takes its time: as much as there is history.
    let work = move || picture.advisor.advise(policy, &picture.snapshot, &picture.findings);
    let advice = tokio::task::spawn_blocking(work).await;
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "working it out has failed");
    Ok(answer::document(&advice.map_err(failed)?))
}

async fn budget(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    let pid = select::pid(given.parameters())?;
    let picture = shared.picture();
    // Slopes of some ten thousand pairs of points, for each server.
    let budgets = tokio::task::spawn_blocking(move || BudgetsView::of(&picture, pid)).await;
    let failed = |_| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "working it out has failed");
    Ok(answer::document(&budgets.map_err(failed)??))
}

async fn host(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    let snapshot = shared.snapshot();
    Ok(answer::document(&WholeHostView::of(&snapshot).dated(&snapshot)))
}

async fn list<T: Selected>(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    let snapshot = shared.snapshot();
    let chosen = Selection::<T>::parse(given.parameters())?.choose(&snapshot);
    Ok(answer::list::<T>(snapshot, chosen))
}

async fn stats(
    State(shared): State<Shared>,
    caller: Option<Extension<Caller>>,
    given: Given,
) -> Result<Response, Problem> {
    let pid = select::pid(given.parameters())?;
    let (snapshot, asked) = caller::asked(&shared, caller.map(|Extension(caller)| caller), pid).await?;
    let (stats, chosen) = Stats::of(&snapshot, &asked)?;
    Ok(answer::stats(snapshot, &stats, chosen))
}

async fn moments(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    Ok(match select::follow(given.parameters())? {
        true if matches!(shared.origin, Origin::Recorded(_)) => {
            return Err(Problem::query("a recording does not go on: ask for its events without follow"));
        }
        true => events::followed(&shared.events, shared.shutdown),
        false => events::recent(&shared.events),
    })
}

async fn doctor(State(shared): State<Shared>, given: Given) -> Result<Response, Problem> {
    select::no_parameters(given.parameters())?;
    Ok(answer::extended(shared.doctor.clone(), "gpu", &shared.snapshot().gpu))
}

async fn nowhere(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no {}: GET / lists what there is", uri.path()))
}

/// Answers whatever else the workloads' socket is asked for.
async fn elsewhere(State(shared): State<Shared>, uri: Uri) -> Problem {
    let (path, socket) = (uri.path(), shared.socket.display());
    if path == "/" || ENDPOINTS.iter().any(|(known, _)| *known == path) {
        let detail = format!("{path} is told at {socket} only, to root and the group that socket_group names");
        return Problem::new(StatusCode::FORBIDDEN, detail);
    }
    let detail = format!(
        "there is no {path} here, but {STATS}, {MARKS}, {REQUESTS} and {RESET}; all else is told at {socket}, to root"
    );
    Problem::new(StatusCode::NOT_FOUND, detail)
}

async fn not_allowed(method: Method, uri: Uri) -> Response {
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes GET, not {method}", uri.path()));
    ([(header::ALLOW, "GET, HEAD")], problem).into_response()
}
