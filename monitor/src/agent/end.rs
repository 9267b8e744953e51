//! What ends the agent, and who is told how it goes.

use crate::{picture::Picture, service};
use anyhow::Context as _;
use std::{sync::Arc, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    time::Instant,
};

/// What ends the agent, and who is told how it goes.
pub(super) enum End {
    /// A signal, or the deadline; the service manager is told.
    Signals([Signal; 3], Option<Instant>),
    /// A companion, who is told once that it is ready.
    Companion(oneshot::Receiver<()>, Option<oneshot::Sender<watch::Receiver<Arc<Picture>>>>),
}

impl End {
    pub(super) fn by_signals(run_for: Option<Duration>) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        let signals =
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        Ok(Self::Signals(signals, run_for.map(|time| Instant::now() + time)))
    }

    pub(super) fn ready(&mut self, pictures: watch::Receiver<Arc<Picture>>) {
        match self {
            Self::Signals(..) => service::ready(),
            // One who has gone has dropped the other end as well.
            Self::Companion(_, ready) => drop(ready.take().map(|ready| ready.send(pictures))),
        }
    }

    pub(super) fn alive_every(&self) -> Option<Duration> {
        if let Self::Signals(..) = self { service::alive_every() } else { None }
    }

    pub(super) fn ending(&self) {
        if let Self::Signals(..) = self {
            service::ending();
        }
    }

    pub(super) async fn reached(&mut self) {
        let ([interrupt, terminate, hangup], deadline) = match self {
            Self::Signals(signals, deadline) => (signals, *deadline),
            Self::Companion(told, _) => {
                let _ = told.await;
                return;
            }
        };
        let deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
            () = deadline => {}
        }
    }
}
