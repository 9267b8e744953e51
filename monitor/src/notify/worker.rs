//! A sink's thread: a bounded queue, tries, pauses, and what was lost.

use super::{Notice, Sink};
use crate::alert::SinkStatus;
use anyhow::Context as _;
use std::{
    fmt,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::Relaxed,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant},
};

/// Alerts that may wait for a sink.
const QUEUE: usize = 256;
/// The first pause after a try that failed; each is twice the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// What could not be told for so long is lost.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// How long the agent's end waits for what is under way.
const END_WITHIN: Duration = Duration::from_secs(1);

/// Why an alert was not told.
#[derive(Debug)]
pub struct Failure {
    /// In one line.
    pub reason: String,
    /// Whether another try may help.
    pub again: bool,
}

impl Failure {
    pub(super) fn later(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), again: true }
    }

    pub(super) fn for_good(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), again: false }
    }
}

/// A sink's thread, from the outside.
#[derive(Debug)]
pub(super) struct Worker {
    queue: SyncSender<Arc<Notice>>,
    ended: Receiver<()>,
    status: Arc<SinkStatus>,
}

impl Worker {
    pub(super) fn start(sink: Box<dyn Sink>) -> anyhow::Result<Self> {
        let name = sink.name();
        let status = Arc::new(SinkStatus::of(name));
        let (queue, waiting) = mpsc::sync_channel(QUEUE);
        let (ending, ended) = mpsc::channel();
        let inner = Inner { sink, waiting, status: Arc::clone(&status) };
        let work = move || {
            inner.work();
            drop(ending);
        };
        let thread = thread::Builder::new().name(format!("alerts-{name}")).spawn(work);
        drop(thread.with_context(|| format!("cannot start a thread for alerts to {name}"))?);
        Ok(Self { queue, ended, status })
    }

    /// Hands an alert on, or counts it as lost where too many wait.
    pub(super) fn hand(&self, notice: &Arc<Notice>) {
        // Before it is taken: the thread counts down.
        self.status.queued.fetch_add(1, Relaxed);
        match self.queue.try_send(Arc::clone(notice)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.status.queued.fetch_sub(1, Relaxed);
                self.status.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    pub(super) fn status(&self) -> Arc<SinkStatus> {
        Arc::clone(&self.status)
    }

    /// Lets the thread end, and waits a moment for it.
    pub(super) fn finish(self) {
        drop(self.queue);
        let _ = self.ended.recv_timeout(END_WITHIN);
        let left = self.status.queued.load(Relaxed);
        if left > 0 {
            log::warn!("alerts to {}: {left} were not told before the end", self.status.name);
        }
    }
}

/// A sink's thread, from the inside.
struct Inner {
    sink: Box<dyn Sink>,
    waiting: Receiver<Arc<Notice>>,
    status: Arc<SinkStatus>,
}

impl Inner {
    fn work(mut self) {
        let mut repeated = Instant::now();
        loop {
            let next = match self.sink.every() {
                Some(every) => self.waiting.recv_timeout(every.saturating_sub(repeated.elapsed())),
                None => self.waiting.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match next {
                Ok(notice) => {
                    self.deliver(&notice);
                    self.status.queued.fetch_sub(1, Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(result) = self.sink.repeat() {
                        self.note(&result);
                    }
                    repeated = Instant::now();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Tells one alert, by as many tries as it takes.
    fn deliver(&mut self, notice: &Notice) {
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        loop {
            let result = self.sink.send(notice);
            self.note(&result);
            match result {
                Ok(()) => {
                    self.status.sent.fetch_add(1, Relaxed);
                    return;
                }
                Err(Failure { again: true, .. }) if begun.elapsed() + pause < GIVE_UP_AFTER => {
                    thread::sleep(pause);
                    pause = (2 * pause).min(LONGEST_PAUSE);
                }
                Err(_) => {
                    self.status.dropped.fetch_add(1, Relaxed);
                    return;
                }
            }
        }
    }

    /// Counts how a try went; the first of failures in a row, and the end of them, are told in the log.
    fn note(&self, result: &Result<(), Failure>) {
        let mut error = self.status.error.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if error.take().is_some() {
                    log::info!("alerts to {} are told again", self.status.name);
                }
            }
            Err(failure) => {
                self.status.failures.fetch_add(1, Relaxed);
                if error.is_none() {
                    log::warn!("alerts to {}: {}", self.status.name, failure.reason);
                }
                *error = Some(failure.reason.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Sender;

    /// Answers as it is told, and says what it was asked to tell.
    struct Scripted {
        answers: Vec<Result<(), Failure>>,
        told: Sender<String>,
        held: Option<Receiver<()>>,
    }

    impl Sink for Scripted {
        fn name(&self) -> &'static str {
            "scripted"
        }

        fn send(&mut self, notice: &Notice) -> Result<(), Failure> {
            if let Some(held) = &self.held {
                let _ = held.recv();
            }
            self.told.send(notice.alert.summary.clone()).unwrap();
            if self.answers.is_empty() { Ok(()) } else { self.answers.remove(0) }
        }
    }

    fn notice() -> Arc<Notice> {
        let [firing, _] = Notice::of_test(&"host".into());
        Arc::new(firing)
    }

    fn numbers(status: &SinkStatus) -> [u64; 4] {
        [&status.sent, &status.failures, &status.dropped, &status.queued].map(|number| number.load(Relaxed))
    }

    #[test]
    fn what_fails_is_tried_again_and_what_is_refused_is_lost_and_counted() {
        let (told, tried) = mpsc::channel();
        let answers = vec![Err(Failure::later("busy")), Ok(()), Err(Failure::for_good("no such channel"))];
        let worker = Worker::start(Box::new(Scripted { answers, told, held: None })).unwrap();
        let status = worker.status();
        (0..3).for_each(|_| worker.hand(&notice()));
        worker.ended.recv_timeout(Duration::ZERO).unwrap_err();
        // Four tries for three of them, one of which comes after a pause.
        (0..4).for_each(|_| drop(tried.recv_timeout(Duration::from_secs(30)).unwrap()));
        worker.finish();
        assert_eq!(numbers(&status), [2, 2, 1, 0]);
        assert_eq!(*status.error.lock().unwrap(), None, "the last try went well");
    }

    #[test]
    fn one_that_hangs_keeps_nobody_waiting_and_what_finds_no_room_is_counted() {
        let ((told, _tried), (release, held)) = (mpsc::channel(), mpsc::channel());
        let worker = Worker::start(Box::new(Scripted { answers: Vec::new(), told, held: Some(held) })).unwrap();
        let status = worker.status();
        (0..QUEUE + 10).for_each(|_| worker.hand(&notice()));
        let [sent, _, dropped, queued] = numbers(&status);
        // One may have been taken from the queue by then.
        assert!(sent == 0 && (9..=10).contains(&dropped), "{sent} sent, {dropped} dropped");
        assert_eq!(dropped + queued, QUEUE as u64 + 10);
        drop(release);
    }
}
