//! Connections: accepted, admitted or refused, served, and drained at the end.

use super::{
    Listener,
    access::{Access, Peer},
    events::ended,
    problem::Problem,
    routes::{self, Origin, PeerPid, Shared},
};
use crate::{doctor, event_log::EventLog, history, ids::Tgid, mark::Mark, model::snapshot::Snapshot};
use axum::{Extension, Router, body::Bytes, http::StatusCode};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    net::UnixStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at once.
const CONNECTIONS: usize = 64;
/// Further ones that are told so at once; those beyond are closed without a word.
const REFUSALS: usize = 16;
/// A client must have sent a request's head this long after it connected, or after the answer before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long answers may take to end once the agent ends.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to wait when nothing can be accepted, as without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served.
#[derive(Clone)]
pub struct State {
    /// The latest snapshot.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The moments.
    pub events: Arc<EventLog>,
    /// What the host offers and how it was used.
    pub doctor: Arc<doctor::Report>,
    /// The recording that is being made, where one is.
    pub recording: Option<Arc<history::Status>>,
    /// Where marks go.
    pub marks: mpsc::Sender<Mark>,
}

/// Serves until `shutdown` says true or its sender has gone, then lets running answers end, at most 2 s.
pub async fn serve(listener: Listener, state: State, shutdown: watch::Receiver<bool>) {
    let doctor = serde_json::to_vec(&*state.doctor).unwrap_or_else(|error| {
        log::error!("the doctor's report cannot be written as JSON: {error}");
        b"{}".to_vec()
    });
    let State { snapshots, events, recording, marks, .. } = state;
    let origin = Origin::Live { recording, marks };
    let shared = Shared { snapshots, events, doctor: Bytes::from(doctor), origin, shutdown: shutdown.clone() };
    run(listener, shared, shutdown).await;
}

pub(super) async fn run(listener: Listener, shared: Shared, mut shutdown: watch::Receiver<bool>) {
    let router = routes::router(shared);
    let (places, refusals) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(REFUSALS)));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = ended(&mut shutdown) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.socket.accept() => match accepted {
                Ok((stream, _)) => {
                    let admitted = admit(&stream, listener.access);
                    let (place, admitted) = match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => (Ok(place), admitted),
                        Err(_) => (Arc::clone(&refusals).try_acquire_owned(), admitted.and(Err(crowded()))),
                    };
                    if let Ok(place) = place {
                        let router = admitted.map(|peer| router.clone().layer(Extension(PeerPid(Tgid(peer.pid)))));
                        connections.spawn(connection(stream, router, place, shutdown.clone()));
                    }
                }
                Err(error) => pause(&error).await,
            },
        }
    }
    // Nobody new can come from here on: the socket's file goes first.
    drop(listener);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        log::debug!("{} connections had to be cut", connections.len());
        connections.shutdown().await;
    }
}

/// Serves one client's requests, or tells it once why not.
async fn connection(
    stream: UnixStream,
    router: Result<Router, Problem>,
    _place: OwnedSemaphorePermit,
    mut shutdown: watch::Receiver<bool>,
) {
    let is_served = router.is_ok();
    let router = router.unwrap_or_else(|problem| Router::new().fallback(|| async { problem }));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(is_served)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = ended(&mut shutdown) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        // Clients that go in the middle of an answer, or never ask, are no concern of the operator's.
        log::debug!("a connection ended early: {error}");
    }
}

/// Who connected, if they may read.
fn admit(stream: &UnixStream, access: Access) -> Result<Peer, Problem> {
    let forbidden = |detail| Err(Problem::new(StatusCode::FORBIDDEN, detail));
    match Peer::of(stream) {
        Ok(peer) if access.allows(&peer) => Ok(peer),
        Ok(Peer { pid, uid, .. }) => forbidden(format!(
            "user {uid} (pid {pid}) may not read: be root, or join the group that socket_group names"
        )),
        Err(error) => forbidden(format!("the kernel does not tell who connected: {error}")),
    }
}

/// Why a client is turned away that may read.
fn crowded() -> Problem {
    let detail = format!("{CONNECTIONS} connections are open already: close one, or try again");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

async fn pause(error: &io::Error) {
    log::warn!("cannot accept a connection: {error}");
    sleep(ACCEPT_PAUSE).await;
}
