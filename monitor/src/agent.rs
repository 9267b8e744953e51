//! Wiring and the one event loop: rings, ticks and the end meet here, and only here is anything written. Readers are
//! handed immutable snapshots.

use crate::{
    collect::{Collector, cgroup::CgroupFiles, cost::CostMeter, lifecycle},
    config::Config,
    doctor,
    event_log::{DEFAULT_CAPACITY, EventLog},
    kernel::{attach::Loader, support::Support},
    model::{Model, Retention, snapshot::Snapshot},
    output::console::Console,
    sample::Sample,
    serve,
    time::BootTime,
};
use anyhow::{Context, bail};
use std::{sync::Arc, time::Duration};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// This kernel cannot serve any of the sources that were asked for.
#[derive(Debug, thiserror::Error)]
#[error("this kernel can serve none of the sources; `monitor doctor` tells why:\n{0}")]
pub struct Unsupported(String);

/// How often rings are emptied even though none is filling up, so that moments are told in time.
const DRAIN_EVERY: Duration = Duration::from_millis(100);
/// Counters of exited processes are taken in, and their keys freed, after this long, whatever the tick: with the time
/// between two drainings well within a second.
const HARVEST_AFTER: Duration = Duration::from_millis(700);
/// So many exited processes are harvested at once, lest a storm of them fills the maps.
const HARVEST_AT: usize = 1024;
/// How often to look for what began and ended where no records tell.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Attaches, serves, and goes on until it is told to end: by a signal, or after the configured time.
pub async fn run(config: Config, claim: serve::Claim) -> anyhow::Result<()> {
    doctor::check(&config)?;
    keep_memory_small();
    let mut end = End::new(config.run_for)?;
    let since = BootTime::now();
    let support = doctor::examine_fields(&config);
    let mut agent = Agent::attach(&config, &support, since)?;
    drop(support);
    give_back_memory();

    let (snapshots, latest) = watch::channel(Arc::new(agent.begin()));
    let (shutdown, ending) = watch::channel(false);
    let listener = claim.listen()?;
    let state = serve::State { snapshots: latest.clone(), events: agent.events.clone(), doctor: agent.report.clone() };
    let server = tokio::spawn(serve::serve(listener, state, ending.clone()));
    let console = config.console.then(|| {
        let console = Console::new(&config.socket);
        tokio::spawn(show(console, latest, config.console_interval, ending))
    });

    agent.work(&config, &snapshots, &mut end).await;

    shutdown.send_replace(true);
    server.await.context("the server ended badly")?;
    if let Some(console) = console {
        console.await.context("the console ended badly")?;
    }
    Ok(())
}

/// Everything that is written to while the agent runs.
struct Agent {
    collector: Collector,
    cgroups: CgroupFiles,
    model: Model,
    meter: CostMeter,
    events: Arc<EventLog>,
    report: Arc<doctor::Report>,
    lost_before: u64,
    swept: Instant,
}

impl Agent {
    /// Tries every source. An error when none holds.
    fn attach(config: &Config, support: &Support, since: BootTime) -> anyhow::Result<Self> {
        let facts = &support.facts;
        if !facts.missing_capabilities.is_empty() {
            bail!("not enough rights: {} missing; run it as root, as with sudo", facts.missing_capabilities.join(", "));
        }
        let settings = doctor::settings(config);
        let loader = Loader::new(support, &settings);
        let collector = Collector::attach(&loader, |source| doctor::wish(config, source));
        let report = doctor::Report { facts: facts.clone(), sources: collector.coverage() };
        if report.serves_nothing() {
            bail!(Unsupported(report.render(usize::MAX)));
        }
        let retention = Retention { keep: config.exited.keep, limit: config.exited.limit as usize };
        Ok(Self {
            collector,
            cgroups: CgroupFiles::new(facts.cgroup.clone()),
            model: Model::new(since, retention, facts.cgroup.name()),
            meter: CostMeter::default(),
            events: Arc::new(EventLog::new(DEFAULT_CAPACITY)),
            report: Arc::new(report),
            lost_before: 0,
            swept: Instant::now(),
        })
    }

    /// The first snapshot: everything that was there before the agent.
    fn begin(&mut self) -> Snapshot {
        let survey = Sample { time: BootTime::now(), found: lifecycle::survey(&self.cgroups), ..Sample::default() };
        self.model.take(&survey);
        self.tick()
    }

    async fn work(&mut self, config: &Config, snapshots: &watch::Sender<Arc<Snapshot>>, end: &mut End) {
        let (mut drain, mut tick) = (every(DRAIN_EVERY), every(config.tick));
        let sampled = !config.cost.every.is_zero();
        let mut open_window = every(if sampled { config.cost.every } else { Duration::MAX });
        let mut close_window: Option<Instant> = None;
        loop {
            let closing = async {
                match close_window {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end.reached() => return,
                () = self.collector.filling() => self.take_moments(),
                _ = drain.tick() => self.between_ticks(),
                _ = tick.tick() => drop(snapshots.send_replace(Arc::new(self.tick()))),
                _ = open_window.tick(), if sampled => {
                    self.meter.open_window();
                    close_window = Some(Instant::now() + config.cost.window);
                }
                () = closing => {
                    self.meter.close_window();
                    close_window = None;
                }
            }
        }
    }

    fn take_moments(&mut self) {
        let sample = Sample { time: BootTime::now(), moments: self.collector.moments(), ..Sample::default() };
        self.take(sample);
    }

    fn between_ticks(&mut self) {
        self.take_moments();
        self.collector.flush_logs();
        let (waiting, since) = self.model.awaiting_harvest();
        if waiting >= HARVEST_AT || since.is_some_and(|since| BootTime::now().since(since) >= HARVEST_AFTER) {
            let sample = self.read();
            self.take(sample);
        }
    }

    fn tick(&mut self) -> Snapshot {
        let mut sample = self.read();
        let coverage = self.collector.coverage();
        let lost = coverage.lost(crate::source::Source::Lifecycle);
        let unrecorded = !coverage.is_live(crate::source::Source::Lifecycle);
        if lost > self.lost_before || (unrecorded && self.swept.elapsed() >= SWEEP_EVERY) {
            self.lost_before = lost;
            self.swept = Instant::now();
            sample.found = lifecycle::sweep(&self.model, &self.cgroups);
        }
        sample.coverage = Arc::new(coverage);
        sample.cost = Arc::new(self.meter.read(&self.collector, sample.time));
        let sample = self.take(sample);
        self.model.snapshot(&sample)
    }

    /// Reads counters first and records second: whoever is in the counters was born, and recorded, before.
    fn read(&mut self) -> Sample {
        let time = BootTime::now();
        let counters = Some(self.collector.counters());
        Sample { time, counters, moments: self.collector.moments(), ..Sample::default() }
    }

    /// Looks up what nobody knows, takes the sample in, tells its events, and lets the kernel forget what has ended.
    fn take(&mut self, mut sample: Sample) -> Sample {
        sample.found.extend(lifecycle::look_up(&self.model.unknown(&sample), &self.cgroups));
        let taken = self.model.take(&sample);
        for event in taken.events {
            self.events.push(event);
        }
        self.collector.forget(&taken.harvest);
        sample
    }
}

/// What ends the agent.
struct End {
    signals: [Signal; 3],
    deadline: Option<Instant>,
}

impl End {
    fn new(run_for: Option<Duration>) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listening for signals");
        Ok(Self {
            signals: [
                listen(SignalKind::interrupt())?,
                listen(SignalKind::terminate())?,
                listen(SignalKind::hangup())?,
            ],
            deadline: run_for.map(|time| Instant::now() + time),
        })
    }

    async fn reached(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        let deadline = async {
            match self.deadline {
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

/// Shows snapshots until the end, or until nobody reads any more.
async fn show(
    mut console: Console,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    interval: Duration,
    mut ending: watch::Receiver<bool>,
) {
    let mut open = console.welcome().is_ok();
    let mut next = every(interval);
    while open {
        tokio::select! {
            _ = ending.wait_for(|end| *end) => return,
            _ = next.tick() => {
                let snapshot = snapshots.borrow().clone();
                open = console.show(&snapshot).is_ok();
            }
        }
    }
}

/// A timer whose first tick is a whole period away, and that leaves out what it missed.
fn every(period: Duration) -> Interval {
    let start = Instant::now().checked_add(period).unwrap_or_else(|| Instant::now() + Duration::from_secs(86400 * 365));
    let mut interval = interval_at(start, period.min(Duration::from_secs(86400 * 365)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}

/// One arena for all threads: the agent's are mostly idle, and arenas only grow.
fn keep_memory_small() {
    // SAFETY: sets a parameter of the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Returns what loading took, above all the kernel's types: tens of megabytes that are not needed again.
fn give_back_memory() {
    // SAFETY: gives free pages back, touches nothing in use.
    unsafe { libc::malloc_trim(0) };
}
