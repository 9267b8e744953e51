//! GPUs, read on a thread of their own: a driver may take seconds to answer, or never, and no tick waits for it.
//!
//! The thread lives as long as the driver answers. Where there is none, or it was lost, a new thread tries again after a
//! while; in between there is no thread, and the library is not loaded. Switched off, nothing here runs.

mod nvml;

use crate::{
    config::{Config, Gpu as Settings},
    gpu::{Gpu, GpuReading, GpuStanding},
    time::BootTime,
    units::show_duration,
};
use nvml::{NamesByIndex, Session};
use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// How long the end waits for a driver that is just being asked. One that hangs is left behind: the process ends anyway.
const ENDS_WITHIN: Duration = Duration::from_millis(500);
/// How long `monitor doctor` waits for a first answer: initialising a GPU that nobody uses takes seconds.
const EXAMINED_WITHIN: Duration = Duration::from_secs(10);

/// Keeps the last reading of the GPUs.
pub struct GpuReader {
    readings: watch::Receiver<Arc<GpuReading>>,
    /// The reading that stands for none, until the driver, or its absence, has been seen.
    unanswered: Arc<GpuReading>,
    /// None where it is switched off.
    asking: Option<Asking>,
    log: Log,
}

/// What it takes to ask.
struct Asking {
    settings: Settings,
    publisher: watch::Sender<Arc<GpuReading>>,
    /// A worker's for as long as it runs.
    names: Arc<Mutex<NamesByIndex>>,
    worker: Option<Worker>,
    /// No new worker before this moment.
    next: BootTime,
}

impl GpuReader {
    /// One that asks as the configuration says. It begins with the first call of [`Self::read`].
    pub fn new(config: &Config) -> Self {
        let first = if config.gpu_monitoring {
            GpuReading::Unavailable { reason: "the driver has not answered yet".to_owned() }
        } else {
            GpuReading::Disabled
        };
        let unanswered = Arc::new(first);
        let (publisher, readings) = watch::channel(Arc::clone(&unanswered));
        let settings = config.gpu.clone();
        let asking = config.gpu_monitoring.then(|| Asking {
            settings,
            publisher,
            names: Arc::default(),
            worker: None,
            next: BootTime::default(),
        });
        Self { readings, unanswered, asking, log: Log::default() }
    }

    /// The last reading. Never waits.
    pub fn read(&mut self, now: BootTime) -> Arc<GpuReading> {
        let Some(asking) = &mut self.asking else { return Arc::clone(&self.unanswered) };
        asking.keep_going(now);
        let reading = Arc::clone(&self.readings.borrow());
        if !Arc::ptr_eq(&reading, &self.unanswered) {
            self.log.tell(&reading, now, asking.settings.retry);
        }
        reading
    }

    /// Whether there is nothing more to wait for.
    fn has_answered(&self) -> bool {
        self.asking.is_none() || !Arc::ptr_eq(&self.readings.borrow(), &self.unanswered)
    }
}

/// How GPUs stand on this host, for `monitor doctor`. Waits for the driver, but not for long.
pub fn examine(config: &Config) -> GpuStanding {
    let mut reader = GpuReader::new(config);
    let begin = Instant::now();
    loop {
        let settled = reader.has_answered() || begin.elapsed() > EXAMINED_WITHIN;
        let now = BootTime::now();
        let reading = reader.read(now);
        if settled {
            return reading.standing(now, false);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

impl Asking {
    /// Starts a worker where there is none, but not too often.
    fn keep_going(&mut self, now: BootTime) {
        if self.worker.as_ref().is_some_and(|worker| !worker.has_ended()) || now < self.next {
            return;
        }
        self.worker = None;
        self.next = BootTime(now.0.saturating_add(nanoseconds(self.settings.retry)));
        match Worker::start(self.settings.clone(), self.publisher.clone(), Arc::clone(&self.names)) {
            Ok(worker) => self.worker = Some(worker),
            Err(error) => publish_lost(&self.publisher, format!("no thread can be started to ask the driver: {error}")),
        }
    }
}

/// The thread that asks.
struct Worker {
    /// Nothing is ever sent: it tells the thread to end by being dropped.
    stop: Option<Sender<Infallible>>,
    ended: Receiver<Infallible>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(
        settings: Settings,
        publisher: watch::Sender<Arc<GpuReading>>,
        names: Arc<Mutex<NamesByIndex>>,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (ending, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("gpu".to_owned()).spawn(move || {
            // Dropped last, when the driver has been let go.
            let _ending = ending;
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            ask(&settings, &publisher, &mut names, &stopped);
        })?;
        Ok(Self { stop: Some(stop), ended, thread: Some(thread) })
    }

    fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.ended.recv_timeout(ENDS_WITHIN) == Err(RecvTimeoutError::Disconnected);
        if ended && self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("gpu: the thread that asks the driver panicked");
        }
    }
}

/// Asks until it is told to stop, or the driver is lost, or a GPU has been lost for so long that the driver is to be
/// asked afresh: it forgets a lost GPU only then.
fn ask(
    settings: &Settings,
    publisher: &watch::Sender<Arc<GpuReading>>,
    names: &mut NamesByIndex,
    stopped: &Receiver<Infallible>,
) {
    let mut session = match Session::begin(&settings.library, names) {
        Ok(session) => session,
        Err(reason) => return publish_lost(publisher, reason),
    };
    log::debug!("gpu: driver {}", session.driver_version());
    let mut failing_since: Option<Instant> = None;
    loop {
        let (begin, time) = (Instant::now(), BootTime::now());
        let gpus = match session.read() {
            Ok(gpus) => gpus,
            Err(reason) => return publish_lost(publisher, reason),
        };
        if gpus.iter().all(|gpu| gpu.failure.is_none()) {
            failing_since = None;
        } else if failing_since.get_or_insert(begin).elapsed() >= settings.retry {
            return;
        }
        publisher.send_replace(Arc::new(GpuReading::Live { time, every: settings.interval, gpus }));
        let pause = settings.interval.saturating_sub(begin.elapsed());
        if stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

fn publish_lost(publisher: &watch::Sender<Arc<GpuReading>>, reason: String) {
    publisher.send_replace(Arc::new(GpuReading::Unavailable { reason }));
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Says each change of state once.
#[derive(Default)]
struct Log {
    /// Whether GPUs were live when it last said something; none before it ever did.
    live: Option<bool>,
    /// Whether it said that the driver is slow to answer.
    overdue: bool,
    /// Numbers of the GPUs that it said do not answer.
    failing: BTreeSet<u32>,
}

impl Log {
    fn tell(&mut self, reading: &GpuReading, now: BootTime, retry: Duration) {
        match reading {
            GpuReading::Disabled => {}
            GpuReading::Unavailable { reason } => self.tell_absence(reason, retry),
            GpuReading::Live { gpus, .. } => self.tell_presence(gpus, reading.overdue(now)),
        }
    }

    fn tell_absence(&mut self, reason: &str, retry: Duration) {
        match self.live {
            None => log::info!("gpu: no GPUs are read: {reason}"),
            Some(true) => log::warn!("gpu: lost: {reason}; tried again every {}", show_duration(retry)),
            Some(false) => {}
        }
        *self = Self { live: Some(false), ..Self::default() };
    }

    fn tell_presence(&mut self, gpus: &[Arc<Gpu>], overdue: Option<Duration>) {
        if self.live.replace(true) != Some(true) {
            log::info!("gpu: GPUs read: {}", gpus.len());
        }
        match overdue {
            Some(age) if !self.overdue => log::warn!("gpu: the driver has not answered for {} s", age.as_secs()),
            _ => {}
        }
        self.overdue = overdue.is_some();
        for gpu in gpus {
            match &gpu.failure {
                Some(failure) if self.failing.insert(gpu.index) => {
                    log::warn!("gpu: GPU {} does not answer: {failure}", gpu.index);
                }
                Some(_) => {}
                None => {
                    self.failing.remove(&gpu.index);
                }
            }
        }
    }
}
