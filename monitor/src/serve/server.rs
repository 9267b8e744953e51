//! Connections: accepted, admitted or refused, served, and drained at the end.

use super::{
    Listener, Loopback,
    access::Peer,
    events::ended,
    problem::Problem,
    routes::{self, Origin, PeerPid, Shared},
};
use crate::{
    collect::descriptors, doctor, event_log::EventLog, history, ids::Tgid, mark::Mark, model::snapshot::Snapshot,
};
use axum::{Extension, Router, body::Bytes, http::StatusCode};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{io, mem, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
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
    /// So many of each kind have metrics of their own.
    pub metrics_top: usize,
    /// Where marks go.
    pub marks: mpsc::Sender<Mark>,
}

/// Where clients come in.
trait Door: Send + Sync {
    /// A connection with one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next who comes.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Who connected, where that can be told, if they may read.
    fn admit(&self, stream: &Self::Stream) -> Result<Option<PeerPid>, Problem>;
}

/// Serves until `shutdown` says true or its sender has gone, then lets running answers end, at most 2 s.
pub async fn serve(listener: Listener, state: State, shutdown: watch::Receiver<bool>) {
    run(listener, state.share(&shutdown), shutdown).await;
}

/// As [`serve`], metrics only.
pub async fn serve_metrics(loopback: Loopback, state: State, shutdown: watch::Receiver<bool>) {
    match loopback.into_socket() {
        Ok(socket) => admit_all(socket, routes::metrics_router(state.share(&shutdown)), shutdown).await,
        Err(error) => log::error!("metrics cannot be scraped: {error}"),
    }
}

impl State {
    fn share(self, shutdown: &watch::Receiver<bool>) -> Shared {
        let doctor = serde_json::to_vec(&*self.doctor).unwrap_or_else(|error| {
            log::error!("the doctor's report cannot be written as JSON: {error}");
            b"{}".to_vec()
        });
        let Self { snapshots, events, recording, metrics_top, marks, .. } = self;
        let (doctor, origin) = (Bytes::from(doctor), Origin::Live { recording, marks });
        Shared { snapshots, events, doctor, origin, metrics_top, shutdown: shutdown.clone() }
    }
}

pub(super) async fn run(listener: Listener, shared: Shared, shutdown: watch::Receiver<bool>) {
    admit_all(listener, routes::router(shared), shutdown).await;
}

async fn admit_all<D: Door>(door: D, router: Router, mut shutdown: watch::Receiver<bool>) {
    let (places, refusals) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(REFUSALS)));
    let (mut connections, mut refusing) = (JoinSet::new(), false);
    loop {
        tokio::select! {
            () = ended(&mut shutdown) => break,
            Some(_) = connections.join_next() => {}
            accepted = door.next() => match accepted {
                Ok(stream) => {
                    if mem::take(&mut refusing) {
                        log::info!("connections are accepted again");
                    }
                    let admitted = door.admit(&stream);
                    let (place, admitted) = match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => (Ok(place), admitted),
                        Err(_) => (Arc::clone(&refusals).try_acquire_owned(), admitted.and(Err(crowded()))),
                    };
                    if let Ok(place) = place {
                        let router = admitted.map(|peer| match peer {
                            Some(peer) => router.clone().layer(Extension(peer)),
                            None => router.clone(),
                        });
                        connections.spawn(connection(stream, router, place, shutdown.clone()));
                    }
                }
                // A want of descriptors is counted there, and told once with all others.
                Err(error) if descriptors::is_want(&error) => sleep(ACCEPT_PAUSE).await,
                Err(error) => {
                    if !mem::replace(&mut refusing, true) {
                        log::warn!("cannot accept a connection: {error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Nobody new can come from here on: the socket's file goes first.
    drop(door);
    if timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await.is_err() {
        log::debug!("{} connections had to be cut", connections.len());
        connections.shutdown().await;
    }
}

/// Serves one client's requests, or tells it once why not.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
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

impl Door for Listener {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept().await?.0)
    }

    fn admit(&self, stream: &UnixStream) -> Result<Option<PeerPid>, Problem> {
        let forbidden = |detail| Err(Problem::new(StatusCode::FORBIDDEN, detail));
        match Peer::of(stream) {
            Ok(peer) if self.access.allows(&peer) => Ok(Some(PeerPid(Tgid(peer.pid)))),
            Ok(Peer { pid, uid, .. }) => forbidden(format!(
                "user {uid} (pid {pid}) may not read: be root, or join the group that socket_group names"
            )),
            Err(error) => forbidden(format!("the kernel does not tell who connected: {error}")),
        }
    }
}

/// It listens on the loopback interface only: everybody who comes is on this machine.
impl Door for TcpListener {
    type Stream = TcpStream;

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }

    fn admit(&self, _stream: &TcpStream) -> Result<Option<PeerPid>, Problem> {
        Ok(None)
    }
}

/// Why a client is turned away that may read.
fn crowded() -> Problem {
    let detail = format!("{CONNECTIONS} connections are open already: close one, or try again");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}
