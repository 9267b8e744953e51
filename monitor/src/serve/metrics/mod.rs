//! Metrics: the last snapshot as series, for Prometheus and its kin. Their number is bounded, whatever the machine holds.
//!
//! What is not known has no sample, never 0. Counters have labels of their own for good: what comes and goes by its cost
//! is told in gauges (see [`top`]).

mod devices;
mod openmetrics;
mod top;

pub(super) use openmetrics::Format;

use super::{fields::Number, view::Context};
use crate::{
    alert::{self, Rule, SinkStatus, Standing},
    cost::Cost,
    coverage::{Coverage, Loss},
    detect::Severity,
    model::{snapshot::Snapshot, usage::HostUsage},
    picture::Picture,
    reading::{CpuTimes, HostMemory, Pressures, Stall},
    source::Source,
};
use openmetrics::{Exposition, Kind};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// What of an answer no snapshot tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Teller<'a> {
    /// The agent's version.
    pub(super) version: &'a str,
    /// Whether it does all it should.
    pub(super) is_healthy: bool,
    /// How long it has been counting.
    pub(super) uptime: Duration,
    /// How old the snapshot is.
    pub(super) age: Duration,
    /// Who is told of alerts.
    pub(super) sinks: &'a [Arc<SinkStatus>],
}

/// A picture as text, with series of their own for at most `top` of each kind.
pub(super) fn exposition(picture: &Picture, teller: Teller<'_>, top: usize, format: Format) -> String {
    let snapshot = &*picture.snapshot;
    let (mut to, context) = (Exposition::new(format), Context::of(snapshot));
    agent(&mut to, teller, &snapshot.cost);
    alerts(&mut to, &picture.alerts, teller.sinks);
    sources(&mut to, &snapshot.coverage);
    if let Some(usage) = &snapshot.host_usage {
        host(&mut to, usage);
    }
    counted(&mut to, snapshot, &context);
    let mut left_out = vec![
        ("cgroup", top::cgroups(&mut to, snapshot, &context, top)),
        ("tree", top::trees(&mut to, snapshot, &context, top)),
    ];
    left_out.extend(devices::write(&mut to, snapshot, &context, top));
    let mut family =
        to.family("monitor_left_out", Kind::Gauge, "What has no series of its own, by kind: see metrics.top.");
    for (kind, count) in left_out {
        family.add(&[("kind", kind)], count as u64);
    }
    to.finish()
}

fn agent(to: &mut Exposition, teller: Teller<'_>, cost: &Cost) {
    to.family("monitor_agent", Kind::Info, "The agent.").tell(&[("version", teller.version)]);
    to.gauge(
        "monitor_agent_healthy",
        "Whether all is well: 1 or 0; /v1/health tells why not.",
        u64::from(teller.is_healthy),
    );
    to.gauge("monitor_agent_uptime_seconds", "Time since counting began.", teller.uptime.as_secs_f64());
    to.gauge("monitor_agent_snapshot_age_seconds", "Age of what is told here.", teller.age.as_secs_f64());
    to.counter("monitor_agent_cpu_seconds", "Processor time of the agent, user and system.", cost.cpu_seconds_total);
    to.gauge("monitor_agent_resident_bytes", "Resident memory of the agent.", cost.resident_bytes);
    to.gauge("monitor_agent_map_bytes", "Kernel memory of its maps and rings.", cost.map_bytes);
    let mut runs =
        to.family("monitor_program_measured_runs", Kind::Counter, "Runs of a kernel program that were measured.");
    for program in &cost.programs {
        runs.add(&[("program", &program.name)], program.measured_runs);
    }
    let mut seconds = to.family("monitor_program_measured_seconds", Kind::Counter, "Time that these runs took.");
    for program in &cost.programs {
        seconds.add(&[("program", &program.name)], program.measured_seconds);
    }
}

/// How many alerts go on, by rule and severity: whom they are about is told by `/v1/alerts`, and by the sinks.
fn alerts(to: &mut Exposition, standing: &Standing, sinks: &[Arc<SinkStatus>]) {
    let firing = || standing.alerts.iter().filter(|alert| alert.state == alert::State::Firing);
    let mut family = to.family("monitor_alerts", Kind::Gauge, "Alerts that go on, silenced ones too.");
    for rule in Rule::ALL {
        for severity in [Severity::Critical, Severity::Warning] {
            let count = firing().filter(|alert| (alert.rule, alert.severity) == (rule, severity)).count();
            family.add(&[("rule", rule.name()), ("severity", severity.name())], count as u64);
        }
    }
    type Count = fn(&SinkStatus) -> &AtomicU64;
    let counts: [(_, _, Count); 3] = [
        ("monitor_alert_sink_sent", "Alerts and their ends that a sink was told.", |sink| &sink.sent),
        ("monitor_alert_sink_failures", "Tries to tell it that failed.", |sink| &sink.failures),
        ("monitor_alert_sink_dropped", "What it was never told.", |sink| &sink.dropped),
    ];
    for (name, help, count) in counts {
        let mut family = to.family(name, Kind::Counter, help);
        for sink in sinks {
            family.add(&[("sink", sink.name)], count(sink).load(Relaxed));
        }
    }
}

fn sources(to: &mut Exposition, coverage: &Coverage) {
    let mut info = to.family("monitor_source", Kind::Info, "How each source was attached.");
    for source in &coverage.0 {
        let rung = source.rung.unwrap_or_default();
        info.tell(&[("source", source.source.name()), ("state", source.state.name()), ("rung", rung)]);
    }
    let live = || coverage.0.iter().filter(|source| coverage.is_live(source.source));
    let mut seen =
        to.family("monitor_source_moments", Kind::Counter, "Moments received from the kernel and understood.");
    for source in live() {
        seen.add(&[("source", source.source.name())], source.seen_total);
    }
    let mut lost = to.family("monitor_source_lost", Kind::Counter, "Moments and counts lost, by cause.");
    for source in live() {
        let Loss { ring_full, map_full, unmatched, skipped_runs, undecodable } = source.lost;
        let causes = [
            ("ring_full", ring_full),
            ("map_full", map_full),
            ("unmatched", unmatched),
            ("skipped_runs", skipped_runs),
            ("undecodable", undecodable),
        ];
        for (cause, count) in causes {
            lost.add(&[("source", source.source.name()), ("cause", cause)], count);
        }
    }
}

fn host(to: &mut Exposition, usage: &HostUsage) {
    let reading = &usage.reading;
    // Not read where polling of processors is off: time has passed since boot.
    if reading.cpu != CpuTimes::default() {
        processors(to, &reading.cpu, usage.cpus.len() as u64);
    }
    if let Some(load) = reading.load {
        let mut family = to.family("monitor_host_load_average", Kind::Gauge, "Tasks that ran or waited, on average.");
        for (minutes, value) in ["1", "5", "15"].into_iter().zip(load) {
            family.add(&[("minutes", minutes)], value);
        }
    }
    if let Some(memory) = &reading.memory {
        host_memory(to, memory);
    }
    pressure(to, &reading.pressure);
}

fn processors(to: &mut Exposition, times: &CpuTimes, count: u64) {
    to.gauge("monitor_host_processors", "Processors on line.", count);
    let mut family =
        to.family("monitor_host_cpu_seconds", Kind::Counter, "What all processors did with their time since boot.");
    let CpuTimes { user_ns, nice_ns, system_ns, idle_ns, iowait_ns, irq_ns, softirq_ns, steal_ns } = *times;
    let modes = [
        ("user", user_ns),
        ("nice", nice_ns),
        ("system", system_ns),
        ("idle", idle_ns),
        ("iowait", iowait_ns),
        ("irq", irq_ns),
        ("softirq", softirq_ns),
        ("steal", steal_ns),
    ];
    for (mode, ns) in modes {
        family.add(&[("mode", mode)], seconds(ns));
    }
}

fn host_memory(to: &mut Exposition, memory: &HostMemory) {
    to.gauge("monitor_host_memory_total_bytes", "Usable memory.", memory.total_bytes);
    to.gauge("monitor_host_memory_used_bytes", "Memory that could not be had without swapping.", memory.used_bytes());
    to.gauge("monitor_host_memory_available_bytes", "Memory to be had without swapping.", memory.available_bytes);
    to.gauge("monitor_host_memory_free_bytes", "Memory not used for anything.", memory.free_bytes);
    to.gauge("monitor_host_memory_anon_bytes", "Anonymous memory.", memory.anon_bytes);
    to.gauge("monitor_host_memory_cached_bytes", "Page cache.", memory.cached_bytes);
    to.gauge("monitor_host_memory_shmem_bytes", "Shared memory and tmpfs.", memory.shmem_bytes);
    to.gauge("monitor_host_memory_slab_bytes", "The kernel's slabs.", memory.slab_bytes);
    to.gauge("monitor_host_memory_dirty_bytes", "Memory that waits to be written.", memory.dirty_bytes);
    to.gauge("monitor_host_swap_total_bytes", "Swap there is.", memory.swap_total_bytes);
    let used = memory.swap_total_bytes.saturating_sub(memory.swap_free_bytes);
    to.gauge("monitor_host_swap_used_bytes", "Swap used.", used);
}

fn pressure(to: &mut Exposition, pressures: &Pressures) {
    let help = "Time in which some task, or all of them (kind), waited for a resource, since boot (PSI).";
    let mut family = to.family("monitor_host_stalled_seconds", Kind::Counter, help);
    let seconds = |stall: Stall| stall.total_us as f64 / 1e6;
    for (resource, pressure) in [("cpu", pressures.cpu), ("memory", pressures.memory), ("io", pressures.io)] {
        let Some(pressure) = pressure else { continue };
        family.add(&[("resource", resource), ("kind", "some")], seconds(pressure.some));
        if let Some(full) = pressure.full {
            family.add(&[("resource", resource), ("kind", "full")], seconds(full));
        }
    }
}

/// What the kernel programs count over the whole machine, since the agent started.
fn counted(to: &mut Exposition, snapshot: &Snapshot, context: &Context) {
    let totals = &snapshot.host.totals;
    let if_told =
        |source, number, value: u64| if context.tells(source, number) { value.into() } else { Number::Missing };
    let mut faults =
        to.family("monitor_host_page_faults", Kind::Counter, "Page faults by the mode they were taken in.");
    faults.add(&[("mode", "user")], if_told(Source::PageFault, "user_total", totals.user_faults()));
    faults.add(&[("mode", "kernel")], if_told(Source::PageFault, "kernel_total", totals.kernel_faults()));

    let space = &totals.address_space;
    let calls = [
        ("mmap", space.mmap_anonymous_calls + space.mmap_file_calls),
        ("munmap", space.munmap_calls),
        ("mremap", space.mremap_calls),
        ("brk", space.brk_calls),
    ];
    let mut family = to.family("monitor_host_address_space_calls", Kind::Counter, "Calls, failed ones too.");
    for (call, count) in calls {
        family.add(&[("call", call)], if_told(Source::AddressSpace, call, count));
    }
    let mapped = space.mapped_anonymous_bytes + space.mapped_file_bytes;
    let mapped = if_told(Source::AddressSpace, "mapped_bytes_total", mapped);
    to.counter("monitor_host_mapped_bytes", "Bytes mapped by mmap.", mapped);
    let failed = if_told(Source::AddressSpace, "failed_calls_total", space.failed_calls);
    to.counter("monitor_host_failed_address_space_calls", "Calls of mmap, munmap, mremap and brk that failed.", failed);

    let turns = totals.requests.as_deref().cloned().unwrap_or_default();
    let told = |number, value| if_told(Source::Requests, number, value);
    let counts = turns.counts();
    let answered = told("requests_total", counts.answered);
    to.counter("monitor_host_requests", "Turns of requests and answers on accepted connections.", answered);
    let unanswered = told("unanswered_total", counts.unanswered);
    to.counter("monitor_host_unanswered_requests", "Such turns that ended without an answer.", unanswered);
    let connections = told("connections_total", counts.connections);
    to.counter("monitor_host_accepted_connections", "Accepted connections that something came over.", connections);
    let received = told("received_bytes_total", counts.received_bytes);
    to.counter("monitor_host_received_bytes", "Bytes received over accepted connections.", received);
    let sent = told("sent_bytes_total", counts.sent_bytes);
    to.counter("monitor_host_sent_bytes", "Bytes sent over accepted connections.", sent);
    let in_flight = told("in_flight", turns.in_flight());
    to.gauge("monitor_host_requests_in_flight", "Such turns that wait for an answer.", in_flight);
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests;
