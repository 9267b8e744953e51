//! The table of counters: their JSON names, and how each is read from a [`Subject`]. Views and `sort=` use it.
//!
//! A counter whose source does not count is null, never 0.

use super::view::Context;
use crate::{
    model::{
        snapshot::Subject,
        totals::{BlockIo, Histogram, Operation, Requests},
    },
    source::Source,
};
use monitor_common::{
    block_io::operation::{DISCARD, FLUSH, OTHER, READ, WRITE},
    page_fault, requests,
    resident::{ANON, FILE, SHMEM, SWAP},
};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use std::cmp::Ordering;

/// A number of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// Not known: null.
    Missing,
    /// A counter, an id, a time.
    Count(u64),
    /// A quantity with a fraction.
    Real(f64),
    /// A change per second, to six decimals; not known in the first snapshot.
    Rate(f64),
}

/// A number's name, and how it is read.
pub(super) type Named<T> = (&'static str, fn(&T) -> Number);
/// A distribution's name, and how it is read.
type Latency = (&'static str, fn(&BlockIo) -> &Histogram);

/// Counters that one source fills.
pub(super) struct Group {
    /// The field that holds them.
    pub(super) name: &'static str,
    /// Which source counts them.
    pub(super) source: Source,
    /// The numbers.
    pub(super) numbers: &'static [Named<Subject>],
    /// The distributions.
    pub(super) latencies: &'static [Latency],
}

/// Page faults.
pub(super) static PAGE_FAULTS: Group = Group {
    name: "page_faults",
    source: Source::PageFault,
    numbers: &[
        ("user_total", |s| Number::Count(s.totals.user_faults())),
        ("kernel_total", |s| Number::Count(s.totals.kernel_faults())),
        ("per_second", |s| Number::Rate(s.rates.page_faults)),
        ("user_read_not_present_total", |s| user(s, page_fault::READ)),
        ("user_read_present_total", |s| user(s, page_fault::READ + page_fault::PRESENT)),
        ("user_write_not_present_total", |s| user(s, page_fault::WRITE)),
        ("user_write_present_total", |s| user(s, page_fault::WRITE + page_fault::PRESENT)),
        ("user_fetch_not_present_total", |s| user(s, page_fault::FETCH)),
        ("user_fetch_present_total", |s| user(s, page_fault::FETCH + page_fault::PRESENT)),
        ("kernel_read_not_present_total", |s| kernel(s, page_fault::READ)),
        ("kernel_read_present_total", |s| kernel(s, page_fault::READ + page_fault::PRESENT)),
        ("kernel_write_not_present_total", |s| kernel(s, page_fault::WRITE)),
        ("kernel_write_present_total", |s| kernel(s, page_fault::WRITE + page_fault::PRESENT)),
    ],
    latencies: &[],
};

/// mmap and its kin.
pub(super) static ADDRESS_SPACE: Group = Group {
    name: "address_space",
    source: Source::AddressSpace,
    numbers: &[
        ("mmap_calls_total", |s| {
            let a = &s.totals.address_space;
            Number::Count(a.mmap_anonymous_calls + a.mmap_file_calls)
        }),
        ("mmap_anonymous_calls_total", |s| Number::Count(s.totals.address_space.mmap_anonymous_calls)),
        ("mmap_file_calls_total", |s| Number::Count(s.totals.address_space.mmap_file_calls)),
        ("mapped_bytes_total", |s| {
            let a = &s.totals.address_space;
            Number::Count(a.mapped_anonymous_bytes + a.mapped_file_bytes)
        }),
        ("mapped_anonymous_bytes_total", |s| Number::Count(s.totals.address_space.mapped_anonymous_bytes)),
        ("mapped_file_bytes_total", |s| Number::Count(s.totals.address_space.mapped_file_bytes)),
        ("munmap_calls_total", |s| Number::Count(s.totals.address_space.munmap_calls)),
        ("unmapped_bytes_total", |s| Number::Count(s.totals.address_space.unmapped_bytes)),
        ("mremap_calls_total", |s| Number::Count(s.totals.address_space.mremap_calls)),
        ("mremap_grown_bytes_total", |s| Number::Count(s.totals.address_space.mremap_grown_bytes)),
        ("mremap_shrunk_bytes_total", |s| Number::Count(s.totals.address_space.mremap_shrunk_bytes)),
        ("brk_calls_total", |s| Number::Count(s.totals.address_space.brk_calls)),
        ("heap_grown_bytes_total", |s| Number::Count(s.totals.address_space.heap_grown_bytes)),
        ("heap_shrunk_bytes_total", |s| Number::Count(s.totals.address_space.heap_shrunk_bytes)),
        ("failed_calls_total", |s| Number::Count(s.totals.address_space.failed_calls)),
        ("mapped_bytes_per_second", |s| Number::Rate(s.rates.mapped_bytes)),
        ("calls_per_second", |s| Number::Rate(s.rates.address_space_calls)),
    ],
    latencies: &[],
};

/// Block I/O.
pub(super) static BLOCK_IO: Group = Group {
    name: "block_io",
    source: Source::BlockIo,
    numbers: &[
        ("read_ops_total", |s| operation(s, READ, |o| o.count)),
        ("read_bytes_total", |s| operation(s, READ, |o| o.bytes)),
        ("write_ops_total", |s| operation(s, WRITE, |o| o.count)),
        ("write_bytes_total", |s| operation(s, WRITE, |o| o.bytes)),
        ("flush_ops_total", |s| operation(s, FLUSH, |o| o.count)),
        ("discard_ops_total", |s| operation(s, DISCARD, |o| o.count)),
        ("discard_bytes_total", |s| operation(s, DISCARD, |o| o.bytes)),
        ("other_ops_total", |s| operation(s, OTHER, |o| o.count)),
        ("errors_total", |s| Number::Count(s.totals.block_io.as_deref().map_or(0, BlockIo::errors))),
        ("wait_seconds_total", |s| Number::Real(s.totals.block_io.as_deref().map_or(0, BlockIo::wait_ns) as f64 / 1e9)),
        ("read_bytes_per_second", |s| Number::Rate(s.rates.read_bytes)),
        ("write_bytes_per_second", |s| Number::Rate(s.rates.write_bytes)),
        ("ops_per_second", |s| Number::Rate(s.rates.io_ops)),
        ("in_flight_average", |s| Number::Rate(s.rates.io_wait)),
    ],
    latencies: &[
        ("read_latency", |io| &io.read_latency),
        ("write_latency", |io| &io.write_latency),
        ("queue_latency", |io| &io.queue_latency),
        ("device_latency", |io| &io.device_latency),
    ],
};

/// What no source counts, but clients tell.
const POSTED: &str = "posted_total";

/// Turns of requests and answers.
pub(super) static REQUESTS: Group = Group {
    name: "requests",
    source: Source::Requests,
    numbers: &[
        ("requests_total", |s| turns(s, |t| t.answered)),
        ("requests_per_second", |s| Number::Rate(s.rates.requests)),
        ("unanswered_total", |s| turns(s, |t| t.unanswered)),
        (POSTED, |s| Number::Count(s.totals.requests.as_deref().map_or(0, |requests| requests.posted))),
        ("connections_total", |s| turns(s, |t| t.connections)),
        ("received_bytes_total", |s| turns(s, |t| t.received_bytes)),
        ("sent_bytes_total", |s| turns(s, |t| t.sent_bytes)),
        ("in_flight", |s| Number::Count(s.totals.requests.as_deref().map_or(0, Requests::in_flight))),
        ("in_flight_peak", |s| Number::Count(s.totals.requests.as_deref().map_or(0, |requests| requests.peak))),
    ],
    latencies: &[],
};

/// How far the bytes of a group may be off, of each kind: how many errors add up to that, times what the source's coverage tells.
const ERROR_BYTES: &str = "error_bytes";

/// What is in memory.
pub(super) static RESIDENT: Group = Group {
    name: "resident",
    source: Source::Resident,
    numbers: &[
        ("anon_bytes", |s| in_memory(s, ANON)),
        ("file_bytes", |s| in_memory(s, FILE)),
        ("shmem_bytes", |s| in_memory(s, SHMEM)),
        ("swap_bytes", |s| in_memory(s, SWAP)),
        (ERROR_BYTES, |s| s.resident.map(|resident| resident.processes).into()),
        ("anon_change_bytes_per_second", |s| Number::Rate(s.rates.resident[ANON])),
        ("file_change_bytes_per_second", |s| Number::Rate(s.rates.resident[FILE])),
        ("shmem_change_bytes_per_second", |s| Number::Rate(s.rates.resident[SHMEM])),
        ("swap_change_bytes_per_second", |s| Number::Rate(s.rates.resident[SWAP])),
    ],
    latencies: &[],
};

/// The numbers of a distribution; quantiles of nothing are not known.
static LATENCY: [Named<Histogram>; 5] = [
    ("count", |h| Number::Count(h.count())),
    ("p50_ns", |h| h.quantile_ns(0.5).into()),
    ("p90_ns", |h| h.quantile_ns(0.9).into()),
    ("p99_ns", |h| h.quantile_ns(0.99).into()),
    ("max_ns", |h| h.max_ns().into()),
];

fn user(subject: &Subject, kind: usize) -> Number {
    Number::Count(subject.totals.page_fault[kind])
}

fn kernel(subject: &Subject, kind: usize) -> Number {
    user(subject, page_fault::USER_KINDS + kind)
}

fn operation(subject: &Subject, operation: u16, read: fn(&Operation) -> u64) -> Number {
    Number::Count(subject.totals.block_io.as_deref().map_or(0, |io| read(&io.operations[usize::from(operation)])))
}

fn in_memory(subject: &Subject, kind: usize) -> Number {
    subject.resident.map(|resident| resident.bytes[kind]).into()
}

fn turns(subject: &Subject, read: fn(&requests::Totals) -> u64) -> Number {
    Number::Count(subject.totals.requests.as_deref().map_or(0, |requests| read(requests.counts())))
}

/// One number of a group: what `sort=` names.
#[derive(Clone, Copy)]
pub(super) enum Field {
    /// A number of the group itself.
    Plain(&'static Group, Named<Subject>),
    /// A number of one of its distributions.
    Latency(&'static Group, Latency, fn(&Histogram) -> Number),
}

impl Group {
    /// All its numbers with their full names.
    pub(super) fn fields(&'static self) -> impl Iterator<Item = (String, Field)> {
        let plain =
            self.numbers.iter().map(move |&number| (format!("{}.{}", self.name, number.0), Field::Plain(self, number)));
        let latencies = self.latencies.iter().flat_map(move |&latency| {
            LATENCY.iter().map(move |&(name, read)| {
                (format!("{}.{}.{name}", self.name, latency.0), Field::Latency(self, latency, read))
            })
        });
        plain.chain(latencies)
    }
}

impl Field {
    /// Its value.
    pub(super) fn read(&self, subject: &Subject, context: &Context) -> Number {
        let (Self::Plain(group, (name, _)) | Self::Latency(group, (name, _), _)) = self;
        if *name != POSTED && !context.tells(group.source, name) {
            return Number::Missing;
        }
        match self {
            Self::Plain(_, (ERROR_BYTES, read)) => context.error(group.source, read(subject)),
            Self::Plain(_, (_, read)) => context.known(read(subject)),
            Self::Latency(_, (_, histogram), read) => {
                let empty = Histogram::default();
                read(subject.totals.block_io.as_deref().map_or(&empty, histogram))
            }
        }
    }
}

impl Number {
    /// Orders by size; what is missing comes first, so that it is last in descending order.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        match (*self, *other) {
            (Self::Count(a), Self::Count(b)) => a.cmp(&b),
            (a, b) => a.as_f64().total_cmp(&b.as_f64()),
        }
    }

    /// Its value; none where it is not known.
    pub(super) fn known(self) -> Option<f64> {
        (!matches!(self, Self::Missing)).then(|| self.as_f64())
    }

    const fn as_f64(self) -> f64 {
        match self {
            Self::Missing => f64::NEG_INFINITY,
            Self::Count(value) => value as f64,
            Self::Real(value) | Self::Rate(value) => value,
        }
    }
}

impl From<Option<u64>> for Number {
    fn from(value: Option<u64>) -> Self {
        value.map_or(Self::Missing, Self::Count)
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Count(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Missing => serializer.serialize_none(),
            Self::Count(value) => serializer.serialize_u64(value),
            Self::Real(value) => serializer.serialize_f64(value),
            Self::Rate(value) => serializer.serialize_f64((value * 1e6).round() / 1e6),
        }
    }
}

/// A subject's groups, as the fields of one object.
pub(super) struct Groups<'a> {
    /// Which.
    pub(super) groups: &'static [&'static Group],
    /// Of whom.
    pub(super) subject: &'a Subject,
    /// What is known.
    pub(super) context: Context,
}

struct GroupView<'a> {
    group: &'static Group,
    subject: &'a Subject,
    context: Context,
}

struct LatencyView<'a> {
    latency: Latency,
    group: &'a GroupView<'a>,
}

impl Serialize for Groups<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { subject, context, .. } = *self;
        serializer.collect_map(self.groups.iter().map(|&group| (group.name, GroupView { group, subject, context })))
    }
}

impl Serialize for GroupView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { group, subject, context } = self;
        let mut map = serializer.serialize_map(Some(group.numbers.len() + group.latencies.len()))?;
        for &number in group.numbers {
            map.serialize_entry(number.0, &Field::Plain(group, number).read(subject, context))?;
        }
        for &latency in group.latencies {
            map.serialize_entry(latency.0, &LatencyView { latency, group: self })?;
        }
        map.end()
    }
}

impl Serialize for LatencyView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let GroupView { group, subject, context } = self.group;
        serializer.collect_map(
            LATENCY
                .iter()
                .map(|&(name, read)| (name, Field::Latency(group, self.latency, read).read(subject, context))),
        )
    }
}
