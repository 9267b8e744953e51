//! The costly few: cgroups and trees by memory in use, then by processors, each with series of its own; the others are
//! summed into one.
//!
//! Who belongs to the few changes from scrape to scrape. A counter of "the others" would fall whenever one of them came
//! to belong, and a reader would take that for a restart: everything here is a gauge. Those that add up are told of the
//! others too, always, so that their sum over all series is that of the machine.

use super::{
    super::{fields::Number, view::Context},
    openmetrics::{Exposition, Kind, Label},
};
use crate::{
    model::{
        container::{self, Container},
        snapshot::{Cgroup, Snapshot, Subject, Tree},
        totals::Requests,
    },
    reading::MemoryReading,
    source::Source,
};
use std::collections::{HashMap, HashSet};

/// The label's value that stands for the others. No cgroup's path and no pid is like it.
const OTHERS: &str = "_other";

/// A number of cgroups or trees.
struct Gauge<T> {
    name: &'static str,
    help: &'static str,
    /// Whether the others are told of, as one sum.
    adds_up: bool,
    read: fn(&T, &Context) -> Number,
}

/// Which have series of their own.
struct Few<'a, T> {
    /// The value of their first label, unlike each other, with what it stands for; the most costly first.
    chosen: Vec<(String, &'a T)>,
    /// How many have not.
    others: usize,
}

impl<'a, T> Few<'a, T> {
    /// The `top` most costly of those.
    fn of(
        mut candidates: Vec<&'a T>,
        top: usize,
        cost: impl Fn(&T) -> (u64, f64),
        label: impl Fn(&T) -> String,
    ) -> Self {
        candidates.sort_by(|a, b| {
            let ((memory_a, cpu_a), (memory_b, cpu_b)) = (cost(a), cost(b));
            memory_b.cmp(&memory_a).then(cpu_b.total_cmp(&cpu_a))
        });
        let all = candidates.len();
        let mut labels = HashSet::new();
        // A second one of the same name, as where a tree lives on though its root's pid was used again, is among the
        // others: two samples with the same labels would spoil the whole scrape.
        let chosen = candidates.into_iter().map(|item| (label(item), item));
        let chosen: Vec<_> = chosen.filter(|(label, _)| labels.insert(label.clone())).take(top).collect();
        Self { others: all - chosen.len(), chosen }
    }

    /// Writes the gauges. `whole` is what a gauge comes to over all, the few among them.
    fn write(
        &self,
        to: &mut Exposition,
        label: &'static str,
        gauges: &[Gauge<T>],
        context: &Context,
        whole: impl Fn(&dyn Fn(&T) -> Option<f64>) -> Option<f64>,
    ) {
        for gauge in gauges {
            let read = |item: &T| context.known((gauge.read)(item, context));
            let mut family = to.family(gauge.name, Kind::Gauge, gauge.help);
            for (name, item) in &self.chosen {
                family.add(&[(label, name)], read(item));
            }
            if gauge.adds_up {
                let told: f64 = self.chosen.iter().filter_map(|(_, item)| read(item).known()).sum();
                // Not all was read at the very same moment: what is left is not below nothing for that.
                let others = whole(&|item| read(item).known()).map(|whole| (whole - told).max(0.0));
                family.add(&[(label, OTHERS)], others.map_or(Number::Missing, Number::Rate));
            }
        }
    }
}

static CGROUP: &[Gauge<Cgroup>] = &[
    Gauge {
        name: "monitor_cgroup_memory_bytes",
        help: "Memory in use, page cache included; the sum over all series is all that is charged to cgroups.",
        adds_up: true,
        read: |c, _| memory(c, |m| Some(m.current_bytes)),
    },
    Gauge {
        name: "monitor_cgroup_anon_bytes",
        help: "Anonymous memory.",
        adds_up: true,
        read: |c, _| memory(c, |m| m.anon_bytes),
    },
    Gauge {
        name: "monitor_cgroup_swap_bytes",
        help: "Memory swapped out.",
        adds_up: true,
        read: |c, _| memory(c, |m| m.swap_bytes),
    },
    Gauge {
        name: "monitor_cgroup_working_set_bytes",
        help: "Memory in use, less the page cache that is given back first.",
        adds_up: false,
        read: |c, _| memory(c, MemoryReading::working_set_bytes),
    },
    Gauge {
        name: "monitor_cgroup_memory_limit_bytes",
        help: "The memory limit that counts: the tightest of its own, those above it, and the host's memory.",
        adds_up: false,
        read: |c, _| c.usage.as_ref().and_then(|u| u.limit.as_ref()).map(|limit| limit.bytes).into(),
    },
    Gauge {
        name: "monitor_cgroup_memory_peak_bytes",
        help: "The most memory ever in use.",
        adds_up: false,
        read: |c, _| c.usage.as_ref().and_then(|u| u.peak).map(|peak| peak.bytes).into(),
    },
    Gauge {
        name: "monitor_cgroup_memory_stalled_ratio",
        help: "Share of the last 10 s in which something waited for memory (PSI some avg10).",
        adds_up: false,
        read: |c, _| real(c.usage.as_ref().and_then(|u| u.reading.pressure.memory).map(|p| p.some.avg10_ratio)),
    },
    Gauge {
        name: "monitor_cgroup_cpus_used",
        help: "Processors in use, on average over the last tick.",
        adds_up: true,
        read: |c, _| real(c.usage.as_ref().and_then(|u| u.cpu_per_second)),
    },
    Gauge {
        name: "monitor_cgroup_processes",
        help: "Running processes.",
        adds_up: true,
        read: |c, _| Number::Count(c.running.into()),
    },
    Gauge {
        name: "monitor_cgroup_gpu_memory_bytes",
        help: "Memory held on all GPUs.",
        adds_up: true,
        read: |c, _| c.subject.gpu_memory_bytes.into(),
    },
    Gauge {
        name: "monitor_cgroup_page_faults_per_second",
        help: "Page faults over the last tick.",
        adds_up: true,
        read: |c, context| page_faults(&c.subject, context),
    },
    Gauge {
        name: "monitor_cgroup_read_bytes_per_second",
        help: "Bytes read from block devices over the last tick.",
        adds_up: true,
        read: |c, context| block_io(&c.subject, context, "read_bytes", |s| s.rates.read_bytes),
    },
    Gauge {
        name: "monitor_cgroup_written_bytes_per_second",
        help: "Bytes written to block devices over the last tick.",
        adds_up: true,
        read: |c, context| block_io(&c.subject, context, "write_bytes", |s| s.rates.write_bytes),
    },
    Gauge {
        name: "monitor_cgroup_requests_per_second",
        help: "Requests answered over the last tick.",
        adds_up: true,
        read: |c, context| requests(&c.subject, context),
    },
    Gauge {
        name: "monitor_cgroup_requests_in_flight",
        help: "Requests that wait for an answer.",
        adds_up: true,
        read: |c, context| in_flight(&c.subject, context),
    },
];

static TREE: &[Gauge<Tree>] = &[
    Gauge {
        name: "monitor_tree_resident_bytes",
        help: "Resident memory of its running processes; shared pages count once for each.",
        adds_up: true,
        read: |t, _| t.usage.and_then(|usage| usage.resident_bytes).into(),
    },
    Gauge {
        name: "monitor_tree_private_bytes",
        help: "Memory that one process alone maps, summed over the processes of which it is known.",
        adds_up: false,
        read: |t, _| t.usage.and_then(|usage| usage.shares).map(|shares| shares.private_bytes).into(),
    },
    Gauge {
        name: "monitor_tree_shared_bytes",
        help: "Memory that several processes map, divided among them, of the processes of which it is known.",
        adds_up: false,
        read: |t, _| t.usage.and_then(|usage| usage.shares).map(|shares| shares.shared_bytes).into(),
    },
    Gauge {
        name: "monitor_tree_swap_bytes",
        help: "Memory swapped out.",
        adds_up: true,
        read: |t, _| t.usage.and_then(|usage| usage.swap_bytes).into(),
    },
    Gauge {
        name: "monitor_tree_cpus_used",
        help: "Processors in use, on average over the last tick.",
        adds_up: true,
        read: |t, _| real(t.usage.and_then(|usage| usage.cpu_per_second)),
    },
    Gauge {
        name: "monitor_tree_processes",
        help: "Running processes.",
        adds_up: true,
        read: |t, _| Number::Count(t.running.into()),
    },
    Gauge {
        name: "monitor_tree_threads",
        help: "Threads.",
        adds_up: true,
        read: |t, _| t.usage.map(|usage| usage.threads).into(),
    },
    Gauge {
        name: "monitor_tree_gpu_memory_bytes",
        help: "Memory held on all GPUs.",
        adds_up: true,
        read: |t, _| t.subject.gpu_memory_bytes.into(),
    },
    Gauge {
        name: "monitor_tree_page_faults_per_second",
        help: "Page faults over the last tick.",
        adds_up: true,
        read: |t, context| page_faults(&t.subject, context),
    },
    Gauge {
        name: "monitor_tree_requests_per_second",
        help: "Requests answered over the last tick.",
        adds_up: true,
        read: |t, context| requests(&t.subject, context),
    },
    Gauge {
        name: "monitor_tree_requests_in_flight",
        help: "Requests that wait for an answer.",
        adds_up: true,
        read: |t, context| in_flight(&t.subject, context),
    },
];

/// The costly cgroups. Returns how many are told of as one.
///
/// A cgroup includes all below it, so that only some of them can be added up: each container is one, whatever is in it,
/// and outside any those that have none below them. What is charged to those above them is among the others.
pub(super) fn cgroups(to: &mut Exposition, snapshot: &Snapshot, context: &Context, top: usize) -> usize {
    let forest = Forest::of(snapshot);
    let cost = |cgroup: &Cgroup| {
        let usage = cgroup.usage.as_deref();
        let memory = usage.and_then(|usage| usage.reading.memory.as_ref()).map_or(0, |memory| memory.current_bytes);
        (memory, usage.and_then(|usage| usage.cpu_per_second).unwrap_or_default())
    };
    let few = Few::of(forest.workloads(), top, cost, |cgroup| cgroup.path.to_string());
    few.write(to, "cgroup", CGROUP, context, |read| forest.sum(read));
    let mut info = to.family("monitor_cgroup", Kind::Info, "Names of cgroups that have series of their own.");
    for (path, cgroup) in &few.chosen {
        let names = place(Some(&cgroup.path), cgroup.container.as_deref());
        info.tell(&[&[("cgroup", path.as_str())], &names[..]].concat());
    }
    few.others
}

/// The costly trees. Returns how many are told of as one. Every process is in one tree, so that all of them add up.
pub(super) fn trees(to: &mut Exposition, snapshot: &Snapshot, context: &Context, top: usize) -> usize {
    let running = || snapshot.trees.iter().filter(|tree| tree.running > 0).map(|tree| &**tree);
    let cost = |tree: &Tree| {
        let usage = tree.usage.unwrap_or_default();
        (usage.resident_bytes.unwrap_or_default(), usage.cpu_per_second.unwrap_or_default())
    };
    let few = Few::of(running().collect(), top, cost, |tree| tree.root.tgid.0.to_string());
    few.write(to, "tree", TREE, context, |read| sum(running().map(read)));
    let mut info = to.family("monitor_tree", Kind::Info, "Names of process trees that have series of their own.");
    for (pid, tree) in &few.chosen {
        let path = tree.cgroup_path.as_deref();
        let own = [
            ("tree", pid.as_str()),
            ("command", tree.command.as_str()),
            ("rule", tree.rule.unwrap_or_default()),
            ("cgroup", path.unwrap_or_default()),
        ];
        info.tell(&[&own, &place(path, tree.container.as_deref())[..]].concat());
    }
    few.others
}

/// Labels that name a place.
fn place<'a>(path: Option<&'a str>, container: Option<&'a Container>) -> [Label<'a>; 7] {
    fn known(text: Option<&str>) -> &str {
        text.unwrap_or_default()
    }
    let of = |read: fn(&Container) -> Option<&str>| known(container.and_then(read));
    [
        ("container_id", of(|c| Some(&c.id))),
        ("container", of(|c| c.name.as_deref())),
        ("pod", of(|c| c.pod.as_deref())),
        ("namespace", of(|c| c.namespace.as_deref())),
        ("image", of(|c| c.image.as_deref())),
        ("unit", known(path.and_then(container::unit))),
        ("slice", known(path.and_then(container::slice))),
    ]
}

/// The cgroups that are there, with who is above whom.
struct Forest<'a> {
    cgroups: Vec<&'a Cgroup>,
    /// Place of the one above, where it is listed.
    parents: Vec<Option<usize>>,
}

impl<'a> Forest<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let cgroups: Vec<_> =
            snapshot.cgroups.iter().filter(|cgroup| !cgroup.removed).map(|cgroup| &**cgroup).collect();
        let places: HashMap<&str, usize> = cgroups.iter().enumerate().map(|(at, cgroup)| (&*cgroup.path, at)).collect();
        let parents = cgroups.iter().map(|cgroup| parents(&cgroup.path).find_map(|path| places.get(path).copied()));
        Self { parents: parents.collect(), cgroups }
    }

    /// Places of all above one.
    fn above(&self, at: usize) -> impl Iterator<Item = usize> {
        std::iter::successors(self.parents[at], |&at| self.parents[at])
    }

    /// Containers, and outside any those with none below them: none of them includes another.
    fn workloads(&self) -> Vec<&'a Cgroup> {
        let inner: HashSet<usize> = self.parents.iter().flatten().copied().collect();
        let is_in_container = |at: usize| self.cgroups[at].container.is_some();
        let is_workload =
            |at: usize| (is_in_container(at) || !inner.contains(&at)) && !self.above(at).any(is_in_container);
        (0..self.cgroups.len()).filter(|&at| is_workload(at)).map(|at| self.cgroups[at]).collect()
    }

    /// What a number comes to over all: its sum over those who tell it and have none above them that does. The root of
    /// cgroup v2 has no memory, for one.
    fn sum(&self, read: &dyn Fn(&Cgroup) -> Option<f64>) -> Option<f64> {
        let values: Vec<_> = self.cgroups.iter().map(|cgroup| read(cgroup)).collect();
        sum((0..values.len()).filter(|&at| !self.above(at).any(|above| values[above].is_some())).map(|at| values[at]))
    }
}

/// The paths above one, the nearest first.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| match path.rsplit_once('/')? {
        ("", "") => None,
        ("", _) => Some("/"),
        (parent, _) => Some(parent),
    })
    .skip(1)
}

/// The sum of what is known; none where nothing is.
fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    values.flatten().fold(None, |sum, value| Some(sum.unwrap_or_default() + value))
}

fn memory(cgroup: &Cgroup, read: impl Fn(&MemoryReading) -> Option<u64>) -> Number {
    cgroup.usage.as_ref().and_then(|usage| usage.reading.memory.as_ref()).and_then(read).into()
}

fn page_faults(subject: &Subject, context: &Context) -> Number {
    if context.tells(Source::PageFault, "per_second") {
        Number::Rate(subject.rates.page_faults)
    } else {
        Number::Missing
    }
}

fn block_io(subject: &Subject, context: &Context, number: &str, read: fn(&Subject) -> f64) -> Number {
    if context.tells(Source::BlockIo, number) { Number::Rate(read(subject)) } else { Number::Missing }
}

fn requests(subject: &Subject, context: &Context) -> Number {
    if context.tells(Source::Requests, "requests_per_second") {
        Number::Rate(subject.rates.requests)
    } else {
        Number::Missing
    }
}

fn in_flight(subject: &Subject, context: &Context) -> Number {
    if context.tells(Source::Requests, "in_flight") {
        Number::Count(subject.totals.requests.as_deref().map_or(0, Requests::in_flight))
    } else {
        Number::Missing
    }
}

fn real(value: Option<f64>) -> Number {
    value.map_or(Number::Missing, Number::Real)
}
