//! Connections: accepted, admitted or refused, served, and drained at the end.

use super::{
    Inboxes, Listener, Loopback,
    access::{Caller, Scope},
    events::ended,
    problem::Problem,
    routes::{self, Origin, Shared},
};
use crate::{alert::SinkStatus, collect::descriptors, doctor, event_log::EventLog, history, picture::Picture};
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    http::StatusCode,
};
use futures_util::StreamExt as _;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{io, mem, path::Path, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

/// For those who may read everything, and for metrics.
const TRUSTED: Limits = Limits { connections: 64, refusals: 16, guard: None };
/// For workloads, which anybody may be: places of their own, so that those of the others stay free.
const UNTRUSTED: Limits = Limits {
    connections: 32,
    refusals: 8,
    guard: Some(Guard { lifetime: Duration::from_secs(30), every: Duration::from_millis(5), burst: 200 }),
};
/// A client must have sent a request's head this long after it connected, or after the answer before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// So much is read at most of what is refused anyway.
const HEARD_BYTES: usize = 16 << 10;
/// How long answers may take to end once the agent ends.
const DRAIN: Duration = Duration::from_secs(2);
/// How long to wait when nothing can be accepted, as without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long who asks about itself waits for the snapshot that tells of it: two ticks, but no less and no more than this.
const PATIENCE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// How much of the server those who come by one door may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at once.
    connections: usize,
    /// Further ones that are told so at once; those beyond are closed without a word.
    refusals: usize,
    /// Holds where not everybody means well. Connections then serve one request each.
    guard: Option<Guard>,
}

/// What keeps clients from taking all of the agent's time.
#[derive(Clone, Copy, Debug)]
struct Guard {
    /// A connection is cut after this long, whatever it does: some would never read their answer.
    lifetime: Duration,
    /// Connections are accepted this often, all clients together; further ones wait in the kernel's queue.
    every: Duration,
    /// So many may come at once after a pause.
    burst: u32,
}

/// When the next connection may be accepted.
#[derive(Clone, Copy, Debug)]
struct Pace {
    guard: Option<Guard>,
    earliest: Instant,
}

/// What is served.
#[derive(Clone)]
pub struct State {
    /// All that is known after the last tick.
    pub pictures: watch::Receiver<Arc<Picture>>,
    /// Who is told of alerts.
    pub sinks: Arc<[Arc<SinkStatus>]>,
    /// The moments.
    pub events: Arc<EventLog>,
    /// What the host offers and how it was used.
    pub doctor: Arc<doctor::Report>,
    /// The recording that is being made, where one is.
    pub recording: Option<Arc<history::Status>>,
    /// So many of each kind have metrics of their own.
    pub metrics_top: usize,
    /// Where what clients post goes.
    pub inboxes: Inboxes,
    /// The socket where everything is told.
    pub socket: Arc<Path>,
    /// Time from one snapshot to the next.
    pub tick: Duration,
}

/// Where clients come in.
trait Door: Send + Sync {
    /// A connection with one.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// What holds for all of them.
    fn limits(&self) -> Limits;
    /// The next who comes.
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// Who connected, where that can be told, if they may read.
    fn admit(&self, stream: &Self::Stream) -> Result<Option<Caller>, Problem>;
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
        let Self { pictures, sinks, events, recording, metrics_top, inboxes, socket, tick, .. } = self;
        let (doctor, origin) = (Bytes::from(doctor), Origin::Live { recording, inboxes });
        let [least, most] = PATIENCE;
        let patience = (2 * tick).clamp(least, most);
        let shutdown = shutdown.clone();
        Shared { pictures, sinks, events, doctor, origin, metrics_top, socket, patience, shutdown }
    }
}

pub(super) async fn run(listener: Listener, shared: Shared, shutdown: watch::Receiver<bool>) {
    let router = match listener.access.scope() {
        Scope::Node => routes::router(shared),
        Scope::OwnTree => routes::workload_router(shared),
    };
    admit_all(listener, router, shutdown).await;
}

async fn admit_all<D: Door>(door: D, router: Router, mut shutdown: watch::Receiver<bool>) {
    let limits = door.limits();
    let (places, refusals) = (Semaphore::new(limits.connections), Semaphore::new(limits.refusals));
    let (places, refusals) = (Arc::new(places), Arc::new(refusals));
    let (mut pace, mut connections) = (Pace::new(limits.guard), JoinSet::new());
    let mut refusing = false;
    loop {
        tokio::select! {
            () = ended(&mut shutdown) => break,
            Some(_) = connections.join_next() => {}
            accepted = pace.next(&door) => match accepted {
                Ok(stream) => {
                    pace.accepted(Instant::now());
                    if mem::take(&mut refusing) {
                        log::info!("connections are accepted again");
                    }
                    let admitted = door.admit(&stream);
                    let (place, admitted) = match Arc::clone(&places).try_acquire_owned() {
                        Ok(place) => (Ok(place), admitted),
                        Err(_) => (Arc::clone(&refusals).try_acquire_owned(), admitted.and(Err(crowded(limits)))),
                    };
                    if let Ok(place) = place {
                        let router = admitted.map(|caller| match caller {
                            Some(caller) => router.clone().layer(Extension(caller)),
                            None => router.clone(),
                        });
                        connections.spawn(connection(stream, router, limits.guard, place, shutdown.clone()));
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
    guard: Option<Guard>,
    _place: OwnedSemaphorePermit,
    mut shutdown: watch::Receiver<bool>,
) {
    let may_go_on = router.is_ok() && guard.is_none();
    let router =
        router.unwrap_or_else(|problem| Router::new().fallback(async |body: Body| refuse(body, problem).await));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(may_go_on)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = pin!(serving);
    let over = async {
        match guard {
            Some(guard) => sleep(guard.lifetime).await,
            None => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = over => Ok(()),
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

/// Tells why not, once all was said: who still writes to a connection that was closed does not get to read.
async fn refuse(body: Body, problem: Problem) -> Problem {
    let mut pieces = body.into_data_stream();
    let heard = async {
        let mut bytes = 0;
        while let Some(Ok(piece)) = pieces.next().await
            && bytes < HEARD_BYTES
        {
            bytes += piece.len();
        }
    };
    let _ = timeout(HEAD_TIMEOUT, heard).await;
    problem
}

impl Door for Listener {
    type Stream = UnixStream;

    fn limits(&self) -> Limits {
        match self.access.scope() {
            Scope::Node => TRUSTED,
            Scope::OwnTree => UNTRUSTED,
        }
    }

    async fn next(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept().await?.0)
    }

    fn admit(&self, stream: &UnixStream) -> Result<Option<Caller>, Problem> {
        self.access.admit(stream).map(Some)
    }
}

/// It listens on the loopback interface only: everybody who comes is on this machine.
impl Door for TcpListener {
    type Stream = TcpStream;

    fn limits(&self) -> Limits {
        TRUSTED
    }

    async fn next(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }

    fn admit(&self, _stream: &TcpStream) -> Result<Option<Caller>, Problem> {
        Ok(None)
    }
}

impl Pace {
    fn new(guard: Option<Guard>) -> Self {
        Self { guard, earliest: Instant::now() }
    }

    /// The next who comes, not before its time.
    async fn next<D: Door>(&self, door: &D) -> io::Result<D::Stream> {
        if self.guard.is_some() {
            sleep_until(self.earliest).await;
        }
        door.next().await
    }

    /// One came: what was not used of the past counts for as many as may come at once.
    fn accepted(&mut self, now: Instant) {
        if let Some(Guard { every, burst, .. }) = self.guard {
            let unused = now.checked_sub(every * burst).unwrap_or(now);
            self.earliest = self.earliest.max(unused) + every;
        }
    }
}

/// Why a client is turned away that may read.
fn crowded(limits: Limits) -> Problem {
    let detail = format!("{} connections are open already: close one, or try again", limits.connections);
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_burst_connections_keep_their_pace() {
        let guard = Guard { lifetime: Duration::ZERO, every: Duration::from_millis(5), burst: 4 };
        let mut pace = Pace::new(Some(guard));
        let begin = pace.earliest + Duration::from_secs(1);
        let waits: Vec<_> = (0..6)
            .map(|_| {
                let wait = pace.earliest.saturating_duration_since(begin).as_millis();
                pace.accepted(begin);
                wait
            })
            .collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 5]);
        let mut free = Pace::new(None);
        let before = free.earliest;
        free.accepted(begin);
        assert_eq!(free.earliest, before);
    }
}
