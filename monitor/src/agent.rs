//! Wiring and the one event loop: rings, ticks and the end meet here, and only here is anything written. Readers are
//! handed immutable snapshots.

mod end;
mod show;

#[cfg(feature = "cri")]
use crate::collect::cri;
use crate::{
    advise::{
        Sizes,
        advisor::{self, Advice, Advisor},
    },
    alert::Alert,
    collect::{
        Collector,
        cgroup::CgroupFiles,
        container::{self, ContainerNames},
        cost::CostMeter,
        descriptors::{self, Budget, Reserve, Want},
        gpu::GpuReader,
        lifecycle,
        node::{Node, Polled},
    },
    config::Config,
    doctor,
    event::{Event, Kind},
    event_log::{DEFAULT_CAPACITY, EventLog},
    footprint,
    history::{
        Identity, Limits, Origin, Recorder,
        pages::{self, Pages},
    },
    ids::{ProcessKey, Tgid},
    kernel::{attach::Loader, support::Support},
    learned::LearnedFile,
    mark::Told,
    model::{Model, Retention, snapshot::Snapshot},
    notify::{self, Sinks},
    output::{console::Console, timeseries::TimeSeries},
    picture::{Judges, Picture},
    privileges,
    sample::Sample,
    serve, service,
    source::Source,
    time::BootTime,
};
use anyhow::Context;
use end::End;
use show::show;
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};

/// How often rings are emptied even though none is filling up, so that moments are told in time. To wake up costs more than
/// there mostly is to do.
const DRAIN_EVERY: Duration = Duration::from_millis(250);
/// Counters of exited processes are taken in, and their keys freed, after this long, whatever the tick: with the time
/// between two drainings well within a second.
const HARVEST_AFTER: Duration = Duration::from_millis(700);
/// So many exited processes are harvested at once, lest a storm of them fills the maps.
const HARVEST_AT: usize = 1024;
/// Time between two questions whether records of life were lost.
const LOSSES_EVERY: Duration = Duration::from_millis(500);
/// A sweep after a loss is done once more after this long: what was just ending at the first one has ended by then.
const SWEEP_AGAIN: Duration = Duration::from_secs(1);
/// How long the console may take to end.
const CONSOLE_ENDS_WITHIN: Duration = Duration::from_millis(500);
/// How often to look for what began and ended where no records tell.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// Where clients will find the agent.
#[derive(Debug)]
pub struct Claims {
    /// The socket where everything is told.
    pub node: serve::Claim,
    /// The one where everybody asks about its own process tree, if there is to be one.
    pub workloads: Option<serve::Claim>,
}

/// Somebody in this process who reads along, and ends the agent, which leaves signals and the service manager to them.
#[derive(Debug)]
pub struct Companion {
    /// Is handed the pictures once everything is attached and the sockets answer.
    pub ready: oneshot::Sender<watch::Receiver<Arc<Picture>>>,
    /// Ends the agent when it is sent to, or dropped. All that happened until then is in the last picture.
    pub end: oneshot::Receiver<()>,
}

/// Attaches, serves, and goes on until it is told to end: by a signal, or after the configured time. Clients are answered by
/// `servers`, so that none of them keeps the agent from counting.
pub async fn run(config: Config, claims: Claims, servers: &Handle) -> anyhow::Result<()> {
    let end = End::by_signals(config.run_for)?;
    run_until(end, config, claims, servers).await
}

/// As [`run`], until the companion ends it.
pub async fn run_beside(companion: Companion, config: Config, claims: Claims, servers: &Handle) -> anyhow::Result<()> {
    run_until(End::Companion(companion.end, Some(companion.ready)), config, claims, servers).await
}

async fn run_until(mut end: End, config: Config, claims: Claims, servers: &Handle) -> anyhow::Result<()> {
    doctor::check(&config)?;
    notify::check(&config)?;
    advisor::check(&config.advice)?;
    container::check(&config.containers)?;
    footprint::keep_small();
    footprint::lift_lock_limit();
    descriptors::raise_limit();
    let scraped = config.metrics.listen.map(serve::Loopback::bind).transpose()?;
    let since = BootTime::now();
    let support = doctor::examine_fields(&config)?;
    let mut agent = Agent::attach(&config, &support, since)?;
    drop(support);
    if config.drop_capabilities {
        privileges::keep_needed().context("cannot lay down capabilities")?;
    }
    footprint::give_back();
    agent.learned = LearnedFile::open(&config, &mut agent.judges.alerts)?;
    agent.pages = keep_histories(&config, &agent.judges.advisor)?;
    // Their threads have the capabilities that this one has by now.
    let sinks = Sinks::start(&config)?;

    #[cfg(feature = "cri")]
    if let Some(socket) = &config.containers.cri {
        agent.containers.also_ask(cri::start(socket, servers));
    }

    let snapshot = Arc::new(agent.begin());
    let (pictures, latest) = watch::channel(Arc::new(agent.judges.first(snapshot)));
    let (shutdown, ending) = watch::channel(false);
    let (listener, for_workloads) = {
        let _waited_for_there = servers.enter();
        (claims.node.listen()?, claims.workloads.map(serve::Claim::listen).transpose()?)
    };
    let state = serve::State {
        pictures: latest.clone(),
        sinks: sinks.status().into(),
        events: agent.events.clone(),
        doctor: agent.report.clone(),
        recording: agent.recorder.as_ref().map(Recorder::status),
        metrics_top: config.metrics.top as usize,
        inboxes: agent.inboxes.clone(),
        socket: config.socket.as_path().into(),
        tick: config.tick,
    };
    let workloads = for_workloads.map(|listener| {
        let state = serve::State { inboxes: agent.workload_inboxes.clone(), ..state.clone() };
        servers.spawn(serve::serve(listener, state, ending.clone()))
    });
    let metrics = scraped.map(|loopback| servers.spawn(serve::serve_metrics(loopback, state.clone(), ending.clone())));
    let server = servers.spawn(serve::serve(listener, state, ending.clone()));
    let consoles = if config.console { Console::all(&config) } else { Vec::new() };
    if let Some(console) = consoles.first() {
        // Where nobody reads it, the consoles find out themselves.
        let _ = console.welcome();
    }
    let consoles: Vec<_> =
        consoles.into_iter().map(|console| servers.spawn(show(console, latest.clone(), ending.clone()))).collect();

    end.ready(latest);
    let published = Published { pictures, sinks: &sinks, servers };
    agent.work(&config, &published, &mut end).await;
    drop(published);
    end.ending();

    shutdown.send_replace(true);
    sinks.finish();
    if let Some(file) = agent.learned.take() {
        file.finish(&agent.judges.alerts);
    }
    if let Some(pages) = agent.pages.take() {
        pages.finish();
    }
    if let Some(recorder) = agent.recorder.take() {
        recorder.finish();
    }
    if let Some(timeseries) = agent.timeseries.take() {
        timeseries.finish();
    }
    server.await.context("the server ended badly")?;
    if let Some(workloads) = workloads {
        workloads.await.context("the server for workloads ended badly")?;
    }
    if let Some(metrics) = metrics {
        metrics.await.context("the server of metrics ended badly")?;
    }
    for console in consoles {
        // It may be stuck in a terminal that was stopped, or a pipe that nobody empties: that must not keep the agent.
        drop(tokio::time::timeout(CONSOLE_ENDS_WITHIN, console).await);
    }
    Ok(())
}

/// Everything that is written to while the agent runs.
struct Agent {
    collector: Collector,
    cgroups: CgroupFiles,
    node: Node,
    containers: ContainerNames,
    model: Model,
    meter: CostMeter,
    gpus: GpuReader,
    events: Arc<EventLog>,
    recorder: Option<Recorder>,
    timeseries: Option<TimeSeries>,
    /// Of what clients post, that of each socket.
    inboxes: serve::Inboxes,
    workload_inboxes: serve::Inboxes,
    judges: Judges,
    learned: Option<LearnedFile>,
    /// Where histories of working sets are kept.
    pages: Option<Pages>,
    report: Arc<doctor::Report>,
    lost_before: u64,
    /// When to ask what was lost: each program answers by a system call.
    losses_at: Instant,
    /// When to compare the model with /proc and cgroupfs; none while records tell everything.
    sweep_at: Option<Instant>,
    want: Want,
}

/// Where readers find what is new.
struct Published<'a> {
    pictures: watch::Sender<Arc<Picture>>,
    sinks: &'a Sinks,
    servers: &'a Handle,
}

impl Agent {
    /// Tries every source.
    fn attach(config: &Config, support: &Support, since: BootTime) -> anyhow::Result<Self> {
        let facts = &support.facts;
        let settings = doctor::settings(config);
        let loader = Loader::new(support, &settings);
        let reserve = Reserve::take();
        let collector = Collector::attach(&loader, |source| doctor::wish(config, source));
        let report = doctor::Report { facts: facts.clone(), sources: collector.coverage(), gpu: None };
        if report.serves_nothing() {
            // Processes and cgroups still have names, and clients are told what is missing and why.
            log::error!("this kernel can serve none of the sources, so nothing is counted; `monitor doctor` tells why");
        }
        if let Err(reason) = &facts.pressure {
            log::warn!("stalls for memory, disks and processors (PSI) are not told: {reason}");
        }
        drop(reserve);
        let polled = Polled { cpu: config.cpu_monitoring, memory: config.memory_monitoring, io: config.io_monitoring };
        let (meter, recorder, timeseries) =
            (CostMeter::default(), start_recorder(config, &report)?, start_timeseries(config)?);
        let inboxes = serve::Inboxes::default();
        let retention = Retention { keep: config.exited.keep, limit: config.exited.limit as usize };
        Ok(Self {
            collector,
            cgroups: CgroupFiles::new(facts.cgroup.clone()),
            containers: ContainerNames::new(config.containers.clone()),
            // After all that is opened for good.
            node: Node::new(polled, &facts.cgroup, &Budget::of_process()),
            model: Model::new(since, retention, facts.cgroup.name(), config.entry_points.clone())
                .of_agent(Tgid(std::process::id())),
            meter,
            gpus: GpuReader::new(config),
            events: Arc::new(EventLog::new(DEFAULT_CAPACITY)),
            recorder,
            timeseries,
            workload_inboxes: inboxes.beside(),
            inboxes,
            judges: Judges::new(config)?,
            pages: None,
            learned: None,
            report: Arc::new(report),
            lost_before: 0,
            losses_at: Instant::now(),
            sweep_at: None,
            want: Want::default(),
        })
    }

    /// The first snapshot: everything that was there before the agent. A recording begins after it was named.
    fn begin(&mut self) -> Snapshot {
        let time = BootTime::now();
        let lifecycle::Survey { found, wants } = lifecycle::survey(&self.cgroups);
        self.sweep_at = wants.then(|| Instant::now() + SWEEP_EVERY);
        self.model.take(&Sample { time, found, ..Sample::default() });
        self.tick().0
    }

    async fn work(&mut self, config: &Config, published: &Published<'_>, end: &mut End) {
        let (mut drain, mut tick) = (every(DRAIN_EVERY), every(config.tick));
        let sampled = !config.cost.every.is_zero();
        let mut open_window = every(if sampled { config.cost.every } else { Duration::MAX });
        let mut close_window: Option<Instant> = None;
        let alive_every = end.alive_every();
        let mut say_alive = every(alive_every.unwrap_or(Duration::MAX));
        loop {
            let closing = async {
                match close_window {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = end.reached() => {
                    // What happened until now is still told.
                    [&self.inboxes, &self.workload_inboxes].into_iter().for_each(serve::Inboxes::close);
                    self.publish(published);
                    return;
                }
                () = self.collector.filling() => self.take_moments(),
                _ = drain.tick() => self.between_ticks(),
                _ = tick.tick() => self.publish(published),
                _ = say_alive.tick(), if alive_every.is_some() => service::alive(),
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
        let sample = self.read_moments(BootTime::now());
        if !sample.moments.is_empty() || !sample.tallies.is_empty() {
            self.take(sample);
        }
    }

    /// What waits of what was posted at both sockets, in the order in which it came.
    fn waiting<T>(&self, take: impl Fn(&serve::Inboxes) -> Vec<T>, time: impl Fn(&T) -> BootTime) -> Vec<T> {
        let mut all = take(&self.inboxes);
        all.append(&mut take(&self.workload_inboxes));
        all.sort_by_key(time);
        all
    }

    fn between_ticks(&mut self) {
        self.take_moments();
        self.collector.flush_logs();
        self.sweep_if_due();
        self.want.tell(std::time::Instant::now());
        let (waiting, since) = self.model.awaiting_harvest();
        if waiting >= HARVEST_AT || since.is_some_and(|since| BootTime::now().since(since) >= HARVEST_AFTER) {
            let sample = self.read();
            self.take(sample);
        }
    }

    fn publish(&mut self, published: &Published<'_>) {
        let (snapshot, resets) = self.tick();
        let snapshot = Arc::new(snapshot);
        if let Some(timeseries) = &mut self.timeseries {
            timeseries.take(&snapshot);
        }
        let time = snapshot.time;
        let (picture, news) = self.judges.take(snapshot, time.wall(), &resets);
        let picture = Arc::new(picture);
        if let Some(file) = &mut self.learned {
            file.keep(&self.judges.alerts, published.servers);
        }
        published.sinks.tell(&news.alerts);
        published.sinks.keep(&news.stories);
        news.alerts.iter().for_each(|alert| self.events.push(told(alert, time)));
        if let Some((pages, page)) = self.pages.as_ref().zip(news.page) {
            pages.hand(page);
        }
        if picture.advisor.is_due() {
            let (picture, events) = (Arc::clone(&picture), Arc::clone(&self.events));
            // It takes its time: as much as there is history.
            published.servers.spawn_blocking(move || tell_advice(&picture, &events));
        }
        published.pictures.send_replace(picture);
    }

    /// The snapshot of this tick, and the trees whose detectors begin anew with it.
    fn tick(&mut self) -> (Snapshot, Vec<ProcessKey>) {
        if let Some(recorder) = &mut self.recorder {
            recorder.begin_chapter_if_due(&self.model);
        }
        let sample = self.read();
        let time = sample.time;
        self.take(sample);
        for Told { by, mark, .. } in self.waiting(|inboxes| inboxes.marks.take(), |told| told.time) {
            self.take(Sample { time, mark: Some(mark), marked: by, ..Sample::default() });
        }
        let polled = Sample {
            time,
            // Only now is it known who is there, and what of it moved.
            readings: self.node.read(&self.model, time),
            gpus: Some(self.gpus.read(time)),
            coverage: Arc::new(self.collector.coverage()),
            cost: Arc::new(self.meter.read(&self.collector, time)),
            resets: self.inboxes.resets.take(),
            ..Sample::default()
        };
        let sample = self.take(polled);
        if let Some(recorder) = &mut self.recorder {
            recorder.snapshot(time);
        }
        (self.model.snapshot(&sample), sample.resets.clone())
    }

    /// Looks for what began and ended without a record: at once and once more after records were lost, and now and then
    /// where there are none.
    fn sweep_if_due(&mut self) {
        let now = Instant::now();
        if now < self.losses_at {
            return;
        }
        self.losses_at = now + LOSSES_EVERY;
        let lost = self.collector.lost(Source::Lifecycle);
        let lost_more = lost.is_some_and(|lost| lost > self.lost_before);
        let due = self.sweep_at.map_or(lost.is_none(), |at| now >= at);
        if !lost_more && !due {
            return;
        }
        self.lost_before = lost.unwrap_or_default();
        self.sweep_at = match lost {
            Some(_) if lost_more => Some(now + SWEEP_AGAIN),
            Some(_) => None,
            None => Some(now + SWEEP_EVERY),
        };
        let lifecycle::Survey { found, wants } =
            lifecycle::sweep(self.model.running(), self.model.present_cgroups(), &self.cgroups);
        if wants {
            self.sweep_at = Some(now + SWEEP_EVERY);
        }
        self.take(Sample { time: BootTime::now(), found, ..Sample::default() });
    }

    /// Reads counters first and records second: whoever is in the counters was born, and recorded, before.
    fn read(&mut self) -> Sample {
        let time = BootTime::now();
        let counters = Some(self.collector.counters());
        Sample { counters, ..self.read_moments(time) }
    }

    fn read_moments(&mut self, time: BootTime) -> Sample {
        let tallies = self.waiting(|inboxes| inboxes.tallies.take(), |tally| tally.time);
        Sample { time, moments: self.collector.moments(), tallies, ..Sample::default() }
    }

    /// Looks up what nobody knows, takes the sample in, records it, tells its events, and lets the kernel forget what has
    /// ended.
    fn take(&mut self, mut sample: Sample) -> Arc<Sample> {
        let unknown = self.model.unknown(&sample);
        sample.found.extend(lifecycle::look_up(&unknown, &self.cgroups));
        sample.found.containers.extend(self.containers.find(&unknown.containers));
        let sample = Arc::new(sample);
        if let Some(recorder) = &mut self.recorder {
            recorder.sample(&sample);
        }
        let taken = self.model.take(&sample);
        for event in taken.events {
            self.events.push(event);
        }
        let mut harvest = taken.harvest;
        match self.collector.forget(&mut harvest) {
            Ok(()) => {
                self.model.forget(&harvest);
                if let Some(recorder) = &mut self.recorder {
                    recorder.forgot(harvest);
                }
            }
            Err(error) => log::warn!("deleting counters of exited processes: {error}"),
        }
        sample
    }
}

/// Starts to record, where the configuration says so.
fn start_recorder(config: &Config, report: &doctor::Report) -> anyhow::Result<Option<Recorder>> {
    let Some(path) = &config.record.path else { return Ok(None) };
    let tell = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
    let origin = Origin {
        agent: Identity::own(),
        host: tell("/proc/sys/kernel/hostname"),
        kernel_release: tell("/proc/sys/kernel/osrelease"),
        boot_id: tell("/proc/sys/kernel/random/boot_id"),
        tick: config.tick,
        doctor: serde_json::to_string(report).context("the doctor's report cannot be written as JSON")?,
    };
    let limits = Limits { max_bytes: config.record.max_bytes, keep: config.record.keep };
    Ok(Some(Recorder::start(Path::new(path), limits, origin)?))
}

/// Hands on what is in the directory of histories, and begins to write there, where the configuration says so.
fn keep_histories(config: &Config, advisor: &Advisor) -> anyhow::Result<Option<Pages>> {
    let Some(directory) = config.advice.directory.as_ref().filter(|_| config.advice.enabled) else { return Ok(None) };
    let directory = Path::new(directory);
    let told = || format!("advice.directory: cannot keep histories in {}", directory.display());
    let remarks = pages::read(directory, |page, names| advisor.remember(page, names)).with_context(told)?;
    remarks.iter().for_each(|remark| log::warn!("advice.directory: {remark}"));
    let limits = Limits { max_bytes: config.advice.max_bytes, keep: config.advice.window };
    Ok(Some(Pages::start(directory, limits).with_context(told)?))
}

/// Starts to write CSV, where the configuration says so.
fn start_timeseries(config: &Config) -> anyhow::Result<Option<TimeSeries>> {
    let path = &config.timeseries_path;
    let start = || {
        TimeSeries::start(path, config.csv)
            .with_context(|| format!("cannot write CSV files to {}: name another directory by --csv", path.display()))
    };
    config.export_timeseries.then(start).transpose()
}

/// The event that an alert, or its end, is told as.
fn told(alert: &Alert, time_ns: BootTime) -> Event {
    let (rule, state, severity) = (alert.rule.name(), alert.state.name(), alert.severity.name());
    let (subject, summary) = (alert.subject.name(), alert.summary.clone());
    Event { time_ns, kind: Kind::Alert { rule, state, severity, subject, summary } }
}

/// Tells whose recommendations have changed.
fn tell_advice(picture: &Picture, events: &EventLog) {
    for Advice { subject, recommended, rationale, .. } in picture.advisor.changes(&picture.snapshot, &picture.findings)
    {
        let Sizes { request_bytes, limit_bytes } = recommended;
        let (policy, subject) = (picture.advisor.policy().name(), subject.to_string());
        let kind = Kind::Recommendation { policy, subject, request_bytes, limit_bytes, rationale };
        events.push(Event { time_ns: picture.snapshot.time, kind });
    }
}

/// A timer whose first tick is a whole period away, and that leaves out what it missed.
fn every(period: Duration) -> Interval {
    let start = Instant::now().checked_add(period).unwrap_or_else(|| Instant::now() + Duration::from_secs(86400 * 365));
    let mut interval = interval_at(start, period.min(Duration::from_secs(86400 * 365)));
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    interval
}
